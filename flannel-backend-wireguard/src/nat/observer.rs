//! What a public node publishes of where it sees its peers, and what a node reads of itself in that. Pure.
//!
//! Each change of a record is a write to the store, which all nodes read. So a node publishes what others don't, at most every
//! few seconds, and nothing of peers that are where they say they are.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::net::SocketAddr;
use std::time::Duration;

use tokio::time::Instant;

use super::record::MOST_SEEN;
use crate::key::PublicKey;

/// A record is changed at most this often.
const CHANGE: Duration = Duration::from_secs(3);
/// So many nodes that publish the same of a peer are enough.
const ENOUGH: usize = 2;
/// So many different places of a peer are enough: its NAT takes another port for each destination.
const ENOUGH_PLACES: usize = 3;
/// The longest time by which a node waits for others that see the same.
const LONGEST_WAIT: Duration = Duration::from_secs(3);
/// By how much longer they wait in the mean for each further node.
const WAIT: Duration = Duration::from_millis(30);

/// A peer as this node sees it.
#[derive(Debug, Clone)]
pub(crate) struct Sight {
    pub(crate) key: PublicKey,
    /// Where a handshake proved it to be; `None` if that is not known now.
    pub(crate) elsewhere: Option<SocketAddr>,
    /// Where others publish that they see it.
    pub(crate) by_others: Vec<SocketAddr>,
}

/// What a node publishes, and what it is about to publish.
#[derive(Debug, Default)]
pub(crate) struct Observer {
    published: BTreeMap<PublicKey, SocketAddr>,
    /// Since when a peer was seen where it is now.
    since: BTreeMap<PublicKey, (SocketAddr, Instant)>,
    changed: Option<Instant>,
}

impl Observer {
    /// What an earlier run published, which tells where peers may be.
    pub(crate) fn recalling(published: BTreeMap<PublicKey, SocketAddr>) -> Self {
        Self { published, ..Self::default() }
    }

    /// What is published.
    pub(crate) fn published(&self) -> &BTreeMap<PublicKey, SocketAddr> {
        &self.published
    }

    /// Takes what this node, `own`, sees of peers that are elsewhere, or may be. So many nodes may see the same.
    pub(crate) fn update(&mut self, own: PublicKey, sights: &[Sight], nodes: usize, now: Instant) {
        let mut next = BTreeMap::new();
        let mut since = BTreeMap::new();
        for sight in sights {
            let before = self.published.get(&sight.key);
            // Of a peer that is not heard from now, the last place stays; others may have no better one.
            let Some(at) = sight.elsewhere else {
                next.extend(before.map(|at| (sight.key, *at)));
                continue;
            };
            let began =
                self.since.get(&sight.key).filter(|(before, _)| *before == at).map_or(now, |(_, at)| *at);
            since.insert(sight.key, (at, began));
            let same = sight.by_others.iter().filter(|other| **other == at).count();
            let mut places = sight.by_others.clone();
            places.sort_unstable();
            places.dedup();
            let is_known = same >= ENOUGH || places.len() >= ENOUGH_PLACES;
            let waited = now.saturating_duration_since(began) >= wait(own, sight.key, nodes);
            if before.is_some() || !is_known && waited {
                next.insert(sight.key, at);
            }
        }
        self.since = since;
        while next.len() > MOST_SEEN {
            next.pop_last();
        }
        let is_time = self.changed.is_none_or(|at| now.saturating_duration_since(at) >= CHANGE);
        if next != self.published && is_time {
            (self.published, self.changed) = (next, Some(now));
        }
    }
}

/// How long a node waits before it publishes where it sees a peer of which it publishes nothing: of many that see the same,
/// few should. One that is alone with it does not wait.
fn wait(own: PublicKey, of: PublicKey, nodes: usize) -> Duration {
    let mut hasher = DefaultHasher::new();
    (own, of).hash(&mut hasher);
    let range =
        WAIT.saturating_mul(u32::try_from(nodes.saturating_sub(4)).unwrap_or(u32::MAX)).min(LONGEST_WAIT);
    range.mul_f64((hasher.finish() % 1000) as f64 / 1000.0)
}

/// Where a NAT puts this node, by what others publish of it: elsewhere than it publishes, and at no address of its own.
pub(crate) fn seen_behind(
    seen: &[SocketAddr],
    published: SocketAddr,
    is_own_address: impl Fn(&SocketAddr) -> bool,
) -> Option<&SocketAddr> {
    seen.iter().find(|at| **at != published && !is_own_address(at))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(n: u8) -> PublicKey {
        PublicKey([n; 32])
    }

    fn at(n: u8) -> SocketAddr {
        format!("198.51.100.{n}:51820").parse().unwrap()
    }

    fn sight(n: u8, elsewhere: Option<SocketAddr>, by_others: &[SocketAddr]) -> Sight {
        Sight { key: key(n), elsewhere, by_others: by_others.to_vec() }
    }

    #[test]
    fn what_others_publish_is_not_published_again_and_what_is_published_is_kept_right() {
        let (mut observer, begin) = (Observer::default(), Instant::now());
        let mut update = |seconds: u64, sights: &[Sight]| {
            observer.update(key(99), sights, 1, begin + Duration::from_secs(seconds));
            observer.published().iter().map(|(key, at)| (key.0[0], *at)).collect::<Vec<_>>()
        };
        assert_eq!(update(0, &[sight(1, None, &[]), sight(2, None, &[])]), []);
        let known = [sight(1, Some(at(1)), &[]), sight(2, Some(at(2)), &[at(2), at(2)])];
        assert_eq!(update(1, &known), [(1, at(1))], "alone with it, at once");
        let symmetric = sight(3, Some(at(9)), &[at(3), at(4), at(5)]);
        let differing = sight(2, Some(at(2)), &[at(8), at(8)]);
        let now = [sight(1, Some(at(7)), &[at(1), at(1)]), differing, symmetric];
        assert_eq!(update(2, &now), [(1, at(1))], "not yet again");
        assert_eq!(update(4, &now), [(1, at(7)), (2, at(2))]);
        let silent = [sight(1, None, &[]), sight(2, Some(at(2)), &[at(2), at(2)])];
        assert_eq!(update(8, &silent), [(1, at(7)), (2, at(2))], "of a silent one the last place stays");
        assert_eq!(update(12, &[sight(2, Some(at(2)), &[])]), [(2, at(2))], "a peer that is gone");
        let many: Vec<Sight> = (1..=200).map(|n| sight(n, Some(at(n)), &[])).collect();
        update(13, &many);
        assert_eq!(update(30, &many).len(), MOST_SEEN);
    }

    #[test]
    fn of_many_nodes_few_are_the_first() {
        let first = (1..=100).filter(|n| wait(key(*n), key(200), 100) < LONGEST_WAIT / 10).count();
        assert!((1..30).contains(&first), "{first}");
        assert!((1..=100).all(|n| wait(key(n), key(200), 3).is_zero()));
    }

    #[test]
    fn an_address_of_its_own_is_no_nat() {
        let none = |_: &SocketAddr| false;
        assert_eq!(seen_behind(&[at(1), at(2)], at(1), none), Some(&at(2)));
        assert_eq!(seen_behind(&[at(1)], at(1), none), None);
        assert_eq!(seen_behind(&[at(2)], at(1), |seen| *seen == at(2)), None);
    }
}
