//! The variant is chosen again when others show which one is right.

use std::future::poll_fn;
use std::ops::Range;
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use flannel_lab::test_name;
use flannel_lab::wait::patiently;
use tokio::time::{Instant, timeout};

use super::super::evidence::Evidence;
use super::super::variant::{Kind, Usage};
use super::host::{dump, open_every, ours, reconcile, sh_both, with};
use super::{all_of, golden_ranges, program};
use crate::addr::Family;
use crate::firewall::RuleManager;

#[test]
fn the_kubelet_decides_at_once_and_numbers_after_a_while() {
    let kubelet = |rules| Some(Usage { has_kubelet_chains: true, rules });
    let rules = |rules| Some(Usage { has_kubelet_chains: false, rules });
    // Each: at which second, this variant, the other, and whether it is chosen then.
    for (what, looks) in [
        ("the kubelet came to the other", vec![(0, rules(9), kubelet(0), true)]),
        (
            "and both have its chains",
            vec![(0, kubelet(0), kubelet(99), false), (99, kubelet(0), kubelet(99), false)],
        ),
        ("the kubelet is here", vec![(0, kubelet(0), rules(99), false), (99, kubelet(0), rules(99), false)]),
        (
            "more rules there",
            vec![
                (0, rules(0), rules(5), false),
                (29, rules(0), rules(5), false),
                (30, rules(0), rules(5), true),
            ],
        ),
        ("as many", vec![(0, rules(5), rules(5), false), (99, rules(5), rules(5), false)]),
        (
            "a firewall that starts anew",
            vec![
                (0, rules(0), rules(5), false),
                (5, rules(9), rules(5), false),
                (31, rules(0), rules(5), false),
            ],
        ),
        ("one that can't be read", vec![(0, None, kubelet(9), false), (40, rules(0), None, false)]),
        (
            "to and fro",
            vec![
                (0, rules(0), rules(5), false),
                (30, rules(0), rules(5), true),
                (40, rules(5), rules(9), false),
                (620, rules(5), rules(9), false),
                (631, rules(5), rules(9), true),
            ],
        ),
    ] {
        let (mut evidence, begin) = (Evidence::new(Kind::Nft), Instant::now());
        for (second, this, other, is_moved) in looks {
            let before = evidence.kind;
            let why = evidence.reconsider(begin + Duration::from_secs(second), this, other);
            assert_eq!(
                (why.is_some(), evidence.kind != before),
                (is_moved, is_moved),
                "{what}, second {second}"
            );
        }
    }
}

/// No interruption.
const NONE: Range<usize> = 0..0;

/// Polls a future so many times at most, and drops it if it is not done.
async fn abandon(polls: usize, future: impl Future<Output = ()>) {
    let (mut future, mut left) = (pin!(future), polls);
    poll_fn(|context| {
        left -= 1;
        let is_done = future.as_mut().poll(context).is_ready();
        if is_done || left == 0 { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
}

/// The agent was first; then the kubelet, and a policy that drops, came to the other variant.
async fn moves_to(kind: Kind, mut interruptions: Range<usize>) {
    let other = match kind {
        Kind::Nft => Kind::Legacy,
        Kind::Legacy => Kind::Nft,
    };
    let mut manager = open_every(other, Duration::from_secs(1)).await;
    let want = all_of(golden_ranges());
    reconcile(&mut manager, &want, &ours()).await;
    sh_both(kind, "$I -t mangle -N KUBE-IPTABLES-HINT; $I -P FORWARD DROP");
    let noticed = async {
        loop {
            // Whoever waits for it waits for other things as well, and drops it for them at any moment.
            match interruptions.next() {
                Some(polls) => abandon(polls, manager.changed()).await,
                None => manager.changed().await,
            }
            let plan = reconcile(&mut manager, &want, &ours()).await;
            if !plan.steps.is_empty() {
                return plan;
            }
        }
    };
    let plan = timeout(patiently(Duration::from_secs(30)), noticed).await.unwrap();
    let programs: Vec<_> = plan.steps.iter().map(program).collect();
    let is_of = |at: usize, kind: Kind| programs[at].contains(&format!("-{kind}-"));
    assert!(
        programs.len() == 4 && is_of(0, kind) && is_of(1, kind) && is_of(2, other),
        "new first: {programs:?}"
    );
    assert!(manager.choice().contains(&format!("({kind}): the kubelet uses it now")), "{}", manager.choice());
    for family in Family::ALL {
        let has_ours = |kind| dump(kind, family).iter().any(|line| line.contains("flanneld"));
        assert!(has_ours(kind) && !has_ours(other));
    }
}

#[test]
fn rules_move_to_legacy_where_the_kubelet_is() {
    with(test_name!(), async || moves_to(Kind::Legacy, NONE).await);
}

#[test]
fn rules_move_to_nft_where_the_kubelet_is() {
    with(test_name!(), async || moves_to(Kind::Nft, NONE).await);
}

#[test]
fn rules_move_to_legacy_though_the_look_is_interrupted_at_any_moment() {
    with(test_name!(), async || moves_to(Kind::Legacy, 2..17).await);
}

#[test]
fn rules_move_to_nft_though_the_look_is_interrupted_at_any_moment() {
    with(test_name!(), async || moves_to(Kind::Nft, 2..17).await);
}
