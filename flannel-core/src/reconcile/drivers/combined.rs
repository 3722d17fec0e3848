//! All drivers of a node as one.

use std::collections::BTreeMap;

use async_trait::async_trait;
use futures::future::select_all;
use tokio::time::sleep_until;

use super::{Drivers, Slot, Woke, ways};
use crate::addr::Family;
use crate::backend::{HostProblem, Probing, Underlay};
use crate::config::{BackendConfig, ConfigError, Mixing};
use crate::dataplane::Object;
use crate::firewall::gate::{Desk, Gate, Tunnels};
use crate::inspect::{CommandError, Differences, PeerObject};
use crate::kernel::{Kernel, KernelError, KernelEvent, Kinds, LinkOp, Refusal, Scope};
use crate::lease::{AgedLease, Lease, LeaseAttrs, LeaseChange, LeaseKey};
use crate::peers::{Claim, Peer, PeerError};
use crate::reconcile::{AppliedConfig, Devices, Driver, Held, PeerWork, Prune};
use crate::status::{Harm, Problem, Reason, Subject};

#[async_trait]
impl Driver for Drivers {
    /// Brings up the backends that are needed and ends those that are not, then makes the devices of all.
    async fn ensure_devices(&mut self, kernel: &mut dyn Kernel) -> Result<Devices, KernelError> {
        let has_changed = self.arrange(kernel).await;
        let mut all = Devices::default();
        for slot in &mut self.slots {
            let devices = slot.driver.ensure_devices(kernel).await?;
            slot.is_offered |= devices.problems.is_empty();
            (slot.sessions, slot.counters) = (devices.sessions.clone(), devices.counters.clone());
            merge(&mut all, devices, (slot.kind != self.published).then_some(slot.kind));
        }
        all.partial.extend(self.troubles());
        self.loosen(kernel, &mut all).await;
        all.peers_changed |= has_changed;
        all.changed |= has_changed;
        all.events.splice(0..0, self.events.drain(..));
        all.made = Some(self.made());
        Ok(all)
    }

    async fn plan_devices(&mut self, kernel: &mut dyn Kernel) -> Result<Vec<LinkOp>, KernelError> {
        let mut ops = Vec::new();
        for slot in &mut self.slots {
            ops.extend(slot.driver.plan_devices(kernel).await?);
        }
        Ok(ops)
    }

    async fn further_differences(&mut self, kernel: &mut dyn Kernel) -> Result<Differences, KernelError> {
        let mut all = Differences::default();
        for slot in &mut self.slots {
            let Differences { differences, problems, notes } =
                slot.driver.further_differences(kernel).await?;
            all.differences.extend(differences);
            all.problems.extend(problems);
            all.notes.extend(notes);
        }
        Ok(all)
    }

    fn set_lease(&mut self, lease: &Lease) {
        for slot in &mut self.slots {
            slot.driver.set_lease(lease);
        }
        self.lease = Some(lease.clone());
    }

    /// The published backend decides whether the underlay can be used. One beside it that can't use it keeps the former one,
    /// and is brought up anew.
    fn set_underlay(&mut self, underlay: &Underlay) -> Result<(), HostProblem> {
        let published = self.published;
        let slot = self.slots.iter_mut().find(|slot| slot.kind == published);
        slot.expect("the published backend never ends").driver.set_underlay(underlay)?;
        if let Some(workshop) = &mut self.workshop {
            workshop.underlay = underlay.clone();
        }
        let mut refused = Vec::new();
        for slot in self.slots.iter_mut().filter(|slot| slot.kind != published) {
            if let Err(error) = slot.driver.set_underlay(underlay) {
                refused.push((slot.kind, error));
            }
        }
        for (kind, error) in refused {
            self.slots.retain(|slot| slot.kind != kind);
            self.fail(kind, &error.into());
        }
        Ok(())
    }

    fn apply_config(
        &mut self,
        next: &BackendConfig,
        changed: Vec<String>,
    ) -> Result<AppliedConfig, ConfigError> {
        if next.kind != self.target {
            return self.begin_switch(next, changed);
        }
        self.check(next)?;
        let (ours, others): (Vec<String>, Vec<String>) =
            changed.into_iter().partition(|key| key.strip_prefix("Backend.").is_some_and(Mixing::is_key));
        let AppliedConfig { mut live, mut restart } = if self.slot(self.target).is_some() {
            self.apply_to(self.target, next)?
        } else {
            // It will be made with them.
            AppliedConfig::new(others, Vec::new())
        };
        if self.apply_to_accepted(next)? {
            restart.extend(ours);
        } else if let Some(workshop) = &mut self.workshop {
            workshop.config.backend = next.clone();
            if self.target == self.published {
                self.proofs.set_ways(next.mixing.detours());
            }
            live.splice(0..0, ours);
        } else {
            // It shares the node with none.
            restart.splice(0..0, ours).for_each(drop);
        }
        Ok(AppliedConfig::new(live, restart))
    }

