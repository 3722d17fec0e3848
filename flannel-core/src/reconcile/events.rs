//! Applies the kernel's notifications to the observed state.

use tokio::time::Instant;

use super::{Driver, Reconciler};
use crate::dataplane::{Object, ObjectKey};
use crate::events::RepairCause;
use crate::kernel::KernelEvent;

impl<D: Driver> Reconciler<D> {
    /// Applies notifications, including those of our own changes, of which a kernel leaves out most: a notification that matches
    /// the desired state causes no work.
    pub(super) fn fold_events(&mut self, events: Vec<KernelEvent>) {
        let is_overrun = events.contains(&KernelEvent::Overrun);
        let cause = if is_overrun { RepairCause::Overrun } else { RepairCause::Announced };
        self.repair.begin(Instant::now(), cause);
        for event in events {
            if self.underlay.as_ref().is_some_and(|underlay| underlay.concerns(&event)) {
                self.work.check_underlay();
            }
            if self.concerns_host(&event) {
                self.work.check_host();
            }
            match event {
                KernelEvent::Overrun => self.look_at_all(),
                KernelEvent::Forwarding(_) => {}
                // When a link goes down, changes its MAC or disappears, the kernel deletes objects on it without a
                // notification.
                KernelEvent::Link(_) | KernelEvent::LinkGone(..) => {
                    if self.driver.concerns(&event) {
                        self.look_at_all();
                    }
                }
                KernelEvent::Put(object) => {
                    if self.driver.concerns(&event) {
                        self.look_at_all();
                    }
                    self.object_put(object);
                }
                KernelEvent::Gone(key) => {
                    if self.driver.concerns(&event) {
                        self.look_at_all();
                    }
                    self.object_gone(key);
                }
            }
        }
    }

    pub(super) fn look_at_all(&mut self) {
        self.work.check_all();
        self.retry_at = None;
        self.blocked.hurry_all(Instant::now());
    }

    fn object_put(&mut self, object: Object) {
        let key = object.key();
        if !self.is_ours(&object) {
            if let Object::Address(address) = object
                && self.devices.links.contains(&address.link)
            {
                // The kernel added an address to a device by itself, so IPv6 was switched on there.
                self.blocked.hurry_all(Instant::now());
                self.work.compare(self.blocked.due(Instant::now()));
            }
            // Somebody else's object replaced ours with this key.
            let before = self.have.remove(&key);
            let was_there = before.is_some();
            if was_there {
                self.mark_users([key]);
                self.look_at_next_hop_of(before);
            }
            if self.peers.want().get(&key).is_some() {
                if was_there {
                    self.replaced.lose(key);
                    self.work.compare([key]);
                } else if self.replaced.has_changed(&object) {
                    self.blocked.hurry(&key, Instant::now());
                    self.work.compare([key]);
                }
            }
            return;
        }
        if !self.peers.want().is_satisfied_by(&object) {
            self.work.compare([key]);
            // If another remote is still there, putting it again changes nothing.
            self.forget_replaced(&object);
        }
        let before = self.have.insert(object);
        if before != Some(object) {
            self.mark_users([key]);
            self.look_at_next_hop_of(before);
        }
    }

    /// Forgets the other remotes of an FDB entry's MAC. The kernel has one for a MAC, and tells nobody of the one that it replaces.
    pub(super) fn forget_replaced(&mut self, object: &Object) {
        let Object::Fdb(entry) = object else { return };
        let others = self.have.remotes_of(entry.link, entry.mac).filter(|other| other != entry);
        let others: Vec<ObjectKey> = others.map(ObjectKey::Fdb).collect();
        for other in &others {
            self.have.remove(other);
        }
        self.mark_users(others.iter().copied());
        self.work.compare(others);
    }

    fn object_gone(&mut self, key: ObjectKey) {
        let before = self.have.remove(&key);
        let was_there = before.is_some();
        if was_there {
            self.mark_users([key]);
            self.look_at_next_hop_of(before);
        }
        if let ObjectKey::NextHop(..) = key {
            // The kernel deleted the routes through it, for IPv4 without a notification.
            let routes: Vec<ObjectKey> = self.have.routes_through(&key).collect();
            for route in &routes {
                self.have.remove(route);
            }
            self.mark_users(routes.iter().copied());
            self.work.compare(routes);
        }
        if self.peers.want().get(&key).is_some() {
            // A foreign object with the key may be gone, so don't wait for the next attempt.
            let waited = self.blocked.hurry(&key, Instant::now());
            if was_there {
                self.replaced.lose(key);
            }
            if was_there || waited {
                self.work.compare([key]);
            }
            if let ObjectKey::Address(..) = key {
                // With its last address a link loses its neighbours, IPv6 routes and plain IPv4 routes. The latter are
                // deleted without a notification, after that of the address: reading links waits for the kernel's lock,
                // and so for this deletion; reading routes does not.
                self.work.check_devices();
                self.work.read_objects();
            }
        }
    }
}
