//! Folds node objects into leases: one state for each node, whatever the order and number of events. Memory is bounded
//! by the number of nodes.
//!
//! Two nodes can get the same subnet by mistake. Then on this node ours is used, otherwise the one that was created
//! first. All agents agree on which one is younger (created later, else with the greater name): all others name it, and
//! it knows itself that it is.
//!
//! Of most nodes only the metadata is sent, which does not have the subnets. They stay for as long as the node exists, by
//! its uid, so they are taken from what is known of it, and a node of which nothing is known is wanted whole.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{BuildHasher, RandomState};

use flannel_core::addr::Family;
use flannel_core::lease::{
    Lease, LeaseAttrs, LeaseKey, LeaseUpdate, UnreadableRecord, UnreadableRecords, brief,
};
use flannel_core::subnet::kit::repack;

use super::annotations::{Annotation, AnnotationPrefix};
use super::node::{BadObject, Judgement, Names, NodeObject, WireNode};

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
    nodes: BTreeMap<Box<str>, Node>,
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

/// A node that takes part.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Node {
    claim: Claim,
    /// A hash of the uid of the object from which the subnets are known; `None` if they are not.
    uid: Option<u64>,
    /// What the object was made of ([`WireNode::print`]); `None` of an unreadable one.
    print: Option<u64>,
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
    /// Nodes that take part, and of which only the metadata is known.
    pub(super) wants: Vec<NodeObject>,
    /// How many there were when the trees were last repacked.
    packed: usize,
}

/// What one object changes.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Folded {
    /// For the watch.
    pub(super) updates: Vec<LeaseUpdate>,
    /// The object, if it is wanted whole.
    pub(super) wants: Option<NodeObject>,
}

