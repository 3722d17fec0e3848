//! What is done, when, and to whom: chosen from a seed. Pure, so the same seed gives the same actions.
//!
//! The run is a series of rounds. A round has one to three actions that overlap in time and never concern the
//! same node, nor both the store; what overlaps otherwise is meant to. A round ends when all is well again.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use fastrand::Rng;

use crate::action::{Action, Drift, Kind, Piece, Victim};
use crate::meddling::Meddling;
use crate::model::Backend;
use crate::options::StoreChoice;
use crate::phantom::{HOSTS, Phantom, SUBNETS};

/// What an API server says that is overloaded, broken, or behind a proxy without it.
const CODES: [u16; 4] = [429, 500, 503, 504];

/// What can be chosen from.
#[derive(Debug, Clone)]
pub(crate) struct Setting {
    pub(crate) backend: Backend,
    pub(crate) store: StoreChoice,
    /// The families in use: false for IPv4, true for IPv6.
    pub(crate) families: Vec<bool>,
    pub(crate) nodes: u8,
    pub(crate) phantoms: u8,
    /// The kinds that may be chosen; all if there are none.
    pub(crate) only: Vec<Kind>,
    /// The kinds that may not.
    pub(crate) without: Vec<Kind>,
}

/// The hosts that nodes are at first: so much more than their number.
const FIRST_HOST: u8 = 10;

/// Chooses.
#[derive(Debug)]
pub(crate) struct Planner {
    rng: Rng,
    setting: Setting,
    phantoms: BTreeMap<u8, Phantom>,
    /// The host that each node is in each family.
    hosts: BTreeMap<(u8, bool), u8>,
    /// The hosts that nodes were once, and the last node that was it.
    former: BTreeMap<u8, u8>,
    next_mac: u16,
}

/// What a round's actions have taken for themselves.
#[derive(Debug, Default)]
struct Taken {
    nodes: BTreeSet<u8>,
    records: bool,
    /// Phantoms whose records change; their entries are not damaged besides.
    phantoms: BTreeSet<u8>,
    /// A node is made anew, or the store restored, which would undo the other.
    objects: bool,
    /// An agent starts, and so forgets what it knew.
    starts: bool,
    /// The store is restored to what it was before all agents, so that only they know of each other.
    first_backup: bool,
}

impl Planner {
    /// Begins at a seed.
    pub(crate) fn new(seed: u64, setting: Setting) -> Self {
        let rng = Rng::with_seed(seed);
        let nodes = (1..=setting.nodes).flat_map(|node| [(node, false), (node, true)]);
        let hosts = nodes.map(|(node, v6)| ((node, v6), FIRST_HOST + node)).collect();
        let former = BTreeMap::new();
        Self { rng, setting, phantoms: BTreeMap::new(), hosts, former, next_mac: 1 }
    }

    /// Whether there is anything that can be chosen at all.
    pub(crate) fn has_choice(&self) -> bool {
        let taken = Taken::default();
        self.weights(&taken).into_iter().any(|(_, weight)| weight > 0)
    }

    /// The leases to begin with.
    pub(crate) fn first(&mut self) -> Vec<Phantom> {
        self.join(self.setting.phantoms.into(), &Taken::default())
    }

    /// The actions of the next round, in the order of their begin.
    pub(crate) fn round(&mut self) -> Vec<Action> {
        let count = 1 + self.rng.usize(0..3);
        let mut taken = Taken::default();
        let mut actions: Vec<Action> = Vec::new();
        while actions.len() < count {
            let Some(kind) = self.kind(&taken) else { break };
            let action = self.action(kind, &mut taken);
            actions.push(action);
        }
        actions.sort_by_key(|action| action.after);
        actions
    }

    /// One that is still possible, by weight.
    fn kind(&mut self, taken: &Taken) -> Option<Kind> {
        let weights = self.weights(taken);
        let total: u32 = weights.iter().map(|(_, weight)| weight).sum();
        let mut at = self.rng.u32(0..total.max(1));
        weights.into_iter().find_map(|(kind, weight)| {
            let here = at < weight;
            at = at.saturating_sub(weight);
            here.then_some(kind)
        })
    }

