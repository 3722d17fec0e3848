//! What can happen, and who may suffer by it. Pure.

use std::fmt;
use std::time::Duration;

use crate::meddling::Meddling;
use crate::model::Backend;
use crate::phantom::Phantom;

/// What an action is; the rows of the histogram.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    Join,
    Leave,
    Burst,
    NewMac,
    NewAddress,
    Drift,
    RulesLost,
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
    CutOff,
    Restored,
    WatchesCut,
    Garbage,
    Slow,
    Refusing,
    Meddled,
    Remade,
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
            Self::RulesLost => "rules deleted",
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
            Self::CutOff => "compacted, cut off",
            Self::Restored => "store restored",
            Self::WatchesCut => "watches cut",
            Self::Garbage => "garbage in watches",
            Self::Slow => "store slow",
            Self::Refusing => "store refuses",
            Self::Meddled => "annotation changed",
            Self::Remade => "node made anew",
        }
    }

    /// Whether it happens to one node.
    pub(crate) fn is_on_a_node(self) -> bool {
        use Kind::{Burst, Compaction, Join, Leave, NewAddress, NewMac};
        !self.stops_store() && !matches!(self, Join | Leave | Burst | NewMac | NewAddress | Compaction)
    }

    /// Whether the store is of little use meanwhile, or of none.
    pub(crate) fn stops_store(self) -> bool {
        use Kind::{CutOff, Garbage, Refusing, Restored, Slow, StoreKilled, StorePaused, WatchesCut};
        matches!(self, StorePaused | StoreKilled | CutOff | Restored | WatchesCut | Garbage | Slow | Refusing)
    }

    /// Whether the fault has an end of its own.
    pub(crate) fn lasts(self) -> bool {
        use Kind::{AgentAway, AgentPaused, CarrierLoss, NicFlap, NicPulled, Partition, Remade};
        self.stops_store()
            || matches!(
                self,
                NicFlap | NicPulled | CarrierLoss | Partition | AgentPaused | AgentAway | Remade
            )
    }

    /// Whether the record of a node changes by somebody else's hand.
    pub(crate) fn meddles(self) -> bool {
        matches!(self, Self::Meddled | Self::Remade)
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
    /// The status that a server answers with which refuses everything.
    pub(crate) code: u16,
    /// Whether the backup that the store is restored from is from before all agents, else from just now.
    pub(crate) is_first_backup: bool,
    /// What is done to the annotations of the node.
    pub(crate) meddling: Option<Meddling>,
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
            AgentAway, AgentKilled, AgentPaused, CarrierLoss, DeviceDeleted, DeviceDown, DeviceMac, Meddled,
            NicFlap, NicPulled, Partition, Remade, Renumber,
        };
        let node = self.node?;
        let all = Touch { node, peer: None, v6: None };
        // A TUN has both families, and its packets go through the agent.
        let family = (backend != Backend::Udp).then_some(self.v6);
        match self.kind {
            NicFlap | NicPulled | CarrierLoss | Partition | Renumber | Remade => Some(all),
            // What can't be read is unknown, not gone.
            Meddled => (!self.meddling.is_some_and(Meddling::is_unreadable)).then_some(all),
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
        !self.put.is_empty() || !self.del.is_empty() || self.kind == Kind::Renumber || self.kind.meddles()
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.kind.name())?;
        if let Some(node) = self.node {
            write!(f, " on node{node}")?;
        }
        if matches!(self.kind, Kind::DeviceDown | Kind::DeviceDeleted | Kind::DeviceMac | Kind::RulesLost) {
            write!(f, " ({})", if self.v6 { "IPv6" } else { "IPv4" })?;
        }
        if self.kind == Kind::Renumber {
            write!(f, " to host {}", self.host)?;
        }
        if self.kind == Kind::Refusing {
            write!(f, " with {}", self.code)?;
        }
        if self.is_first_backup {
            write!(f, " from the first backup")?;
        }
        if let Some(meddling) = self.meddling {
            write!(f, ", {meddling}")?;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_those_who_are_touched_may_lose() {
        let action = |kind, node, drift| Action {
            kind,
            after: Duration::ZERO,
            hold: Duration::ZERO,
            node,
            v6: true,
            put: Vec::new(),
            del: Vec::new(),
            drift,
            host: 0,
            code: 0,
            is_first_backup: false,
            meddling: None,
        };
        let suffers = |action: &Action, backend, a, b, v6| {
            action.touches(backend).is_some_and(|touch| touch.covers(a, b, v6))
        };
        let flap = action(Kind::NicFlap, Some(2), None);
        assert!(suffers(&flap, Backend::Vxlan, 1, 2, false) && suffers(&flap, Backend::Vxlan, 2, 3, true));
        assert!(!suffers(&flap, Backend::Vxlan, 1, 3, false));
        let device = action(Kind::DeviceDown, Some(2), None);
        assert!(
            suffers(&device, Backend::Vxlan, 1, 2, true) && !suffers(&device, Backend::Vxlan, 1, 2, false)
        );
        let drift = |piece, victim| Some(Drift { piece, altered: false, victim, v6: false });
        let route = action(Kind::Drift, Some(1), drift(Piece::Route, Victim::Node(3)));
        assert!(
            suffers(&route, Backend::HostGw, 3, 1, false) && !suffers(&route, Backend::HostGw, 3, 1, true)
        );
        assert!(!suffers(&route, Backend::HostGw, 1, 2, false));
        let phantom = action(Kind::Drift, Some(1), drift(Piece::Route, Victim::Phantom(3)));
        assert_eq!(phantom.touches(Backend::Vxlan), None);
        assert_eq!(action(Kind::StoreKilled, None, None).touches(Backend::Udp), None);
        let killed = action(Kind::AgentKilled, Some(1), None);
        assert_eq!(killed.touches(Backend::Vxlan), None);
        assert!(suffers(&killed, Backend::Udp, 1, 2, false));
        let meddled = |annotation, value| Action {
            meddling: Some(Meddling { annotation: Some(annotation), value }),
            ..action(Kind::Meddled, Some(1), None)
        };
        assert!(suffers(&meddled("public-ip", None), Backend::Vxlan, 2, 1, true));
        assert_eq!(meddled("public-ip", Some("nowhere")).touches(Backend::Vxlan), None);
    }
}
