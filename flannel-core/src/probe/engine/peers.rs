//! Which targets there are: those of the list of peers.

use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use tokio::time::Instant;

use super::Prober;
use super::target::Target;
use crate::addr::{Family, PerFamily, Subnet};
use crate::backend::Answers;
use crate::lease::LeaseKey;
use crate::probe::gate::Known;
use crate::probe::pace::{self, Crowd, Gaps};
use crate::probe::status::{ProbeList, Verdict};
use crate::probe::track::{Round, Track};
use crate::repack::repack;
use crate::status::{PeerState, PeerStatus};

/// For how long a route that was looked up is taken for the present one where there are many peers.
pub(super) const HOP_KNOWN: Duration = Duration::from_secs(60);

impl Prober {
    /// Reads the list of peers.
    pub(super) async fn list(&mut self, now: Instant) {
        let status = self.network.borrow_and_update().clone();
        if let Some(mtu) = status.overlay_mtu {
            self.overlay_mtu = mtu;
        }
        if !status.peer_list.is_copy_of(&self.peers) {
            self.peers = status.peer_list;
            self.read_peers(now).await;
        }
        if status.synced
            && status.recalled.is_none()
            && let Some(gate) = &mut self.gate
            && !gate.is_listed()
        {
            gate.listed(self.index.keys().map(|(lease, _)| (*lease, known(&self.shown.peers, lease))));
        }
    }

    /// Brings the targets up to date with the list of peers.
    async fn read_peers(&mut self, now: Instant) {
        self.readings += 1;
        let (peers, before) = (self.peers.clone(), self.index.len());
        let beside = self.network.borrow().backends.get(1..).unwrap_or_default().to_vec();
        let mut new = Vec::new();
        for peer in peers.iter() {
            for (family, path) in peer.path.iter().filter(|(family, _)| is_programmed(&peer.state, *family)) {
                let other = beside.iter().find(|kind| *kind == path.as_str());
                let is_detour =
                    || self.probing.proofs.as_ref().is_some_and(|it| !it.detour(&peer.lease).is_empty());
                // Who is reached by another backend, as its lease says, would have to be probed otherwise.
                if other.is_none() || is_detour() {
                    new.extend(self.see(peer, family, other.cloned(), now));
                }
            }
        }
        let gone = self.index.iter().filter(|(_, id)| self.targets[id].seen != self.readings);
        let gone: Vec<u32> = gone.map(|(_, id)| *id).collect();
        for id in gone {
            self.forget(id);
        }
        if new.len() > before {
            repack(&mut self.index);
        }
        self.troubled.retain(|(lease, _)| peers.get(lease).is_some());
        self.spread(new, now).await;
        if before != self.index.len() || self.readings == 1 {
            self.show_interval();
            self.is_changed = true;
        }
    }

    /// Spreads the first visits of new targets.
    async fn spread(&mut self, new: Vec<u32>, now: Instant) {
        self.neighbours.read(now);
        let mut on_link: PerFamily<usize> = PerFamily::default();
        for id in &new {
            self.look_at_hop(*id, now).await;
            let Some(target) = self.targets.get(id) else { continue };
            *on_link.get_mut(target.family).get_or_insert(0) += usize::from(target.on_link);
        }
        for id in &new {
            let Some(target) = self.targets.get(id) else { continue };
            let neighbours =
                on_link.get(target.family).copied().filter(|_| target.on_link).unwrap_or_default();
            let room = self.neighbours.room(target.family);
            let crowd = Crowd { targets: new.len(), neighbours, room };
            let sweep = pace::first_sweep(crowd, self.gate.is_some());
            self.wake_at(*id, now + sweep.mul_f64(fastrand::f64()));
        }
    }

    /// Finds out where packets to a target go first, if that matters and is not known of late.
    pub(super) async fn look_at_hop(&mut self, id: u32, now: Instant) {
        let Some(target) = self.targets.get(&id) else { return };
        let is_thorough = matches!(target.track.round(), Round::Thorough { .. });
        let is_crowd = self.index.len() > self.neighbours.room(target.family);
        let is_known =
            is_crowd && target.hop_read.is_some_and(|at| now.saturating_duration_since(at) < HOP_KNOWN);
        if (is_thorough || is_crowd) && !is_known {
            self.neighbours.read(now);
            self.read_hop(id, now).await;
        }
    }

    /// Reads where packets to a target go first: whether it takes an entry in the table of neighbours, and on which link it
    /// can be asked for its address.
    async fn read_hop(&mut self, id: u32, now: Instant) {
        let Some(target) = self.targets.get(&id) else { return };
        let (family, underlay) = (target.family, target.underlay);
        let hop = self.neighbours.hop_to(underlay).await;
        let Some(target) = self.targets.get_mut(&id) else { return };
        (target.link, target.hop_read) = (hop.link, Some(now));
        if std::mem::replace(&mut target.on_link, hop.on_link) != hop.on_link {
            self.count_on_link(family, hop.on_link);
            self.show_interval();
        }
    }

    /// Counts a target that is a neighbour from now on, or isn't any more.
    fn count_on_link(&mut self, family: Family, is_one: bool) {
        let count = self.on_link.get_mut(family).get_or_insert(0);
        *count = if is_one { *count + 1 } else { count.saturating_sub(1) };
    }