/// What an object says.
enum Verdict {
    /// The node, if it takes part, and the reason if it is unreadable.
    Node(Box<str>, Option<Node>, Option<String>),
    /// It takes part, and its subnets are not known.
    Wanted(NodeObject),
    /// It can't be attributed to a node.
    Nameless,
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
        let next = Self { hasher: self.hasher.clone(), ..next };
        Listing { next, count: 0, wants: Vec::new(), packed: 0 }
    }

    /// Adds one object of a list. An unreadable one is named.
    pub(super) fn add(&self, listing: &mut Listing, object: Result<NodeObject, BadObject>) {
        listing.count += 1;
        listing.repack();
        match self.judge(object) {
            Verdict::Node(name, Some(node), reason) => listing.next.put(name, node, reason.as_deref()),
            Verdict::Wanted(node) => listing.wants.push(node),
            Verdict::Node(..) | Verdict::Nameless => {}
        }
    }

    /// Whether an object says what its node said last, so that nothing has to be made of it.
    pub(super) fn is_same(&self, wire: &WireNode<'_>, names: &Names) -> bool {
        let print = self.nodes.get(&*wire.metadata.name).and_then(|node| node.print);
        print.is_some_and(|print| print == wire.print(names))
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
            self.nodes.iter().filter(|(_, node)| matches!(node.claim, Claim::Lease { ignores: true, .. }));
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

    /// Applies the present state of one object.
    pub(super) fn fold(&mut self, object: Result<NodeObject, BadObject>) -> Folded {
        match self.judge(object) {
            Verdict::Node(name, node, reason) => {
                Folded { updates: self.change(&name, node, reason.as_deref()), wants: None }
            }
            // If there was a node of that name, it was another one.
            Verdict::Wanted(node) => {
                Folded { updates: self.change(&node.name, None, None), wants: Some(node) }
            }
            Verdict::Nameless => Folded::default(),
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
        let key = self.key_of(&self.own)?;
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
        let Claim::Lease { lease, ignores } = &self.nodes.get(name).filter(|_| *name != *self.own)?.claim
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
            if self.nodes.get(name).is_none_or(|node| matches!(node.claim, Claim::Lease { .. })) {
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

    /// What an object says, together with what is known of its node.
    fn judge(&self, object: Result<NodeObject, BadObject>) -> Verdict {
        let node = match object {
            Ok(node) => node,
            Err(BadObject { name: None, .. }) => return Verdict::Nameless,
            Err(BadObject { name: Some(name), reason }) => {
                // Its last readable state stays.
                let before = self.nodes.get(&name);
                let (key, uid) = before.map(|node| (node.claim.key(), node.uid)).unwrap_or_default();
                let created = before.map_or(u64::MAX, |node| node.claim.created());
                let node = Node {
                    claim: self.bad(key, created, &reason),
                    uid: uid.filter(|_| key.is_some()),
                    print: None,
                };
                return Verdict::Node(name, Some(node), Some(reason));
            }
        };
        if !node.is_managed() {
            return Verdict::Node(node.name, None, None);
        }
        let uid = Some(self.hasher.hash_one(&node.uid));
        let before = self.nodes.get(&node.name).filter(|before| before.uid == uid);
        let key = match (&node.pod_cidrs, before) {
            (Some(_), _) => node.key(&self.families),
            (None, None) => return Verdict::Wanted(node),
            (None, Some(before)) => {
                let Some(key) = before.claim.key() else {
                    // Its podCIDRs can't be used, whatever else it says.
                    let reason = self.reasons.get(&node.name).map_or(NO_REASON, String::as_str).to_owned();
                    return Verdict::Node(node.name, Some(before.clone()), Some(reason));
                };
                Ok(Some(key))
            }
        };
        let judgement = node.judge(key, &self.prefix);
        match judgement {
            Judgement::Apart => Verdict::Node(node.name, None, None),
            Judgement::Lease(lease) => {
                let claim = Claim::Lease { lease: lease.into(), ignores: !node.is_whole() };
                Verdict::Node(node.name, Some(Node { claim, uid, print: Some(node.print) }), None)
            }
            Judgement::Bad { key, reason } => {
                // Subnets that can't be used don't become those that the name had before.
                let held = key.or_else(|| self.key_of(&node.name));
                let uid = uid.filter(|_| held == key);
                let claim = self.bad(held, node.created, &reason);
                Verdict::Node(node.name, Some(Node { claim, uid, print: Some(node.print) }), Some(reason))
            }
        }
    }

    fn bad(&self, key: Option<LeaseKey>, created: u64, reason: &str) -> Claim {
        Claim::Bad { key, created, reason: self.hasher.hash_one(reason) }
    }

    /// The key that a node claims.
    fn key_of(&self, name: &str) -> Option<LeaseKey> {
        self.nodes.get(name)?.claim.key()
    }

    fn change(&mut self, name: &str, now: Option<Node>, reason: Option<&str>) -> Vec<LeaseUpdate> {
        match (self.nodes.get_mut(name), &now) {
            (None, None) => return Vec::new(),
            (Some(before), Some(now)) if before.claim == now.claim => {
                before.clone_from(now);
                return Vec::new();
            }
            _ => {}
        }
        self.news += 1;
        let keys = [self.key_of(name), now.as_ref().and_then(|node| node.claim.key())];
        let keys: BTreeSet<LeaseKey> = keys.into_iter().flatten().collect();
        let eldest = |known: &Self, key: LeaseKey| known.eldest(key).map(str::to_owned);
        let before: Vec<_> = keys.iter().map(|key| (*key, self.outcome(*key), eldest(self, *key))).collect();
        self.forget(name);
        if let Some(node) = now {
            self.put(name.into(), node, reason);
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
        let Some(Node { claim, .. }) = self.nodes.remove(name) else { return };
        if let Claim::Bad { .. } = claim {
            self.problems.remove(&of_node(name, String::new()).key);
            self.reasons.remove(name);
        }
        if let Some(key) = claim.key() {
            self.claims.remove(&(key, claim.created(), name.into()));
        }
    }

    fn put(&mut self, name: Box<str>, node: Node, reason: Option<&str>) {
        if let Some(key) = node.claim.key() {
            self.claims.insert((key, node.claim.created(), name.clone()));
        }
        if let Some(reason) = reason {
            self.problems.insert(of_node(&name, format!("{reason}; {}", LeaseAttrs::MEND)));
            if self.reasons.len() < MOST_REASONS {
                self.reasons.insert(name.clone(), brief(reason));
            }
        }
        self.nodes.insert(name, node);
    }

    /// The node that has a key, of those that claim it.
    fn holder(&self, key: LeaseKey) -> Option<&str> {
        let is_ours = self.key_of(&self.own) == Some(key);
        if is_ours { Some(&self.own) } else { self.eldest(key) }
    }

    /// The update for a key.
    fn outcome(&self, key: LeaseKey) -> Option<LeaseUpdate> {
        let name = self.holder(key)?;
        Some(match &self.nodes.get(name)?.claim {
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
