//! From leases to the desired state of the kernel: which leases are programmed where they conflict, and which objects
//! all of them need. Pure, and incremental: a changed lease costs work for itself and for those that it conflicts with,
//! never for all.

mod claim;
mod conflict;
mod few;
mod index;
mod precedence;
mod rivals;
mod segments;
mod settle;
mod solve;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use crate::addr::{Family, LinkIndex, PerFamily, Subnet};
use crate::dataplane::{Dataplane, Object, ObjectKey};
use crate::lease::{BackendData, LeaseAttrs, LeaseKey, Unknown, brief};
use crate::repack::repack;
use crate::status::Reach;
use crate::subnet::Remedy;

pub use claim::Claim;
use claim::against_itself;
use conflict::{Conflict, Holder};
use index::ClaimIndex;
use precedence::Side;
pub use precedence::{Grounds, Standing};
pub use rivals::{Rival, may_be_rivals};
pub use segments::Segments;

/// The objects and claims of one lease.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Peer {
    /// The kernel objects that packets to its pods need.
    pub objects: Vec<Object>,
    /// The values that only its node can have.
    pub claims: Vec<Claim>,
    /// What its node publishes for the backend, for a backend that acts on peers itself
    /// ([`Driver::set_peers`](crate::reconcile::Driver::set_peers)).
    pub data: Option<BackendData>,
    /// On a node with several backends: their kinds, first the one whose objects these are, then the others by which packets
    /// of the node can arrive. Empty on a node with one.
    pub backends: Box<[&'static str]>,
}

/// Why a lease can't be programmed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PeerError {
    /// It belongs to another backend or another network, so none of its objects can be in the kernel.
    #[error("{0}")]
    NotOurs(String),
    /// Its backend data is unreadable. That counts as unknown, not as deleted: its last good state stays.
    #[error("{0}")]
    Unreadable(String),
}

impl PeerError {
    /// Refuses a lease of another backend than `kind`, the one of this node.
    pub fn check_backend(attrs: &LeaseAttrs, kind: &str) -> Result<(), Self> {
        if attrs.backend_type == kind {
            return Ok(());
        }
        Err(Self::NotOurs(format!("its backend is {:?}, ours is {kind:?}", attrs.backend_type)))
    }

    /// The error for a lease that shares no address family with this node.
    pub fn no_common_family() -> Self {
        Self::NotOurs("it has none of the address families of this node".to_owned())
    }
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
    /// The families by which the peer is reached, those with an underlay address.
    pub(crate) fn families(&self) -> impl Iterator<Item = Family> + use<'_> {
        let is_at = |claim: &Claim, family| claim.underlay().is_some_and(|addr| Family::of(addr) == family);
        Family::ALL.into_iter().filter(move |family| self.claims.iter().any(|claim| is_at(claim, *family)))
    }
}

#[derive(Debug, Clone)]
struct Entry {
    standing: Standing,
    /// The last good version, or empty if there was none.
    peer: Peer,
    /// Whether `peer` is programmed.
    is_programmed: bool,
    /// What is wrong with it. Boxed, since nearly all entries have none.
    trouble: Option<Box<Trouble>>,
}

#[derive(Debug, Clone, Default)]
struct Trouble {
    /// What is wrong with the newest version.
    fault: Option<PeerError>,
    /// Why the last good version is not programmed: another lease, or this node, has a value that it claims.
    conflict: Option<Conflict>,
    /// Whether the conflict is certain as long as the other lease does not change. Then this lease takes no part in
    /// further conflicts.
    is_refused: bool,
}

impl Entry {
    fn fault(&self) -> Option<&PeerError> {
        self.trouble.as_ref()?.fault.as_ref()
    }

    fn conflict(&self) -> Option<&Conflict> {
        self.trouble.as_ref()?.conflict.as_ref()
    }

    /// Because of whom this lease is refused for certain.
    fn refused_by(&self) -> Option<Holder> {
        let trouble = self.trouble.as_ref().filter(|trouble| trouble.is_refused)?;
        trouble.conflict.as_ref().map(|conflict| conflict.holder)
    }

    fn side(&self, key: LeaseKey) -> Side<'_> {
        Side { key, standing: self.standing, claims: &self.peer.claims }
    }

    /// Whether the peer should be reachable, but another lease keeps it from being programmed.
    fn is_lost(&self) -> bool {
        self.conflict().is_some_and(Conflict::cuts)
    }
}

