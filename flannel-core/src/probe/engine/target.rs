//! A peer in one family as a target of probes, its present visit, and what a visit sends. Pure.

use std::net::IpAddr;

use tokio::time::Instant;

use crate::addr::{Family, LinkIndex, MacAddr};
use crate::lease::LeaseKey;
use crate::probe::kind::Kind;
use crate::probe::track::{Round, Track};
use crate::probe::verdict::{Answer, Findings};

/// A packet that was sent.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sent {
    pub(super) target: u32,
    pub(super) kind: Kind,
    pub(super) at: Instant,
}

/// A visit whose answers are awaited.
#[derive(Debug)]
pub(super) struct Visit {
    pub(super) round: Round,
    pub(super) at: Instant,
    pub(super) numbers: Vec<u32>,
    pub(super) unanswered: usize,
    pub(super) found: Findings,
    pub(super) at_largest: Answer,
    pub(super) rungs: Vec<u32>,
}

impl Visit {
    pub(super) fn set(&mut self, kind: Kind, answer: Answer) {
        let place = match kind {
            Kind::AtLargest(_) => &mut self.at_largest,
            Kind::Rung(size) => {
                if answer == Answer::Yes {
                    self.rungs.push(size);
                }
                return;
            }
            kind => match self.found.of_kind(kind) {
                Some(place) => place,
                None => return,
            },
        };
        // Of two packets of a kind one answer is enough.
        if *place != Answer::Yes {
            *place = answer;
        }
    }
}

/// A peer in one family.
#[derive(Debug)]
pub(super) struct Target {
    pub(super) lease: LeaseKey,
    pub(super) family: Family,
    pub(super) overlay: IpAddr,
    pub(super) underlay: IpAddr,
    /// The MAC of its VTEP, if it has one.
    pub(super) vtep: Option<MacAddr>,
    /// Whether it is reached by routes alone, whatever the backend does for others.
    pub(super) is_direct: bool,
    /// Whether it is reached through the tunnel, or would be if that were not blocked.
    pub(super) tunnelled: bool,
    /// The kind of the backend by which it is reached while its tunnel is blocked.
    pub(super) detour: Option<String>,
    /// The link that it is on, if that was looked up and no gateway leads to it.
    pub(super) link: Option<LinkIndex>,
    /// Whether it takes an entry of its own in the kernel's table of neighbours. It counts as if, until that matters.
    pub(super) on_link: bool,
    /// When these two were read last.
    pub(super) hop_read: Option<Instant>,
    pub(super) track: Track,
    pub(super) visit: Option<Box<Visit>>,
    /// When the visit is over, or the next one begins.
    pub(super) wake: Instant,
    /// Whether it answers by ICMP errors alone, of which there are not many.
    pub(super) by_errors: bool,
    /// In which reading of the list it was seen last.
    pub(super) seen: u64,
}

/// The packets of a round, in the order in which they are sent. Errors are limited, so those that tell most come first.
pub(super) fn packets(round: &Round, target: &Target, has_echo: bool) -> Vec<Kind> {
    let mut kinds = match round {
        Round::First => vec![Kind::Small],
        Round::Regular { udp: true } => vec![Kind::Small, Kind::Full, Kind::Offloaded, Kind::UnderEcho],
        Round::Regular { udp: false } => vec![Kind::Small, Kind::Full, Kind::UnderEcho],
        Round::Thorough { largest } => {
            let mut kinds = vec![
                Kind::Closed,
                Kind::Small,
                Kind::Small,
                Kind::Full,
                Kind::Full,
                Kind::Offloaded,
                Kind::Software,
                Kind::UnderEcho,
                Kind::UnderUdp,
                Kind::Sideways,
                Kind::AnyMac,
                Kind::Tcp,
                Kind::UnderTcp,
                Kind::Solicit,
            ];
            kinds.extend(largest.map(Kind::AtLargest));
            kinds
        }
        Round::Watch(kinds) => kinds.clone(),
        Round::Ladder(sizes) => sizes.iter().copied().map(Kind::Rung).collect(),
    };
    if target.detour.is_some() && matches!(round, Round::First | Round::Regular { .. }) {
        kinds.push(Kind::Sideways);
    }
    if !target.tunnelled {
        kinds.retain(|kind| !matches!(kind, Kind::Closed | Kind::Sideways | Kind::AnyMac));
    }
    if target.by_errors {
        kinds.retain(|kind| !matches!(kind, Kind::Full | Kind::Offloaded | Kind::Software));
        kinds.dedup();
    }
    if !has_echo {
        let needs_echo = |kind: &Kind| {
            matches!(
                kind,
                Kind::Small
                    | Kind::Full
                    | Kind::UnderEcho
                    | Kind::Sideways
                    | Kind::AnyMac
                    | Kind::AtLargest(_)
                    | Kind::Rung(_)
            )
        };
        kinds.retain(|kind| !needs_echo(kind));
        if kinds.is_empty() {
            kinds.push(Kind::Offloaded);
        }
    }
    kinds
}
