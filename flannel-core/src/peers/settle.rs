//! Decides which leases are programmed, where they conflict.
//!
//! A lease over which no other lease has precedence is programmed, whatever is decided about others, and each lease
//! that conflicts with it is refused for certain. Such leases are set aside behind it. They are open again once it is
//! removed, or a lease with precedence over it appears. So thousands of them cost nothing, and the decisions are the
//! same as those of the rule over all leases.

use std::collections::{BTreeMap, BTreeSet};

use super::conflict::{Conflict, Holder};
use super::precedence::{Side, precedence};
use super::solve::{Edge, solve};
use super::{Claim, PeerTable, Trouble};
use crate::dataplane::{Object, ObjectKey};
use crate::lease::LeaseKey;

/// How many leases that changed are decided at once.
const AT_ONCE: usize = 256;

/// Open leases with all open leases that conflict with them, and which of them are programmed.
struct Group {
    keys: Vec<LeaseKey>,
    edges: Vec<Vec<Edge>>,
    programmed: Vec<bool>,
}

impl Group {
    /// Whether no open lease has precedence over it.
    fn is_unbeaten(&self, node: usize) -> bool {
        !self.edges[node].iter().any(|edge| edge.is_beaten)
    }
}

impl PeerTable {
    /// Decides about the leases that changed and those that conflict with them, directly or through others. Returns the
    /// keys of the objects of all leases whose decision changed.
    ///
    /// It takes a few at a time, those of the first rank first: of thousands of conflicting leases, the first few
    /// refuse the rest.
    pub fn settle(&mut self) -> Vec<ObjectKey> {
        let mut touched = Vec::new();
        while !self.unsettled.is_empty() {
            let mut changed: Vec<LeaseKey> = std::mem::take(&mut self.unsettled).into_iter().collect();
            if changed.len() > AT_ONCE {
                changed.sort_by_cached_key(|key| {
                    let entry = self.entries.get(key);
                    entry.map(|entry| (entry.side(*key).oldest(), entry.standing.created, *key))
                });
            }
            for some in changed.chunks(AT_ONCE) {
                self.settle_some(some, &mut touched);
            }
        }
        touched
    }

    fn settle_some(&mut self, changed: &[LeaseKey], touched: &mut Vec<ObjectKey>) {
        let group = self.decide(changed.iter().copied().collect());
        let winners: Vec<_> = (0..group.keys.len()).map(|node| self.winner(&group, node)).collect();
        let conflicts = winners.into_iter().zip(&group.keys).map(|(winner, key)| {
            let (winner, is_certain) = winner?;
            Some((self.conflict_between(*key, winner)?, is_certain))
        });
        let conflicts: Vec<_> = conflicts.collect();
        // Leases that lose are removed first, so that an object that two of them have is removed before it is added.
        for (key, is_programmed) in group.keys.iter().zip(&group.programmed) {
            let Some(entry) = self.entries.get(key) else { continue };
            if entry.is_programmed != *is_programmed {
                touched.extend(entry.peer.objects.iter().map(Object::key));
            }
            if !is_programmed {
                self.retract(key);
            }
        }
        for (key, conflict) in group.keys.iter().zip(conflicts) {
            self.admit(*key, conflict);
        }
    }

    /// The lease because of which another is not programmed, and whether that is certain.
    fn winner(&self, group: &Group, node: usize) -> Option<(LeaseKey, bool)> {
        if group.programmed[node] {
            return None;
        }
        let edges = || group.edges[node].iter();
        // A lease that refuses others for certain is known to be unbeaten.
        let is_unbeaten = |key: &LeaseKey| self.behind.contains_key(key) || self.is_unbeaten(key);
        let refuses = |edge: &&Edge| group.is_unbeaten(edge.other) && is_unbeaten(&group.keys[edge.other]);
        let certain = edges().find(refuses).map(|edge| (edge, true));
        let likely = || edges().find(|edge| group.programmed[edge.other]).map(|edge| (edge, false));
        let (edge, is_certain) = certain.or_else(likely)?;
        Some((group.keys[edge.other], is_certain))
    }

    /// Decides about these leases and all that conflict with them, directly or through others.
    fn decide(&mut self, mut changed: BTreeSet<LeaseKey>) -> Group {
        loop {
            changed.retain(|key| self.entries.get(key).is_some_and(|entry| entry.refused_by().is_none()));
            for key in &changed {
                if let Some(entry) = self.entries.get(key) {
                    self.index.add(*key, &entry.peer.claims);
                }
                self.unsettled.remove(key);
            }
            let (keys, edges) = self.conflicts(changed.iter().copied().collect());
            let sides = keys.iter().filter_map(|key| Some(self.entries.get(key)?.side(*key)));
            let ranks: Vec<_> = sides.map(|side| (side.oldest(), side.standing.created, side.key)).collect();
            let programmed = solve(&ranks, &edges);
            let group = Group { keys, edges, programmed };
            let open = self.open_behind(&group);
            if open.is_empty() {
                return group;
            }
            changed.extend(open);
        }
    }

    /// Opens the leases behind leases that are no longer unbeaten, and returns them, except those that another lease
    /// (an heir) also refuses for certain.
    fn open_behind(&mut self, group: &Group) -> Vec<LeaseKey> {
        let mut open = Vec::new();
        for (node, key) in group.keys.iter().enumerate().filter(|(node, _)| !group.is_unbeaten(*node)) {
            let Some(others) = self.behind.remove(key) else { continue };
            let heirs = group.edges[node].iter().filter(|edge| group.is_unbeaten(edge.other));
            let heir = heirs.map(|edge| group.keys[edge.other]).find(|heir| self.is_unbeaten(heir));
            for other in others {
                if heir.is_none_or(|heir| !self.move_behind(heir, other)) {
                    self.reopen(other);
                    // From here on the search for heirs sees it.
                    if let Some(entry) = self.entries.get(&other) {
                        self.index.add(other, &entry.peer.claims);
                    }
                    open.push(other);
                }
            }
        }
        open
    }

