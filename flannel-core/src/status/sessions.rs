//! What a tunnel itself knows of the way to each peer, where it has sessions with them: when the last handshake was, what was
//! carried, and where the peer is. It changes with each packet, so the status does not contain it but has a handle that reads
//! it when the caller asks.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde::{Serialize, Serializer};

use crate::addr::Family;
use crate::lease::LeaseKey;
use crate::times::optional_instant;

/// The session of one device with the node of one peer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Session {
    /// The peer's lease.
    pub lease: LeaseKey,
    /// The name of the device.
    pub device: String,
    /// The families of pods whose packets it carries.
    pub families: Vec<Family>,
    /// How far it is, at the moment at which it was read.
    pub state: SessionState,
    /// When the last handshake was completed, by the wall clock; `None` if there was none since the device knows the peer.
    #[serde(serialize_with = "optional_instant")]
    pub last_handshake: Option<SystemTime>,
    /// Bytes on the underlay that were sent to the peer, with those of handshakes.
    pub sent_bytes: u64,
    /// Bytes on the underlay that came from the peer, likewise.
    pub received_bytes: u64,
    /// Where packets for the peer are sent now: where it was last heard from, else where it says that it receives.
    pub endpoint: Option<SocketAddr>,
    /// Where the peer says that it receives; `None` if it says nothing for this device.
    pub published: Option<SocketAddr>,
    /// By which way packets reach the peer, if not straight at where it says that it receives.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<SessionPath>,
}

/// A way of packets to a peer that is not the plain one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum SessionPath {
    /// Straight to the peer, with a NAT in front of it or of this node.
    Nat,
    /// By the node of this lease, which forwards them: they are encrypted for it and by it anew, so it can read them.
    Relay(LeaseKey),
}

impl Session {
    /// A session that has not begun, with a peer that says that it receives there.
    pub fn new(lease: LeaseKey, device: &str, families: &[Family], published: Option<SocketAddr>) -> Self {
        Self {
            lease,
            device: device.to_owned(),
            families: families.to_vec(),
            state: SessionState::None,
            last_handshake: None,
            sent_bytes: 0,
            received_bytes: 0,
            endpoint: None,
            published,
            path: None,
        }
    }

    /// The names of all ways in metrics, the plain one first.
    pub const PATHS: [&'static str; 3] = ["direct", "nat", "relay"];

    /// The name in metrics of the way by which packets reach the peer, one of [`Self::PATHS`].
    pub fn path_name(&self) -> &'static str {
        let [direct, nat, relay] = Self::PATHS;
        match self.path {
            None => direct,
            Some(SessionPath::Nat) => nat,
            Some(SessionPath::Relay(_)) => relay,
        }
    }

    /// Sets by which way packets reach the peer, if not straight.
    #[must_use]
    pub fn path(self, path: Option<SessionPath>) -> Self {
        Self { path, ..self }
    }

    /// Sets when the last handshake was, and by that how far the session is at `now`. It carries packets for `lasts`
    /// afterwards.
    #[must_use]
    pub fn handshake(self, last: Option<SystemTime>, lasts: Duration, now: SystemTime) -> Self {
        Self { last_handshake: last, state: SessionState::of(last, lasts, now), ..self }
    }

    /// Sets what was carried: bytes that were sent and received.
    #[must_use]
    pub fn carried(self, sent_bytes: u64, received_bytes: u64) -> Self {
        Self { sent_bytes, received_bytes, ..self }
    }

    /// Sets where packets are sent now.
    #[must_use]
    pub fn endpoint(self, endpoint: Option<SocketAddr>) -> Self {
        Self { endpoint, ..self }
    }
}

/// How far a session is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum SessionState {
    /// It carries packets.
    Alive,
    /// It is over. The next packet for the peer begins another one: a peer to which nothing is sent has such.
    Over,
    /// There was no handshake since the device knows the peer.
    None,
}

impl SessionState {
    /// All states, the good ones first.
    pub const ALL: [Self; 3] = [Self::Alive, Self::Over, Self::None];

    /// The state at `now` of a session that carries packets for `lasts` after its last handshake. A handshake in the future
    /// was one before the clock was set back; whether its session carries packets is unknown, so it counts as alive.
    fn of(last: Option<SystemTime>, lasts: Duration, now: SystemTime) -> Self {
        match last {
            None => Self::None,
            Some(last) if now.duration_since(last).unwrap_or_default() < lasts => Self::Alive,
            Some(_) => Self::Over,
        }
    }