    /// Shows how long it takes to visit all peers.
    fn show_interval(&mut self) {
        let longest = Family::ALL.into_iter().map(|family| self.interval(family, true)).max();
        let longest = longest.unwrap_or_default();
        self.is_changed |= longest != self.shown.interval;
        self.shown.interval = longest;
    }

    /// The time between two visits of a peer that answers. Those that a gateway leads to need not wait for those on the
    /// link.
    pub(super) fn interval(&self, family: Family, on_link: bool) -> Duration {
        self.interval_among(self.index.len(), family, on_link)
    }

    /// The time between visits of a peer. Few with a verdict against them are looked after more often than the others; many
    /// would fill the kernel's table of neighbours, too.
    pub(super) fn gaps(&self, family: Family, on_link: bool, now: Instant) -> Gaps {
        let counts = &self.shown.counts;
        let others = [Verdict::Unknown, Verdict::IcmpFiltered, Verdict::Bridged];
        let unreached = counts.trouble() + others.into_iter().map(|it| counts.of(it)).sum::<usize>();
        let regular = self.interval(family, on_link);
        let among = self.interval_among(unreached, family, on_link);
        Gaps {
            regular,
            unreached: among.max(pace::between_visits_of_unreached(unreached, regular)),
            thorough: pace::between_thorough_rounds(unreached, self.suspects.per_second(now)),
        }
    }

    fn interval_among(&self, targets: usize, family: Family, on_link: bool) -> Duration {
        let all = self.on_link.get(family).copied().unwrap_or_default();
        let neighbours = if on_link { all.min(targets) } else { 0 };
        let crowd = Crowd { targets, neighbours, room: self.neighbours.room(family) };
        pace::interval(self.options.interval, crowd, self.probing.answers)
    }

    /// Takes in a peer as the list shows it. Returns its target if that is new.
    fn see(
        &mut self,
        peer: &PeerStatus,
        family: Family,
        detour: Option<String>,
        now: Instant,
    ) -> Option<u32> {
        self.sockets.get(family)?;
        let overlay = probed(peer.lease.subnet(family)?, self.probing.answers)?;
        let underlay = *peer.underlay.get(family)?;
        let vtep = peer.vteps.get(family).copied();
        let is_direct = peer.path.get(family).is_some_and(|path| path.as_str() == "direct");
        let tunnelled = self.probing.tunnel.is_some() && !is_direct;
        let key = (peer.lease, family);
        if let Some(target) = self.index.get(&key).and_then(|id| self.targets.get_mut(id)) {
            let is_same = (target.underlay, target.vtep) == (underlay, vtep);
            (target.seen, target.is_direct, target.tunnelled) = (self.readings, is_direct, tunnelled);
            let is_redirected = target.detour != detour;
            target.detour.clone_from(&detour);
            let id = self.index[&key];
            if is_same {
                if is_redirected {
                    self.redirect(id, now);
                }
                return None;
            }
            // What is known of the way to its former address says nothing of the new one.
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
            is_direct,
            tunnelled,
            detour,
            link: None,
            on_link: true,
            hop_read: None,
            track,
            visit: None,
            wake: now,
            by_errors,
            seen,
        };
        self.count_on_link(family, true);
        self.index.insert(key, id);
        self.targets.insert(id, Box::new(target));
        self.show(id);
        Some(id)
    }

    /// Packets to a target take another way: it is visited at once, and what a visit sent before says nothing.
    fn redirect(&mut self, id: u32, now: Instant) {
        let Some(target) = self.targets.get_mut(&id) else { return };
        target.track.redirected();
        for number in target.visit.take().iter().flat_map(|visit| &visit.numbers) {
            self.sent.remove(number);
        }
        // Its place is among the visits that end if there was one.
        self.ends.remove(&(self.targets[&id].wake, id));
        self.wake_at(id, now);
    }

    pub(super) fn forget(&mut self, id: u32) {
        let Some(target) = self.targets.remove(&id) else { return };
        self.ends.remove(&(target.wake, id));
        self.starts.remove(&(target.wake, id));
        self.index.remove(&(target.lease, target.family));
        if target.on_link {
            self.count_on_link(target.family, false);
        }
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
        self.tell_gate(&target.lease);
        self.is_changed = true;
    }

    /// Lets the gate of readiness count what became of a peer.
    pub(super) fn tell_gate(&mut self, lease: &LeaseKey) {
        if let Some(gate) = &mut self.gate {
            gate.update(lease, known(&self.shown.peers, lease));
        }
    }
}

/// What is known of a peer that readiness may wait for.
fn known(peers: &ProbeList, lease: &LeaseKey) -> Known {
    let Some(peer) = peers.get(lease) else { return Known::Gone };
    let has_answered = peer.families.iter().any(|(_, probe)| probe.overlay.last_answer.is_some());
    if has_answered { Known::Answered } else { Known::Silent }
}

/// Whether packets to a peer's pods of a family have a way. An object that the kernel refuses is of one family.
fn is_programmed(state: &PeerState, family: Family) -> bool {
    match state {
        PeerState::Programmed | PeerState::Recalled | PeerState::Repairing => true,
        PeerState::Rejected(rejected) => rejected.programmed,
        PeerState::Refused(refused) => refused.object.key.family() != family,
        PeerState::Waiting => false,
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
