//! From leases to wanted kernel state: which leases hold where they contradict each other, and what all of
//! them together ask of the kernel. Pure, and incremental: a changed lease costs work for itself and for
//! those it contradicts, never for all.

mod claim;
mod few;
mod index;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use crate::addr::{Family, LinkIndex, PerFamily, Subnet};
use crate::dataplane::{Dataplane, Object, ObjectKey};
use crate::lease::{LeaseKey, brief};
use crate::repack::repack;
use crate::status::Reach;

pub use claim::Claim;
use claim::{Holder, against_itself};
use index::ClaimIndex;

/// What an operator does about two leases of which one must be wrong.
const DELETE: &str = "delete the record that is wrong";

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
    /// It belongs to another backend or another network: nothing of it can be in the kernel.
    #[error("{0}")]
    NotOurs(String),
    /// What its backend published can't be read. That is unknown, not gone: its last good state stays.
    #[error("{0}")]
    Malformed(String),
}

/// A number of leases for each family.
#[derive(Debug, Clone, Copy, Default)]
struct Counts(PerFamily<usize>);

impl Counts {
    fn of(&self, family: Family) -> usize {
        self.0.get(family).copied().unwrap_or_default()
    }

    fn add(&mut self, peer: &Peer) {
        for family in peer.families() {
            *self.0.get_mut(family).get_or_insert(0) += 1;
        }
    }

    fn remove(&mut self, peer: &Peer) {
        for family in peer.families() {
            *self.0.get_mut(family).get_or_insert(1) -= 1;
        }
    }
}

impl Peer {
    /// The families by which it is reached: those of which it has an underlay address.
    fn families(&self) -> impl Iterator<Item = Family> + use<'_> {
        let is_at = |claim: &Claim, family| match claim {
            Claim::Underlay(addr) | Claim::Vtep(.., addr) => Family::of(*addr) == family,
            Claim::Subnet(_) => false,
        };
        Family::ALL.into_iter().filter(move |family| self.claims.iter().any(|claim| is_at(claim, *family)))
    }
}

#[derive(Debug, Clone)]
struct Entry {
    created: u64,
    /// The last good version, or empty if there was none.
    peer: Peer,
    /// Whether `peer` is programmed.
    holds: bool,
    /// What is wrong with it. Hardly any has something.
    trouble: Option<Box<Trouble>>,
}

#[derive(Debug, Clone, Default)]
struct Trouble {
    /// What is wrong with the newest version.
    fault: Option<PeerError>,
    /// Why the last good one is not programmed: an older lease, or we, have what it claims.
    contradiction: Option<Contradiction>,
}

/// Why a lease can't be programmed.
#[derive(Debug, Clone)]
struct Contradiction {
    why: String,
    /// Whether it is another lease that has what this one claims, and not this node.
    with_lease: bool,
}

impl Entry {
    fn fault(&self) -> Option<&PeerError> {
        self.trouble.as_ref()?.fault.as_ref()
    }

    fn problem(&self) -> Option<String> {
        let trouble = self.trouble.as_ref()?;
        let why = trouble.contradiction.as_ref().map(|contradiction| &contradiction.why);
        match (&trouble.fault, why) {
            (Some(fault), Some(why)) => Some(format!("{fault}; and its last good version: {why}")),
            (Some(fault), None) => Some(fault.to_string()),
            (None, why) => why.cloned(),
        }
    }

    /// Whether it should be reachable, and another lease keeps it from being programmed.
    fn is_lost(&self) -> bool {
        let contradiction = self.trouble.as_ref().and_then(|trouble| trouble.contradiction.as_ref());
        contradiction.is_some_and(|contradiction| contradiction.with_lease)
    }
}

/// All peers, and the kernel state they ask for together with our own objects.
///
/// Of leases that contradict each other ours holds first, then the one created first, then the one with
/// the smaller key.
#[derive(Debug, Clone, Default)]
pub struct PeerTable {
    own: Vec<Claim>,
    /// The overlay networks: what lies outside of them is no peer's.
    networks: PerFamily<Subnet>,
    entries: BTreeMap<LeaseKey, Entry>,
    programmed: usize,
    /// The entries with a problem, so that nobody searches all for them.
    troubled: BTreeSet<LeaseKey>,
    /// How many programmed leases have each family, and how many another lease keeps from being programmed.
    held: Counts,
    lost: Counts,
    index: ClaimIndex,
    want: Dataplane,
    /// How many programmed peers besides the first ask for an object: two leases of one node share its FDB
    /// entry.
    shared: BTreeMap<ObjectKey, usize>,
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