    fn attrs(&self) -> LeaseAttrs {
        LeaseAttrs { receives: self.receptions(), ..self.published().driver.attrs() }
    }

    fn resign(&mut self, families: &[Family], others: &mut dyn Iterator<Item = &LeaseAttrs>) -> bool {
        let others: Vec<&LeaseAttrs> = others.collect();
        let mut has_resigned = false;
        for slot in &mut self.slots {
            has_resigned |= slot.driver.resign(families, &mut others.iter().copied());
        }
        has_resigned
    }

    fn own_objects(&self) -> Vec<Object> {
        self.slots.iter().flat_map(|slot| slot.driver.own_objects()).collect()
    }

    fn own_claims(&self) -> Vec<Claim> {
        let mut claims: Vec<Claim> = Vec::new();
        for claim in self.slots.iter().flat_map(|slot| slot.driver.own_claims()) {
            if !claims.contains(&claim) {
                claims.push(claim);
            }
        }
        claims
    }

    fn peer(&self, lease: &Lease) -> Result<Peer, PeerError> {
        ways::peer(&self.slots, lease, &self.proofs)
    }

    fn scopes(&self) -> Vec<Scope> {
        let mut scopes = BTreeMap::new();
        for Scope { link, family, kinds } in self.slots.iter().flat_map(|slot| slot.driver.scopes()) {
            let all = scopes.entry((link, family)).or_insert(kinds);
            *all = Kinds::either(*all, kinds);
        }
        scopes.into_iter().map(|((link, family), kinds)| Scope { link, family, kinds }).collect()
    }

    fn owns(&self, object: &Object) -> bool {
        self.slots.iter().any(|slot| slot.driver.owns(object))
    }

    fn concerns(&self, event: &KernelEvent) -> bool {
        self.slots.iter().any(|slot| slot.driver.concerns(event))
    }

