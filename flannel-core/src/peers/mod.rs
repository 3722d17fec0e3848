//! From leases to wanted kernel state: which leases hold where they contradict each other, and what all of
//! them together ask of the kernel. Pure, and incremental: a changed lease costs work for itself and for
//! those it contradicts, never for all.

mod claim;
mod conflict;
mod few;
mod index;
mod precedence;
mod rivals;
mod segments;
mod solve;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use crate::addr::{Family, LinkIndex, PerFamily, Subnet};
use crate::dataplane::{Dataplane, Object, ObjectKey};
use crate::lease::{LeaseAttrs, LeaseKey, brief};
use crate::repack::repack;
use crate::status::Reach;
use crate::subnet::Remedy;

pub use claim::Claim;
use claim::against_itself;
use conflict::{Conflict, Holder};
use index::ClaimIndex;
pub use precedence::{Grounds, Standing};
use precedence::{Side, precedence};
pub use rivals::Rival;
pub use segments::Segments;
use solve::{Edge, solve};

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
    standing: Standing,
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
    /// Why the last good one is not programmed: another lease, or we, have what it claims.
    conflict: Option<Conflict>,
}

impl Entry {
    fn fault(&self) -> Option<&PeerError> {
        self.trouble.as_ref()?.fault.as_ref()
    }

    fn conflict(&self) -> Option<&Conflict> {
        self.trouble.as_ref()?.conflict.as_ref()
    }

    fn side(&self, key: LeaseKey) -> Side<'_> {
        Side { key, standing: self.standing, claims: &self.peer.claims }
    }

    /// Whether it should be reachable, and another lease keeps it from being programmed.
    fn is_lost(&self) -> bool {
        self.conflict().is_some_and(Conflict::cuts)
    }
}

/// All peers, and the kernel state they ask for together with our own objects.
///
/// Of leases that contradict each other ours holds first. Of two others the one whose claim was there first has
/// precedence ([`Standing`]), and a lease is programmed if none that has precedence over it is.
#[derive(Debug, Clone, Default)]
pub struct PeerTable {
    own: Vec<Claim>,
    /// What an operator does about a record that is wrong.
    remedy: Remedy,
    /// The overlay networks: what lies outside of them is no peer's.
    networks: PerFamily<Subnet>,
    /// The underlay's subnets, of which some addresses are no peer's.
    segments: Segments,
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
    /// The leases that changed, and those that their former versions contradicted, until they are settled.
    unsettled: BTreeSet<LeaseKey>,
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

    /// Says what an operator does about a record that is wrong.
    pub fn advise(&mut self, remedy: Remedy) {
        self.remedy = remedy;
    }

    /// Says which networks all peers lie in. A family without one is not checked.
    pub fn confine(&mut self, networks: PerFamily<Subnet>) {
        self.networks = networks;
    }

    /// Says which subnets the underlay's link is in.
    pub fn place(&mut self, segments: Segments) {
        self.segments = segments;
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
        self.troubled.iter().filter_map(|key| Some((*key, self.problem(*key)?)))
    }

