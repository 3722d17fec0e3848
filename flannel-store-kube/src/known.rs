//! Folds node objects into leases: bounded by the number of nodes, one state a node, whatever order and number of
//! events brought it there.
//!
//! Two nodes can be given the same subnet by mistake. Then ours holds it here, else the one created first. All agree who is
//! the younger (created later, else the greater name): that one is named to all others, and knows it of itself.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{BuildHasher, RandomState};

use flannel_core::addr::Family;
use flannel_core::lease::{BadRecord, BadRecords, Lease, LeaseAttrs, LeaseKey, LeaseUpdate, brief};
use flannel_core::subnet::kit::repack;

use super::annotations::AnnotationPrefix;
use super::node::{BadObject, Judgement, NodeObject};

/// Of how many nodes it is kept why they can't be read.
const MOST_REASONS: usize = 256;
/// What is said of the others.
const NO_REASON: &str =
    "its object can't be read; why is not known any more, since there were many such nodes";

/// What is known of the nodes that take part.
#[derive(Debug, Clone)]
pub(super) struct Known {
    own: Box<str>,
    families: Vec<Family>,
    prefix: AnnotationPrefix,
    nodes: BTreeMap<Box<str>, Claim>,
    /// Who claims a key, the eldest first: rarely more than one.
    claims: BTreeSet<(LeaseKey, u64, Box<str>)>,
    /// Nodes that can't be read, and those that have the subnet of an older one.
    problems: BadRecords,
    /// Why some of the former can't be read.
    reasons: BTreeMap<Box<str>, String>,
    /// What was said of the latter.
    younger: BTreeMap<Box<str>, u64>,
    hasher: RandomState,
    /// Counts what was news.
    news: u64,
}

/// What a node that takes part says.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Claim {
    Lease(Box<Lease>),
    /// Can't be read: what it said last stays, if anything is known of it.
    Bad {
        key: Option<LeaseKey>,
        created: u64,
        /// A hash of it, which tells one from another.
        reason: u64,
    },
}

impl Claim {
    fn key(&self) -> Option<LeaseKey> {
        match self {
            Self::Lease(lease) => Some(lease.key),
            Self::Bad { key, .. } => *key,
        }
    }

    fn created(&self) -> u64 {
        match self {
            Self::Lease(lease) => lease.created,
            Self::Bad { created, .. } => *created,
        }
    }
}

/// The nodes of a list that is being read, beside what is known until it has ended.
pub(super) struct Listing {
    next: Known,
    /// How many came.
    pub(super) count: usize,
    /// How many there were when the trees were repacked last.
    packed: usize,
}

impl Listing {
    /// Nodes come in the order of their names, which leaves trees half empty. Repacking them at the end alone would take
    /// the memory first.
    fn repack(&mut self) {
        if self.count >= MOST_REASONS && self.count >= self.packed + self.packed / 8 {
            self.packed = self.count;
            repack(&mut self.next.nodes);
            repack(&mut self.next.claims);
        }
    }
}

impl Known {
    pub(super) fn new(own: &str, families: Vec<Family>, prefix: AnnotationPrefix) -> Self {
        Self {
            own: own.into(),
            families,
            prefix,
            nodes: BTreeMap::new(),
            claims: BTreeSet::new(),
            problems: BadRecords::default(),
            reasons: BTreeMap::new(),
            younger: BTreeMap::new(),
            hasher: RandomState::new(),
            news: 0,
        }
    }

    /// Another number once anything is known that was not: heartbeats are no news.
    pub(super) fn news(&self) -> u64 {
        self.news
    }

    /// Begins with a list of all nodes.
    pub(super) fn list(&self) -> Listing {
        let next = Self::new(&self.own, self.families.clone(), self.prefix.clone());
        Listing { next: Self { hasher: self.hasher.clone(), ..next }, count: 0, packed: 0 }
    }

    /// Takes one object of a list. One that can't be read is named.
    pub(super) fn add(&self, listing: &mut Listing, object: Result<NodeObject, BadObject>) {
        listing.count += 1;
        listing.repack();
        // Without a name it is nobody's; what it may have been is gone by this list.
        if let Some((name, Some(claim), reason)) = self.judge(object) {
            listing.next.put(name, claim, reason.as_deref());
        }
    }

