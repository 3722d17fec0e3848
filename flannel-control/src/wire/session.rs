//! The session of a tunnel with a peer.

use serde::Deserialize;

use super::Moment;

/// What a device knows of the way to a peer.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct Session {
    /// The peer's lease.
    pub lease: String,
    /// The device.
    pub device: String,
    /// `alive`, `over` or `none`.
    pub state: String,
    /// When the last handshake was completed.
    pub last_handshake: Option<Moment>,
    /// Bytes on the underlay to the peer.
    pub sent_bytes: u64,
    /// Bytes on the underlay from the peer.
    pub received_bytes: u64,
    /// Where packets for the peer are sent now.
    pub endpoint: Option<String>,
    /// Where the peer says that it receives.
    pub published: Option<String>,
    /// By which way packets reach the peer, if not straight at where it says that it receives.
    pub path: Option<SessionPath>,
}

/// A way of packets to a peer that is not the plain one.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum SessionPath {
    /// Straight to the peer, with a NAT in front of it or of this node.
    Nat,
    /// By the node of this lease, which forwards them, and can read them.
    Relay(String),
}
