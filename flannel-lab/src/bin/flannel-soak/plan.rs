//! What is done, when, and to whom: chosen from a seed. Pure, so the same seed gives the same actions.
//!
//! The run is a series of rounds. A round has one to three actions that overlap in time and never concern the
//! same node, nor both the store; what overlaps otherwise is meant to. A round ends when all is well again.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use fastrand::Rng;

use crate::model::Backend;
use crate::options::StoreChoice;
use crate::phantom::{HOSTS, Phantom, SUBNETS};

/// What an action is; the rows of the histogram.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    Join,
    Leave,
    Burst,
    NewMac,
    NewAddress,
    Drift,
    DeviceDown,
    DeviceDeleted,
    DeviceMac,
    NicFlap,
    NicPulled,
    CarrierLoss,
    Partition,
    Renumber,
    AgentKilled,
    AgentPaused,
    AgentAway,
    StorePaused,
    StoreKilled,
    Compaction,
}

impl Kind {
    /// Its name in reports.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Join => "lease joins",
            Self::Leave => "lease leaves",
            Self::Burst => "burst of leases",
            Self::NewMac => "MAC changes",
            Self::NewAddress => "address changes",
            Self::Drift => "drift",
            Self::DeviceDown => "device down",
            Self::DeviceDeleted => "device deleted",
            Self::DeviceMac => "device's MAC altered",
            Self::NicFlap => "NIC flap",
            Self::NicPulled => "NIC pulled",
            Self::CarrierLoss => "carrier loss",
            Self::Partition => "partition",
            Self::Renumber => "node renumbered",
            Self::AgentKilled => "agent killed",
            Self::AgentPaused => "agent paused",
            Self::AgentAway => "agent away",
            Self::StorePaused => "store paused",
            Self::StoreKilled => "store killed",
            Self::Compaction => "compaction",
        }
    }

    fn is_on_a_node(self) -> bool {
        use Kind::{Burst, Compaction, Join, Leave, NewAddress, NewMac, StoreKilled, StorePaused};
        !matches!(self, Join | Leave | Burst | NewMac | NewAddress | StorePaused | StoreKilled | Compaction)
    }

    /// Whether the fault has an end of its own.
    fn lasts(self) -> bool {
        use Kind::{
            AgentAway, AgentPaused, CarrierLoss, NicFlap, NicPulled, Partition, StoreKilled, StorePaused,
        };
        matches!(
            self,
            NicFlap
                | NicPulled
                | CarrierLoss
                | Partition
                | AgentPaused
                | AgentAway
                | StorePaused
                | StoreKilled
        )
    }
}

/// A lease that is pointed at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Victim {
    Node(u8),
    Phantom(u8),
}

/// A kind of entry in the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Piece {
    Route,
    Neighbour,
    Fdb,
    /// A next-hop object; the route where there are none.
    NextHop,
    /// The node's own address on its device.
    Address,
    /// A route, and where there is a tunnel end a neighbour, that no lease asks for.
    Stray,
}

/// Damage to one entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Drift {
    pub(crate) piece: Piece,
    /// Altered in place, else deleted; an address only goes, and a stray only comes.
    pub(crate) altered: bool,
    pub(crate) victim: Victim,
    pub(crate) v6: bool,
}

/// Something that happens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Action {
    pub(crate) kind: Kind,
    /// After the round's begin.
    pub(crate) after: Duration,
    /// How long the fault lasts; zero for what is done at once.
    pub(crate) hold: Duration,
    /// The node it happens to.
    pub(crate) node: Option<u8>,
    /// The family, for what concerns the device of one.
    pub(crate) v6: bool,
    /// Leases that are written, after the fault if it is one of the store.
    pub(crate) put: Vec<Phantom>,
    /// Subnets of the leases that are deleted.
    pub(crate) del: Vec<u8>,
    /// An entry that is damaged, during the fault if it is one of the agent.
    pub(crate) drift: Option<Drift>,
    /// The host that a renumbered node becomes.
    pub(crate) host: u8,
}

/// Pairs that may lose pings by an action.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Touch {
    pub(crate) node: u8,
    /// With this node alone, else with all.
    pub(crate) peer: Option<u8>,
    /// In this family alone, else in both.
    pub(crate) v6: Option<bool>,
}

impl Touch {
    /// Whether the pings between two nodes in a family may suffer.
    pub(crate) fn covers(self, a: u8, b: u8, v6: bool) -> bool {
        let nodes = match self.peer {
            Some(peer) => [(a, b), (b, a)].contains(&(self.node, peer)),
            None => a == self.node || b == self.node,
        };
        nodes && self.v6.is_none_or(|family| family == v6)
    }
}