    /// Says which networks all peers lie in. A family without one is not checked.
    pub fn confine(&mut self, networks: PerFamily<Subnet>) {
        self.networks = networks;
    }

    /// What the kernel should hold.
    pub fn want(&self) -> &Dataplane {
        &self.want
    }

    /// How many peers are programmed.
    pub fn programmed(&self) -> usize {
        self.programmed
    }

    /// The peers that are programmed, for a backend that carries packets itself.
    pub fn iter(&self) -> impl Iterator<Item = (&LeaseKey, &Peer)> {
        self.entries.iter().filter(|(_, entry)| entry.holds).map(|(key, entry)| (key, &entry.peer))
    }

    /// The leases that are not programmed as they are, with the reason.
    pub fn problems(&self) -> impl Iterator<Item = (LeaseKey, String)> + '_ {
        self.troubled.iter().filter_map(|key| Some((*key, self.entries.get(key)?.problem()?)))
    }

    /// How many leases [`Self::problems`] has.
    pub fn troubled(&self) -> usize {
        self.troubled.len()
    }

    /// Whether a lease should be reachable, and another one keeps it from being programmed.
    pub fn is_lost(&self, key: &LeaseKey) -> bool {
        self.entries.get(key).is_some_and(Entry::is_lost)
    }

    /// How many peers of a family should be reachable, and how many of them another lease keeps from being
    /// programmed. One whose lease contradicts this node, or can't be read, is none of them.
    pub fn reach(&self, family: Family) -> Reach {
        let cut = self.lost.of(family);
        Reach { expected: self.held.of(family) + cut, cut }
    }

    /// The programmed peers that need an object under this key.
    pub fn users(&self, object: &ObjectKey) -> Vec<LeaseKey> {
        let holds = |key: &LeaseKey| self.entries.get(key).is_some_and(|entry| entry.holds);
        let mut users: Vec<LeaseKey> = match *object {
            ObjectKey::Address(..) => Vec::new(),
            ObjectKey::Route(dst, _) => self.index.with_subnet(dst).collect(),
            ObjectKey::Neighbour(_, gateway) | ObjectKey::NextHop(_, gateway, _) => {
                self.index.with_base(gateway).collect()
            }
            ObjectKey::Fdb(entry) => self.index.with_vtep(entry.link, entry.mac, entry.dst).collect(),
        };
        users.retain(holds);
        users
    }

    /// The programmed peers whose subnets overlap one.
    pub fn overlapping(&self, subnet: Subnet) -> impl Iterator<Item = (LeaseKey, Subnet)> + '_ {
        self.index.overlapping(subnet).filter_map(move |key| {
            let entry = self.entries.get(&key).filter(|entry| entry.holds)?;
            let subnets = entry.peer.claims.iter().filter_map(|claim| match claim {
                Claim::Subnet(theirs) => Some(*theirs),
                _ => None,
            });
            Some((key, subnets.into_iter().find(|theirs| theirs.overlaps(subnet))?))
        })
    }

    /// The malformed leases of which no good version was seen. What the kernel holds for them must stay.
    pub fn unknown(&self) -> impl Iterator<Item = LeaseKey> + '_ {
        let unknown = |entry: &Entry| {
            matches!(entry.fault(), Some(PeerError::Malformed(_))) && entry.peer.claims.is_empty()
        };
        self.troubled.iter().filter(move |key| self.entries.get(key).is_some_and(unknown)).copied()
    }

    /// Adds or changes a lease. Returns the keys of all objects whose wanted state may have changed.
    pub fn put(&mut self, key: LeaseKey, created: u64, peer: Result<Peer, PeerError>) -> Vec<ObjectKey> {
        let mut affected = self.contradicting(key);
        let old = self.unlink(&key);
        let (mut peer, fault) = match self.judge(key, peer) {
            Ok(peer) => (peer, None),
            Err(PeerError::NotOurs(why)) => (Peer::default(), Some(PeerError::NotOurs(brief(&why)))),
            Err(PeerError::Malformed(why)) => {
                let last_good = old.as_ref().map(|old| old.peer.clone()).unwrap_or_default();
                (last_good, Some(PeerError::Malformed(brief(&why))))
            }
        };
        // They stay as they are, ten thousand of them.
        peer.objects.shrink_to_fit();
        peer.claims.shrink_to_fit();
        self.index.add(key, &peer.claims);
        let trouble = fault.map(|fault| Box::new(Trouble { fault: Some(fault), contradiction: None }));
        self.entries.insert(key, Entry { created, peer, holds: false, trouble });
        affected.extend(self.contradicting(key));
        affected.insert(key);
        self.settle(affected, old.as_ref())
    }

    /// Refuses what can be nobody's, whatever the backend.
    fn judge(&self, key: LeaseKey, peer: Result<Peer, PeerError>) -> Result<Peer, PeerError> {
        let peer = peer?;
        for (family, subnet) in key.subnets().iter() {
            let Some(network) = self.networks.get(family) else { continue };
            if subnet.prefix() <= network.prefix() || !network.covers(*subnet) {
                return Err(PeerError::NotOurs(format!(
                    "subnet {subnet} is no part of the network {network}; delete the record"
                )));
            }
        }
        match against_itself(&peer.claims) {
            Some(why) => Err(PeerError::Malformed(why)),
            None => Ok(peer),
        }
    }

    /// Gives back memory that many [`Self::put`] in the order of their keys left unused.
    pub fn repack(&mut self) {
        repack(&mut self.entries);
        self.index.repack();
        self.want.repack();
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
        let contradiction = self.contradiction(key);
        let Some(entry) = self.entries.get_mut(&key) else { return };
        let holds = contradiction.is_none();
        let fault = entry.trouble.take().and_then(|trouble| trouble.fault);
        if fault.is_some() || !holds {
            entry.trouble = Some(Box::new(Trouble { fault, contradiction }));
            self.troubled.insert(key);
            if entry.is_lost() {
                self.lost.add(&entry.peer);
            }
        } else {
            self.troubled.remove(&key);
        }
        // One without claims asks for nothing: another backend's, or one that never could be read.
        if !holds || entry.peer.claims.is_empty() {
            return;
        }
        entry.holds = true;
        self.programmed += 1;
        self.held.add(&entry.peer);
        for object in entry.peer.objects.clone() {
            self.want_object(object);
        }
    }

    /// Why a lease can't hold beside us and those that are programmed.
    fn contradiction(&self, key: LeaseKey) -> Option<Contradiction> {
        let claims = &self.entries.get(&key)?.peer.claims;
        let against = |theirs: &[Claim], holder: Holder| {
            let pairs = claims.iter().flat_map(|claim| theirs.iter().map(move |other| (claim, other)));
            let why = pairs.into_iter().find_map(|(claim, other)| claim.against(*other, holder))?;
            let with_lease = matches!(holder, Holder::Lease(_));
            Some(Contradiction { why: format!("{why}; {DELETE}"), with_lease })
        };
        against(&self.own, Holder::Us).or_else(|| {
            let mut rivals = self.index.contradicting(&key, claims).into_iter();
            let winner = rivals.find(|rival| self.entries.get(rival).is_some_and(|entry| entry.holds))?;
            against(&self.entries.get(&winner)?.peer.claims, Holder::Lease(winner))
        })
    }

    fn want_object(&mut self, object: Object) {
        if self.want.insert(object).is_some() {
            *self.shared.entry(object.key()).or_default() += 1;
        }
    }

    /// Withdraws what a lease asks for.
    fn retract(&mut self, key: &LeaseKey) {
        let Some(entry) = self.entries.get_mut(key) else { return };
        let contradiction = entry.trouble.as_mut().and_then(|trouble| trouble.contradiction.take());
        if contradiction.is_some_and(|contradiction| contradiction.with_lease) {
            self.lost.remove(&entry.peer);
        }
        if !std::mem::take(&mut entry.holds) {
            return;
        }
        self.programmed -= 1;
        self.held.remove(&entry.peer);
        for object in &entry.peer.objects {
            let object = object.key();
            match self.shared.get_mut(&object) {
                None => _ = self.want.remove(&object),
                Some(1) => _ = self.shared.remove(&object),
                Some(others) => *others -= 1,
            }
        }
    }
}
