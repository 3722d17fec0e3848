//! Leftovers of other runs and backends, and what the next run should know.

use std::collections::BTreeSet;

use super::driver::Made;
use super::guard::Guard;
use super::{Driver, Reconciler};
use crate::addr::LinkIndex;
use crate::dataplane::{Dataplane, NextHop, Object, ObjectKey};
use crate::events::NetworkEvent;
use crate::kernel::{KernelError, LinkOp, Scope};
use crate::lease::LeaseChange;
use crate::ownership::is_adoptable;

impl<D: Driver> Reconciler<D> {
    /// Whether an object is ours to replace and delete.
    pub(super) fn is_ours(&self, object: &Object) -> bool {
        if self.driver.owns(object) {
            return true;
        }
        let Object::Route(have) = object else { return false };
        self.ownership.owns(have)
            || matches!(self.peers.want().get(&object.key()), Some(Object::Route(want)) if is_adoptable(have, &want))
    }

    /// Reads all objects that are ours, on all links. It reads one kind after the other, since a list of all objects would
    /// be as large as the set that they are put into.
    pub(super) async fn read_ours(&mut self) -> Result<(), KernelError> {
        let ours = self.look_at_ours(None).await?;
        self.replaced.compare(&self.have, &ours, self.peers.want());
        self.have = ours;
        Ok(())
    }

    /// Reads the same and returns it. `links` are the links that exist, if that is known: of others nothing is read.
    pub(super) async fn look_at_ours(
        &mut self,
        links: Option<&BTreeSet<LinkIndex>>,
    ) -> Result<Dataplane, KernelError> {
        let mut ours = Dataplane::default();
        for family in self.ownership.families().collect::<Vec<_>>() {
            for protocol in self.ownership.protocols() {
                let found = self.kernel.routes_by(family, protocol).await?;
                ours.extend(found.into_iter().filter(|object| self.is_ours(object)));
            }
        }
        let scopes = self.driver.scopes().into_iter().chain(self.ownership.scopes());
        let scopes = scopes.filter(|scope| links.is_none_or(|links| links.contains(&scope.link)));
        let mut with_next_hops = BTreeSet::new();
        for scope in scopes.collect::<Vec<_>>() {
            with_next_hops.extend(scope.kinds.next_hops.then_some(scope.link));
            for kinds in scope.kinds.each() {
                let found = self.kernel.objects(Scope { kinds, ..scope }).await?;
                ours.extend(found.into_iter().filter(|object| self.is_ours(object)));
            }
        }
        self.drop_orphans(&mut ours, &with_next_hops);
        ours.repack();
        Ok(ours)
    }

    /// Finds the devices of an earlier backend. Devices that only look like such are named in the log.
    pub(super) async fn look_for_leftovers(&mut self) -> Result<(), KernelError> {
        if self.named_suspects && !self.ownership.has_stale_devices() {
            return Ok(());
        }
        let links = self.kernel.links().await?;
        if !std::mem::replace(&mut self.named_suspects, true) {
            for link in self.ownership.suspects(&links) {
                self.events.send(NetworkEvent::LeftoverSuspected { link: link.name.clone() });
            }
        }
        if self.ownership.locate(&links) {
            self.work.read_objects();
        }
        Ok(())
    }

    /// Once the kernel has all desired objects: removes the leftovers of an earlier backend, and publishes the state to
    /// store.
    pub(super) async fn finish(&mut self) {
        if self.is_busy()
            || !self.leases.is_synced()
            || !self.devices.problems.is_empty()
            || !self.held.problems.is_empty()
        {
            return;
        }
        for link in self.ownership.stale_links() {
            let result = self.kernel.change_link(&LinkOp::Delete(link.index)).await;
            let name = link.name.clone();
            self.events.send(match &result {
                Ok(()) => NetworkEvent::LeftoverRemoved { link: name },
                Err(error) => NetworkEvent::LeftoverStays { link: name, reason: error.to_string() },
            });
            self.ownership.forget(link.index, result.is_ok());
            let kept = self.driver.tunnels().map(|tunnels| tunnels.vni);
            if let Some(vni) = link.vxlan.as_ref().map(|vxlan| vxlan.vni).filter(|vni| Some(*vni) != kept)
                && let Err(error) = self.kernel.remove_gate(vni).await
            {
                let (link, reason) = (link.name.clone(), format!("the gate of VNI {vni}: {error}"));
                self.events.send(NetworkEvent::LeftoverStays { link, reason });
            }
        }
        if !self.ownership.has_stale_devices() {
            self.record.tell();
        }
    }

    /// Records which backends there are. What one made that has ended is a leftover now.
    pub(super) fn note_made(&mut self, made: Made) {
        let head = self.record.head();
        if head.proven != made.proven {
            self.record.edit(|state| state.proven.clone_from(&made.proven));
        }
        let head = self.record.head();
        if head.backend == made.backend && head.devices == made.devices && head.beside == made.beside {
            return;
        }
        self.ownership.now_present(&made.devices);
        let has_tunnels = made.devices.iter().any(|device| device.vni.is_some());
        if self.backend != made.backend {
            made.backend.clone_into(&mut self.backend);
            self.probing.send_replace(self.driver.probing());
        }
        self.record.edit(|state| {
            made.backend.clone_into(&mut state.backend);
            (state.devices, state.beside) = (made.devices, made.beside);
        });
        if !has_tunnels {
            // Its table goes with the device.
            self.guard = None;
        } else if self.guard.is_none() {
            self.guard = self.driver.gate().map(Guard::new);
            let all: Vec<LeaseChange> =
                self.leases.iter().filter(|it| it.key != self.own).map(LeaseChange::appeared).collect();
            self.tell_guard(&all);
        }
    }

    /// Records the ages of this node's own record for the next start, and tells the driver of it.
    pub(super) fn record_own(&mut self, changes: &[LeaseChange]) {
        let own = changes.iter().rfind(|change| change.key == self.own);
        let Some(own) = own.and_then(|change| change.after.as_ref()) else { return };
        self.driver.own_record(&own.attrs);
        if self.driver.is_mixed() {
            self.work.check_devices();
        }
        let next_age = self.leases.next_age();
        self.record.edit(|state| {
            if let Some(stored) = &state.own {
                // The record may not have what this node publishes, not yet or no longer.
                state.own_ages = own.ages.follow(own, stored, next_age);
            }
        });
    }

    /// Drops routes whose next-hop object was deleted after they were read, and before the objects of these links were. The
    /// kernel deleted the routes with it, for IPv4 without a notification; and the object's own means nothing any more to
    /// whoever has read that it is gone. Of somebody else's objects nothing is known here.
    fn drop_orphans(&self, ours: &mut Dataplane, links: &BTreeSet<LinkIndex>) {
        let is_orphan = |object: &Object| {
            let Object::Route(route) = object else { return false };
            let next_hop = route.next_hop().filter(|_| route.link.is_some_and(|link| links.contains(&link)));
            let Some(ObjectKey::NextHop(link, gateway, spare)) = next_hop else { return false };
            let next_hop = Object::NextHop(NextHop { link, gateway, spare });
            ours.get(&next_hop.key()).is_none() && self.is_ours(&next_hop)
        };
        let orphans: Vec<ObjectKey> = ours.iter().filter(is_orphan).map(|object| object.key()).collect();
        for orphan in orphans {
            ours.remove(&orphan);
        }
    }
}
