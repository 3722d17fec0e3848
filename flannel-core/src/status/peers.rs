//! The state of each peer: one entry for each lease of another node. Pure.
//!
//! The entries are in a list of which a copy is free, and after a change it still shares all other entries. So every
//! reader gets the whole status of ten thousand peers, and one change costs one entry.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::SystemTime;

use serde::{Serialize, Serializer};

use crate::addr::{MacAddr, PerFamily};
use crate::chunked::{Chunked, OfLease};
use crate::dataplane::NamedObject;
use crate::lease::LeaseKey;
use crate::times::instant;

/// One peer: the lease of another node, and its state on this node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct PeerStatus {
    /// The lease.
    pub lease: LeaseKey,
    /// The addresses that its node publishes.
    pub underlay: PerFamily<IpAddr>,
    /// The MACs of its devices, which frames through its tunnels are for, where the backend has such.
    #[serde(skip_serializing_if = "PerFamily::is_empty")]
    pub vteps: PerFamily<MacAddr>,
    /// By which backends its node receives besides the one that its lease names, the preferred first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub receives: Vec<String>,
    /// What became of the lease in the kernel.
    #[serde(flatten)]
    pub state: PeerState,
    /// The way that packets to its pods take, for each family by which it is reached.
    pub path: PerFamily<PeerPath>,
    /// Since when it is in this state, by the wall clock.
    #[serde(serialize_with = "instant")]
    pub since: SystemTime,
    /// When the lease was seen first in this run, or when its attributes changed last.
    #[serde(serialize_with = "instant")]
    pub changed: SystemTime,
}

impl PeerStatus {
    /// A peer that is seen for the first time at `now`.
    pub fn new(lease: LeaseKey, underlay: PerFamily<IpAddr>, state: PeerState, now: SystemTime) -> Self {
        let (vteps, path) = (PerFamily::default(), PerFamily::default());
        Self { lease, underlay, vteps, receives: Vec::new(), state, path, since: now, changed: now }
    }
}

impl OfLease for PeerStatus {
    fn lease(&self) -> &LeaseKey {
        &self.lease
    }
}

/// What became of a lease in the kernel. It is serialized with its name in `state`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "state", rename_all = "kebab-case")]
#[non_exhaustive]
pub enum PeerState {
    /// None of its objects could be put yet: a device is missing or down, or the loop has not got to it.
    Waiting,
    /// All its objects are in the kernel. So is a peer of a backend that carries packets itself and needs no objects.
    Programmed,
    /// As [`Self::Programmed`], but from what an earlier run stored: the store has not listed it yet.
    Recalled,
    /// An object of it is missing or wrong in the kernel, and is about to be put.
    Repairing,
    /// The kernel refuses an object of it. It is tried again.
    Refused(Box<RefusedObject>),
    /// The lease can't be used as it is.
    Rejected(Box<RejectedLease>),
}

impl PeerState {
    /// Whether it is the same state, apart from the object or reason that it names.
    pub fn is_like(&self, other: &Self) -> bool {
        std::mem::discriminant(self) == std::mem::discriminant(other)
    }
}

/// The first object of a peer that the kernel refuses.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct RefusedObject {
    /// The object.
    pub object: NamedObject,
    /// The kernel's errno, positive.
    pub errno: i32,
    /// Why, and what to do.
    pub reason: String,
}

/// Why a lease can't be used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct RejectedLease {
    /// Why, and what to do.
    pub reason: String,
    /// Whether its last good version is programmed meanwhile.
    pub programmed: bool,
}

/// The way that packets to a peer take: the name of the backend, such as `vxlan`, or of another way that the backend has,
/// such as `direct`. Copies share the text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerPath(Arc<str>);

impl PeerPath {
    /// The way with this name.
    pub fn new(name: &str) -> Self {
        Self(name.into())
    }

    /// Its name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for PeerPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Serialize for PeerPath {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

/// All peers, by lease. A copy is free and does not change with the original.
#[derive(Clone, Default)]
pub struct PeerList {
    entries: Chunked<PeerStatus>,
    /// A new allocation after each change. Two lists with the same one are equal, without a comparison of their
    /// entries.
    stamp: Arc<()>,
}

impl PeerList {
    /// How many peers there are, in whatever state.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The entry of a lease.
    pub fn get(&self, lease: &LeaseKey) -> Option<&PeerStatus> {
        self.entries.get(lease).map(|entry| &**entry)
    }

