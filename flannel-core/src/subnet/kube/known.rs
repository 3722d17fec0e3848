//! Folds node objects into leases: bounded by the number of nodes, one state a node, whatever order and number of
//! events brought it there.
//!
//! Two nodes can be given the same subnet by mistake. Then ours holds it here, else the one created first. All agree who is
//! the younger (created later, else the greater name): that one is named to all others, and knows it of itself.

use std::collections::{BTreeMap, BTreeSet};

use super::annotations::AnnotationPrefix;
use super::node::{BadObject, Judgement, NodeObject};
use crate::addr::Family;
use crate::lease::{BadRecord, Lease, LeaseAttrs, LeaseKey, LeaseUpdate};

/// What is known of the nodes that take part.
#[derive(Debug, Clone)]
pub(super) struct Known {
    own: Box<str>,
    families: Vec<Family>,
    prefix: AnnotationPrefix,
    nodes: BTreeMap<Box<str>, Claim>,
    /// Who claims a key: rarely more than one.
    claims: BTreeMap<LeaseKey, BTreeSet<Box<str>>>,
    /// The few that problems can come from: nodes that can't be read, and keys with more than one claim.
    bad: BTreeSet<Box<str>>,
    contested: BTreeSet<LeaseKey>,
    /// Counts what was news.
    news: u64,
}

