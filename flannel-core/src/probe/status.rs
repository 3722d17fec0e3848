//! What probes found out, as values. Pure.
//!
//! The results of all peers are in a list, as their states are (`status/peers.rs`): a copy is free, and one
//! result costs one entry.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde::ser::SerializeMap as _;
use serde::{Serialize, Serializer};

use crate::addr::{Family, PerFamily};
use crate::chunked::{Chunked, OfLease};
use crate::lease::LeaseKey;
use crate::times::{Micros, microseconds, milliseconds, optional_instant};

/// The upper ends of the ranges of round-trip times that [`ProbeTotals::rtt`] counts, in microseconds. A last range has
/// what is above.
pub const RTT_BUCKETS: [u64; 11] =
    [100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 100_000, 250_000, 1_000_000];

/// The state of an agent's probes.
#[derive(Debug, Clone, Default, Serialize)]
#[non_exhaustive]
pub struct ProbeStatus {
    /// How long it takes to visit all peers once. A peer from which an answer is missing is visited sooner. Serialized
    /// in milliseconds.
    #[serde(rename = "interval_ms", serialize_with = "milliseconds")]
    pub interval: Duration,
    /// What can't be probed on this host and why, in one line each.
    pub notes: Vec<String>,
    /// Why probes hold readiness back; `None` if they don't.
    pub waiting: Option<String>,
    /// How many verdicts of each kind there are now, over all peers and families.
    pub counts: VerdictCounts,
    /// What was sent and answered since the start.
    pub totals: ProbeTotals,
    /// The result of each peer that is programmed.
    pub peers: ProbeList,
}

/// What was sent and answered since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct ProbeTotals {
    /// Packets sent, of all kinds.
    pub sent: u64,
    /// Small echoes through the overlay whose time is over or that were answered, and how many were not answered.
    pub overlay: Tried,
    /// The same on the underlay.
    pub underlay: Tried,
    /// How many answers came through the overlay within each of [`RTT_BUCKETS`]; the last one counts those that took
    /// longer. The counts are not cumulative.
    pub rtt: [u64; RTT_BUCKETS.len() + 1],
    /// The sum of their round-trip times.
    #[serde(rename = "rtt_sum_us", serialize_with = "microseconds")]
    pub rtt_sum: Duration,
}

impl ProbeTotals {
    /// Counts a round-trip time through the overlay.
    pub fn count_rtt(&mut self, rtt: Duration) {
        let us = rtt.as_micros();
        let bucket = RTT_BUCKETS.iter().position(|end| us <= u128::from(*end)).unwrap_or(RTT_BUCKETS.len());
        self.rtt[bucket] += 1;
        self.rtt_sum += rtt;
    }
}

/// Packets whose answer came, or did not come in time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Tried {
    /// How many there were.
    pub probes: u64,
    /// How many of them were not answered.
    pub lost: u64,
}

/// The result of one peer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct PeerProbe {
    /// The peer's lease.
    pub lease: LeaseKey,
    /// The result of each family by which it is reached: of thousands of peers hardly any has both, so it takes memory only where
    /// there is one.
    #[serde(flatten)]
    pub families: PerFamily<Box<FamilyProbe>>,
}

impl PeerProbe {
    /// A peer without a result yet.
    pub fn new(lease: LeaseKey) -> Self {
        Self { lease, families: PerFamily::default() }
    }

    /// The family with the verdict that is the worse of the two.
    pub fn worst(&self) -> Option<(Family, &FamilyProbe)> {
        let families = self.families.iter().map(|(family, probe)| (family, &**probe));
        families.max_by_key(|(_, probe)| probe.verdict.severity())
    }
}

impl OfLease for PeerProbe {
    fn lease(&self) -> &LeaseKey {
        &self.lease
    }
}

/// The result of one peer in one family.
///
/// As JSON it also has [`Self::at_most_underlay`], [`Self::text`] and [`Self::remedy`].
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct FamilyProbe {
    /// What is wrong with the way to it, if anything.
    pub verdict: Verdict,
    /// What was answered and what was not, from which the verdict was made, in one line each. It is empty only for
    /// [`Verdict::Untested`] and [`Verdict::Reachable`].
    pub evidence: Vec<String>,
    /// Since when that is the verdict, by the wall clock.
    pub since: SystemTime,
    /// Through the overlay, as pods' packets travel.
    pub overlay: WayProbe,
    /// On the underlay, from node to node.
    pub underlay: WayProbe,
    /// How packets travel there.
    pub carriage: Carriage,
}

