//! Folds node objects into leases: one state for each node, whatever the order and number of events. Memory is bounded
//! by the number of nodes.
//!
//! Two nodes can get the same subnet by mistake. Then on this node ours is used, otherwise the one that was created
//! first. All agents agree on which one is younger (created later, else with the greater name): all others name it, and
//! it knows itself that it is.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{BuildHasher, RandomState};

use flannel_core::addr::Family;
use flannel_core::lease::{
    Lease, LeaseAttrs, LeaseKey, LeaseUpdate, UnreadableRecord, UnreadableRecords, brief,
};
use flannel_core::subnet::kit::repack;

use super::annotations::{Annotation, AnnotationPrefix};
use super::node::{BadObject, Judgement, NodeObject};

/// For how many unreadable nodes the reason is kept.
const MOST_REASONS: usize = 256;
/// The reason that is given for the others.
const NO_REASON: &str =
    "its object can't be read; why is not known any more, since there were many such nodes";

/// The nodes that take part.
#[derive(Debug, Clone)]
pub(super) struct Known {
    own: Box<str>,
    families: Vec<Family>,
    prefix: AnnotationPrefix,
    nodes: BTreeMap<Box<str>, Claim>,
    /// The nodes that claim each key, the oldest first; rarely more than one.
    claims: BTreeSet<(LeaseKey, u64, Box<str>)>,
    /// Unreadable nodes, those with the subnet of an older one, and those with an annotation that is passed over.
    problems: UnreadableRecords,
    /// The reasons for some of the unreadable ones.
    reasons: BTreeMap<Box<str>, String>,
    /// What was reported of nodes whose leases are readable, as a hash.
    told: BTreeMap<Box<str>, u64>,
    hasher: RandomState,
    /// Counts changes.
    news: u64,
}

/// The claim of a node that takes part.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Claim {
    Lease {
        lease: Box<Lease>,
        /// Whether it has an annotation that is unreadable, and passed over.
        ignores: bool,
    },
    /// It is unreadable: its last readable state stays, if there is one.
    Bad {
        key: Option<LeaseKey>,
        created: u64,
        /// A hash of the reason, to notice a change.
        reason: u64,
    },
}

impl Claim {
    fn key(&self) -> Option<LeaseKey> {
        match self {
            Self::Lease { lease, .. } => Some(lease.key),
            Self::Bad { key, .. } => *key,
        }
    }

    fn created(&self) -> u64 {
        match self {
            Self::Lease { lease, .. } => lease.created,
            Self::Bad { created, .. } => *created,
        }
    }
}

/// The nodes of a list that is being read. It replaces what is known once it is complete.
pub(super) struct Listing {
    next: Known,
    /// How many nodes have arrived.
    pub(super) count: usize,
    /// How many there were when the trees were last repacked.
    packed: usize,
}

