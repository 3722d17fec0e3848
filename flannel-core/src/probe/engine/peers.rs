//! Which targets there are: those of the list of peers.

use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use tokio::time::Instant;

use super::Prober;
use super::target::Target;
use crate::addr::{Family, Subnet};
use crate::backend::Answers;
use crate::probe::pace;
use crate::probe::status::Verdict;
use crate::probe::track::Track;
use crate::status::{PeerState, PeerStatus};

impl Prober {
    /// Reads the list of peers.
    pub(super) fn list(&mut self, now: Instant) {
        let status = self.network.borrow_and_update().clone();
        if let Some(mtu) = status.overlay_mtu {
            self.overlay_mtu = mtu;
        }
        if !status.peer_list.is_copy_of(&self.peers) {
            self.peers = status.peer_list;
            self.read_peers(now);
        }
        if status.synced
            && status.recalled.is_none()
            && let Some(gate) = &mut self.gate
        {
            gate.listed(self.index.keys().map(|(lease, _)| *lease));
        }
    }

    /// Brings the targets up to date with the list of peers.
    pub(super) fn read_peers(&mut self, now: Instant) {
        self.readings += 1;
        let (peers, before) = (self.peers.clone(), self.index.len());
        let mut new = Vec::new();
        for peer in peers.iter().filter(|peer| is_programmed(&peer.state)) {
            for (family, _) in peer.path.iter() {
                new.extend(self.see(peer, family, now));
            }
        }
        let gone = self.index.iter().filter(|(_, id)| self.targets[id].seen != self.readings);
        let gone: Vec<u32> = gone.map(|(_, id)| *id).collect();
        for id in gone {
            self.forget(id);
        }
        self.troubled.retain(|(lease, _)| peers.get(lease).is_some());
        let sweep = pace::first_sweep(new.len(), self.gate.is_some());
        for id in new {
            self.wake_at(id, now + sweep.mul_f64(fastrand::f64()));
        }
        if before != self.index.len() || self.readings == 1 {
            self.shown.interval = self.interval();
            self.is_changed = true;
        }
    }

    pub(super) fn interval(&self) -> Duration {
        pace::interval(self.options.interval, self.peers.len(), self.index.len(), self.probing.answers)
    }

    /// The time between two visits of a peer with a verdict against it. Few of them are looked after more often than the others;
    /// many would fill the kernel's table of neighbours, too.
    pub(super) fn interval_of_unreached(&self) -> Duration {
        let counts = &self.shown.counts;
        let unreached = counts.trouble() + counts.of(Verdict::Unknown) + counts.of(Verdict::IcmpFiltered);
        pace::interval(self.options.interval, unreached, unreached, self.probing.answers)
    }

    /// Takes in a peer as the list shows it. Returns its target if that is new.
    pub(super) fn see(&mut self, peer: &PeerStatus, family: Family, now: Instant) -> Option<u32> {
        self.sockets.get(family)?;
        let overlay = probed(peer.lease.subnet(family)?, self.probing.answers)?;
        let underlay = *peer.underlay.get(family)?;
        let vtep = peer.vteps.get(family).copied();
        let is_direct = peer.path.get(family).is_some_and(|path| path.as_str() == "direct");
        let tunnelled = self.probing.tunnel.is_some() && !is_direct;
        let key = (peer.lease, family);
        if let Some(target) = self.index.get(&key).and_then(|id| self.targets.get_mut(id)) {
            let is_same = (target.underlay, target.vtep) == (underlay, vtep);
            (target.seen, target.tunnelled) = (self.readings, tunnelled);
            if is_same {
                return None;
            }
            // What is known of the way to its former address says nothing of the new one.
            let id = self.index[&key];
            self.forget(id);
        }
        let id = self.next_target;
        self.next_target = self.next_target.wrapping_add(1);
        let track = Track::new(SystemTime::now());
        let (seen, lease, by_errors) = (self.readings, peer.lease, false);
        let target = Target {
            lease,
            family,
            overlay,
            underlay,
            vtep,
            tunnelled,
            track,
            visit: None,
            wake: now,
            by_errors,
            seen,
        };
        self.index.insert(key, id);
        self.starts.insert((now, id));
        self.targets.insert(id, target);
        self.show(id);
        Some(id)
    }

    pub(super) fn forget(&mut self, id: u32) {
        let Some(target) = self.targets.remove(&id) else { return };
        self.ends.remove(&(target.wake, id));
        self.starts.remove(&(target.wake, id));
        self.index.remove(&(target.lease, target.family));
        for number in target.visit.iter().flat_map(|visit| &visit.numbers) {
            self.sent.remove(number);
        }
        if let Some(mut entry) = self.shown.peers.get(&target.lease).cloned() {
            if let Some(probe) = entry.families.get_mut(target.family).take() {
                self.shown.counts.remove(probe.verdict);
            }
            if entry.families.is_empty() {
                self.shown.peers.remove(&target.lease);
            } else {
                self.shown.peers.put(entry);
            }
        }
        self.is_changed = true;
    }
}

/// Whether packets to a peer's pods have a way.
fn is_programmed(state: &PeerState) -> bool {
    match state {
        PeerState::Programmed | PeerState::Recalled | PeerState::Repairing => true,
        PeerState::Rejected(rejected) => rejected.programmed,
        PeerState::Waiting | PeerState::Refused(_) => false,
    }
}

/// The address of a peer's subnet that is probed.
fn probed(subnet: Subnet, answers: Answers) -> Option<IpAddr> {
    let base = subnet.base();
    match answers {
        Answers::Base => Some(base),
        Answers::Bridge => Some(match base {
            IpAddr::V4(addr) => IpAddr::from(u32::from(addr).checked_add(1)?.to_be_bytes()),
            IpAddr::V6(addr) => IpAddr::from(u128::from(addr).checked_add(1)?.to_be_bytes()),
        }),
    }
}