    fn problem(&self, key: LeaseKey) -> Option<String> {
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

    /// Adds or changes a lease without deciding what it means for others, which [`Self::settle`] does for many at
    /// once. Returns the keys of its former objects.
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
            Err(PeerError::Malformed(why)) => {
                let last_good = old.map_or((Peer::default(), standing), |old| (old.peer, old.standing));
                (last_good.0, last_good.1, Some(PeerError::Malformed(brief(&why))))
            }
        };
        // They stay as they are, ten thousand of them.
        peer.objects.shrink_to_fit();
        peer.claims.shrink_to_fit();
        self.index.add(key, &peer.claims);
        let trouble = fault.map(|fault| Box::new(Trouble { fault: Some(fault), conflict: None }));
        self.entries.insert(key, Entry { standing, peer, holds: false, trouble });
        self.unsettled.insert(key);
        touched
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
        match against_itself(&peer.claims).or_else(|| self.at_nobody(&peer.claims)) {
            Some(why) => Err(PeerError::Malformed(why)),
            None => Ok(peer),
        }
    }

    /// What is wrong with an underlay address that no node of this segment can have.
    fn at_nobody(&self, claims: &[Claim]) -> Option<String> {
        claims.iter().find_map(|claim| {
            let (Claim::Underlay(addr) | Claim::Vtep(.., addr)) = *claim else { return None };
            let what = self.segments.nobodys(addr)?;
            let field = LeaseAttrs::address_field(Family::of(addr));
            Some(format!("{field} {addr} is {what}, which no node has; {}", LeaseAttrs::MEND))
        })
    }

    /// Gives back memory that many [`Self::put`] in the order of their keys left unused.
    pub fn repack(&mut self) {
        repack(&mut self.entries);
        self.index.repack();
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
        old.iter().flat_map(|old| &old.peer.objects).map(Object::key).collect()
    }

    /// Takes a lease out of all books.
    fn unlink(&mut self, key: &LeaseKey) -> Option<Entry> {
        self.retract(key);
        self.troubled.remove(key);
        let entry = self.entries.remove(key)?;
        if entry.is_lost() {
            self.lost.remove(&entry.peer);
        }
        self.index.remove(key, &entry.peer.claims);
        self.unsettled.extend(self.index.contradicting(key, &entry.peer.claims));
        Some(entry)
    }

    /// Decides which leases hold, of those that changed and those that contradict them, directly or through others.
    /// Returns the keys of the objects of those of which it is another answer than before.
    pub fn settle(&mut self) -> Vec<ObjectKey> {
        let changed = std::mem::take(&mut self.unsettled);
        let (keys, edges) = self.conflicts(changed);
        let sides = || keys.iter().filter_map(|key| Some(self.entries.get(key)?.side(*key)));
        let ranks: Vec<_> = sides().map(|side| (side.oldest(), side.standing.created, side.key)).collect();
        let with_us: Vec<_> = sides().map(|side| self.conflict_with_us(&side)).collect();
        let excluded: Vec<bool> = with_us.iter().map(Option::is_some).collect();
        let programmed = solve(&ranks, &excluded, &edges);
        let mut conflicts = with_us;
        for (node, conflict) in conflicts.iter_mut().enumerate() {
            if !programmed[node] && conflict.is_none() {
                let winner = edges[node].iter().find(|edge| programmed[edge.other]);
                *conflict = winner.and_then(|edge| self.conflict_between(keys[node], keys[edge.other]));
            }
        }
        let mut touched = Vec::new();
        // What two of them ask for goes before it comes.
        for (key, holds) in keys.iter().zip(&programmed) {
            let Some(entry) = self.entries.get(key) else { continue };
            if entry.holds != *holds {
                touched.extend(entry.peer.objects.iter().map(Object::key));
            }
            if !holds {
                self.retract(key);
            }
        }
        for (key, conflict) in keys.into_iter().zip(conflicts) {
            self.admit(key, conflict);
        }
        touched
    }

    /// These leases and all that contradict them, directly or through others, with what is between them.
    fn conflicts(&self, start: BTreeSet<LeaseKey>) -> (Vec<LeaseKey>, Vec<Vec<Edge>>) {
        let mut nodes: BTreeMap<LeaseKey, usize> = BTreeMap::new();
        let mut keys: Vec<LeaseKey> =
            start.into_iter().filter(|key| self.entries.contains_key(key)).collect();
        nodes.extend(keys.iter().enumerate().map(|(node, key)| (*key, node)));
        let mut edges: Vec<Vec<Edge>> = Vec::new();
        while let Some(key) = keys.get(edges.len()).copied() {
            let others = self
                .entries
                .get(&key)
                .map(|entry| (entry.side(key), self.index.contradicting(&key, &entry.peer.claims)));
            let mut found = Vec::new();
            for (side, other) in
                others.iter().flat_map(|(side, others)| others.iter().map(move |other| (side, other)))
            {
                let Some(entry) = self.entries.get(other) else { continue };
                let node = *nodes.entry(*other).or_insert_with(|| {
                    keys.push(*other);
                    keys.len() - 1
                });
                found.push(edge(node, side, &entry.side(*other)));
            }
            edges.push(found);
        }
        (keys, edges)
    }

    /// Programs a lease unless something has precedence over it.
    fn admit(&mut self, key: LeaseKey, conflict: Option<Conflict>) {
        let Some(entry) = self.entries.get_mut(&key) else { return };
        let fits = conflict.is_none();
        if entry.is_lost() {
            self.lost.remove(&entry.peer);
        }
        let fault = entry.trouble.take().and_then(|trouble| trouble.fault);
        if fault.is_some() || conflict.is_some() {
            entry.trouble = Some(Box::new(Trouble { fault, conflict }));
            self.troubled.insert(key);
            if entry.is_lost() {
                self.lost.add(&entry.peer);
            }
        } else {
            self.troubled.remove(&key);
        }
        // One without claims asks for nothing: another backend's, or one that never could be read.
        if !fits || entry.holds || entry.peer.claims.is_empty() {
            return;
        }
        entry.holds = true;
        self.programmed += 1;
        self.held.add(&entry.peer);
        for object in entry.peer.objects.clone() {
            self.want_object(object);
        }
    }

    fn conflict_with_us(&self, side: &Side<'_>) -> Option<Conflict> {
        let pairs = side.claims.iter().flat_map(|claim| self.own.iter().map(move |own| (*claim, *own)));
        let (claim, other) = pairs.into_iter().find(|(claim, own)| claim.excludes_ours(*own))?;
        Some(Conflict { claim, other, holder: Holder::Us })
    }

    /// Why a lease is not programmed beside this other one.
    fn conflict_between(&self, key: LeaseKey, winner: LeaseKey) -> Option<Conflict> {
        let (a, b) = (self.entries.get(&key)?.side(key), self.entries.get(&winner)?.side(winner));
        let pairs = || pairs(&a, &b).map(|(mine, theirs)| (mine, theirs, precedence(&a, mine, &b, theirs)));
        let beaten = pairs().find(|(_, _, (wins, _))| !wins);
        // It may be the circle that decided.
        let (claim, other, grounds) = match beaten {
            Some((mine, theirs, (_, grounds))) => (mine, theirs, Some(grounds)),
            None => pairs().next().map(|(mine, theirs, _)| (mine, theirs, None))?,
        };
        Some(Conflict { claim, other, holder: Holder::Lease(winner, grounds) })
    }

    fn want_object(&mut self, object: Object) {
        if self.want.insert(object).is_some() {
            *self.shared.entry(object.key()).or_default() += 1;
        }
    }

    /// Withdraws what a lease asks for.
    fn retract(&mut self, key: &LeaseKey) {
        let Some(entry) = self.entries.get_mut(key).filter(|entry| entry.holds) else { return };
        entry.holds = false;
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

/// The pairs of claims of two leases that exclude each other.
fn pairs<'a>(a: &Side<'a>, b: &Side<'a>) -> impl Iterator<Item = (Claim, Claim)> + use<'a> {
    let theirs = b.claims;
    let pairs = a.claims.iter().flat_map(move |mine| theirs.iter().map(move |theirs| (*mine, *theirs)));
    pairs.filter(|(mine, theirs)| mine.excludes(*theirs))
}

/// What is between two leases of which something excludes each other.
fn edge(other: usize, a: &Side<'_>, b: &Side<'_>) -> Edge {
    let mut edge = Edge { other, is_beaten: false, beats: false };
    for (mine, theirs) in pairs(a, b) {
        let (wins, _) = precedence(a, mine, b, theirs);
        edge.beats |= wins;
        edge.is_beaten |= !wins;
    }
    edge
}