impl Listing {
    /// Nodes arrive in the order of their names, which leaves trees half empty. They are repacked now and then, not
    /// only at the end, to limit the peak of memory.
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
            problems: UnreadableRecords::default(),
            reasons: BTreeMap::new(),
            told: BTreeMap::new(),
            hasher: RandomState::new(),
            news: 0,
        }
    }

    /// A number that changes with every change of the state. Heartbeats change nothing.
    pub(super) fn news(&self) -> u64 {
        self.news
    }

    /// Begins a list of all nodes.
    pub(super) fn list(&self) -> Listing {
        let next = Self::new(&self.own, self.families.clone(), self.prefix.clone());
        Listing { next: Self { hasher: self.hasher.clone(), ..next }, count: 0, packed: 0 }
    }

    /// Adds one object of a list. An unreadable one is named.
    pub(super) fn add(&self, listing: &mut Listing, object: Result<NodeObject, BadObject>) {
        listing.count += 1;
        listing.repack();
        // Without a name it can't be attributed to a node.
        if let Some((name, Some(claim), reason)) = self.judge(object) {
            listing.next.put(name, claim, reason.as_deref());
        }
    }

    /// Replaces all that is known by what the API server listed.
    pub(super) fn replace(&mut self, listing: Listing) -> LeaseUpdate {
        let Listing { mut next, .. } = listing;
        next.news = self.news + 1;
        *self = next;
        repack(&mut self.nodes);
        repack(&mut self.claims);
        let contested = self.keys().filter(|key| self.claimants(*key).nth(1).is_some());
        let contested =
            contested.flat_map(|key| self.claimants(key).map(Box::from)).collect::<Vec<Box<str>>>();
        let (mut leases, mut unreadable) = (Vec::new(), UnreadableRecords::default());
        let ignoring =
            self.nodes.iter().filter(|(_, claim)| matches!(claim, Claim::Lease { ignores: true, .. }));
        let named: BTreeSet<Box<str>> =
            contested.into_iter().chain(ignoring.map(|(name, _)| name.clone())).collect();
        let told: Vec<_> = named.iter().filter_map(|name| self.tell(name)).collect();
        for update in self.keys().filter_map(|key| self.outcome(key)).chain(told) {
            match update {
                LeaseUpdate::Put(lease) => leases.push(lease),
                LeaseUpdate::Unreadable(record) => _ = unreadable.insert(record),
                _ => {}
            }
        }
        LeaseUpdate::Snapshot { leases, unreadable }
    }

    /// Applies the present state of one object. Returns the updates for the watch.
    pub(super) fn fold(&mut self, object: Result<NodeObject, BadObject>) -> Vec<LeaseUpdate> {
        match self.judge(object) {
            Some((name, claim, reason)) => self.change(&name, claim, reason.as_deref()),
            None => Vec::new(),
        }
    }

    /// Removes a node.
    pub(super) fn remove(&mut self, name: &str) -> Vec<LeaseUpdate> {
        self.change(name, None, None)
    }

    /// Nodes that are unreadable or conflict with others, by name.
    pub(super) fn problems(&self) -> &UnreadableRecords {
        &self.problems
    }

    /// Why our node must not get pods: an older one has its subnet.
    pub(super) fn rival(&self) -> Option<String> {
        let key = self.nodes.get(&self.own)?.key()?;
        let eldest = self.eldest(key)?;
        (*eldest != *self.own).then(|| why_younger(&self.own, key, eldest))
    }

    /// The name of the node that has a key.
    pub(super) fn node_of(&self, key: LeaseKey) -> Option<&str> {
        self.holder(key)
    }

    /// Why a node with a readable lease is reported: it has the subnet of an older one, or an annotation that is passed
    /// over. Not for ours (see [`Self::rival`]; and it writes its annotations anew), nor for an unreadable one.
    fn why_named(&self, name: &str) -> Option<String> {
        let Some(Claim::Lease { lease, ignores }) = self.nodes.get(name).filter(|_| *name != *self.own)
        else {
            return None;
        };
        match self.eldest(lease.key).filter(|eldest| *eldest != name) {
            Some(eldest) => Some(why_younger(name, lease.key, eldest)),
            None => ignores.then(|| self.why_ignored()),
        }
    }

    /// The text that an annotation is passed over. It has no value, which may be long.
    fn why_ignored(&self) -> String {
        let annotation = self.prefix.name(Annotation::Receives.suffix());
        let (effect, mend) =
            ("is no JSON list, so the node is reached by its own backend alone", LeaseAttrs::MEND);
        format!("annotation {annotation} {effect}; {mend}")
    }

    /// Returns the update about a node that is reported although its lease is readable, if it differs from the last one.
    fn tell(&mut self, name: &str) -> Option<LeaseUpdate> {
        let Some(why) = self.why_named(name) else {
            self.told.remove(name)?;
            let record = of_node(name, String::new());
            if matches!(self.nodes.get(name), None | Some(Claim::Lease { .. })) {
                self.problems.remove(&record.key);
            }
            return Some(LeaseUpdate::Removed(record.key));
        };
        let hash = self.hasher.hash_one(&why);
        if self.told.insert(name.into(), hash) == Some(hash) {
            return None;
        }
        let record = of_node(name, why);
        self.problems.insert(record.clone());
        Some(LeaseUpdate::Unreadable(record))
    }

    /// The oldest node that claims a key.
    fn eldest(&self, key: LeaseKey) -> Option<&str> {
        self.claimants(key).next()
    }

    /// The nodes that claim a key, the oldest first.
    fn claimants(&self, key: LeaseKey) -> impl Iterator<Item = &str> {
        let from = self.claims.range((key, 0, Box::default())..);
        from.take_while(move |(of, ..)| *of == key).map(|(.., name)| &**name)
    }

    /// The keys that a node has.
    pub(super) fn keys(&self) -> impl Iterator<Item = LeaseKey> + '_ {
        let mut last = None;
        let keys = self.claims.iter().map(|(key, ..)| *key);
        keys.filter(move |key| last.replace(*key) != Some(*key))
    }

    /// The claim of an object, and the reason if it is unreadable; `None` if its name is unknown.
    fn judge(
        &self,
        object: Result<NodeObject, BadObject>,
    ) -> Option<(Box<str>, Option<Claim>, Option<String>)> {
        let (name, known, reason) = match object {
            Ok(node) => match node.judge(&self.families, &self.prefix) {
                Judgement::Apart => return Some((node.name, None, None)),
                Judgement::Lease(lease) => {
                    let claim = Claim::Lease { lease: lease.into(), ignores: !node.is_whole() };
                    return Some((node.name, Some(claim), None));
                }
                Judgement::Bad { key, reason } => (node.name, Some((key, node.created)), reason),
            },
            Err(BadObject { name, reason }) => (name?, None, reason),
        };
        // Its last readable state stays.
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
                // The reason of all of them names the oldest.
                named.extend(self.claimants(key).map(Box::from));
            }
        }
        let told: Vec<LeaseUpdate> = named.iter().filter_map(|name| self.tell(name)).collect();
        let (gone, news): (Vec<_>, Vec<_>) =
            told.into_iter().partition(|update| matches!(update, LeaseUpdate::Removed(_)));
        changed.extend(gone.into_iter().chain(news));
        changed
    }

    /// Removes a node from all fields except the reported state.
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

    /// The node that has a key, of those that claim it.
    fn holder(&self, key: LeaseKey) -> Option<&str> {
        let is_ours = self.nodes.get(&self.own).is_some_and(|claim| claim.key() == Some(key));
        if is_ours { Some(&self.own) } else { self.eldest(key) }
    }

    /// The update for a key.
    fn outcome(&self, key: LeaseKey) -> Option<LeaseUpdate> {
        let name = self.holder(key)?;
        Some(match self.nodes.get(name)? {
            Claim::Lease { lease, .. } => LeaseUpdate::Put(Lease::clone(lease)),
            Claim::Bad { .. } => {
                let reason = self.reasons.get(name).map_or(NO_REASON, String::as_str);
                let reason = format!("node {name}: {reason}");
                LeaseUpdate::Unreadable(UnreadableRecord { key: key.to_string(), reason })
            }
        })
    }
}

fn of_node(name: &str, reason: String) -> UnreadableRecord {
    UnreadableRecord { key: format!("{}{name}", UnreadableRecord::NODE), reason }
}

/// The text that a node has the subnet of an older one, with advice to operators. The API server does not allow changes
/// of `spec.podCIDRs`.
fn why_younger(name: &str, key: LeaseKey, eldest: &str) -> String {
    let cidrs: Vec<String> = key.subnets().iter().map(|(_, subnet)| subnet.to_string()).collect();
    format!(
        "spec.podCIDRs of node {name} has {}, which is that of node {eldest}, too, and that is the older one; the field can't \
         be changed in place: drain node {name} and let its kubelet register it anew, so that kube-controller-manager \
         assigns another, and see that nothing else assigns podCIDRs",
        cidrs.join(",")
    )
}