    /// Its name in JSON and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Alive => "alive",
            Self::Over => "over",
            Self::None => "none",
        }
    }
}

type Read = dyn Fn() -> Vec<Session> + Send + Sync;

/// A handle that reads the sessions with all peers, each time that it is asked. A clone reads the same. The default is that of
/// a network without sessions.
#[derive(Clone, Default)]
pub struct Sessions(Option<Arc<Read>>);

impl Sessions {
    /// A handle that calls this function, which may take as long as the kernel needs to list the peers of a device. What
    /// can't be read is left out.
    pub fn new(read: impl Fn() -> Vec<Session> + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(read)))
    }

    /// Whether the network has sessions at all.
    pub fn are_kept(&self) -> bool {
        self.0.is_some()
    }

    /// Whether the network has none. It is what serialization leaves out.
    pub(crate) fn are_not_kept(&self) -> bool {
        !self.are_kept()
    }

    /// Reads the sessions as they are now.
    pub fn read(&self) -> Vec<Session> {
        self.0.as_ref().map_or_else(Vec::new, |read| read())
    }
}

/// Two handles are equal if they read the same devices, whatever the values are.
impl PartialEq for Sessions {
    fn eq(&self, other: &Self) -> bool {
        match (&self.0, &other.0) {
            (Some(one), Some(other)) => Arc::ptr_eq(one, other),
            (one, other) => one.is_none() && other.is_none(),
        }
    }
}

impl Eq for Sessions {}

impl fmt::Debug for Sessions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Sessions").field(&self.are_kept()).finish()
    }
}

impl Serialize for Sessions {
    /// Serialises the sessions as they are now.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.read().serialize(serializer)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    const LASTS: Duration = Duration::from_secs(180);

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    fn session() -> Session {
        let published = "192.0.2.9:51820".parse().ok();
        Session::new("10.5.9.0-24".parse().unwrap(), "flannel-wg", &[Family::V4], published)
    }

    #[test]
    fn a_session_carries_packets_for_a_time_after_its_handshake() {
        for (last, state) in [
            (None, SessionState::None),
            (Some(at(1000)), SessionState::Alive),
            (Some(at(821)), SessionState::Alive),
            (Some(at(820)), SessionState::Over),
            (Some(at(1001)), SessionState::Alive),
        ] {
            assert_eq!(session().handshake(last, LASTS, at(1000)).state, state, "{last:?}");
        }
        for state in SessionState::ALL {
            assert_eq!(serde_json::to_value(state).unwrap(), state.name());
        }
    }

    #[test]
    fn only_a_way_that_is_not_plain_is_named() {
        let json = |path| serde_json::to_value(session().path(path)).unwrap()["path"].clone();
        assert_eq!(json(None), serde_json::Value::Null);
        assert_eq!(json(Some(SessionPath::Nat)), "nat");
        let relay = SessionPath::Relay("10.5.8.0-24".parse().unwrap());
        assert_eq!(json(Some(relay)), serde_json::json!({ "relay": "10.5.8.0-24" }));
    }

    #[test]
    fn the_text_form_has_the_values_of_the_moment_and_equality_has_none() {
        let sent = Arc::new(AtomicU64::new(1));
        let counted = Arc::clone(&sent);
        let sessions = Sessions::new(move || {
            let session = session().handshake(Some(at(2)), LASTS, at(3));
            let endpoint = "203.0.113.7:4711".parse().ok();
            vec![session.carried(counted.load(Ordering::Relaxed), 7).endpoint(endpoint)]
        });
        let text = || serde_json::to_string(&sessions).unwrap();
        assert_eq!(
            text(),
            r#"[{"lease":"10.5.9.0-24","device":"flannel-wg","families":["v4"],"state":"alive","last_handshake":"1970-01-01T00:00:02.000Z","sent_bytes":1,"received_bytes":7,"endpoint":"203.0.113.7:4711","published":"192.0.2.9:51820"}]"#
        );
        sent.store(2, Ordering::Relaxed);
        assert!(text().contains(r#""sent_bytes":2"#));
        assert_eq!(sessions, sessions.clone());
        assert_ne!(sessions, Sessions::new(Vec::new));
        assert_ne!(sessions, Sessions::default());
        assert_eq!(Sessions::default(), Sessions::default());
        assert!(Sessions::default().read().is_empty());
    }
}