impl FamilyProbe {
    /// A result without evidence, of a way about which the backend says nothing.
    pub fn new(verdict: Verdict, since: SystemTime, overlay: WayProbe, underlay: WayProbe) -> Self {
        Self { verdict, evidence: Vec::new(), since, overlay, underlay, carriage: Carriage::default() }
    }
}

/// How packets to a peer's pods travel between the nodes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Carriage {
    /// The UDP port of the tunnel; `None` if there is none, or one without ports.
    pub port: Option<u16>,
    /// How many bytes of headers each packet gets, 0 without a tunnel; `None` if the backend does not say.
    pub overhead: Option<u32>,
    /// Whether the tunnel has sessions, which need the right key on both sides.
    pub has_sessions: bool,
}

/// The result of one of the two ways to a peer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct WayProbe {
    /// The address that is probed.
    pub target: IpAddr,
    /// The round-trip time of the last answer; `None` if there was none.
    #[serde(rename = "rtt_us")]
    pub rtt: Option<Micros>,
    /// How many percent of the last 32 small packets (fewer soon after the start) were not answered.
    pub loss_percent: u8,
    /// When the last answer came, by the wall clock.
    #[serde(serialize_with = "optional_instant")]
    pub last_answer: Option<SystemTime>,
}

impl WayProbe {
    /// A way to this address that was not probed yet.
    pub fn new(target: IpAddr) -> Self {
        Self { target, rtt: None, loss_percent: 0, last_answer: None }
    }
}

/// What is wrong with the way to a peer, in one family.
///
/// It is serialized with its name in `verdict`, such as `{"verdict":"mtu-hole","at_most":1350}`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(tag = "verdict", rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Verdict {
    /// It was not probed yet, or not often enough to say.
    Untested,
    /// Pods' packets get there and back.
    Reachable,
    /// Packets get there and back, but not by ICMP: TCP or UDP are answered through the overlay.
    IcmpFiltered,
    /// Packets get there and back by another backend (`Backend.Fallback` of the network config), since the tunnel of its own is
    /// blocked.
    Bridged,
    /// Nothing answers, and nothing says that the peer is down: it never answered, or somebody on its link still answers for
    /// its address. It may filter all that it is asked.
    Unknown,
    /// This node can't send: the evidence has the kernel's answer.
    Unsent,
    /// Small packets pass, and those that fill the pods' MTU are lost.
    MtuHole {
        /// The largest packet through the overlay that was answered, in bytes with its IP header.
        at_most: u32,
    },
    /// Packets pass whose checksum the kernel computes, and those are lost that leave it to the device.
    ChecksumOffload,
    /// Packets arrive at the peer through the tunnel, but its own do not arrive here, as far as they are not the tunnel's own
    /// messages.
    ReturnPath,
    /// The peer answers in the tunnel only to another VTEP MAC than the one of its record.
    RecordStale,
    /// The peer's node answers, but nothing has the tunnel's port there: its device is gone.
    TunnelClosed,
    /// The peer's node answers on the underlay, but not through the overlay.
    TunnelBlocked,
    /// The peer answered before, and nothing of it answers any more, or nobody has its address.
    PeerDead,
}

impl Verdict {
    /// Every kind, in the order of [`Verdict::severity`].
    pub const ALL: [Self; 13] = [
        Self::Untested,
        Self::Reachable,
        Self::IcmpFiltered,
        Self::Bridged,
        Self::Unknown,
        Self::Unsent,
        Self::MtuHole { at_most: 0 },
        Self::ChecksumOffload,
        Self::ReturnPath,
        Self::RecordStale,
        Self::TunnelClosed,
        Self::TunnelBlocked,
        Self::PeerDead,
    ];

