//! What probes found out.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::Deserialize;

use super::Moment;

/// The state of an agent's probes.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct Probes {
    /// In how many milliseconds all peers are visited once.
    pub interval_ms: u64,
    /// What can't be probed on this host.
    pub notes: Vec<String>,
    /// How many verdicts of each kind there are.
    pub counts: BTreeMap<String, u64>,
    /// The result of each peer.
    pub peers: Vec<PeerProbe>,
}

/// The result of one peer.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[non_exhaustive]
pub struct PeerProbe {
    /// Its lease.
    pub lease: String,
    /// The result in IPv4.
    pub v4: Option<FamilyProbe>,
    /// The result in IPv6.
    pub v6: Option<FamilyProbe>,
}

impl PeerProbe {
    /// The results that there are, IPv4 first.
    pub fn families(&self) -> impl Iterator<Item = &FamilyProbe> {
        self.v4.iter().chain(&self.v6)
    }

    /// The same with the names of the families.
    pub(crate) fn named(&self) -> impl Iterator<Item = (&'static str, &FamilyProbe)> {
        [("IPv4", &self.v4), ("IPv6", &self.v6)]
            .into_iter()
            .filter_map(|(name, it)| Some((name, it.as_ref()?)))
    }
}

/// The result of one peer in one family.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[non_exhaustive]
pub struct FamilyProbe {
    /// What is wrong with the way to it, such as `mtu-hole`, or `reachable`.
    pub verdict: String,
    /// Of an MTU hole: the largest packet of pods that passes, in bytes.
    pub at_most: Option<u32>,
    /// The same on the underlay, in bytes with the headers of the tunnel, if the agent knows these.
    pub at_most_underlay: Option<u32>,
    /// The verdict in words.
    pub text: Option<String>,
    /// What to do about it.
    pub remedy: Option<String>,
    /// What was answered and what was not.
    #[serde(default)]
    pub evidence: Vec<String>,
    /// Since when that is the verdict.
    #[serde(default)]
    pub since: Moment,
    /// Through the overlay.
    pub overlay: WayProbe,
    /// On the underlay.
    pub underlay: WayProbe,
}

/// The result of one of the two ways to a peer.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[non_exhaustive]
pub struct WayProbe {
    /// The address that is probed.
    pub target: IpAddr,
    /// The round-trip time of the last answer, in microseconds.
    pub rtt_us: Option<u64>,
    /// How many percent of the last packets were not answered.
    #[serde(default)]
    pub loss_percent: u8,
    /// When the last answer came.
    pub last_answer: Option<Moment>,
}
