//! What shows that a verdict against a peer may not be right any more: a few of the packets from which it was made, each
//! answered as it was then. Pure.
//!
//! Thorough rounds of many peers would cost more than all others. So most visits of a peer with a verdict against it only
//! watch: whatever is answered in another way than before makes the next round a thorough one, at once.

use super::kind::Kind;
use super::status::Verdict;
use super::verdict::{Answer, Findings};

/// The packets that watch a peer with this verdict, which a thorough round with these findings confirmed.
pub(super) fn watched(verdict: Verdict, seen: &Findings, knows_echo: bool) -> Vec<Kind> {
    let mut kinds = vec![Kind::Small];
    match verdict {
        Verdict::MtuHole { at_most } => kinds.extend([Kind::Full, Kind::AtLargest(at_most)]),
        Verdict::ChecksumOffload => kinds.extend([Kind::Offloaded, Kind::Software]),
        Verdict::IcmpFiltered => kinds.extend([Kind::Offloaded, Kind::Tcp]),
        Verdict::ReturnPath => kinds.push(Kind::Sideways),
        Verdict::RecordStale => kinds.push(Kind::AnyMac),
        Verdict::TunnelClosed | Verdict::TunnelBlocked => kinds.push(Kind::Closed),
        Verdict::PeerDead
        | Verdict::Unknown
        | Verdict::Unsent
        | Verdict::Untested
        | Verdict::Reachable
        | Verdict::Bridged => {}
    }
    // A filter may drop the echoes of a peer that comes back.
    if !knows_echo && !kinds.contains(&Kind::Offloaded) {
        kinds.push(Kind::Offloaded);
    }
    let of_node = [(seen.under_echo, Kind::UnderEcho), (seen.under_udp, Kind::UnderUdp)];
    let answering = of_node.into_iter().find(|(answer, _)| *answer == Answer::Yes);
    kinds.push(answering.map_or(Kind::UnderEcho, |(_, kind)| kind));
    kinds
}

/// Whether all of these packets were answered as they were before.
pub(super) fn stands(kinds: &[Kind], seen: &Findings, found: &Findings, at_largest: Answer) -> bool {
    at_largest != Answer::No && kinds.iter().all(|kind| found.answer(*kind) == seen.answer(*kind))
}

#[cfg(test)]
mod tests {
    use super::Answer::{No, Yes};
    use super::*;

    /// Nothing of the peer answers.
    fn silent() -> Findings {
        let mut found = Findings::default();
        for kind in [
            Kind::Small,
            Kind::Full,
            Kind::Offloaded,
            Kind::Software,
            Kind::Tcp,
            Kind::UnderEcho,
            Kind::UnderUdp,
            Kind::UnderTcp,
            Kind::Closed,
            Kind::Sideways,
            Kind::AnyMac,
        ] {
            *found.of_kind(kind).unwrap() = No;
        }
        found
    }

    /// For each verdict: what it was made of, and what then is answered in another way and must be noticed.
    #[test]
    fn what_ends_a_verdict_is_watched() {
        use {Kind as K, Verdict as V};
        let node = Findings { under_echo: Yes, ..silent() };
        let hole = Findings { small: Yes, offloaded: Yes, software: Yes, ..node.clone() };
        let offload = Findings { small: Yes, full: Yes, software: Yes, ..node.clone() };
        let filtered = Findings { tcp: Yes, ..node.clone() };
        for (verdict, seen, changes) in [
            (V::MtuHole { at_most: 1350 }, hole, [K::Full, K::Small].as_slice()),
            (V::ChecksumOffload, offload, &[K::Offloaded, K::Software, K::Small]),
            (V::IcmpFiltered, filtered, &[K::Small, K::Offloaded, K::Tcp]),
            (V::ReturnPath, Findings { sideways: Yes, ..node.clone() }, &[K::Small, K::Sideways]),
            (V::RecordStale, Findings { any_mac: Yes, ..node.clone() }, &[K::Small, K::AnyMac]),
            (V::TunnelClosed, Findings { closed: Yes, ..node.clone() }, &[K::Small, K::Closed, K::UnderEcho]),
            (V::TunnelBlocked, node, &[K::Small, K::Closed, K::UnderEcho]),
            (V::TunnelBlocked, Findings { under_udp: Yes, ..silent() }, &[K::Small, K::UnderUdp]),
            (V::PeerDead, silent(), &[K::Small, K::UnderEcho]),
            (V::Unknown, silent(), &[K::Small, K::UnderEcho]),
            (V::Unsent, Findings { small: Answer::Untried, ..silent() }, &[K::Small, K::UnderEcho]),
        ] {
            let kinds = watched(verdict, &seen, true);
            assert!(kinds.len() <= 4, "{verdict}: {kinds:?}");
            assert!(stands(&kinds, &seen, &seen, Answer::Yes), "{verdict}");
            for kind in changes {
                let mut found = seen.clone();
                let answer = found.of_kind(*kind).unwrap();
                *answer = if *answer == Yes { No } else { Yes };
                assert!(!stands(&kinds, &seen, &found, Answer::Yes), "{verdict}: {kind:?}");
            }
        }
        let hole = V::MtuHole { at_most: 1350 };
        let kinds = watched(hole, &silent(), true);
        assert!(
            kinds.contains(&K::AtLargest(1350)) && !stands(&kinds, &silent(), &silent(), No),
            "it got smaller"
        );
    }

    #[test]
    fn a_peer_whose_echo_was_never_answered_is_asked_by_udp_too() {
        assert!(watched(Verdict::PeerDead, &silent(), false).contains(&Kind::Offloaded));
        assert!(!watched(Verdict::PeerDead, &silent(), true).contains(&Kind::Offloaded));
        let kinds = watched(Verdict::ChecksumOffload, &silent(), false);
        assert_eq!(kinds.iter().filter(|kind| **kind == Kind::Offloaded).count(), 1);
    }
}
