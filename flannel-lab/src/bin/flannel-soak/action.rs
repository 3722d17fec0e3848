//! The actions of a soak, and which pings each of them may cost. Pure.

use std::fmt;
use std::time::Duration;

use clap::ValueEnum;

use crate::meddling::Meddling;
use crate::model::Backend;
use crate::phantom::Phantom;
use crate::tampering::Tampering;

/// What an action is; the rows of the histogram, and the values of `--only` and `--without`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
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
    RenumberAway,
    AddressReuse,
    NicRename,
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
    Tampered,
}

impl Kind {
    /// Its name in reports.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Join => "lease joins",
            Self::Leave => "lease leaves",
            Self::Burst => "burst of leases",
            Self::NewMac => "MAC or key changes",
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
            Self::RenumberAway => "renumbered while away",
            Self::AddressReuse => "address used again",
            Self::NicRename => "NIC renamed",
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
            Self::Tampered => "record tampered with",
        }
    }

    /// Whether it happens to one node.
    pub(crate) fn is_on_a_node(self) -> bool {
        use Kind::{Burst, Compaction, Join, Leave, NewAddress, NewMac, Tampered};
        !self.stops_store()
            && !matches!(self, Join | Leave | Burst | NewMac | NewAddress | Compaction | Tampered)
    }

    /// Whether it concerns all nodes and all their pings, so that nothing else happens meanwhile.
    pub(crate) fn is_alone(self) -> bool {
        use Kind::{AddressReuse, Renumber, RenumberAway, Tampered};
        matches!(self, Renumber | RenumberAway | AddressReuse | Tampered)
    }

    /// Whether the store can't be used meanwhile, or hardly.
    pub(crate) fn stops_store(self) -> bool {
        use Kind::{CutOff, Garbage, Refusing, Restored, Slow, StoreKilled, StorePaused, WatchesCut};
        matches!(self, StorePaused | StoreKilled | CutOff | Restored | WatchesCut | Garbage | Slow | Refusing)
    }

    /// Whether the fault has an end of its own.
    pub(crate) fn lasts(self) -> bool {
        use Kind::{
            AgentAway, AgentPaused, CarrierLoss, NicFlap, NicPulled, NicRename, Partition, Remade,
            RenumberAway, Tampered,
        };
        self.stops_store()
            || matches!(self, NicFlap | NicPulled | NicRename | CarrierLoss | Partition)
            || matches!(self, AgentPaused | AgentAway | Remade | RenumberAway | Tampered)
    }

    /// Whether the record of a node changes by somebody else's hand.
    pub(crate) fn meddles(self) -> bool {
        matches!(self, Self::Meddled | Self::Remade | Self::Tampered)
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
    /// The host that a renumbered or new node becomes.
    pub(crate) host: u8,
    /// The families in which it does: true for IPv6.
    pub(crate) families: Vec<bool>,
    /// The status that a server answers with which refuses everything.
    pub(crate) code: u16,
    /// Whether the backup that the store is restored from is from before all agents, else from just now.
    pub(crate) is_first_backup: bool,
    /// What is done to the annotations of the node.
    pub(crate) meddling: Option<Meddling>,
    /// Which record says what it must not.
    pub(crate) tampering: Option<Tampering>,
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
    /// One of this kind without any particulars.
    pub(crate) fn new(kind: Kind, after: Duration, hold: Duration, v6: bool) -> Self {
        Self {
            kind,
            after,
            hold,
            node: None,
            v6,
            put: Vec::new(),
            del: Vec::new(),
            drift: None,
            host: 0,
            families: Vec::new(),
            code: 0,
            is_first_backup: false,
            meddling: None,
            tampering: None,
        }
    }

    /// The pairs that may lose pings. All others must not.
    pub(crate) fn touches(&self, backend: Backend) -> Option<Touch> {
        use Kind::{
            AddressReuse, AgentAway, AgentKilled, AgentPaused, CarrierLoss, DeviceDeleted, DeviceDown,
            DeviceMac, Meddled, NicFlap, NicPulled, Partition, Remade, Renumber, RenumberAway, Tampered,
        };
        let node = self.node?;
        let all = Touch { node, peer: None, v6: None };
        // The TUN of udp has both families.
        let family = (backend != Backend::Udp).then_some(self.v6);
        match self.kind {
            NicFlap | NicPulled | CarrierLoss | Partition | Remade => Some(all),
            Renumber | RenumberAway | AddressReuse => Some(all),
            // The node's own record is wrong, whoever wrote it, and the records of others still conflict with it.
            Tampered => Some(all),
            // What can't be read is unknown, not gone.
            Meddled => (!self.meddling.is_some_and(Meddling::is_unreadable)).then_some(all),
            DeviceDown | DeviceDeleted | DeviceMac => Some(Touch { v6: family, ..all }),
            AgentKilled | AgentPaused | AgentAway if backend.is_in_agent() => Some(all),
            _ => {
                let drift = self.drift?;
                let v6 = (backend != Backend::Udp).then_some(drift.v6);
                match (drift.piece, drift.victim) {
                    (Piece::Stray, _) => None,
                    _ if backend == Backend::Udp => Some(all),
                    // With the last address go all neighbours, without a notification.
                    (Piece::Address, _) => Some(Touch { v6, ..all }),
                    (_, Victim::Node(peer)) => Some(Touch { node, peer: Some(peer), v6 }),
                    (_, Victim::Phantom(_)) => None,
                }
            }
        }
    }

    /// Whether what others put on the node's devices goes with them.
    pub(crate) fn takes_foreign(&self) -> bool {
        use Kind::{AddressReuse, DeviceDeleted, DeviceDown, DeviceMac, NicPulled, Renumber, RenumberAway};
        matches!(self.kind, DeviceDown | DeviceDeleted | DeviceMac | NicPulled)
            || matches!(self.kind, Renumber | RenumberAway | AddressReuse)
            // A node that started with another's MAC in its record takes a new one, and neighbours go with the old.
            || self.tampering.is_some_and(Tampering::heals_by_itself)
            || self.drift.is_some_and(|drift| drift.piece == Piece::Address)
    }

    /// Whether leases change by it, so that every node has something to do.
    pub(crate) fn writes(&self) -> bool {
        !self.put.is_empty() || !self.del.is_empty() || self.kind.is_alone() || self.kind.meddles()
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
        if !self.families.is_empty() {
            let families = self.families.iter().map(|v6| if *v6 { "IPv6" } else { "IPv4" });
            write!(f, " to host {} ({})", self.host, families.collect::<Vec<_>>().join(", "))?;
        }
        if let Some(tampering) = self.tampering {
            write!(f, ", {tampering}")?;
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
        let action = |kind, node, drift| {
            let action = Action::new(kind, Duration::ZERO, Duration::ZERO, true);
            Action { node, drift, ..action }
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
        for backend in [Backend::Vxlan, Backend::HostGw, Backend::Udp] {
            assert_eq!(
                action(Kind::NicRename, Some(1), None).touches(backend),
                None,
                "a name carries nothing"
            );
        }
        for kind in [Kind::RenumberAway, Kind::AddressReuse, Kind::Tampered] {
            let action = action(kind, Some(2), None);
            assert!(suffers(&action, Backend::HostGw, 1, 2, false), "{kind:?}");
            assert!(!suffers(&action, Backend::HostGw, 1, 3, false), "{kind:?}");
        }
    }
}