    /// Whether no lease at all has precedence over one.
    fn is_unbeaten(&self, key: &LeaseKey) -> bool {
        let Some(side) = self.entries.get(key).map(|entry| entry.side(*key)) else { return false };
        let others = [&self.refused, &self.index].map(|index| index.contradicting(key, side.claims));
        others.iter().flatten().all(|other| {
            let Some(entry) = self.entries.get(other) else { return true };
            matches!(entry.refused_by(), Some(Holder::Us)) || !edge(0, &side, &entry.side(*other)).is_beaten
        })
    }

    /// Sets a lease behind `heir` if that refuses it for certain; false if it does not.
    fn move_behind(&mut self, heir: LeaseKey, key: LeaseKey) -> bool {
        let Some(conflict) = self.conflict_between(key, heir) else { return false };
        let Some(entry) = self.entries.get_mut(&key) else { return false };
        if entry.is_lost() {
            self.lost.remove(&entry.peer);
        }
        if let Some(trouble) = &mut entry.trouble {
            trouble.conflict = Some(conflict);
        }
        if entry.is_lost() {
            self.lost.add(&entry.peer);
        }
        self.behind.entry(heir).or_default().insert(key);
        self.decided.push(key);
        true
    }

    /// Opens a lease that is no longer refused for certain.
    pub(super) fn reopen(&mut self, key: LeaseKey) {
        let Some(entry) = self.entries.get_mut(&key) else { return };
        self.refused.remove(&key, &entry.peer.claims);
        entry.trouble.iter_mut().for_each(|trouble| trouble.is_refused = false);
        self.unsettled.insert(key);
    }

    /// These leases and all that conflict with them, directly or through others, with the edges between them.
    pub(super) fn conflicts(&self, mut keys: Vec<LeaseKey>) -> (Vec<LeaseKey>, Vec<Vec<Edge>>) {
        let mut nodes: BTreeMap<LeaseKey, usize> = BTreeMap::new();
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

    /// Programs a lease, or records the conflict that prevents it and whether that is certain.
    fn admit(&mut self, key: LeaseKey, conflict: Option<(Conflict, bool)>) {
        let is_refused = conflict.is_some_and(|(_, is_certain)| is_certain);
        let conflict = conflict.map(|(conflict, _)| conflict);
        let Some(entry) = self.entries.get_mut(&key) else { return };
        self.decided.push(key);
        let fits = conflict.is_none();
        if entry.is_lost() {
            self.lost.remove(&entry.peer);
        }
        let fault = entry.trouble.take().and_then(|trouble| trouble.fault);
        if fault.is_some() || conflict.is_some() {
            entry.trouble = Some(Box::new(Trouble { fault, conflict, is_refused }));
            self.troubled.insert(key);
            if entry.is_lost() {
                self.lost.add(&entry.peer);
            }
            if is_refused && let Some(Holder::Lease(holder, _)) = conflict.map(|conflict| conflict.holder) {
                self.index.remove(&key, &entry.peer.claims);
                self.refused.add(key, &entry.peer.claims);
                self.behind.entry(holder).or_default().insert(key);
            }
        } else {
            self.troubled.remove(&key);
        }
        // A lease without claims has no objects: it is another backend's, or was never readable.
        if !fits || entry.is_programmed || entry.peer.claims.is_empty() {
            return;
        }
        entry.is_programmed = true;
        self.programmed += 1;
        self.programmed_by_family.add(&entry.peer);
        for object in entry.peer.objects.clone() {
            self.want_object(object);
        }
    }

    /// Why a lease is not programmed because of this other one.
    fn conflict_between(&self, key: LeaseKey, winner: LeaseKey) -> Option<Conflict> {
        let (a, b) = (self.entries.get(&key)?.side(key), self.entries.get(&winner)?.side(winner));
        let pairs = || pairs(&a, &b).map(|(mine, theirs)| (mine, theirs, precedence(&a, mine, &b, theirs)));
        let beaten = pairs().find(|(_, _, (wins, _))| !wins);
        // If precedence goes in a circle, the rank decided.
        let (claim, other, grounds) = match beaten {
            Some((mine, theirs, (_, grounds))) => (mine, theirs, Some(grounds)),
            None => pairs().next().map(|(mine, theirs, _)| (mine, theirs, None))?,
        };
        Some(Conflict { claim, other, holder: Holder::Lease(winner, grounds) })
    }
}

/// The conflicting pairs of claims of two leases.
fn pairs<'a>(a: &Side<'a>, b: &Side<'a>) -> impl Iterator<Item = (Claim, Claim)> + use<'a> {
    let theirs = b.claims;
    let pairs = a.claims.iter().flat_map(move |mine| theirs.iter().map(move |theirs| (*mine, *theirs)));
    pairs.filter(|(mine, theirs)| mine.excludes(*theirs))
}

/// The edge between two conflicting leases.
fn edge(other: usize, a: &Side<'_>, b: &Side<'_>) -> Edge {
    let mut edge = Edge { other, is_beaten: false, beats: false };
    for (mine, theirs) in pairs(a, b) {
        let (wins, _) = precedence(a, mine, b, theirs);
        edge.beats |= wins;
        edge.is_beaten |= !wins;
    }
    edge
}
