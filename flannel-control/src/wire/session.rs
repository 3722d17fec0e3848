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
}