    /// All entries, in the order of their leases.
    pub fn iter(&self) -> impl Iterator<Item = &PeerStatus> {
        self.entries.iter().map(|entry| &**entry)
    }

    /// Adds or replaces the entry of a lease. It copies no other entry, however many there are.
    pub fn put(&mut self, entry: PeerStatus) {
        self.stamp = Arc::default();
        self.entries.put(Arc::new(entry));
    }

    /// Removes the entry of a lease. Returns whether there was one.
    pub fn remove(&mut self, lease: &LeaseKey) -> bool {
        let was_there = self.entries.remove(lease).is_some();
        if was_there {
            self.stamp = Arc::default();
        }
        was_there
    }

    /// Whether this is a copy of the other list, and neither was changed since. It compares a pointer.
    pub fn is_copy_of(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.stamp, &other.stamp)
    }
}

impl PartialEq for PeerList {
    fn eq(&self, other: &Self) -> bool {
        self.is_copy_of(other) || self.entries == other.entries
    }
}

impl Eq for PeerList {}

impl FromIterator<PeerStatus> for PeerList {
    fn from_iter<T: IntoIterator<Item = PeerStatus>>(entries: T) -> Self {
        let mut list = Self::default();
        for entry in entries {
            list.put(entry);
        }
        list
    }
}

impl fmt::Debug for PeerList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

impl Serialize for PeerList {
    /// A list of all entries.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.iter())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::dataplane::ObjectKey;

    fn peer(n: u32) -> PeerStatus {
        let lease = format!("10.{}.{}.0-24", n / 256, n % 256).parse().unwrap();
        let underlay = PerFamily { v4: Some([192, 0, 2, 1].into()), v6: None };
        PeerStatus::new(lease, underlay, PeerState::Programmed, SystemTime::UNIX_EPOCH)
    }

    /// What a reader holds while one peer of ten thousand changes.
    #[test]
    fn a_change_copies_no_other_entry() {
        let mut list: PeerList = (0..10_000).map(peer).collect();
        let held = list.clone();
        assert!(held.is_copy_of(&list) && held == list);
        list.put(PeerStatus { state: PeerState::Waiting, ..peer(4711) });
        list.remove(&peer(4712).lease);
        let is_shared = |entry: &&PeerStatus| {
            list.get(&entry.lease).is_some_and(|now| std::ptr::eq::<PeerStatus>(now, *entry))
        };
        assert_eq!(held.iter().filter(is_shared).count(), 9_998);
        assert_eq!((held.len(), list.len()), (10_000, 9_999));
        assert_eq!(held.get(&peer(4711).lease).unwrap().state, PeerState::Programmed);
        assert!(held != list && !held.is_copy_of(&list));
    }

    #[test]
    fn the_text_form_is_flat() {
        let route = ObjectKey::Route("10.5.2.0/24".parse().unwrap(), 0);
        let object = NamedObject::new(route, Some("flannel.1".to_owned()));
        let refused = RefusedObject { object, errno: libc::EEXIST, reason: "in the way".into() };
        let path = PerFamily { v4: Some(PeerPath::new("vxlan")), v6: None };
        let since = SystemTime::UNIX_EPOCH + Duration::from_millis(1500);
        let entry = PeerStatus { state: PeerState::Refused(Box::new(refused)), path, since, ..peer(2) };
        assert_eq!(
            serde_json::to_string(&[entry].into_iter().collect::<PeerList>()).unwrap(),
            r#"[{"lease":"10.0.2.0-24","underlay":{"v4":"192.0.2.1"},"state":"refused","object":{"kind":"route","destination":"10.5.2.0/24","metric":0,"device":"flannel.1"},"errno":17,"reason":"in the way","path":{"v4":"vxlan"},"since":"1970-01-01T00:00:01.500Z","changed":"1970-01-01T00:00:00.000Z"}]"#
        );
    }
}
