//! Whether a peer is reached, by probes.

use std::collections::BTreeMap;

use super::paint::Style;
use super::table::Cell;
use super::units::micros;
use crate::wire::{FamilyProbe, Peer, PeerProbe, Probes};

/// How well a peer is reached, the worst first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Grade {
    /// Packets of pods are lost.
    Trouble,
    /// It does not answer, and nothing proves that it should.
    Unknown,
    /// It answers, but not to everything, or by a detour.
    Limited,
    /// It was not probed yet.
    Untested,
    /// All is answered.
    Good,
}

/// The grade of a verdict. A kind that this program does not know is trouble.
pub(super) fn grade(verdict: &str) -> Grade {
    match verdict {
        "reachable" => Grade::Good,
        "untested" => Grade::Untested,
        "icmp-filtered" | "bridged" => Grade::Limited,
        "unknown" => Grade::Unknown,
        _ => Grade::Trouble,
    }
}

pub(super) fn style(verdict: &str) -> Style {
    match grade(verdict) {
        Grade::Good => Style::Good,
        Grade::Unknown | Grade::Limited | Grade::Untested => Style::Fair,
        Grade::Trouble => Style::Bad,
    }
}

/// The results by lease.
pub(super) fn by_lease(probes: Option<&Probes>) -> BTreeMap<&str, &PeerProbe> {
    probes.iter().flat_map(|probes| &probes.peers).map(|probe| (probe.lease.as_str(), probe)).collect()
}

/// The family that is worse off, with its name if only that one is.
pub(super) fn worst(probe: &PeerProbe) -> Option<(Option<&'static str>, &FamilyProbe)> {
    let mut families = probe.named();
    let (name, first) = families.next()?;
    let Some((other_name, other)) = families.next() else { return Some((None, first)) };
    if first.verdict == other.verdict {
        return Some((None, first));
    }
    let is_first = grade(&first.verdict) <= grade(&other.verdict);
    Some(if is_first { (Some(name), first) } else { (Some(other_name), other) })
}

/// The name of a verdict. Where there is no tunnel none is blamed.
pub(super) fn name<'a>(probe: &'a FamilyProbe, path: Option<&str>) -> &'a str {
    match (probe.verdict.as_str(), path) {
        ("tunnel-blocked", Some("direct" | "host-gw")) => "blocked",
        (verdict, _) => verdict,
    }
}

/// How a peer goes in one of its families.
pub(super) fn path<'a>(peer: &'a Peer, probe: &FamilyProbe) -> Option<&'a str> {
    let path = if probe.overlay.target.is_ipv4() { &peer.path.v4 } else { &peer.path.v6 };
    path.as_deref()
}

/// The worse verdict in few words.
pub(super) fn verdict(peer: &Peer, probe: &PeerProbe) -> Cell {
    let Some((family, probe)) = worst(probe) else { return "".into() };
    let family = family.map(|family| format!("{family} ")).unwrap_or_default();
    Cell::new(format!("{family}{}", name(probe, path(peer, probe))), style(&probe.verdict))
}

/// The round-trip time through the overlay, while there is one: that of the last answer says nothing of a peer that is
/// not reached now.
pub(super) fn rtt(probe: &PeerProbe) -> String {
    let Some((_, worst)) = worst(probe) else { return String::new() };
    let is_answered = matches!(
        worst.verdict.as_str(),
        "reachable" | "icmp-filtered" | "bridged" | "mtu-hole" | "checksum-offload" | "untested"
    );
    worst.overlay.rtt_us.filter(|_| is_answered).map(micros).unwrap_or_default()
}

/// What verdicts other than good ones were made from, with the family where it is not the same for all.
pub(super) fn why(probe: &PeerProbe) -> Option<String> {
    let families: Vec<_> = probe
        .named()
        .map(|(family, probe)| (family, evidence(probe)))
        .filter(|it| !it.1.is_empty())
        .collect();
    let all = probe.named().count();
    match families.as_slice() {
        [] => None,
        [(_, one), rest @ ..] if rest.len() + 1 == all && rest.iter().all(|(_, it)| it == one) => {
            Some(one.clone())
        }
        several => {
            let each = several.iter().map(|(family, text)| format!("{family}: {text}"));
            Some(each.collect::<Vec<_>>().join("; "))
        }
    }
}

/// What a verdict was made from, in a line. Of an MTU hole it is the size that passes.
fn evidence(probe: &FamilyProbe) -> String {
    size(probe).filter(|_| probe.at_most_underlay.is_some()).unwrap_or_else(|| probe.evidence.join(", "))
}

/// Of an MTU hole: what passes, in the unit of `Backend.MTU` and in that of pods.
pub(super) fn size(probe: &FamilyProbe) -> Option<String> {
    let pods = probe.at_most?;
    Some(match probe.at_most_underlay {
        Some(underlay) if underlay != pods => {
            format!("at most {underlay} bytes pass on the underlay (as Backend.MTU counts), {pods} of pods")
        }
        _ => format!("at most {pods} bytes of pods pass"),
    })
}