/// All peers, and the desired state: their objects and our own.
///
/// In a conflict this node's own claims win. Of two other leases the one whose claim was there first has precedence
/// ([`Standing`]), and a lease is programmed if no lease with precedence over it is programmed.
///
/// Somebody may write thousands of conflicting leases. A lease is refused for certain if it conflicts with this node,
/// or loses against a lease over which no other has precedence. Then it is set aside: it takes part in no further
/// conflict, and costs nothing until the lease that refused it is removed or loses.
#[derive(Debug, Clone, Default)]
pub struct PeerTable {
    own: Vec<Claim>,
    /// The advice to operators about a wrong record.
    remedy: Remedy,
    /// The overlay networks. A lease with a subnet outside of them is refused.
    networks: PerFamily<Subnet>,
    /// The underlay's subnets. Some of their addresses can't be a peer's.
    segments: Segments,
    entries: BTreeMap<LeaseKey, Entry>,
    programmed: usize,
    /// The entries with a problem, so that they are found without a search of all.
    troubled: BTreeSet<LeaseKey>,
    /// How many leases of each family are programmed, and how many another lease keeps from being programmed.
    programmed_by_family: Counts,
    lost: Counts,
    /// The claims of leases that may be programmed.
    index: ClaimIndex,
    /// The claims of leases that are refused for certain.
    refused: ClaimIndex,
    /// For each lease, the leases that are refused for certain because of it.
    behind: BTreeMap<LeaseKey, BTreeSet<LeaseKey>>,
    /// The leases with unreadable backend data of which no good version was seen.
    unknown: Unknown,
    want: Dataplane,
    /// How many programmed peers besides the first need an object: two leases of one node share its FDB entry.
    shared: BTreeMap<ObjectKey, usize>,
    /// The leases that changed, and those that conflicted with their former versions, until they are settled.
    unsettled: BTreeSet<LeaseKey>,
    /// The leases that were decided since the last [`Self::drain_decided`].
    decided: Vec<LeaseKey>,
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

    /// Sets the links that others use, too.
    pub fn share(&mut self, links: impl IntoIterator<Item = LinkIndex>) {
        self.want.share(links);
    }

    /// Sets the advice to operators about a wrong record.
    pub fn advise(&mut self, remedy: Remedy) {
        self.remedy = remedy;
    }

    /// Sets the networks that contain all peers. A family without one is not checked.
    pub fn confine(&mut self, networks: PerFamily<Subnet>) {
        self.networks = networks;
    }

    /// Sets the subnets of the underlay's link.
    pub fn place(&mut self, segments: Segments) {
        self.segments = segments;
    }

    /// The desired state of the kernel.
    pub fn want(&self) -> &Dataplane {
        &self.want
    }

    /// How many peers are programmed.
    pub fn programmed(&self) -> usize {
        self.programmed
    }

    /// The peers that are programmed, for a backend that carries packets itself.
    pub fn programmed_peers(&self) -> impl Iterator<Item = (&LeaseKey, &Peer)> {
        self.entries.iter().filter(|(_, entry)| entry.is_programmed).map(|(key, entry)| (key, &entry.peer))
    }

