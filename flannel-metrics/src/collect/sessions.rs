//! The sessions of a tunnel with peers: how many are how far and go which way, and each of them if that is asked for.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use flannel_core::status::{Session, SessionState};

use crate::catalogue as all;
use crate::output::{Output, Written};

pub(super) fn in_all(out: &mut Output<'_>, sessions: &[Session]) -> Written {
    let mut devices: BTreeMap<&str, Vec<&Session>> = BTreeMap::new();
    for session in sessions {
        devices.entry(session.device.as_str()).or_default().push(session);
    }
    let counts = |names: [&'static str; 3], name_of: fn(&Session) -> &'static str| {
        devices.iter().flat_map(move |(device, sessions)| {
            names.map(|name| {
                let count = sessions.iter().filter(|session| name_of(session) == name).count();
                ([*device, name], count as u64)
            })
        })
    };
    out.values(&all::SESSIONS, counts(SessionState::ALL.map(SessionState::name), |it| it.state.name()))?;
    out.values(&all::SESSION_PATHS, counts(Session::PATHS, Session::path_name))?;
    let oldest = devices.iter().filter_map(|(device, sessions)| {
        let oldest = sessions.iter().filter_map(|session| session.last_handshake).min()?;
        Some(([*device], unix(oldest)))
    });
    out.values(&all::SESSION_OLDEST, oldest)
}

pub(super) fn each(out: &mut Output<'_>, sessions: &[Session]) -> Written {
    let names: Vec<String> = sessions.iter().map(|session| session.lease.to_string()).collect();
    let rows = || names.iter().map(String::as_str).zip(sessions);
    let handshakes = rows()
        .filter_map(|(name, session)| Some(([name, session.device.as_str()], unix(session.last_handshake?))));
    out.values(&all::PEER_HANDSHAKE, handshakes)?;
    let carried = rows().flat_map(|(name, session)| {
        let device = session.device.as_str();
        [([name, device, "sent"], session.sent_bytes), ([name, device, "received"], session.received_bytes)]
    });
    out.counts(&all::PEER_SESSION, carried)
}

/// Seconds since 1970.
fn unix(at: SystemTime) -> f64 {
    at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs_f64()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use flannel_core::addr::Family;
    use flannel_core::agent::{AgentStatus, FirewallOptions};
    use flannel_core::backend::NetworkStatus;
    use flannel_core::status::{SessionPath, Sessions};
    use tokio::sync::watch;

    use super::*;
    use crate::{AgentMetrics, Format, Options};

    /// Of one device, whose sessions are: two alive by a relay, one over behind a NAT, and a plain one without a handshake.
    fn status() -> AgentStatus {
        let lasts = Duration::from_secs(180);
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(10_000);
        let of = move |n: u8, ago: Option<u64>, path: Option<SessionPath>| {
            let lease = format!("10.5.{n}.0-24").parse().unwrap();
            let published = format!("192.0.2.{n}:51820").parse().ok();
            let last = ago.map(|ago| now - Duration::from_secs(ago));
            let session = Session::new(lease, "flannel-wg", &[Family::V4], published);
            session.handshake(last, lasts, now).carried(u64::from(n), 7).path(path)
        };
        let mut network = NetworkStatus::default();
        network.sessions = Sessions::new(move || {
            let relay = SessionPath::Relay("10.5.9.0-24".parse().unwrap());
            vec![
                of(1, Some(3), Some(relay)),
                of(4, Some(9), Some(relay)),
                of(2, Some(500), Some(SessionPath::Nat)),
                of(3, None, None),
            ]
        });
        let mut status = AgentStatus::new(FirewallOptions::masquerade());
        status.network = Some(network);
        status
    }

    #[test]
    fn sessions_are_counted_by_device_and_shown_by_peer_only_if_that_is_asked_for() {
        let (_status, status) = watch::channel(Arc::new(status()));
        let metrics = |per_peer| AgentMetrics::new(status.clone(), Options::default().per_peer(per_peer));
        let few = metrics(false).render(Format::OpenMetrics);
        for line in [
            r#"flannel_sessions{device="flannel-wg",state="alive"} 2"#,
            r#"flannel_sessions{device="flannel-wg",state="over"} 1"#,
            r#"flannel_sessions{device="flannel-wg",state="none"} 1"#,
            r#"flannel_session_paths{device="flannel-wg",path="direct"} 1"#,
            r#"flannel_session_paths{device="flannel-wg",path="nat"} 1"#,
            r#"flannel_session_paths{device="flannel-wg",path="relay"} 2"#,
            r#"flannel_session_oldest_handshake_timestamp_seconds{device="flannel-wg"} 9500.0"#,
        ] {
            assert!(few.lines().any(|it| it == line), "{line}:\n{few}");
        }
        assert!(!few.contains("10.5.") && !few.contains("192.0.2."), "{few}");
        let all = metrics(true).render(Format::OpenMetrics);
        for line in [
            r#"flannel_peer_handshake_timestamp_seconds{subnet="10.5.1.0-24",device="flannel-wg"} 9997.0"#,
            r#"flannel_peer_session_bytes_total{subnet="10.5.3.0-24",device="flannel-wg",direction="sent"} 3"#,
            r#"flannel_peer_session_bytes_total{subnet="10.5.1.0-24",device="flannel-wg",direction="received"} 7"#,
        ] {
            assert!(all.lines().any(|it| it == line), "{line}:\n{all}");
        }
        assert!(!all.contains(r#"timestamp_seconds{subnet="10.5.3.0-24""#), "it had no handshake:\n{all}");
    }
}