    /// Takes what the API server listed in place of all that was known.
    pub(super) fn replace(&mut self, listing: Listing) -> LeaseUpdate {
        let Listing { mut next, .. } = listing;
        next.news = self.news + 1;
        *self = next;
        repack(&mut self.nodes);
        repack(&mut self.claims);
        let contested = self.keys().filter(|key| self.claimants(*key).nth(1).is_some());
        let contested =
            contested.flat_map(|key| self.claimants(key).map(Box::from)).collect::<Vec<Box<str>>>();
        let (mut leases, mut undecodable) = (Vec::new(), BadRecords::default());
        let younger: Vec<_> = contested.iter().filter_map(|name| self.tell_younger(name)).collect();
        for update in self.keys().filter_map(|key| self.outcome(key)).chain(younger) {
            match update {
                LeaseUpdate::Put(lease) => leases.push(lease),
                LeaseUpdate::Undecodable(record) => _ = undecodable.insert(record),
                _ => {}
            }
        }
        LeaseUpdate::Snapshot { leases, undecodable }
    }

    /// Takes one object as it is now. Returns what changed for others by it.
    pub(super) fn take(&mut self, object: Result<NodeObject, BadObject>) -> Vec<LeaseUpdate> {
        match self.judge(object) {
            Some((name, claim, reason)) => self.change(&name, claim, reason.as_deref()),
            None => Vec::new(),
        }
    }

    /// A node is gone.
    pub(super) fn remove(&mut self, name: &str) -> Vec<LeaseUpdate> {
        self.change(name, None, None)
    }

    /// Nodes that can't be read or contradict others, by name.
    pub(super) fn problems(&self) -> &BadRecords {
        &self.problems
    }

    /// Why our node is not to have pods: an older one has its subnet.
    pub(super) fn rival(&self) -> Option<String> {
        let key = self.nodes.get(&self.own)?.key()?;
        let eldest = self.eldest(key)?;
        (*eldest != *self.own).then(|| why_younger(&self.own, key, eldest))
    }

    /// The node that a key is known by to others.
    pub(super) fn node_of(&self, key: LeaseKey) -> Option<&str> {
        self.holder(key)
    }

    /// Why a node is named to others: it has the subnet of an older one. Ours is not, which is told by
    /// [`Self::rival`], nor is one that can't be read.
    fn why_named(&self, name: &str) -> Option<String> {
        let Some(Claim::Lease(lease)) = self.nodes.get(name).filter(|_| *name != *self.own) else {
            return None;
        };
        let eldest = self.eldest(lease.key).filter(|eldest| *eldest != name)?;
        Some(why_younger(name, lease.key, eldest))
    }

    /// Says of a node what is to be said of it now, if that is other than before.
    fn tell_younger(&mut self, name: &str) -> Option<LeaseUpdate> {
        let Some(why) = self.why_named(name) else {
            self.younger.remove(name)?;
            let record = of_node(name, String::new());
            if matches!(self.nodes.get(name), None | Some(Claim::Lease(_))) {
                self.problems.remove(&record.key);
            }
            return Some(LeaseUpdate::Removed(record.key));
        };
        let hash = self.hasher.hash_one(&why);
        if self.younger.insert(name.into(), hash) == Some(hash) {
            return None;
        }
        let record = of_node(name, why);
        self.problems.insert(record.clone());
        Some(LeaseUpdate::Undecodable(record))
    }

    /// The node that had a key first of those that claim it.
    fn eldest(&self, key: LeaseKey) -> Option<&str> {
        self.claimants(key).next()
    }

    /// The nodes that claim a key, the eldest first.
    fn claimants(&self, key: LeaseKey) -> impl Iterator<Item = &str> {
        let from = self.claims.range((key, 0, Box::default())..);
        from.take_while(move |(of, ..)| *of == key).map(|(.., name)| &**name)
    }

