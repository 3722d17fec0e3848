//! How long the reconcile loop takes for what it does, and what it repaired.

use serde::ser::SerializeSeq;
use serde::{Serialize, Serializer};

use super::Histogram;
use crate::dataplane::ObjectKey;
use crate::events::RepairCause;

/// How long the parts of the loop's work take. The handles count on while the status that has them is old.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Timings {
    /// Comparing the desired with the observed state, once a pass.
    pub plan: Histogram,
    /// Reading all objects of ours from the kernel: at the start, after lost notifications, and once a minute.
    pub read: Histogram,
    /// Sending operations to the kernel, up to its last acknowledgement, 2,048 at a time.
    pub netlink: Histogram,
    /// Watch lag: from the moment when the loop took changed leases from the store's watch to the moment when all of them
    /// are in the desired state. It grows when leases change faster than the loop follows.
    pub watch_lag: Histogram,
    /// From the same moment to the moment when the kernel has what the leases need. Refused objects are not waited for.
    pub program: Histogram,
    /// From the moment when the loop learned of drift to the kernel's last acknowledgement.
    pub repair: Histogram,
}

/// A kind of thing that drifts and is repaired.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum RepairKind {
    /// An address of a device.
    Address,
    /// A neighbour entry.
    Neighbour,
    /// An FDB entry.
    Fdb,
    /// A next-hop object.
    NextHop,
    /// A route.
    Route,
    /// A device.
    Device,
}

impl RepairKind {
    /// All kinds.
    pub const ALL: [Self; 6] =
        [Self::Address, Self::Neighbour, Self::Fdb, Self::NextHop, Self::Route, Self::Device];

    /// Its name, as it is serialized.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Address => "address",
            Self::Neighbour => "neighbour",
            Self::Fdb => "fdb",
            Self::NextHop => "next-hop",
            Self::Route => "route",
            Self::Device => "device",
        }
    }
}

impl From<&ObjectKey> for RepairKind {
    fn from(key: &ObjectKey) -> Self {
        match key {
            ObjectKey::Address(..) => Self::Address,
            ObjectKey::Neighbour(..) => Self::Neighbour,
            ObjectKey::Fdb(_) => Self::Fdb,
            ObjectKey::NextHop(..) => Self::NextHop,
            ObjectKey::Route(..) => Self::Route,
        }
    }
}

/// How many things of each kind were repaired since the start, by the way in which their drift was found. Firewall rules
/// count for themselves ([`FirewallStatus::repairs`](crate::firewall::FirewallStatus::repairs)).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RepairCounts([[u64; RepairCause::ALL.len()]; RepairKind::ALL.len()]);

impl RepairCounts {
    /// Adds repaired things of one kind.
    pub fn add(&mut self, kind: RepairKind, cause: RepairCause, count: u64) {
        self.0[kind as usize][cause as usize] += count;
    }

    /// How many things of a kind were repaired after their drift was found in this way.
    pub fn get(&self, kind: RepairKind, cause: RepairCause) -> u64 {
        self.0[kind as usize][cause as usize]
    }

    /// All counts, also those that are 0.
    pub fn iter(&self) -> impl Iterator<Item = (RepairKind, RepairCause, u64)> + '_ {
        let causes =
            move |kind| RepairCause::ALL.into_iter().map(move |cause| (kind, cause, self.get(kind, cause)));
        RepairKind::ALL.into_iter().flat_map(causes)
    }
}

impl Serialize for RepairCounts {
    /// Serialises a list of the counts that are not 0.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Entry {
            kind: RepairKind,
            cause: RepairCause,
            count: u64,
        }
        let mut list = serializer.serialize_seq(None)?;
        for (kind, cause, count) in self.iter().filter(|(_, _, count)| *count > 0) {
            list.serialize_element(&Entry { kind, cause, count })?;
        }
        list.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_kept_by_kind_and_cause() {
        let mut counts = RepairCounts::default();
        counts.add(RepairKind::Route, RepairCause::Announced, 2);
        counts.add(RepairKind::Route, RepairCause::Announced, 1);
        counts.add(RepairKind::Device, RepairCause::Datapath, 1);
        assert_eq!(counts.get(RepairKind::Route, RepairCause::Announced), 3);
        assert_eq!(counts.iter().count(), 30);
        assert_eq!(counts.iter().map(|(_, _, count)| count).sum::<u64>(), 4);
        let json = serde_json::to_string(&counts).unwrap();
        let want = r#"[{"kind":"route","cause":"announced","count":3},{"kind":"device","cause":"datapath","count":1}]"#;
        assert_eq!(json, want);
        for kind in RepairKind::ALL {
            assert_eq!(serde_json::to_string(&kind).unwrap(), format!("\"{}\"", kind.as_str()));
        }
    }
}
