//! The problems that cut this node's pods off, as one value, from which health, log and status pages are made. Pure.
//!
//! A [`Problem`] names its object, the peer that it concerns, the cause, what to do, and the harm. Their number is
//! bounded: problems that others can cause in any number are [`Listed`], a count with a sample.

mod counters;
mod devices;
mod histogram;
mod peers;
mod sessions;
mod timings;

use std::fmt;

use serde::Serialize;

use crate::addr::{Family, PerFamily};
use crate::dataplane::NamedObject;
use crate::lease::LeaseKey;

pub use counters::{Counters, Dropped, Traffic, TrafficCounters};
pub use devices::{DeviceProblems, DeviceStatus};
pub use histogram::{BOUNDS, Durations, Histogram};
pub use peers::{PeerList, PeerPath, PeerState, PeerStatus, RefusedObject, RejectedLease};
pub use sessions::{Session, SessionPath, SessionState, Sessions};
pub use timings::{RepairCounts, RepairKind, Timings};

/// How many problems of a kind a status shows.
pub const SAMPLE: usize = 20;

/// What a problem is about.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "kind", content = "name")]
#[non_exhaustive]
pub enum Subject {
    /// A device of ours, or the underlay link in its place.
    Device,
    /// The underlay's addresses.
    Underlay,
    /// A kernel parameter, as `sysctl` names it.
    Sysctl(String),
    /// A kernel object of ours that the kernel refuses.
    Object(NamedObject),
    /// Something of somebody else that blocks the way to a peer, as text.
    Foreign(String),
    /// Packets from strangers in the tunnels, or the gate that counts them.
    Strangers,
    /// This node's own record, over which another one has precedence, so that peers do not program this node.
    OwnLease,
    /// A lease or record, by its key.
    Lease(String),
    /// A command of the network config that failed and is tried again, by the key that has it.
    Command(String),
    /// The network config can't be used.
    Config,
    /// The network config changed in keys that need a restart.
    Restart,
}

/// How bad a problem is for the pods of this node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Harm {
    /// It costs no packet.
    None,
    /// It cuts some peers, or some packets.
    Some,
    /// It cuts the way to the world, but not to peers.
    World,
    /// A family is out of service on this node; the other one works on.
    Family,
    /// It cuts all peers of its family, or of all families, and the world.
    All,
}

/// Why something is not as it should be, and what an operator does about it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Reason {
    /// What is wrong.
    pub cause: String,
    /// What to do; `None` if the cause says it.
    pub advice: Option<String>,
}

impl Reason {
    /// A cause with advice.
    pub fn new(cause: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { cause: cause.into(), advice: Some(advice.into()) }
    }
}

impl From<String> for Reason {
    fn from(cause: String) -> Self {
        Self { cause, advice: None }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.cause)?;
        self.advice.as_ref().map_or(Ok(()), |advice| write!(f, "; {advice}"))
    }
}

/// One thing that is not as it should be. Its text is one line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Problem {
    /// What it is about.
    pub subject: Subject,
    /// The family that it concerns; `None` for all.
    pub family: Option<Family>,
    /// The peer that it concerns.
    pub peer: Option<LeaseKey>,
    /// Why, and what to do.
    pub reason: Reason,
    /// How bad it is.
    pub harm: Harm,
}

impl Problem {
    /// A problem of the whole node.
    pub fn new(subject: Subject, harm: Harm, reason: impl Into<Reason>) -> Self {
        Self { subject, family: None, peer: None, reason: reason.into(), harm }
    }

    /// The same problem, limited to one family.
    #[must_use]
    pub fn of(self, family: Family) -> Self {
        Self { family: Some(family), ..self }
    }

    /// The problem that `link` is too small for IPv6, which needs [`IPV6_MIN_MTU`] bytes. `tunnel` has the name and the
    /// overhead in bytes of the encapsulation that is subtracted.
    pub fn mtu_without_ipv6(link: &str, mtu: u32, tunnel: Option<(&str, u32)>) -> Self {
        let (left, need) = match tunnel {
            None => (String::new(), IPV6_MIN_MTU),
            Some((name, bytes)) => (
                format!(", and {} are left within {bytes} bytes of {name}", mtu.saturating_sub(bytes)),
                IPV6_MIN_MTU + bytes,
            ),
        };
        let cause = format!(
            "IPv6 is out of service on this node: the MTU of {link} is {mtu}{left}, where IPv6 needs {IPV6_MIN_MTU} \
             (RFC 8200)"
        );
        let advice = format!("set the MTU of {link} to {need} or more");
        Self::new(Subject::Device, Harm::Family, Reason::new(cause, advice)).of(Family::V6)
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.reason.fmt(f)
    }
}

/// The smallest MTU of a link with IPv6 (RFC 8200 section 5). The kernel removes IPv6 from a link with less.
pub const IPV6_MIN_MTU: u32 = 1280;

/// Why the kernel refuses an IPv6 address of ours on a device; `None` if its errno means something else.
pub fn ipv6_refused(device: &str, addr: impl fmt::Display, errno: i32) -> Option<Reason> {
    // Device names can have dots in them.
    let sysctl = format!("net/ipv6/conf/{device}/disable_ipv6");
    match errno {
        libc::EACCES | libc::EPERM => Some(Reason::new(
            format!("device {device} can't have {addr}: IPv6 is switched off there, {sysctl} is 1"),
            format!(
                "run sysctl -w {sysctl}=0; a new device gets its value from net/ipv6/conf/default/disable_ipv6"
            ),
        )),
        libc::EINVAL => Some(Reason::new(
            format!("device {device} can't have {addr}: its MTU is below {IPV6_MIN_MTU}, which IPv6 needs"),
            "raise the MTU of the underlay",
        )),
        libc::EOPNOTSUPP | libc::EAFNOSUPPORT => Some(Reason::new(
            format!("device {device} can't have {addr}: this kernel runs without IPv6"),
            "boot it without ipv6.disable=1, or take IPv6 out of the network config",
        )),
        _ => None,
    }
}

