//! From leases to wanted kernel state: which leases hold where they contradict each other, and what all of
//! them together ask of the kernel. Pure, and incremental: a changed lease costs work for itself and for
//! those it contradicts, never for all.

mod index;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

use crate::addr::{LinkIndex, MacAddr, Subnet};
use crate::dataplane::{Dataplane, Object, ObjectKey};
use crate::lease::LeaseKey;

use index::ClaimIndex;

/// Something that only one node can have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Claim {
    /// Pod addresses. Contradicts every claim on a subnet that overlaps.
    Subnet(Subnet),
    /// A VTEP MAC on a device of ours. Contradicts the same MAC at another underlay address.
    Vtep(LinkIndex, MacAddr, IpAddr),
    /// An underlay address. One node may have several leases, so this contradicts our own address only.
    Underlay(IpAddr),
}

impl Claim {
    /// What makes both impossible at once, if `ours` is this node's own claim.
    fn against_own(self, ours: Self) -> Option<String> {
        match (self, ours) {
            (Self::Subnet(subnet), Self::Subnet(own)) if subnet.overlaps(own) => {
                Some(format!("subnet {subnet} overlaps this node's own {own}"))
            }
            (Self::Vtep(link, mac, _), Self::Vtep(own_link, own, _)) if (link, mac) == (own_link, own) => {
                Some(format!("VTEP MAC {mac} is this node's own"))
            }
            (Self::Underlay(addr), Self::Underlay(own)) if addr == own => {
                Some(format!("underlay address {addr} is this node's own"))
            }
            _ => None,
        }
    }
}

/// What one lease asks for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Peer {
    /// The kernel objects that reach it.
    pub objects: Vec<Object>,
    /// What it claims for itself alone.
    pub claims: Vec<Claim>,
}

/// Why a lease is no peer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PeerError {
    /// It belongs to another backend: nothing of it can be in the kernel.
    #[error("{0}")]
    NotOurs(String),
    /// What its backend published can't be read. That is unknown, not gone: its last good state stays.
    #[error("{0}")]
    Malformed(String),
}

#[derive(Debug, Clone)]
struct Entry {
    created: u64,
    peer: Peer,
    /// Why it is not programmed, or programmed as it last was.
    problem: Option<Problem>,
}

#[derive(Debug, Clone)]
enum Problem {
    /// An older lease, or we, have what it claims.
    Contradicts(String),
    /// The newest version can't be read; the peer is the last good one, or empty if there was none.
    Malformed(String),
    /// Another backend's.
    NotOurs(String),
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Contradicts(why) | Self::Malformed(why) | Self::NotOurs(why) => f.write_str(why),
        }
    }
}

/// All peers, and the kernel state they ask for together with our own objects.
///
/// Of leases that contradict each other ours holds first, then the one created first, then the one with
/// the smaller key.
#[derive(Debug, Clone, Default)]
pub struct PeerTable {
    own: Vec<Claim>,
    entries: BTreeMap<LeaseKey, Entry>,
    programmed: BTreeSet<LeaseKey>,
    /// The entries with a problem, so that nobody searches all for them.
    troubled: BTreeSet<LeaseKey>,
    index: ClaimIndex,
    want: Dataplane,
    /// How many programmed peers ask for an object: two leases of one node share its FDB entry.
    users: BTreeMap<ObjectKey, usize>,
}

impl PeerTable {
    /// An empty table of a node with these objects and claims of its own.
    pub fn new(own_objects: Vec<Object>, own_claims: Vec<Claim>) -> Self {
        let mut table = Self { own: own_claims, ..Self::default() };
        for object in own_objects {
            table.want_object(object);
        }
        table
    }

    /// Says which links others use, too.
    pub fn share(&mut self, links: impl IntoIterator<Item = LinkIndex>) {
        self.want.share(links);
    }

    /// What the kernel should hold.
    pub fn want(&self) -> &Dataplane {
        &self.want
    }

    /// How many peers are programmed.
    pub fn programmed(&self) -> usize {
        self.programmed.len()
    }

    /// The peers that are programmed, for a backend that carries packets itself.
    pub fn iter(&self) -> impl Iterator<Item = (&LeaseKey, &Peer)> {
        self.programmed.iter().filter_map(|key| Some((key, &self.entries.get(key)?.peer)))
    }