impl Action {
    /// Who may notice. Everybody else must not.
    pub(crate) fn touches(&self, backend: Backend) -> Option<Touch> {
        use Kind::{
            AgentAway, AgentKilled, AgentPaused, CarrierLoss, DeviceDeleted, DeviceDown, DeviceMac, NicFlap,
            NicPulled, Partition, Renumber,
        };
        let node = self.node?;
        let all = Touch { node, peer: None, v6: None };
        // A TUN has both families, and its packets go through the agent.
        let family = (backend != Backend::Udp).then_some(self.v6);
        match self.kind {
            NicFlap | NicPulled | CarrierLoss | Partition | Renumber => Some(all),
            DeviceDown | DeviceDeleted | DeviceMac => Some(Touch { v6: family, ..all }),
            AgentKilled | AgentPaused | AgentAway if backend == Backend::Udp => Some(all),
            _ => {
                let drift = self.drift?;
                let v6 = (backend != Backend::Udp).then_some(drift.v6);
                match (drift.piece, drift.victim) {
                    (Piece::Stray, _) => None,
                    _ if backend == Backend::Udp => Some(all),
                    // With the last address go all neighbours, in silence.
                    (Piece::Address, _) => Some(Touch { v6, ..all }),
                    (_, Victim::Node(peer)) => Some(Touch { node, peer: Some(peer), v6 }),
                    (_, Victim::Phantom(_)) => None,
                }
            }
        }
    }

    /// Whether what others put on the node's devices goes with them.
    pub(crate) fn takes_foreign(&self) -> bool {
        use Kind::{DeviceDeleted, DeviceDown, DeviceMac, NicPulled, Renumber};
        matches!(self.kind, DeviceDown | DeviceDeleted | DeviceMac | NicPulled | Renumber)
            || self.drift.is_some_and(|drift| drift.piece == Piece::Address)
    }

    /// Whether leases change by it, so that every node has something to do.
    pub(crate) fn writes(&self) -> bool {
        !self.put.is_empty() || !self.del.is_empty() || self.kind == Kind::Renumber
    }

    /// Whether the store answers nobody meanwhile.
    pub(crate) fn stops_store(&self) -> bool {
        matches!(self.kind, Kind::StorePaused | Kind::StoreKilled)
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.kind.name())?;
        if let Some(node) = self.node {
            write!(f, " on node{node}")?;
        }
        if matches!(self.kind, Kind::DeviceDown | Kind::DeviceDeleted | Kind::DeviceMac) {
            write!(f, " ({})", if self.v6 { "IPv6" } else { "IPv4" })?;
        }
        if self.kind == Kind::Renumber {
            write!(f, " to host {}", self.host)?;
        }
        if !self.hold.is_zero() {
            write!(f, " for {} ms", self.hold.as_millis())?;
        }
        if let Some(Drift { piece, altered, victim, v6 }) = self.drift {
            let (verb, family) = (if altered { "altered" } else { "deleted" }, if v6 { 6 } else { 4 });
            write!(f, ", {piece:?} of {victim:?} (IPv{family}) {verb}")?;
        }
        if !self.put.is_empty() {
            let put = self.put.iter().map(|one| format!("{}@{}", one.subnet, one.host));
            write!(f, ", put {}", put.collect::<Vec<_>>().join(" "))?;
        }
        if !self.del.is_empty() {
            let del = self.del.iter().map(ToString::to_string);
            write!(f, ", del {}", del.collect::<Vec<_>>().join(" "))?;
        }
        Ok(())
    }
}

/// What can be chosen from.
#[derive(Debug, Clone)]
pub(crate) struct Setting {
    pub(crate) backend: Backend,
    pub(crate) store: StoreChoice,
    /// The families in use: false for IPv4, true for IPv6.
    pub(crate) families: Vec<bool>,
    pub(crate) nodes: u8,
    pub(crate) phantoms: u8,
}

/// Chooses.
#[derive(Debug)]
pub(crate) struct Planner {
    rng: Rng,
    setting: Setting,
    phantoms: BTreeMap<u8, Phantom>,
    /// The hosts that nodes became.
    hosts: BTreeMap<u8, u8>,
    next_mac: u16,
}

/// What a round's actions have taken for themselves.
#[derive(Debug, Default)]
struct Taken {
    nodes: BTreeSet<u8>,
    records: bool,
    /// Phantoms whose records change; their entries are not damaged besides.
    phantoms: BTreeSet<u8>,
}