    /// The keys that somebody holds.
    pub(super) fn keys(&self) -> impl Iterator<Item = LeaseKey> + '_ {
        let mut last = None;
        let keys = self.claims.iter().map(|(key, ..)| *key);
        keys.filter(move |key| last.replace(*key) != Some(*key))
    }

    /// What an object says, and if it can't be read, why; `None` if nobody knows whose it is.
    fn judge(
        &self,
        object: Result<NodeObject, BadObject>,
    ) -> Option<(Box<str>, Option<Claim>, Option<String>)> {
        let (name, known, reason) = match object {
            Ok(node) => match node.judge(&self.families, &self.prefix) {
                Judgement::Apart => return Some((node.name, None, None)),
                Judgement::Lease(lease) => return Some((node.name, Some(Claim::Lease(lease.into())), None)),
                Judgement::Bad { key, reason } => (node.name, Some((key, node.created)), reason),
            },
            Err(BadObject { name, reason }) => (name?, None, reason),
        };
        // What it said last stays.
        let before = self.nodes.get(&name);
        let key = known.and_then(|(key, _)| key).or(before.and_then(Claim::key));
        let created = known.map(|(_, created)| created).or(before.map(Claim::created)).unwrap_or(u64::MAX);
        let hash = self.hasher.hash_one(&reason);
        Some((name, Some(Claim::Bad { key, created, reason: hash }), Some(reason)))
    }

    fn change(&mut self, name: &str, now: Option<Claim>, reason: Option<&str>) -> Vec<LeaseUpdate> {
        if self.nodes.get(name) == now.as_ref() {
            return Vec::new();
        }
        self.news += 1;
        let keys = [self.nodes.get(name).and_then(Claim::key), now.as_ref().and_then(Claim::key)];
        let keys: BTreeSet<LeaseKey> = keys.into_iter().flatten().collect();
        let eldest = |known: &Self, key: LeaseKey| known.eldest(key).map(str::to_owned);
        let before: Vec<_> = keys.iter().map(|key| (*key, self.outcome(*key), eldest(self, *key))).collect();
        self.forget(name);
        if let Some(claim) = now {
            self.put(name.into(), claim, reason);
        }
        let mut changed = Vec::new();
        let mut named: BTreeSet<Box<str>> = BTreeSet::from([name.into()]);
        for (key, outcome, first) in before {
            let after = self.outcome(key);
            let gone = || LeaseUpdate::Removed(key.to_string());
            changed.extend((after != outcome).then(|| after.unwrap_or_else(gone)));
            if eldest(self, key) != first {
                // All of them are told the eldest's name.
                named.extend(self.claimants(key).map(Box::from));
            }
        }
        let told: Vec<LeaseUpdate> = named.iter().filter_map(|name| self.tell_younger(name)).collect();
        let (gone, news): (Vec<_>, Vec<_>) =
            told.into_iter().partition(|update| matches!(update, LeaseUpdate::Removed(_)));
        changed.extend(gone.into_iter().chain(news));
        changed
    }

    /// Takes a node out of all books but that of what was said of it.
    fn forget(&mut self, name: &str) {
        let Some(claim) = self.nodes.remove(name) else { return };
        if let Claim::Bad { .. } = claim {
            self.problems.remove(&of_node(name, String::new()).key);
            self.reasons.remove(name);
        }
        if let Some(key) = claim.key() {
            self.claims.remove(&(key, claim.created(), name.into()));
        }
    }

    fn put(&mut self, name: Box<str>, claim: Claim, reason: Option<&str>) {
        if let Some(key) = claim.key() {
            self.claims.insert((key, claim.created(), name.clone()));
        }
        if let Some(reason) = reason {
            self.problems.insert(of_node(&name, format!("{reason}; {}", LeaseAttrs::MEND)));
            if self.reasons.len() < MOST_REASONS {
                self.reasons.insert(name.clone(), brief(reason));
            }
        }
        self.nodes.insert(name, claim);
    }

    /// Who has a key of those that claim it.
    fn holder(&self, key: LeaseKey) -> Option<&str> {
        let is_ours = self.nodes.get(&self.own).is_some_and(|claim| claim.key() == Some(key));
        if is_ours { Some(&self.own) } else { self.eldest(key) }
    }

    /// What others are told of a key.
    fn outcome(&self, key: LeaseKey) -> Option<LeaseUpdate> {
        let name = self.holder(key)?;
        Some(match self.nodes.get(name)? {
            Claim::Lease(lease) => LeaseUpdate::Put(Lease::clone(lease)),
            Claim::Bad { .. } => {
                let reason = self.reasons.get(name).map_or(NO_REASON, String::as_str);
                let reason = format!("node {name}: {reason}");
                LeaseUpdate::Undecodable(BadRecord { key: key.to_string(), reason })
            }
        })
    }
}

fn of_node(name: &str, reason: String) -> BadRecord {
    BadRecord { key: format!("{}{name}", BadRecord::NODE), reason }
}

/// Says that a node has the subnet of an older one, and what an operator does about it. The API server lets nobody
/// change `spec.podCIDRs` once they are there.
fn why_younger(name: &str, key: LeaseKey, eldest: &str) -> String {
    let cidrs: Vec<String> = key.subnets().iter().map(|(_, subnet)| subnet.to_string()).collect();
    format!(
        "spec.podCIDRs of node {name} has {}, which is that of node {eldest}, too, and that is the older one; the field can't \
         be changed in place: drain node {name} and let its kubelet register it anew, so that kube-controller-manager \
         assigns another, and see that nothing else assigns podCIDRs",
        cidrs.join(",")
    )
}