    /// The leases that are not programmed as they are, with the reason.
    pub fn problems(&self) -> impl Iterator<Item = (LeaseKey, String)> + '_ {
        self.troubled
            .iter()
            .filter_map(|key| Some((*key, self.entries.get(key)?.problem.as_ref()?.to_string())))
    }

    /// The malformed leases of which no good version was seen. What the kernel holds for them must stay.
    pub fn unknown(&self) -> impl Iterator<Item = LeaseKey> + '_ {
        let unknown = |entry: &Entry| {
            matches!(entry.problem, Some(Problem::Malformed(_))) && entry.peer.claims.is_empty()
        };
        self.troubled.iter().filter(move |key| self.entries.get(key).is_some_and(unknown)).copied()
    }

    /// Adds or changes a lease. Returns the keys of all objects whose wanted state may have changed.
    pub fn put(&mut self, key: LeaseKey, created: u64, peer: Result<Peer, PeerError>) -> Vec<ObjectKey> {
        let mut affected = self.contradicting(key);
        let old = self.unlink(&key);
        let (peer, problem) = match peer {
            Ok(peer) => (peer, None),
            Err(PeerError::NotOurs(why)) => (Peer::default(), Some(Problem::NotOurs(why))),
            Err(PeerError::Malformed(why)) => {
                (old.as_ref().map(|old| old.peer.clone()).unwrap_or_default(), Some(Problem::Malformed(why)))
            }
        };
        self.index.add(key, &peer.claims);
        if problem.is_some() {
            self.troubled.insert(key);
        }
        self.entries.insert(key, Entry { created, peer, problem });
        affected.extend(self.contradicting(key));
        affected.insert(key);
        self.settle(affected, old.as_ref())
    }

    /// Removes a lease. Returns the keys of all objects whose wanted state may have changed.
    pub fn remove(&mut self, key: &LeaseKey) -> Vec<ObjectKey> {
        let affected = self.contradicting(*key);
        let old = self.unlink(key);
        self.settle(affected, old.as_ref())
    }

    /// Takes a lease out of all books.
    fn unlink(&mut self, key: &LeaseKey) -> Option<Entry> {
        self.retract(key);
        self.troubled.remove(key);
        let entry = self.entries.remove(key)?;
        self.index.remove(key, &entry.peer.claims);
        Some(entry)
    }

    /// The leases that contradict this one, directly or through others; without itself.
    fn contradicting(&self, key: LeaseKey) -> BTreeSet<LeaseKey> {
        let mut found = BTreeSet::new();
        let mut todo = vec![key];
        while let Some(next) = todo.pop() {
            let Some(entry) = self.entries.get(&next) else { continue };
            for other in self.index.contradicting(&next, &entry.peer.claims) {
                if other != key && found.insert(other) {
                    todo.push(other);
                }
            }
        }
        found
    }

    /// Decides anew which of the affected leases hold.
    fn settle(&mut self, affected: BTreeSet<LeaseKey>, old: Option<&Entry>) -> Vec<ObjectKey> {
        let mut touched: Vec<ObjectKey> = Vec::new();
        touched.extend(old.iter().flat_map(|old| &old.peer.objects).map(Object::key));
        let mut oldest_first: Vec<(u64, LeaseKey)> = Vec::new();
        for key in affected {
            self.retract(&key);
            let Some(entry) = self.entries.get(&key) else { continue };
            touched.extend(entry.peer.objects.iter().map(Object::key));
            oldest_first.push((entry.created, key));
        }
        oldest_first.sort_unstable();
        for (_, key) in oldest_first {
            self.admit(key);
        }
        touched
    }

    /// Programs a lease unless we or a programmed one contradict it.
    fn admit(&mut self, key: LeaseKey) {
        let Some(entry) = self.entries.get(&key) else { return };
        let claims = &entry.peer.claims;
        let own = claims.iter().find_map(|claim| self.own.iter().find_map(|own| claim.against_own(*own)));
        let contradiction = own.or_else(|| {
            let rivals = self.index.contradicting(&key, claims);
            let winner = rivals.into_iter().find(|rival| self.programmed.contains(rival))?;
            Some(format!("contradicts lease {winner}, which is older"))
        });
        let objects = if contradiction.is_none() { entry.peer.objects.clone() } else { Vec::new() };
        let entry = self.entries.get_mut(&key).expect("it was there a moment ago");
        match contradiction {
            Some(why) => {
                entry.problem = Some(Problem::Contradicts(why));
                self.troubled.insert(key);
                return;
            }
            None if matches!(entry.problem, Some(Problem::Contradicts(_))) => {
                entry.problem = None;
                self.troubled.remove(&key);
            }
            None => {}
        }
        // One without claims asks for nothing: another backend's, or one that never could be read.
        if !entry.peer.claims.is_empty() {
            self.programmed.insert(key);
        }
        for object in objects {
            self.want_object(object);
        }
    }

    fn want_object(&mut self, object: Object) {
        *self.users.entry(object.key()).or_default() += 1;
        self.want.insert(object);
    }

    /// Withdraws what a lease asks for.
    fn retract(&mut self, key: &LeaseKey) {
        if !self.programmed.remove(key) {
            return;
        }
        let Some(entry) = self.entries.get(key) else { return };
        for object in &entry.peer.objects {
            let object = object.key();
            let users = self.users.get_mut(&object).expect("a programmed object has a user");
            *users -= 1;
            if *users == 0 {
                self.users.remove(&object);
                self.want.remove(&object);
            }
        }
    }
}