    /// How often each comes; never what is impossible now.
    fn weights(&self, taken: &Taken) -> Vec<(Kind, u32)> {
        use Kind::{
            AddressReuse, AgentAway, AgentKilled, AgentPaused, Burst, CarrierLoss, Compaction, CutOff,
            DeviceDeleted, DeviceDown, DeviceMac, Drift, Garbage, Join, Leave, Meddled, NewAddress, NewMac,
            NicFlap, NicPulled, NicRename, Partition, Refusing, Remade, Renumber, RenumberAway, Restored,
            RulesLost, Slow, StoreKilled, StorePaused, Tampered, WatchesCut,
        };
        let Setting { backend, store, nodes, .. } = self.setting;
        let (vxlan, host_gw) = (backend == Backend::Vxlan, backend == Backend::HostGw);
        let (server, kube) = (store != StoreChoice::Local, store == StoreChoice::Kube);
        let weights = [
            (Join, 4),
            (Leave, 4),
            (Burst, 6),
            (NewMac, if backend.identity().is_some() { 6 } else { 0 }),
            (NewAddress, 6),
            (Drift, 20),
            (RulesLost, 6),
            (DeviceDown, if host_gw { 0 } else { 5 }),
            (DeviceDeleted, if host_gw { 0 } else { 5 }),
            (DeviceMac, if vxlan { 4 } else { 0 }),
            (NicFlap, 5),
            (NicPulled, 3),
            (CarrierLoss, 5),
            (Partition, 4),
            (Renumber, 5),
            (RenumberAway, 5),
            (AddressReuse, 6),
            (NicRename, 6),
            (AgentKilled, 8),
            (AgentPaused, 6),
            (AgentAway, 6),
            (StorePaused, 4),
            (StoreKilled, if server { 4 } else { 0 }),
            (Compaction, if server { 4 } else { 0 }),
            (CutOff, if kube { 4 } else { 0 }),
            (Restored, if kube { 5 } else { 0 }),
            (WatchesCut, if kube { 4 } else { 0 }),
            (Garbage, if kube { 3 } else { 0 }),
            (Slow, if kube { 3 } else { 0 }),
            (Refusing, if kube { 4 } else { 0 }),
            (Meddled, if kube { 10 } else { 0 }),
            (Remade, if kube { 5 } else { 0 }),
            (Tampered, 10),
        ];
        let Setting { only, without, .. } = &self.setting;
        let is_wanted = |kind: &Kind| (only.is_empty() || only.contains(kind)) && !without.contains(kind);
        let is_free = |kind: Kind| match kind {
            kind if !is_wanted(&kind) => false,
            kind if kind.is_alone() => taken.nodes.is_empty() && !taken.records,
            Remade if taken.objects => false,
            Restored if taken.objects => false,
            AgentKilled | AgentAway if taken.first_backup => false,
            kind if kind.is_on_a_node() => taken.nodes.len() < usize::from(nodes),
            _ => !taken.records,
        };
        weights.into_iter().map(|(kind, weight)| (kind, if is_free(kind) { weight } else { 0 })).collect()
    }

    fn action(&mut self, kind: Kind, taken: &mut Taken) -> Action {
        use Kind::{
            AddressReuse, AgentAway, AgentKilled, AgentPaused, Burst, CutOff, Drift, Leave, Meddled,
            NewAddress, NewMac, Refusing, Remade, Renumber, Restored,
        };
        // An address is free to be used again only once somebody has left it.
        let kind = if kind == AddressReuse && self.free_former().is_empty() { Renumber } else { kind };
        let after = Duration::from_millis(self.rng.u64(0..800));
        let hold = if kind.lasts() { self.rng.u64(200..4000) } else { 0 };
        let v6 = self.family();
        let mut action = Action::new(kind, after, Duration::from_millis(hold), v6);
        if kind.is_alone() {
            taken.records = true;
            taken.nodes.extend(1..=self.setting.nodes);
            self.alone(&mut action);
            return action;
        }
        taken.starts |= matches!(kind, AgentKilled | AgentAway);
        taken.objects |= matches!(kind, Remade | Restored);
        if kind.is_on_a_node() {
            let free =
                (1..=self.setting.nodes).filter(|node| !taken.nodes.contains(node)).collect::<Vec<_>>();
            let node = free[self.rng.usize(0..free.len())];
            taken.nodes.insert(node);
            action.node = Some(node);
            match kind {
                Drift => action.drift = Some(self.drift(node, taken)),
                // Nobody sees it happen. Where the device goes with the agent nothing is left to damage.
                AgentAway | AgentPaused if !self.setting.backend.is_in_agent() && self.rng.bool() => {
                    action.drift = Some(self.drift(node, taken));
                }
                Meddled => {
                    let all = Meddling::all(self.setting.backend, &self.setting.families);
                    action.meddling = Some(all[self.rng.usize(0..all.len())]);
                }
                _ => {}
            }
            return action;
        }
        taken.records = true;
        match kind {
            Leave => action.del = self.leave(1, taken),
            NewMac => {
                action.put = self.some(1, taken);
                for phantom in &mut action.put {
                    phantom.mac = self.mac();
                }
            }
            NewAddress => {
                action.put = self.some(1, taken);
                for phantom in &mut action.put {
                    phantom.host = self.host().unwrap_or(phantom.host);
                }
            }
            Burst => {
                // About as many as are missing come, so that the number stays near what was asked for.
                let missing = usize::from(self.setting.phantoms).saturating_sub(self.phantoms.len());
                let (leave, join) = (self.rng.usize(0..12), missing.min(12) + self.rng.usize(1..8));
                action.del = self.leave(leave, taken);
                taken.phantoms.extend(&action.del);
                action.put = self.join(join, taken);
            }
            CutOff => {
                action.del = self.leave(1, taken);
                taken.phantoms.extend(&action.del);
                action.put = self.join(1, taken);
            }
            Restored => {
                action.is_first_backup = !taken.starts && self.rng.bool();
                taken.first_backup = action.is_first_backup;
                let count = self.rng.usize(1..4);
                action.put = self.join(count, taken);
            }
            Refusing => {
                action.code = CODES[self.rng.usize(0..CODES.len())];
                action.put = self.join(1, taken);
            }
            // After a fault of the store, a lease that joins shows whether all is well again.
            _ => action.put = self.join(1, taken),
        }
        for phantom in &action.put {
            self.phantoms.insert(phantom.subnet, *phantom);
        }
        taken
            .phantoms
            .extend(action.put.iter().map(|phantom| phantom.subnet).chain(action.del.iter().copied()));
        action
    }