    /// The leases whose newest version is not programmed, with the reason.
    pub fn problems(&self) -> impl Iterator<Item = (LeaseKey, String)> + '_ {
        self.troubled.iter().filter_map(|key| Some((*key, self.problem(*key)?)))
    }

    /// Why the newest version of a lease is not programmed; `None` if it is, or if it is not decided yet.
    pub fn problem(&self, key: LeaseKey) -> Option<String> {
        let entry = self.entries.get(&key)?;
        let conflict = entry.conflict().map(|conflict| conflict.tell(key, &self.remedy));
        match (entry.fault(), conflict) {
            (Some(fault), Some(why)) => Some(format!("{fault}; and its last good version: {why}")),
            (Some(fault), None) => Some(fault.to_string()),
            (None, why) => why,
        }
    }

    /// How many leases [`Self::problems`] has.
    pub fn troubled(&self) -> usize {
        self.troubled.len()
    }

    /// Whether the peer of a lease should be reachable, but another lease keeps it from being programmed.
    pub fn is_lost(&self, key: &LeaseKey) -> bool {
        self.entries.get(key).is_some_and(Entry::is_lost)
    }

    /// How many peers of a family should be reachable, and how many of them another lease keeps from being programmed.
    /// Leases that conflict with this node or are unreadable don't count.
    pub fn reach(&self, family: Family) -> Reach {
        let cut = self.lost.of(family);
        Reach { expected: self.programmed_by_family.of(family) + cut, cut }
    }

    /// The programmed peers that need the object with this key.
    pub fn users(&self, object: &ObjectKey) -> Vec<LeaseKey> {
        let is_programmed = |key: &LeaseKey| self.entries.get(key).is_some_and(|entry| entry.is_programmed);
        let mut users: Vec<LeaseKey> = match *object {
            ObjectKey::Address(..) => Vec::new(),
            ObjectKey::Route(dst, _) => self.index.with_subnet(dst).collect(),
            ObjectKey::Neighbour(_, gateway) | ObjectKey::NextHop(_, gateway, _) => {
                self.index.with_base(gateway).collect()
            }
            ObjectKey::Fdb(entry) => self.index.with_vtep(entry.link, entry.mac, entry.dst).collect(),
        };
        users.retain(is_programmed);
        users
    }

    /// The programmed peers that have the object with this key. Unlike [`Self::users`] it includes peers that work
    /// without it: a route to a gateway is only needed to change back from a direct route.
    pub(crate) fn peers_with(&self, object: &ObjectKey) -> Vec<LeaseKey> {
        match *object {
            ObjectKey::Route(dst, _) if dst.prefix() == dst.family().bits() => {
                let is_programmed = |key: &LeaseKey| self.programmed_peer(key).is_some();
                self.index.with_base(dst.base()).filter(is_programmed).collect()
            }
            _ => self.users(object),
        }
    }

    /// The objects and claims of a lease, if it is programmed.
    pub(crate) fn programmed_peer(&self, key: &LeaseKey) -> Option<&Peer> {
        self.entries.get(key).filter(|entry| entry.is_programmed).map(|entry| &entry.peer)
    }

    /// The leases that were decided since the last call. A lease can be among them twice, or be gone.
    pub(crate) fn drain_decided(&mut self) -> Vec<LeaseKey> {
        std::mem::take(&mut self.decided)
    }

    /// The programmed peers whose subnets overlap one.
    pub fn overlapping(&self, subnet: Subnet) -> impl Iterator<Item = (LeaseKey, Subnet)> + '_ {
        self.index.overlapping(subnet).filter_map(move |key| {
            let entry = self.entries.get(&key).filter(|entry| entry.is_programmed)?;
            let subnets = entry.peer.claims.iter().filter_map(|claim| match claim {
                Claim::Subnet(theirs) => Some(*theirs),
                _ => None,
            });
            Some((key, subnets.into_iter().find(|theirs| theirs.overlaps(subnet))?))
        })
    }

    /// The leases with unreadable backend data of which no good version was seen. Their objects in the kernel must
    /// stay.
    pub fn unknown(&self) -> &Unknown {
        &self.unknown
    }

    /// The claims of a lease, or of its last usable version.
    pub fn claims(&self, key: &LeaseKey) -> &[Claim] {
        self.entries.get(key).map_or(&[], |entry| &entry.peer.claims)
    }

    /// Adds or changes a lease. Returns the keys of all objects whose wanted state may have changed.
    pub fn put(
        &mut self,
        key: LeaseKey,
        standing: Standing,
        peer: Result<Peer, PeerError>,
    ) -> Vec<ObjectKey> {
        let mut touched = self.stage(key, standing, peer);
        touched.extend(self.settle());
        touched
    }

    /// Adds or changes a lease without deciding conflicts, which [`Self::settle`] does for many at once. Returns the
    /// keys of its former objects.
    pub fn stage(
        &mut self,
        key: LeaseKey,
        standing: Standing,
        peer: Result<Peer, PeerError>,
    ) -> Vec<ObjectKey> {
        let old = self.unlink(&key);
        let touched = old.iter().flat_map(|old| &old.peer.objects).map(Object::key).collect();
        let (mut peer, standing, fault) = match self.judge(key, peer) {
            Ok(peer) => (peer, standing, None),
            Err(PeerError::NotOurs(why)) => {
                (Peer::default(), standing, Some(PeerError::NotOurs(brief(&why))))
            }
            Err(PeerError::Unreadable(why)) => {
                let last_good = old.map_or((Peer::default(), standing), |old| (old.peer, old.standing));
                (last_good.0, last_good.1, Some(PeerError::Unreadable(brief(&why))))
            }
        };
        // Objects rarely change, and there are ten thousand peers, so unused capacity is freed.
        peer.objects.shrink_to_fit();
        peer.claims.shrink_to_fit();
        if matches!(fault, Some(PeerError::Unreadable(_))) && peer.claims.is_empty() {
            self.unknown.insert(key);
        } else {
            self.unknown.remove(&key);
        }
        // This node's claims win, whatever the leases' ages.
        let with_us = self.conflict_with_us(&peer.claims);
        let is_refused = with_us.is_some();
        if is_refused {
            self.refused.add(key, &peer.claims);
            self.troubled.insert(key);
        } else {
            self.unsettled.insert(key);
        }
        let trouble = (fault.is_some() || is_refused)
            .then(|| Box::new(Trouble { fault, conflict: with_us, is_refused }));
        self.entries.insert(key, Entry { standing, peer, is_programmed: false, trouble });
        self.decided.push(key);
        touched
    }

    /// Refuses leases that no node can have, with any backend.
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
        match against_itself(&peer.claims).or_else(|| self.at_nobody(&peer.claims)) {
            Some(why) => Err(PeerError::Unreadable(why)),
            None => Ok(peer),
        }
    }

    /// Why an underlay address can't be that of a node on this segment.
    fn at_nobody(&self, claims: &[Claim]) -> Option<String> {
        claims.iter().find_map(|claim| {
            let addr = claim.underlay()?;
            let what = self.segments.nobodys(addr)?;
            let field = LeaseAttrs::address_field(Family::of(addr));
            Some(format!("{field} {addr} is {what}, which no node has; {}", LeaseAttrs::MEND))
        })
    }

    /// Frees memory that many [`Self::put`] in the order of their keys left unused.
    pub fn repack(&mut self) {
        repack(&mut self.entries);
        self.index.repack();
        self.refused.repack();
        self.want.repack();
    }

    /// Removes a lease. Returns the keys of all objects whose wanted state may have changed.
    pub fn remove(&mut self, key: &LeaseKey) -> Vec<ObjectKey> {
        let mut touched = self.stage_removal(key);
        touched.extend(self.settle());
        touched
    }

    /// Removes a lease; see [`Self::stage`].
    pub fn stage_removal(&mut self, key: &LeaseKey) -> Vec<ObjectKey> {
        let old = self.unlink(key);
        self.unsettled.remove(key);
        self.unknown.remove(key);
        old.iter().flat_map(|old| &old.peer.objects).map(Object::key).collect()
    }

    /// Removes a lease from all fields.
    fn unlink(&mut self, key: &LeaseKey) -> Option<Entry> {
        self.retract(key);
        self.troubled.remove(key);
        let entry = self.entries.remove(key)?;
        if entry.is_lost() {
            self.lost.remove(&entry.peer);
        }
        if let Some(holder) = entry.refused_by() {
            self.refused.remove(key, &entry.peer.claims);
            if let Holder::Lease(holder, _) = holder
                && let Some(others) = self.behind.get_mut(&holder)
            {
                others.remove(key);
                if others.is_empty() {
                    self.behind.remove(&holder);
                }
            }
            return Some(entry);
        }
        self.index.remove(key, &entry.peer.claims);
        self.unsettled.extend(self.index.contradicting(key, &entry.peer.claims));
        // The leases that it refused for certain are open again.
        let others = self.behind.remove(key).into_iter().flatten();
        others.for_each(|other| self.reopen(other));
        Some(entry)
    }

    fn conflict_with_us(&self, claims: &[Claim]) -> Option<Conflict> {
        let pairs = claims.iter().flat_map(|claim| self.own.iter().map(move |own| (*claim, *own)));
        let (claim, other) = pairs.into_iter().find(|(claim, own)| claim.excludes_ours(*own))?;
        Some(Conflict { claim, other, holder: Holder::Us })
    }

    fn want_object(&mut self, object: Object) {
        if self.want.insert(object).is_some() {
            *self.shared.entry(object.key()).or_default() += 1;
        }
    }

    /// Removes the objects of a lease from the desired state.
    fn retract(&mut self, key: &LeaseKey) {
        let Some(entry) = self.entries.get_mut(key).filter(|entry| entry.is_programmed) else { return };
        entry.is_programmed = false;
        self.programmed -= 1;
        self.programmed_by_family.remove(&entry.peer);
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
