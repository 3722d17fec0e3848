//! The devices that carry pods' packets.

use serde::Serialize;

use crate::addr::{LinkIndex, Mtu};
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