    fn drift(&mut self, node: u8, taken: &mut Taken) -> Drift {
        let backend = self.setting.backend;
        let pieces: &[Piece] = match backend {
            Backend::Vxlan => {
                &[Piece::Route, Piece::Neighbour, Piece::Fdb, Piece::NextHop, Piece::Address, Piece::Stray]
            }
            Backend::HostGw => &[Piece::Route, Piece::Stray],
            Backend::Udp | Backend::Wireguard | Backend::Ipip => {
                &[Piece::Route, Piece::Address, Piece::Stray]
            }
        };
        let piece = pieces[self.rng.usize(0..pieces.len())];
        // The one route of udp is deleted or not.
        let altered = self.rng.bool() && (backend, piece) != (Backend::Udp, Piece::Route);
        let others = (1..=self.setting.nodes).filter(|other| *other != node);
        let nodes = others.map(Victim::Node).collect::<Vec<_>>();
        let free = self.phantoms.keys().filter(|phantom| !taken.phantoms.contains(phantom));
        let phantoms = free.copied().map(Victim::Phantom).collect::<Vec<_>>();
        let from = if self.rng.bool() || phantoms.is_empty() { nodes } else { phantoms };
        let victim = from[self.rng.usize(0..from.len())];
        if let Victim::Phantom(phantom) = victim {
            taken.phantoms.insert(phantom);
        }
        Drift { piece, altered, victim, v6: self.family() }
    }

    /// New leases, as many as there is room for.
    fn join(&mut self, count: usize, taken: &Taken) -> Vec<Phantom> {
        let mut joined = Vec::new();
        for _ in 0..count {
            let is_free =
                |subnet: &u8| !self.phantoms.contains_key(subnet) && !taken.phantoms.contains(subnet);
            let free = SUBNETS.filter(is_free).collect::<Vec<_>>();
            let Some(host) = self.host().filter(|_| !free.is_empty()) else { break };
            let phantom = Phantom { subnet: free[self.rng.usize(0..free.len())], host, mac: self.mac() };
            self.phantoms.insert(phantom.subnet, phantom);
            joined.push(phantom);
        }
        joined
    }

    /// Leases that end.
    fn leave(&mut self, count: usize, taken: &Taken) -> Vec<u8> {
        let left = self.some(count, taken).into_iter().map(|phantom| phantom.subnet).collect::<Vec<_>>();
        self.phantoms.retain(|subnet, _| !left.contains(subnet));
        left
    }

    /// Some of those that are there, no two the same.
    fn some(&mut self, count: usize, taken: &Taken) -> Vec<Phantom> {
        let free = self.phantoms.values().filter(|phantom| !taken.phantoms.contains(&phantom.subnet));
        let mut free = free.copied().collect::<Vec<_>>();
        self.rng.shuffle(&mut free);
        free.truncate(count);
        free
    }

    /// A host that no phantom claims to be.
    fn host(&mut self) -> Option<u8> {
        let free = HOSTS.filter(|host| self.phantoms.values().all(|phantom| phantom.host != *host));
        let free = free.collect::<Vec<_>>();
        (!free.is_empty()).then(|| free[self.rng.usize(0..free.len())])
    }

    fn mac(&mut self) -> u16 {
        self.next_mac = self.next_mac.wrapping_add(1);
        self.next_mac
    }

    fn family(&mut self) -> bool {
        self.setting.families[self.rng.usize(0..self.setting.families.len())]
    }
}

mod alone;
#[cfg(test)]
mod tests;
