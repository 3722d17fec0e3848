//! What concerns all nodes, and so comes alone: who becomes which host, and whose record claims what is whose.

use super::Planner;
use crate::action::{Action, Kind, Victim};
use crate::tampering::{Claim, Meanwhile, Tampering};

impl Planner {
    /// The particulars of what all nodes have to do with.
    pub(super) fn alone(&mut self, action: &mut Action) {
        let node = 1 + self.rng.u8(0..self.setting.nodes);
        action.node = Some(node);
        match action.kind {
            Kind::Tampered => {
                let tampering = self.tampering(node);
                action.node = (tampering.record == Victim::Node(node)).then_some(node);
                action.tampering = Some(tampering);
            }
            Kind::AddressReuse => {
                let free = self.free_former();
                let (host, owner) = free[self.rng.usize(0..free.len())];
                // Somebody else takes it.
                let others = (1..=self.setting.nodes).filter(|other| *other != owner).collect::<Vec<_>>();
                let node = others[self.rng.usize(0..others.len())];
                action.node = Some(node);
                action.host = host;
                action.families.clone_from(&self.setting.families);
                self.becomes(node, host, &action.families);
            }
            _ => {
                let used = |host: &u8| self.hosts.values().any(|used| used == host);
                let free = (50..90).filter(|host| !used(host)).collect::<Vec<_>>();
                action.host = free[self.rng.usize(0..free.len())];
                action.families =
                    if self.rng.bool() { self.setting.families.clone() } else { vec![self.family()] };
                self.becomes(node, action.host, &action.families);
            }
        }
    }

    /// Hosts that nodes were once and no node is now, with the last that was it.
    pub(super) fn free_former(&self) -> Vec<(u8, u8)> {
        let former = self.former.iter().map(|(host, owner)| (*host, *owner));
        former.filter(|(host, _)| self.hosts.values().all(|used| used != host)).collect()
    }

    /// A node is another host from now on, in these families.
    fn becomes(&mut self, node: u8, host: u8, families: &[bool]) {
        for v6 in families {
            if let Some(old) = self.hosts.insert((node, *v6), host) {
                self.former.insert(old, node);
            }
        }
    }

    /// A record that claims what is another node's: mostly one of the nodes', where older leases claim what
    /// younger ones have and the other way round.
    fn tampering(&mut self, node: u8) -> Tampering {
        let phantoms = self.phantoms.keys().copied().collect::<Vec<_>>();
        let is_phantoms = !phantoms.is_empty() && self.rng.u8(0..4) == 0;
        let record = if is_phantoms {
            Victim::Phantom(phantoms[self.rng.usize(0..phantoms.len())])
        } else {
            Victim::Node(node)
        };
        let others = (1..=self.setting.nodes).filter(|other| *other != node).collect::<Vec<_>>();
        let claims = Claim::all(self.setting.backend);
        let meanwhile = match self.rng.u8(0..4) {
            _ if is_phantoms => Meanwhile::Runs,
            0 => Meanwhile::Away,
            1 => Meanwhile::Heals,
            _ => Meanwhile::Runs,
        };
        // Where packets go through it an agent that starts carries nothing meanwhile, and so would tell of itself alone.
        let starts = !self.setting.backend.is_in_agent() && self.rng.bool();
        Tampering {
            record,
            claim: claims[self.rng.usize(0..claims.len())],
            owner: others[self.rng.usize(0..others.len())],
            v6: self.family(),
            meanwhile,
            starts: starts.then(|| others[self.rng.usize(0..others.len())]),
        }
    }
}