/// What a node that takes part says.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Claim {
    Lease(Lease),
    /// Can't be read: what it said last stays, if anything is known of it.
    Bad {
        key: Option<LeaseKey>,
        created: u64,
        reason: String,
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

impl Known {
    pub(super) fn new(own: &str, families: Vec<Family>, prefix: AnnotationPrefix) -> Self {
        let (nodes, claims) = (BTreeMap::new(), BTreeMap::new());
        let (bad, contested) = (BTreeSet::new(), BTreeSet::new());
        Self { own: own.into(), families, prefix, nodes, claims, bad, contested, news: 0 }
    }

    /// Another number once anything is known that was not: heartbeats are no news.
    pub(super) fn news(&self) -> u64 {
        self.news
    }

    /// Takes what the API server listed in place of all that was known. Objects that can't be read are named.
    pub(super) fn replace(&mut self, listed: Vec<Result<NodeObject, BadObject>>) -> LeaseUpdate {
        self.news += 1;
        let before = std::mem::take(&mut self.nodes);
        self.claims.clear();
        self.bad.clear();
        self.contested.clear();
        for object in listed {
            let (name, claim) = match object {
                Ok(node) => {
                    let claim = self.claim(&node, before.get(&node.name));
                    (node.name, claim)
                }
                Err(BadObject { name: Some(name), reason }) => {
                    let claim = unreadable(before.get(&name), reason);
                    (name, Some(claim))
                }
                // It is nobody's; what it may have been is gone by this list.
                Err(BadObject { name: None, .. }) => continue,
            };
            if let Some(claim) = claim {
                self.put(name, claim);
            }
        }
        let (mut leases, mut undecodable) = (Vec::new(), Vec::new());
        for key in self.claims.keys() {
            match self.outcome(*key) {
                Some(LeaseUpdate::Put(lease)) => leases.push(lease),
                Some(LeaseUpdate::Undecodable(record)) => undecodable.push(record),
                _ => {}
            }
        }
        undecodable.extend(self.contested.iter().flat_map(|key| self.younger(*key)));
        LeaseUpdate::Snapshot { leases, undecodable }
    }

    /// Takes one object as it is now. Returns what changed for others by it.
    pub(super) fn take(&mut self, object: Result<NodeObject, BadObject>) -> Vec<LeaseUpdate> {
        match object {
            Ok(node) => {
                let claim = self.claim(&node, self.nodes.get(&node.name));
                self.change(&node.name, claim)
            }
            Err(BadObject { name: Some(name), reason }) => {
                let claim = unreadable(self.nodes.get(&name), reason);
                self.change(&name, Some(claim))
            }
            Err(BadObject { name: None, .. }) => Vec::new(),
        }
    }

    /// A node is gone.
    pub(super) fn remove(&mut self, name: &str) -> Vec<LeaseUpdate> {
        self.change(name, None)
    }

    /// Nodes that can't be read or contradict others, by name.
    pub(super) fn problems(&self) -> Vec<BadRecord> {
        let mut problems = Vec::new();
        for name in &self.bad {
            if let Some(Claim::Bad { reason, .. }) = self.nodes.get(name) {
                problems.push(of_node(name, format!("{reason}; {}", LeaseAttrs::MEND)));
            }
        }
        problems.extend(self.contested.iter().flat_map(|key| self.younger(*key)));
        problems
    }

    /// Why our node is not to have pods: an older one has its subnet.
    pub(super) fn rival(&self) -> Option<String> {
        let key = self.nodes.get(&self.own)?.key().filter(|key| self.contested.contains(key))?;
        let eldest = self.eldest(key)?;
        (*eldest != *self.own).then(|| why_younger(&self.own, key, eldest))
    }

    /// The node that a key is known by to others.
    pub(super) fn node_of(&self, key: LeaseKey) -> Option<&str> {
        self.holder(key)
    }

    /// The nodes that have a subnet of an older one, but ours, which is told by [`Self::rival`].
    fn younger(&self, key: LeaseKey) -> impl Iterator<Item = BadRecord> {
        let eldest = self.eldest(key);
        let names = self.claims.get(&key).into_iter().flatten().map(|name| &**name);
        let names = names.filter(move |name| Some(*name) != eldest && **name != *self.own);
        let names = names.filter(|name| !self.bad.contains(*name));
        names.map(move |name| of_node(name, why_younger(name, key, eldest.unwrap_or_default())))
    }

    /// The node that had a key first of those that claim it.
    fn eldest(&self, key: LeaseKey) -> Option<&str> {
        let names = self.claims.get(&key)?.iter().map(|name| &**name);
        names.min_by_key(|name| (self.nodes.get(*name).map_or(0, Claim::created), *name))
    }

    /// The keys that somebody holds.
    pub(super) fn keys(&self) -> impl Iterator<Item = LeaseKey> + '_ {
        self.claims.keys().copied()
    }

    fn claim(&self, node: &NodeObject, before: Option<&Claim>) -> Option<Claim> {
        match node.judge(&self.families, &self.prefix) {
            Judgement::Apart => None,
            Judgement::Lease(lease) => Some(Claim::Lease(lease)),
            Judgement::Bad { key, reason } => {
                let key = key.or(before.and_then(Claim::key));
                Some(Claim::Bad { key, created: node.created, reason })
            }
        }
    }

    fn change(&mut self, name: &str, now: Option<Claim>) -> Vec<LeaseUpdate> {
        if self.nodes.get(name) == now.as_ref() {
            return Vec::new();
        }
        self.news += 1;
        let keys = [self.nodes.get(name).and_then(Claim::key), now.as_ref().and_then(Claim::key)];
        let keys: BTreeSet<LeaseKey> = keys.into_iter().flatten().collect();
        let before: Vec<_> = keys.iter().map(|key| (*key, self.outcome(*key))).collect();
        let younger = |known: &Self| -> BTreeSet<BadRecord> {
            keys.iter()
                .filter(|key| known.contested.contains(key))
                .flat_map(|key| known.younger(*key))
                .collect()
        };
        let named = younger(self);
        self.bad.remove(name);
        if let Some(old) = self.nodes.remove(name).and_then(|claim| claim.key())
            && let Some(names) = self.claims.get_mut(&old)
        {
            names.remove(name);
            if names.len() < 2 {
                self.contested.remove(&old);
            }
            if names.is_empty() {
                self.claims.remove(&old);
            }
        }
        if let Some(claim) = now {
            self.put(name.into(), claim);
        }
        let changed = before.into_iter().filter_map(|(key, before)| {
            let after = self.outcome(key);
            let gone = || LeaseUpdate::Removed(key.to_string());
            (after != before).then(|| after.unwrap_or_else(gone))
        });
        let mut changed: Vec<LeaseUpdate> = changed.collect();
        let name_now = younger(self);
        let is_named = |record: &BadRecord| name_now.iter().any(|now| now.key == record.key);
        let gone = named.iter().filter(|record| !is_named(record));
        changed.extend(gone.map(|record| LeaseUpdate::Removed(record.key.clone())));
        changed.extend(name_now.difference(&named).cloned().map(LeaseUpdate::Undecodable));
        changed
    }

    fn put(&mut self, name: Box<str>, claim: Claim) {
        if let Some(key) = claim.key() {
            let names = self.claims.entry(key).or_default();
            names.insert(name.clone());
            if names.len() > 1 {
                self.contested.insert(key);
            }
        }
        if matches!(claim, Claim::Bad { .. }) {
            self.bad.insert(name.clone());
        }
        self.nodes.insert(name, claim);
    }

    /// Who has a key of those that claim it.
    fn holder(&self, key: LeaseKey) -> Option<&str> {
        let names = self.claims.get(&key)?.iter().map(|name| &**name);
        let ranked =
            names.map(|name| (*name != *self.own, self.nodes.get(name).map_or(0, Claim::created), name));
        ranked.min().map(|(.., name)| name)
    }

    /// What others are told of a key.
    fn outcome(&self, key: LeaseKey) -> Option<LeaseUpdate> {
        let name = self.holder(key)?;
        Some(match self.nodes.get(name)? {
            Claim::Lease(lease) => LeaseUpdate::Put(lease.clone()),
            Claim::Bad { reason, .. } => {
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

/// A node of which nothing can be read: what it said last stays.
fn unreadable(before: Option<&Claim>, reason: String) -> Claim {
    Claim::Bad { key: before.and_then(Claim::key), created: before.map_or(u64::MAX, Claim::created), reason }
}