    fn path(&self, family: Family, peer: &Peer) -> Option<&'static str> {
        let slot = peer.backends.first().and_then(|kind| self.slot(kind)).unwrap_or(self.published());
        slot.driver.path(family, peer).or((slot.kind != self.published).then_some(slot.kind))
    }

    fn set_peers(&mut self, peers: &mut dyn Iterator<Item = (&LeaseKey, &Peer)>) {
        if let [only] = &mut self.slots[..] {
            return only.driver.set_peers(peers);
        }
        let peers: Vec<(&LeaseKey, &Peer)> = peers.collect();
        for Slot { kind, driver, .. } in &mut self.slots {
            let of_slot = peers.iter().filter(|(_, peer)| peer.backends.contains(kind));
            driver.set_peers(&mut of_slot.copied());
        }
    }

    fn work_for(&self, peer: &LeaseKey) -> PeerWork {
        let each = self.slots.iter().map(|slot| slot.driver.work_for(peer));
        each.into_iter().find(|work| !matches!(work, PeerWork::Done)).unwrap_or(PeerWork::Done)
    }

    fn further_objects(&self, peer: &LeaseKey) -> Vec<PeerObject> {
        self.slots.iter().flat_map(|slot| slot.driver.further_objects(peer)).collect()
    }

    fn failed_peers(&self) -> Vec<LeaseKey> {
        self.slots.iter().flat_map(|slot| slot.driver.failed_peers()).collect()
    }

    fn problems(&self) -> Vec<Problem> {
        self.slots.iter().flat_map(|slot| slot.driver.problems()).collect()
    }

    fn prune_peers(&mut self, is_unreadable: &dyn Fn(&LeaseKey) -> bool) {
        for slot in &mut self.slots {
            slot.driver.prune_peers(is_unreadable);
        }
    }

    async fn hold(&mut self, read: bool, prune: Prune<'_>) -> Held {
        let mut all = Held::default();
        for slot in &mut self.slots {
            let held = slot.driver.hold(read, prune).await;
            all.changed |= held.changed;
            all.problems.append(held.problems);
            all.notes.extend(held.notes);
            all.events.extend(held.events);
        }
        all
    }

    fn gate(&mut self) -> Option<(Gate, Desk)> {
        self.slots.iter_mut().find_map(|slot| slot.driver.gate())
    }

    fn tunnels(&self) -> Option<Tunnels> {
        self.slots.iter().find_map(|slot| slot.driver.tunnels())
    }

    async fn attention(&mut self) {
        let due = self.next_step();
        let drivers = select_all(self.slots.iter_mut().map(|slot| slot.driver.attention()));
        let step = async {
            match due {
                Some(due) => sleep_until(due).await,
                None => std::future::pending().await,
            }
        };
        self.woke = tokio::select! {
            ((), woke, _) = drivers => Woke::Driver(woke),
            () = step => Woke::Step,
            () = self.proofs.told() => Woke::Proof,
        };
    }

    fn changed_peers(&mut self) -> Option<Vec<LeaseKey>> {
        match self.woke {
            Woke::Driver(_) => self.awake()?.changed_peers(),
            Woke::Step => None,
            // What was proven may be of a lease that has gone meanwhile.
            Woke::Proof => Some(Vec::new()),
        }
    }

    fn redirected_peers(&mut self) -> Vec<LeaseKey> {
        if self.woke == Woke::Proof { self.proofs.take_news() } else { Vec::new() }
    }

    fn holds_anew(&mut self) -> bool {
        self.awake().is_some_and(Driver::holds_anew)
    }

    /// A step of this node's own may need other drivers, which is no drift.
    fn desires_anew(&mut self) -> bool {
        match self.woke {
            Woke::Driver(_) => self.awake().is_some_and(Driver::desires_anew),
            Woke::Step => true,
            Woke::Proof => false,
        }
    }

    fn own_record(&mut self, attrs: &LeaseAttrs) {
        for slot in &mut self.slots {
            if let Some(view) = attrs.as_kind(slot.kind, &slot.published_type) {
                slot.driver.own_record(&view);
            }
        }
        self.record = Some(attrs.clone());
    }

    fn count_leases(&mut self, changes: &[LeaseChange], is_synced: bool) -> bool {
        let before = std::mem::replace(&mut self.is_synced, is_synced);
        let has_changed = self.census.count(changes);
        for LeaseChange { key, before, after } in changes {
            let way = |lease: &AgedLease| (lease.attrs.backend_type.clone(), lease.attrs.public_ips);
            // What is known from the last run is of leases that the store lists only now.
            if before.is_some() && before.as_deref().map(way) != after.as_deref().map(way) {
                self.proofs.forget(key);
            }
        }
        self.workshop.is_some() && (has_changed || before != is_synced) && self.is_mixed()
    }

    fn is_mixed(&self) -> bool {
        self.slots.len() > 1 || self.target != self.published || self.wanted().len() > 1
    }

    fn beside(&self) -> Vec<&'static str> {
        self.slots.iter().map(|slot| slot.kind).filter(|kind| *kind != self.published).collect()
    }

    fn carry_out(&mut self, command: &str) -> Result<String, CommandError> {
        for slot in &mut self.slots {
            match slot.driver.carry_out(command) {
                Err(CommandError::Unknown) => {}
                known => return known,
            }
        }
        Err(CommandError::Unknown)
    }

    fn probing(&self) -> Option<Probing> {
        Some(self.published().driver.probing()?.proofs(self.proofs.clone()))
    }

    fn explain(&self, refusal: &Refusal) -> Option<Reason> {
        self.slots.iter().find_map(|slot| slot.driver.explain(refusal))
    }
}

impl Drivers {
    /// The driver that asked for attention last.
    fn awake(&mut self) -> Option<&mut dyn Driver> {
        let Woke::Driver(at) = self.woke else { return None };
        Some(&mut *self.slots.get_mut(at)?.driver)
    }
}

/// Adds the devices of one driver. `beside` is the kind of a backend beside the published one: what is wrong with its devices
/// costs only the peers that it carries.
fn merge(all: &mut Devices, devices: Devices, beside: Option<&'static str>) {
    all.links.extend(devices.links);
    all.away.extend(devices.away);
    all.changed |= devices.changed;
    all.peers_changed |= devices.peers_changed;
    match beside {
        None => {
            all.problems.append(devices.problems);
            all.unserved.extend(devices.unserved);
        }
        Some(kind) => {
            let problem =
                |cause: &str| Problem::new(Subject::Device, Harm::Some, format!("backend {kind}: {cause}"));
            all.partial.extend(devices.problems.causes().map(problem));
            let less = |problem: Problem| Problem { harm: Harm::Some, ..problem };
            all.partial.extend(devices.unserved.into_iter().map(less));
        }
    }
    all.overlay_mtu = [all.overlay_mtu, devices.overlay_mtu].into_iter().flatten().min();
    all.datapath = match (all.datapath.take(), devices.datapath) {
        (Some(one), Some(other)) => Some(format!("{one}; {other}")),
        (one, other) => one.or(other),
    };
    for device in devices.shown {
        if !all.shown.iter().any(|shown| shown.link == device.link) {
            all.shown.push(device);
        }
    }
    all.counters = std::mem::take(&mut all.counters).and(devices.counters);
    if !all.sessions.are_kept() {
        all.sessions = devices.sessions;
    }
    all.events.extend(devices.events);
}
