//! Whether a peer is reached, by probes.

use std::collections::BTreeMap;

use super::paint::Style;
use super::table::Cell;
use super::units::micros;
use crate::wire::{FamilyProbe, PeerProbe, Probes};

/// The kinds of verdicts that are no trouble, the better ones last.
const GOOD: [&str; 4] = ["unknown", "untested", "icmp-filtered", "reachable"];

/// Whether pods' packets are lost, as far as probes can tell. A kind that this program does not know is trouble.
pub(super) fn is_trouble(probe: &FamilyProbe) -> bool {
    !GOOD.contains(&probe.verdict.as_str())
}

/// The results by lease.
pub(super) fn by_lease(probes: Option<&Probes>) -> BTreeMap<&str, &PeerProbe> {
    probes.iter().flat_map(|probes| &probes.peers).map(|probe| (probe.lease.as_str(), probe)).collect()
}

/// The family that is worse off.
pub(super) fn worst(probe: &PeerProbe) -> Option<&FamilyProbe> {
    let goodness =
        |probe: &&FamilyProbe| GOOD.iter().position(|good| *good == probe.verdict).map_or(0, |at| at + 1);
    probe.families().min_by_key(goodness)
}

fn style(probe: &FamilyProbe) -> Style {
    match probe.verdict.as_str() {
        "reachable" => Style::Good,
        "unknown" | "untested" | "icmp-filtered" => Style::Fair,
        _ => Style::Bad,
    }
}

/// The verdict in few words.
pub(super) fn verdict(probe: &FamilyProbe) -> Cell {
    let most = probe.at_most.map(|bytes| format!(" of {bytes}")).unwrap_or_default();
    Cell::new(format!("{}{most}", probe.verdict), style(probe))
}

/// The round-trip time through the overlay.
pub(super) fn rtt(probe: &FamilyProbe) -> String {
    probe.overlay.rtt_us.map(micros).unwrap_or_default()
}