/// Problems that others can cause in any number: a count and a sample.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Listed {
    /// How many there are.
    pub count: usize,
    /// The first [`SAMPLE`] of them.
    pub sample: Vec<Problem>,
}

impl Listed {
    /// Keeps the first [`SAMPLE`] of `count` problems; it does not compute the others.
    pub fn new(count: usize, problems: impl Iterator<Item = Problem>) -> Self {
        Self { count, sample: problems.take(SAMPLE).collect() }
    }

    /// Adds further problems.
    pub fn extend(&mut self, problems: &[Problem]) {
        self.count += problems.len();
        let room = SAMPLE.saturating_sub(self.sample.len());
        self.sample.extend(problems.iter().take(room).cloned());
    }

    /// The sample as lines of text.
    pub fn texts(&self) -> Vec<String> {
        self.sample.iter().map(Problem::to_string).collect()
    }

    /// A line for the problems that are not in the sample, if there are any.
    fn left_out(&self, what: &str) -> Option<String> {
        let more = self.count.saturating_sub(self.sample.len());
        (more > 0).then(|| format!("and {more} more {what}"))
    }
}

/// How many peers of a family there are, and how many of them pods can't reach.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Reach {
    /// The peers that should be reachable: their leases are valid and conflict with nothing of this node.
    pub expected: usize,
    /// Those of them that pods can't reach: another lease conflicts with theirs, or the kernel refuses an object that
    /// they need.
    pub cut: usize,
}

impl Reach {
    /// Whether there are peers to reach, and pods reach none of them.
    pub fn is_none(self) -> bool {
        self.expected > 0 && self.cut >= self.expected
    }
}

/// All problems, bounded in number.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Problems {
    /// Problems of the node itself; there are never many.
    pub node: Vec<Problem>,
    /// Objects that the kernel refuses for now. They are tried again.
    pub objects: Listed,
    /// Leases that can't be used.
    pub leases: Listed,
    /// The peers of each family that is enabled.
    pub reach: PerFamily<Reach>,
}

/// What [`Problems`] mean for readiness.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct ProblemSummary {
    /// Why pods of this node are cut off from all others, or from the world. Empty if they are not.
    pub reasons: Vec<String>,
    /// Other problems.
    pub notes: Vec<String>,
}

impl Problems {
    /// The problems of the node with this subject, one line each.
    pub fn texts(&self, subject: &Subject) -> Vec<String> {
        self.node.iter().filter(|problem| problem.subject == *subject).map(Problem::to_string).collect()
    }

    /// The problems of the node with this subject, in one line.
    pub fn text(&self, subject: &Subject) -> Option<String> {
        let lines = self.texts(subject);
        (!lines.is_empty()).then(|| lines.join("; "))
    }

    /// Decides whether pods are cut off. `masquerade` says whether they should reach the world.
    ///
    /// Each family counts for itself: if no peer of one family can be reached, that is a reason even if the other
    /// family works. A family that is out of service ([`Harm::Family`]) is no reason while the other one is in service.
    pub fn summary(&self, masquerade: bool) -> ProblemSummary {
        let out = |family| self.node.iter().any(|it| it.harm == Harm::Family && it.family == Some(family));
        let nothing_left = !self.reach.is_empty() && self.reach.families().all(out);
        let cut: Vec<Family> = self
            .reach
            .iter()
            .filter(|(family, reach)| reach.is_none() && !out(*family))
            .map(|(f, _)| f)
            .collect();
        let is_reason = |problem: &Problem| match (problem.harm, problem.family) {
            (Harm::All, None) => true,
            (Harm::All, Some(family)) => {
                masquerade || self.reach.get(family).is_some_and(|reach| reach.expected > 0)
            }
            (Harm::World, _) => masquerade,
            (Harm::Family, _) => nothing_left,
            (Harm::Some | Harm::None, _) => false,
        };
        let (reasons, notes): (Vec<&Problem>, Vec<&Problem>) = self.node.iter().partition(|it| is_reason(it));
        let mut verdict = ProblemSummary {
            reasons: reasons.into_iter().map(Problem::to_string).collect(),
            notes: notes.into_iter().map(Problem::to_string).collect(),
        };
        for family in &cut {
            // A problem of the whole family says that already.
            if !self.node.iter().any(|it| it.harm == Harm::All && it.family == Some(*family)) {
                let Reach { expected, .. } = self.reach.get(*family).copied().unwrap_or_default();
                verdict.reasons.push(format!("{family}: pods reach none of the other nodes ({expected})"));
            }
        }
        for (list, what) in
            [(&self.objects, "objects that the kernel does not take"), (&self.leases, "leases")]
        {
            // If all peers of a family are cut off, the problems that cut peers off are reasons, too.
            let is_reason = |problem: &Problem| !cut.is_empty() && problem.harm != Harm::None;
            for problem in &list.sample {
                let place = if is_reason(problem) { &mut verdict.reasons } else { &mut verdict.notes };
                place.push(problem.to_string());
            }
            verdict.notes.extend(list.left_out(what));
        }
        verdict
    }
}

#[cfg(test)]
mod tests;