impl Planner {
    /// Begins at a seed.
    pub(crate) fn new(seed: u64, setting: Setting) -> Self {
        let rng = Rng::with_seed(seed);
        Self { rng, setting, phantoms: BTreeMap::new(), hosts: BTreeMap::new(), next_mac: 1 }
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
        use Kind::{
            AgentAway, AgentKilled, AgentPaused, Burst, CarrierLoss, Compaction, DeviceDeleted, DeviceDown,
            DeviceMac, Drift, Join, Leave, NewAddress, NewMac, NicFlap, NicPulled, Partition, Renumber,
            StoreKilled, StorePaused,
        };
        let Setting { backend, store, nodes, .. } = self.setting;
        let (vxlan, host_gw) = (backend == Backend::Vxlan, backend == Backend::HostGw);
        let etcd = store == StoreChoice::Etcd;
        let weights = [
            (Join, 4),
            (Leave, 4),
            (Burst, 6),
            (NewMac, if vxlan { 6 } else { 0 }),
            (NewAddress, 6),
            (Drift, 20),
            (DeviceDown, if host_gw { 0 } else { 5 }),
            (DeviceDeleted, if host_gw { 0 } else { 5 }),
            (DeviceMac, if vxlan { 4 } else { 0 }),
            (NicFlap, 5),
            (NicPulled, 3),
            (CarrierLoss, 5),
            (Partition, 4),
            (Renumber, 5),
            (AgentKilled, 8),
            (AgentPaused, 6),
            (AgentAway, 6),
            (StorePaused, 4),
            (StoreKilled, if etcd { 4 } else { 0 }),
            (Compaction, if etcd { 4 } else { 0 }),
        ];
        let is_free = |kind: Kind| match kind {
            // All nodes have to do with it, and all their pings; one at a time is enough.
            Renumber => taken.nodes.is_empty() && !taken.records,
            kind if kind.is_on_a_node() => taken.nodes.len() < usize::from(nodes),
            _ => !taken.records,
        };
        let weights = weights.map(|(kind, weight)| (kind, if is_free(kind) { weight } else { 0 }));
        let total: u32 = weights.iter().map(|(_, weight)| weight).sum();
        let mut at = self.rng.u32(0..total.max(1));
        weights.into_iter().find_map(|(kind, weight)| {
            let here = at < weight;
            at = at.saturating_sub(weight);
            here.then_some(kind)
        })
    }

    fn action(&mut self, kind: Kind, taken: &mut Taken) -> Action {
        use Kind::{AgentAway, AgentPaused, Burst, Drift, Leave, NewAddress, NewMac, Renumber};
        let after = Duration::from_millis(self.rng.u64(0..800));
        let hold = if kind.lasts() { self.rng.u64(200..4000) } else { 0 };
        let v6 = self.family();
        let mut action = Action {
            kind,
            after,
            hold: Duration::from_millis(hold),
            node: None,
            v6,
            put: Vec::new(),
            del: Vec::new(),
            drift: None,
            host: 0,
        };
        if kind.is_on_a_node() {
            let free =
                (1..=self.setting.nodes).filter(|node| !taken.nodes.contains(node)).collect::<Vec<_>>();
            let node = free[self.rng.usize(0..free.len())];
            taken.nodes.insert(node);
            action.node = Some(node);
            match kind {
                Drift => action.drift = Some(self.drift(node, taken)),
                // Nobody sees it happen. In udp the device goes with the agent, and nothing is left to damage.
                AgentAway | AgentPaused if self.setting.backend != Backend::Udp && self.rng.bool() => {
                    action.drift = Some(self.drift(node, taken));
                }
                Renumber => {
                    taken.records = true;
                    taken.nodes.extend(1..=self.setting.nodes);
                    action.host = self.other_host(node);
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
            Backend::Udp => &[Piece::Route, Piece::Address, Piece::Stray],
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

    /// A host for a node to become that it and no other node is.
    fn other_host(&mut self, node: u8) -> u8 {
        let free = (50..90).filter(|host| self.hosts.values().all(|used| used != host)).collect::<Vec<_>>();
        let host = free[self.rng.usize(0..free.len())];
        self.hosts.insert(node, host);
        host
    }

    fn mac(&mut self) -> u16 {
        self.next_mac = self.next_mac.wrapping_add(1);
        self.next_mac
    }

    fn family(&mut self) -> bool {
        self.setting.families[self.rng.usize(0..self.setting.families.len())]
    }
}

#[cfg(test)]
mod tests;
