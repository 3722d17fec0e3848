//! Rules through iptables: the texts, and the real programs in namespaces.

mod evidence;
mod host;
mod model;
mod programs;
mod text;
mod watch;

use crate::addr::PerFamily;
use crate::firewall::rules::{Range, Wanted};
use crate::firewall::{Step, Work};

fn range(network: &str, subnet: &str) -> Range {
    Range { network: network.parse().unwrap(), subnet: subnet.parse().unwrap() }
}

/// The ranges of the Go node whose rules are in `flannel-lab/golden/vxlan-dual.json`.
fn golden_ranges() -> PerFamily<Range> {
    PerFamily {
        v4: Some(range("10.244.0.0/16", "10.244.87.0/24")),
        v6: Some(range("fd00:10:244::/56", "fd00:10:244:3d::/64")),
    }
}

/// The program that a step runs.
fn program(step: &Step) -> &'static str {
    match step.work {
        Work::Program { program, .. } => program,
        Work::Transaction(_) => panic!("{step:?}"),
    }
}

fn all_of(ranges: PerFamily<Range>) -> Wanted {
    Wanted { ranges, masquerade: true, fully_random: true, forward: true }
}
