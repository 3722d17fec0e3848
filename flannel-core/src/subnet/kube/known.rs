//! Folds node objects into leases: bounded by the number of nodes, one state a node, whatever order and number of
//! events brought it there.
//!
//! Two nodes can be given the same subnet by mistake. Then ours holds it, else the one created first; the other is
//! named until one of them goes.

use std::collections::{BTreeMap, BTreeSet};

use super::node::{BadObject, Judgement, NodeObject};
use crate::addr::Family;
use crate::lease::{BadRecord, Lease, LeaseKey, LeaseUpdate};

/// What is known of the nodes that take part.
#[derive(Debug, Clone)]
pub(super) struct Known {
    own: Box<str>,
    families: Vec<Family>,
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
    pub(super) fn new(own: &str, families: Vec<Family>) -> Self {
        let (nodes, claims) = (BTreeMap::new(), BTreeMap::new());
        let (bad, contested) = (BTreeSet::new(), BTreeSet::new());
        Self { own: own.into(), families, nodes, claims, bad, contested, news: 0 }
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
        let record = |name: &str, reason| BadRecord { key: format!("node {name}"), reason };
        let mut problems = Vec::new();
        for name in &self.bad {
            if let Some(Claim::Bad { reason, .. }) = self.nodes.get(name) {
                problems.push(record(name, reason.clone()));
            }
        }
        for key in &self.contested {
            let Some(holder) = self.holder(*key) else { continue };
            let losers = self.claims.get(key).into_iter().flatten().filter(|name| ***name != *holder);
            let losers = losers.filter(|name| !self.bad.contains(*name));
            problems.extend(
                losers.map(|name| record(name, format!("its subnet {key} is that of node {holder}, too"))),
            );
        }
        problems
    }

    /// The keys that somebody holds.
    pub(super) fn keys(&self) -> impl Iterator<Item = LeaseKey> + '_ {
        self.claims.keys().copied()
    }

    fn claim(&self, node: &NodeObject, before: Option<&Claim>) -> Option<Claim> {
        match node.judge(&self.families) {
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
        changed.collect()
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

/// A node of which nothing can be read: what it said last stays.
fn unreadable(before: Option<&Claim>, reason: String) -> Claim {
    Claim::Bad { key: before.and_then(Claim::key), created: before.map_or(u64::MAX, Claim::created), reason }
}
