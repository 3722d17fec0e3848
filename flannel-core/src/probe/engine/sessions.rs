//! What the tunnel itself knows of peers, for verdicts about those that do not answer. It is read only for these, and seldom
//! enough that reading takes a small part of the time however many peers there are.

use std::collections::HashMap;
use std::time::{Duration, SystemTime};

use tokio::time::Instant;

use crate::addr::Family;
use crate::lease::LeaseKey;
use crate::probe::verdict::Known;
use crate::status::{SessionState, Sessions};

/// For how long what was read is used again, at least.
const FRESH: Duration = Duration::from_secs(1);
/// How many times as long as reading took it is used again.
const REST: u32 = 20;

/// The last handshake with a peer, and whether its session carries packets.
type Last = Option<(SystemTime, bool)>;

/// The sessions as they were read last.
#[derive(Debug, Default)]
pub(super) struct TunnelsWord {
    sessions: Sessions,
    read: HashMap<(LeaseKey, Family), Last>,
    until: Option<Instant>,
}

impl TunnelsWord {
    pub(super) fn new(sessions: Sessions) -> Self {
        Self { sessions, ..Self::default() }
    }

    /// What the tunnel knows of a peer; `None` if it has no sessions, or can't be read.
    pub(super) fn of(&mut self, lease: LeaseKey, family: Family, now: Instant) -> Option<Known> {
        if !self.sessions.are_kept() {
            return None;
        }
        if self.until.is_none_or(|until| until <= now) {
            let began = Instant::now();
            let sessions = self.sessions.read();
            self.read.clear();
            for session in &sessions {
                let last = session.last_handshake.map(|at| (at, session.state == SessionState::Alive));
                for family in &session.families {
                    // Of two devices with the peer the one that heard from it last counts.
                    let known = self.read.entry((session.lease, *family)).or_default();
                    *known = last.max(*known);
                }
            }
            self.until = Some(now + FRESH.max(began.elapsed() * REST));
        }
        Some(match *self.read.get(&(lease, family))? {
            None => Known::NoHandshake,
            Some((at, is_alive)) => {
                // After the clock was set back nobody knows how long ago it was.
                let ago = SystemTime::now().duration_since(at).ok()?;
                Known::Handshake { seconds: ago.as_secs(), is_alive }
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::status::Session;

    #[tokio::test(start_paused = true)]
    async fn it_is_read_once_a_second_for_all_peers_and_not_at_all_without_need() {
        let reads = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&reads);
        let key = |n: u32| format!("10.5.{n}.0-24").parse::<LeaseKey>().unwrap();
        let sessions = Sessions::new(move || {
            counted.fetch_add(1, Ordering::Relaxed);
            let of = |n, families: &[Family]| {
                Session::new(key(n), "flannel-wg", families, "192.0.2.9:51820".parse().ok())
            };
            let (now, lasts) = (SystemTime::now(), Duration::from_secs(180));
            let before = now - Duration::from_secs(400);
            vec![
                of(1, &[Family::V4]),
                of(2, &Family::ALL).handshake(Some(now), lasts, now),
                of(3, &[Family::V4]).handshake(Some(before), lasts, now),
            ]
        });
        let mut word = TunnelsWord::new(sessions);
        assert_eq!(reads.load(Ordering::Relaxed), 0);
        let now = Instant::now();
        assert_eq!(word.of(key(1), Family::V4, now), Some(Known::NoHandshake));
        for family in Family::ALL {
            let known = word.of(key(2), family, now);
            assert!(matches!(known, Some(Known::Handshake { is_alive: true, .. })), "{known:?}");
        }
        let known = word.of(key(3), Family::V4, now);
        assert!(matches!(known, Some(Known::Handshake { is_alive: false, .. })), "{known:?}");
        assert_eq!((word.of(key(3), Family::V6, now), word.of(key(4), Family::V4, now)), (None, None));
        assert_eq!(reads.load(Ordering::Relaxed), 1);
        word.of(key(1), Family::V4, now + FRESH);
        assert_eq!(reads.load(Ordering::Relaxed), 2);
        assert_eq!(TunnelsWord::default().of(key(1), Family::V4, now), None);
    }
}
