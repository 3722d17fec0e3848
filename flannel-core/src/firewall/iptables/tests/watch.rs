//! When the rules are looked at, and what is seen besides them.

use std::time::Duration;

use flannel_lab::test_name;

use super::super::Iptables;
use super::super::variant::Kind;
use super::super::watch::Watch;
use super::host::{open, ours, reconcile, sh, with};
use super::{all_of, golden_ranges};
use crate::addr::Family;
use crate::firewall::RuleManager;
use crate::netns::Netns;

#[tokio::test(start_paused = true)]
async fn the_legacy_variant_is_looked_at_about_once_a_period() {
    let period = Duration::from_secs(5);
    let mut watch = Watch::new(&Netns::current().unwrap(), Kind::Legacy, period);
    for _ in 0..20 {
        let before = tokio::time::Instant::now();
        watch.wait().await;
        let waited = before.elapsed();
        assert!((period.mul_f64(0.94)..period.mul_f64(1.06)).contains(&waited), "{waited:?}");
    }
}

#[test]
fn the_nft_variant_is_looked_at_when_its_tables_change_and_not_more_often() {
    with(test_name!(), async || {
        let mut manager = open(Kind::Nft).await;
        reconcile(&mut manager, &all_of(golden_ranges()), &ours()).await;
        let within =
            async |manager: &mut Iptables, time| tokio::time::timeout(time, manager.changed()).await.is_ok();
        // Our own change was announced, too.
        assert!(within(&mut manager, Duration::from_secs(10)).await);
        manager.plan(&all_of(golden_ranges()), &ours()).await.unwrap();
        assert!(!within(&mut manager, Duration::from_secs(2)).await, "nothing changed");
        sh(Kind::Nft, Family::V4, "$I -t mangle -A FORWARD -s 192.0.2.1 -j ACCEPT");
        assert!(!within(&mut manager, Duration::from_secs(2)).await, "a table that we have nothing in");
        sh(Kind::Nft, Family::V4, "$I -t nat -F FLANNEL-POSTRTG");
        assert!(within(&mut manager, Duration::from_secs(10)).await);
        assert_eq!(reconcile(&mut manager, &all_of(golden_ranges()), &ours()).await.steps.len(), 1);
        let begin = std::time::Instant::now();
        assert!(within(&mut manager, Duration::from_secs(10)).await);
        assert!(begin.elapsed() > Duration::from_millis(700), "once a period at most: {:?}", begin.elapsed());
    });
}