    /// Its name, as the JSON form has it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Untested => "untested",
            Self::Reachable => "reachable",
            Self::IcmpFiltered => "icmp-filtered",
            Self::Bridged => "bridged",
            Self::Unknown => "unknown",
            Self::Unsent => "unsent",
            Self::MtuHole { .. } => "mtu-hole",
            Self::ChecksumOffload => "checksum-offload",
            Self::ReturnPath => "return-path",
            Self::RecordStale => "record-stale",
            Self::TunnelClosed => "tunnel-closed",
            Self::TunnelBlocked => "tunnel-blocked",
            Self::PeerDead => "peer-dead",
        }
    }

    /// How bad it is for pods, for sorting: a larger number is worse.
    pub fn severity(self) -> usize {
        Self::ALL.iter().position(|kind| kind.name() == self.name()).unwrap_or(0)
    }

    /// Whether packets of pods are lost by it, as far as probes can tell.
    pub fn is_trouble(self) -> bool {
        !matches!(self, Self::Untested | Self::Reachable | Self::IcmpFiltered | Self::Bridged | Self::Unknown)
    }

    /// Whether there is something to mend: packets are lost, or would be without a detour.
    pub fn is_fault(self) -> bool {
        self.is_trouble() || self == Self::Bridged
    }

    /// Whether it says that the peer is not reached, or not as it should be.
    pub(crate) fn is_against(self) -> bool {
        !matches!(self, Self::Untested | Self::Reachable)
    }

    /// What to do about it, however packets travel; `None` if there is nothing to do. [`FamilyProbe::remedy`] knows more.
    pub fn remedy(self) -> Option<&'static str> {
        Some(match self {
            Self::Untested | Self::Reachable | Self::IcmpFiltered => return None,
            Self::Unknown => {
                "look whether the node is up; to know more, let ICMP echo pass between the nodes"
            }
            Self::Unsent => "look at this node's own device, routes and OUTPUT rules",
            Self::MtuHole { .. } => {
                "raise the MTU on the path between the nodes, or set a smaller Backend.MTU in the network config"
            }
            Self::ChecksumOffload => {
                "--vxlan-tx-checksum=auto, or ethtool -K on the device: tx-checksum-ip-generic off"
            }
            Self::ReturnPath => {
                "on the peer: is its FDB entry for this node right (bridge fdb show), and may the tunnel's port leave it? On \
                 this node: may that port come in?"
            }
            Self::RecordStale => {
                "restart the agent of the peer, so that it publishes the MAC that its device has"
            }
            Self::TunnelClosed => "start the agent of the peer: it makes the device again",
            Self::TunnelBlocked | Self::Bridged => {
                "let the tunnel's UDP port pass between the nodes (firewalls, security groups)"
            }
            Self::PeerDead => {
                "look whether the node is up, and whether its filters drop all that this node sends; remove its lease only if \
                 it is gone for good"
            }
        })
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Untested => "not probed yet",
            Self::Reachable => "reachable",
            Self::IcmpFiltered => "reachable, but ICMP is filtered",
            Self::Bridged => "its tunnel is blocked, and another backend bridges that",
            Self::Unknown => "unknown: it is down, or ICMP is filtered",
            Self::Unsent => "this node can't send to it",
            Self::MtuHole { at_most } => return write!(f, "MTU hole, at most {at_most} bytes"),
            Self::ChecksumOffload => "checksum offload is broken",
            Self::ReturnPath => "return path: its answers don't come back",
            Self::RecordStale => "its record is stale",
            Self::TunnelClosed => "its tunnel is closed",
            Self::TunnelBlocked => "the tunnel to it is blocked",
            Self::PeerDead => "peer dead",
        })
    }
}

/// How many verdicts of each kind there are. It is serialized as a map from each kind's name to its count.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct VerdictCounts([usize; Verdict::ALL.len()]);

impl VerdictCounts {
    /// How many there are of a kind, whatever number it has.
    pub fn of(&self, verdict: Verdict) -> usize {
        self.0[verdict.severity()]
    }

    /// How many there are of each kind.
    pub fn iter(&self) -> impl Iterator<Item = (Verdict, usize)> {
        Verdict::ALL.into_iter().zip(self.0)
    }

    /// How many verdicts say that pods' packets are lost.
    pub fn trouble(&self) -> usize {
        self.iter().filter(|(verdict, _)| verdict.is_trouble()).map(|(_, count)| count).sum()
    }

