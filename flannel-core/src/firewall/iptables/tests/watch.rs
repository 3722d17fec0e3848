//! When the rules are looked at, and what is seen besides them.

use std::time::Duration;

use flannel_lab::test_name;
use tokio::time::{Instant, timeout};

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
        let before = Instant::now();
        watch.wait().await;
        let waited = before.elapsed();
        assert!((period.mul_f64(0.94)..period.mul_f64(1.06)).contains(&waited), "{waited:?}");
    }
}

#[test]
fn the_nft_variant_is_looked_at_when_its_tables_change() {
    with(test_name!(), async || {
        let mut manager = open(Kind::Nft).await;
        reconcile(&mut manager, &all_of(golden_ranges()), &ours()).await;
        // Our own change was announced, too.
        manager.changed().await;
        assert_eq!(manager.plan(&all_of(golden_ranges()), &ours()).await.unwrap().steps, []);
        sh(Kind::Nft, Family::V4, "$I -t nat -F FLANNEL-POSTRTG");
        manager.changed().await;
        assert_eq!(reconcile(&mut manager, &all_of(golden_ranges()), &ours()).await.steps.len(), 1);
    });
}

/// The clock stands but where everything waits, and a program that ended has changed what it was to change.
#[test]
fn the_nft_variant_is_not_looked_at_more_often_than_needed() {
    with(test_name!(), async || {
        tokio::time::pause();
        let period = Duration::from_secs(5);
        let mut watch = Watch::new(&Netns::current().unwrap(), Kind::Nft, period);
        let begin = Instant::now();
        watch.looks();
        assert!(timeout(100 * period, watch.wait()).await.is_err(), "nothing changed");
        sh(Kind::Nft, Family::V4, "$I -t mangle -A FORWARD -s 192.0.2.1 -j ACCEPT");
        assert!(timeout(100 * period, watch.wait()).await.is_err(), "a table that we have nothing in");
        sh(Kind::Nft, Family::V4, "$I -t nat -A POSTROUTING -s 192.0.2.1 -j ACCEPT");
        let before = Instant::now();
        watch.wait().await;
        assert!(
            begin + 200 * period < before && before.elapsed() < period / 10,
            "at once, since the last look is old"
        );
        for _ in 0..3 {
            let looked = Instant::now();
            watch.looks();
            sh(Kind::Nft, Family::V4, "$I -t nat -A POSTROUTING -s 192.0.2.1 -j ACCEPT");
            watch.wait().await;
            assert!((period..period.mul_f64(1.1)).contains(&looked.elapsed()), "{:?}", looked.elapsed());
        }
    });
}
