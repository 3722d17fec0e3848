//! The devices that carry pods' packets.

use serde::Serialize;

use super::{Harm, Problem, Subject};
use crate::addr::{Family, LinkIndex, Mtu};
use crate::kernel::Link;

/// A device on which a network has its objects: one of the backend's own, or the underlay link where pods' packets are
/// routed over that.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct DeviceStatus {
    /// Its name, such as `flannel.1`.
    pub name: String,
    /// Its number (`ifindex`).
    pub link: LinkIndex,
    /// Its MTU in bytes. What a pod may send is [`NetworkStatus::overlay_mtu`](crate::backend::NetworkStatus::overlay_mtu).
    pub mtu: Mtu,
    /// Whether objects can be put on it: it exists and is administratively up. The other values of one that doesn't are
    /// those that it had last.
    pub usable: bool,
    /// Whether it completes checksums (`ethtool -k`: tx-checksumming), where the backend holds that; `None` where it is
    /// left alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tx_checksum: Option<bool>,
}

impl DeviceStatus {
    /// A device as the kernel showed it last, which may be gone since.
    pub fn of(link: &Link, exists: bool) -> Self {
        let usable = exists && link.up;
        Self { name: link.name.clone(), link: link.index, mtu: link.mtu, usable, tx_checksum: None }
    }

    /// Sets whether it completes checksums; see [`Self::tx_checksum`].
    #[must_use]
    pub fn tx_checksum(self, tx_checksum: Option<bool>) -> Self {
        Self { tx_checksum, ..self }
    }
}

/// Why devices are missing or wrong, or their content is. A problem of a device that carries one family alone has that
/// family, since the other one works on.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DeviceProblems(Vec<(Option<Family>, String)>);

impl DeviceProblems {
    /// Adds a problem of one family, or of all.
    pub fn add(&mut self, family: Option<Family>, cause: impl Into<String>) {
        self.0.push((family, cause.into()));
    }

    /// Adds those of another device.
    pub(crate) fn append(&mut self, other: Self) {
        self.0.extend(other.0);
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether one of them concerns this family.
    pub fn concern(&self, family: Family) -> bool {
        self.0.iter().any(|(of, _)| of.is_none_or(|of| of == family))
    }

    /// The causes.
    pub fn causes(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|(_, cause)| cause.as_str())
    }

    /// All causes in one line; `None` if there are none.
    pub fn text(&self) -> Option<String> {
        (!self.is_empty()).then(|| self.causes().collect::<Vec<_>>().join("; "))
    }

    /// The same as problems of a node. On a node with a single family they are problems of the node.
    pub(crate) fn of_node(&self, has_both: bool) -> impl Iterator<Item = Problem> {
        self.0.iter().map(move |(family, cause)| Problem {
            family: family.filter(|_| has_both),
            ..Problem::new(Subject::Device, Harm::All, cause.clone())
        })
    }
}

impl Extend<String> for DeviceProblems {
    /// Adds problems of all families.
    fn extend<T: IntoIterator<Item = String>>(&mut self, causes: T) {
        self.0.extend(causes.into_iter().map(|cause| (None, cause)));
    }
}