    /// Counts a verdict.
    pub fn add(&mut self, verdict: Verdict) {
        self.0[verdict.severity()] += 1;
    }

    /// Counts a verdict no more.
    pub fn remove(&mut self, verdict: Verdict) {
        let count = &mut self.0[verdict.severity()];
        *count = count.saturating_sub(1);
    }
}

impl Serialize for VerdictCounts {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (verdict, count) in self.iter() {
            map.serialize_entry(verdict.name(), &count)?;
        }
        map.end()
    }
}

/// The results of all peers, by lease. A copy is free and does not change with the original.
#[derive(Clone, Default)]
pub struct ProbeList(Chunked<PeerProbe>);

impl ProbeList {
    /// How many peers have an entry.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The result of a peer, by its lease.
    pub fn get(&self, lease: &LeaseKey) -> Option<&PeerProbe> {
        self.0.get(lease).map(|entry| &**entry)
    }

    /// All results, in the order of their leases.
    pub fn iter(&self) -> impl Iterator<Item = &PeerProbe> {
        self.0.iter().map(|entry| &**entry)
    }

    /// Adds or replaces the result of a peer. It copies no other.
    pub fn put(&mut self, entry: PeerProbe) {
        self.0.put(Arc::new(entry));
    }

    /// Removes the result of a peer.
    pub fn remove(&mut self, lease: &LeaseKey) {
        self.0.remove(lease);
    }
}

impl fmt::Debug for ProbeList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

impl Serialize for ProbeList {
    /// A list of all entries.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.iter())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn way(target: &str) -> WayProbe {
        WayProbe::new(target.parse().unwrap())
    }

    #[test]
    fn kinds_have_one_order_and_one_name() {
        for (at, verdict) in Verdict::ALL.into_iter().enumerate() {
            assert_eq!(verdict.severity(), at);
            let json = serde_json::to_value(verdict).unwrap();
            assert_eq!(json["verdict"], verdict.name());
            assert!(verdict.is_fault() <= verdict.remedy().is_some(), "{verdict}");
        }
    }

    #[test]
    fn counts_follow_verdicts_whatever_number_they_have() {
        let mut counts = VerdictCounts::default();
        counts.add(Verdict::MtuHole { at_most: 1350 });
        counts.add(Verdict::Reachable);
        assert_eq!((counts.of(Verdict::MtuHole { at_most: 0 }), counts.trouble()), (1, 1));
        counts.remove(Verdict::MtuHole { at_most: 900 });
        assert_eq!((counts.trouble(), counts.of(Verdict::Reachable)), (0, 1));
    }

    #[test]
    fn the_text_form_has_names_and_units() {
        let time = SystemTime::UNIX_EPOCH + Duration::from_millis(1500);
        let overlay = WayProbe {
            rtt: Some(Duration::from_micros(120).into()),
            last_answer: Some(time),
            ..way("10.5.2.0")
        };
        let probe = FamilyProbe {
            verdict: Verdict::MtuHole { at_most: 1350 },
            evidence: vec!["1351 bytes are lost".to_owned()],
            since: time,
            overlay,
            underlay: WayProbe { loss_percent: 100, ..way("192.0.2.2") },
            carriage: Carriage::new(Some(8472), Some(50)),
        };
        let families = PerFamily { v4: Some(Box::new(probe)), v6: None };
        let mut peers = ProbeList::default();
        peers.put(PeerProbe { lease: "10.5.2.0-24".parse().unwrap(), families });
        assert_eq!(
            serde_json::to_string(&peers).unwrap(),
            r#"[{"lease":"10.5.2.0-24","v4":{"verdict":"mtu-hole","at_most":1350,"at_most_underlay":1400,"text":"MTU hole, at most 1350 bytes of pods, which are 1400 on the underlay","evidence":["1351 bytes are lost"],"remedy":"raise the MTU on the path between the nodes, or set Backend.MTU in the network config (vxlan, wireguard), else the MTU of the nodes' links, to 1400","since":"1970-01-01T00:00:01.500Z","overlay":{"target":"10.5.2.0","rtt_us":120,"loss_percent":0,"last_answer":"1970-01-01T00:00:01.500Z"},"underlay":{"target":"192.0.2.2","rtt_us":null,"loss_percent":100,"last_answer":null}}}]"#
        );
    }
}
