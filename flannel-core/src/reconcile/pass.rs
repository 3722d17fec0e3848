//! One pass of the loop: look at the devices, compare, repair.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use futures::FutureExt;
use tokio::time::Instant;
use tracing::debug;

use super::blocked::{self, Needed};
use super::repair::Tally;
use super::work::{Objects, Why};
use super::{Driver, Reconciler};
use crate::addr::Subnet;
use crate::dataplane::{NamedObject, Object, ObjectKey, Op, plan, plan_keys};
use crate::events::NetworkEvent;
use crate::kernel::{KernelError, Refusal};
use crate::lease::LeaseKey;
use crate::status::{Counters, DeviceStatus, Reason, RepairKind};

/// How many passes may follow each other without a pause. If more are needed, somebody undoes our changes; then the
/// retry timer sets the pace.
const PASSES: usize = 4;

/// How many operations are executed before their results are recorded and they are freed, so that memory for operations
/// shrinks as the observed state grows.
const AT_ONCE: usize = 2048;

/// How many times notifications are taken in one after the other, some thousand each, in the midst of a pass: they may come as fast as they
/// are taken.
const HEARINGS: usize = 16;

impl<D: Driver> Reconciler<D> {
    /// Makes passes until nothing is left to do now.
    pub(super) async fn converge(&mut self) {
        self.open_gate().await;
        for _ in 0..PASSES {
            self.look_at_claims();
            if !self.is_busy() {
                break;
            }
            if let Err(error) = self.pass().await {
                self.put_off(&error);
                break;
            }
        }
        if self.retry_at.is_none() && self.is_busy() {
            self.retry_at = Some(Instant::now() + blocked::backoff(self.failures));
        }
        if !self.is_busy() {
            self.tell_repair();
            self.end_programming();
            self.prune_work();
        }
        self.finish().await;
        self.announce_attrs();
        self.publish();
    }

    /// Lets the backend end what it does for peers that are gone. Before the first snapshot nobody is known to be gone; and as long
    /// as a pass fails, routes of peers that are not the backend's any more may still lead to it.
    fn prune_work(&mut self) {
        if self.leases.is_synced() && !self.incoming.is_pending() {
            let unknown = [self.leases.unknown(), self.peers.unknown()];
            let is_unreadable = |key: &LeaseKey| {
                key.subnets().iter().any(|(_, subnet)| unknown.iter().any(|it| it.has_subnet(*subnet)))
            };
            self.driver.prune_peers(&is_unreadable);
        }
    }

    pub(super) fn is_busy(&self) -> bool {
        self.work.is_pending()
    }

    async fn pass(&mut self) -> Result<(), KernelError> {
        if self.work.begin_underlay() {
            self.look_at_underlay().await.inspect_err(|_| self.work.check_underlay())?;
        }
        if self.work.begin_devices() {
            self.look_at_devices().await.inspect_err(|_| self.work.check_devices())?;
        }
        if self.work.begin_host() {
            self.look_at_host().await.inspect_err(|_| self.work.check_host())?;
        }
        let objects = self.work.begin_objects();
        if objects.are_all() {
            self.observe().await.inspect_err(|_| self.work.read_objects())?;
        }
        // What went before that read is not gone any more once it was put again, which nobody announces.
        self.hear();
        let cause = Cause { why: std::mem::take(&mut self.why), looked: objects.are_all() };
        let now = Instant::now();
        let mut planned = match &objects {
            Objects::All => plan(self.peers.want(), &self.have),
            Objects::Keys(keys) => plan_keys(self.peers.want(), &self.have, keys.iter().copied()),
        };
        self.shown.timings.plan.observe(now.elapsed());
        if objects.are_all() {
            self.book.mark_unprogrammed();
            self.mark_users(planned.iter().map(Op::key));
        }
        // Objects on a missing link wait for it. The device's problem covers them.
        let is_away = |link| self.devices.away.contains(&link);
        planned.retain(|op| matches!(op, Op::Delete(_)) || !op.object().link().is_some_and(is_away));
        let due =
            if self.blocked.is_empty() { BTreeSet::new() } else { planned.iter().map(Op::key).collect() };
        let ops = self.permitted(planned, now);
        let over = self.blocked.settle(|key| objects.contains(key), &due, now);
        self.mark_users(over);
        if self.work.begin_hold() || objects.are_all() {
            let leaving = self.leaving(&ops);
            if !leaving.is_empty() {
                self.work.hold();
            }
            self.hold(objects.are_all(), cause.why, &leaving).await;
        }
        drop((objects, due));
        if !ops.is_empty() {
            self.execute(ops, &cause).await?;
        }
        let ops = self.look_at_contested().await?;
        if !ops.is_empty() {
            self.execute(ops, &cause).await?;
        }
        if self.devices.problems.is_empty() && self.held.problems.is_empty() {
            self.failures = 0;
        }
        Ok(())
    }

    /// The subnets whose routes these operations move to another device.
    fn leaving(&self, ops: &[Op]) -> BTreeSet<Subnet> {
        let moves = ops.iter().filter_map(|op| match (op, self.have.get(&op.key())) {
            (Op::Replace(Object::Route(next)), Some(Object::Route(now))) if now.link != next.link => {
                Some(next.dst)
            }
            _ => None,
        });
        moves.collect()
    }

    async fn execute(&mut self, mut ops: Vec<Op>, cause: &Cause) -> Result<(), KernelError> {
        for op in &ops {
            debug!(?op, "execute");
        }
        // Deleting a next-hop object deletes the routes through it, so it is deleted after its routes have moved to
        // another one.
        let goes = |op: &Op| matches!(op, Op::Delete(Object::NextHop(_)));
        let are_many = ops.len() > self.have.len() / 2;
        let last = ops.split_off(ops.iter().position(goes).unwrap_or(ops.len()));
        let mut done = self.execute_by_parts(ops, cause).await?;
        let used = |op: &Op| goes(op) && self.have.routes_through(&op.key()).next().is_some();
        let last = last.into_iter().filter(|op| !used(op)).collect();
        done += self.execute_by_parts(last, cause).await?;
        if are_many {
            self.have.repack();
        }
        self.note_repair(done, cause);
        Ok(())
    }

    async fn execute_by_parts(&mut self, ops: Vec<Op>, cause: &Cause) -> Result<Done, KernelError> {
        let (mut rest, mut done) = (VecDeque::from(ops), Done::default());
        while !rest.is_empty() {
            let part: Vec<Op> = rest.drain(..rest.len().min(AT_ONCE)).collect();
            rest.shrink_to_fit();
            done += self.execute_some(&part, cause).await?;
            // The notifications of many changes don't fit into the socket, and after a loss all would be read again.
            self.hear();
        }
        Ok(done)
    }

    /// Takes in the notifications that have arrived.
    fn hear(&mut self) {
        for _ in 0..HEARINGS {
            let Some(events) = self.kernel.events().now_or_never() else { break };
            self.fold_events(events);
        }
    }

    async fn execute_some(&mut self, ops: &[Op], cause: &Cause) -> Result<Done, KernelError> {
        // Many operations take long, which is no hang.
        self.heart.beat();
        // After an error it is unknown which operations were carried out.
        let began = Instant::now();
        let refusals = self.kernel.execute(ops).await.inspect_err(|_| self.work.read_objects())?;
        self.shown.timings.netlink.observe(began.elapsed());
        self.shown.refusals += refusals.len() as u64;
        Ok(self.note_results(ops, refusals, cause.looked))
    }

    async fn look_at_devices(&mut self) -> Result<(), KernelError> {
        let mut devices = self.driver.ensure_devices(&mut *self.kernel).await?;
        let moved = self.work.begin_peers();
        if moved || devices.peers_changed || devices.links != self.devices.links {
            self.rebuild_peers_on(&devices);
        }
        if devices.changed {
            self.work.check_host();
            self.work.read_objects();
            if self.is_new_mtu(&devices) {
                // The device follows the underlay, and so do the objects that the kernel dropped from it meanwhile.
                self.why.add(Why::Desired);
            } else if self.shown.synced && !moved {
                self.repair.add_device();
            }
        }
        for event in std::mem::take(&mut devices.events) {
            self.events.send(event);
        }
        if devices.problems != self.devices.problems {
            self.events.send(match devices.problems.text() {
                Some(reason) => NetworkEvent::DevicesNotReady { reason },
                None => NetworkEvent::DevicesReady,
            });
        }
        if devices.problems != self.devices.problems || devices.away != self.devices.away {
            self.book.mark_all();
        }
        if !devices.problems.is_empty() || !devices.partial.is_empty() {
            self.retry_later();
        }
        if let Some(made) = devices.made.take() {
            self.note_made(made);
        }
        for news in devices.unserved.iter().filter(|it| !self.devices.unserved.contains(it)) {
            let (family, reason) = (news.family, news.to_string());
            self.events.send(NetworkEvent::FamilyOutOfService { family, reason });
        }
        if devices.unserved.is_empty() && !self.devices.unserved.is_empty() {
            self.events.send(NetworkEvent::FamiliesInService);
        }
        self.count_devices(&devices.shown);
        self.devices = devices;
        self.look_for_leftovers().await
    }

    /// Whether packets may be longer or shorter than before. While there is no underlay nobody knows how long they may be.
    fn is_new_mtu(&self, devices: &super::Devices) -> bool {
        let before = self.devices.overlay_mtu.zip(devices.overlay_mtu);
        before.is_some_and(|(before, now)| before != now)
    }

    /// Reads the counters of these devices from now on.
    fn count_devices(&mut self, shown: &[DeviceStatus]) {
        let is_known = shown.iter().map(|it| &it.name).eq(self.devices.shown.iter().map(|it| &it.name));
        if let Some(netns) = self.netns.as_ref().filter(|_| !is_known) {
            let names = shown.iter().map(|device| device.name.clone()).collect();
            self.device_counters = Counters::of_devices(netns.clone(), names);
        }
    }

    fn rebuild_peers_on(&mut self, devices: &super::Devices) {
        debug!(links = ?devices.links, "all peers are computed again");
        self.rebuild_peers();
        self.work.check_host();
        self.work.read_objects();
    }

    /// Reads all objects that are ours.
    async fn observe(&mut self) -> Result<(), KernelError> {
        self.heart.beat();
        // A device may have disappeared just now.
        let began = Instant::now();
        self.read_ours().await.inspect_err(|_| self.work.check_devices())?;
        self.shown.timings.read.observe(began.elapsed());
        Ok(())
    }

    /// Records the results of operations, and sums up those that repaired something: all that succeeded, except retries
    /// of blocked objects.
    fn note_results(&mut self, ops: &[Op], refusals: Vec<Refusal>, looked: bool) -> Done {
        let now = Instant::now();
        let mut refused: BTreeMap<ObjectKey, Refusal> =
            refusals.into_iter().map(|refusal| (refusal.op.key(), refusal)).collect();
        let mut done = Done::default();
        for op in ops {
            let key = op.key();
            if let Some(refusal) = refused.remove(&key) {
                self.note_refusal(&refusal, looked, now);
                continue;
            }
            if self.blocked.remove(&key) {
                self.events.send(NetworkEvent::ObjectAccepted { object: self.named(op.object()) });
            } else {
                done.add(op);
            }
            let before = match op {
                Op::Create(object) | Op::Replace(object) => {
                    self.replaced.regain(&key);
                    self.forget_replaced(object);
                    self.have.insert(*object)
                }
                Op::Delete(_) => self.have.remove(&key),
            };
            self.look_at_next_hop_of(before);
        }
        self.mark_users(ops.iter().map(Op::key));
        self.shown.operations += ops.len() as u64;
        done
    }

    /// Compares the next-hop object of a route that has moved: its deletion may have waited for that.
    pub(super) fn look_at_next_hop_of(&mut self, before: Option<Object>) {
        let Some(Object::Route(before)) = before else { return };
        let left = before.next_hop().filter(|next_hop| self.peers.want().get(next_hop).is_none());
        self.work.compare(left.filter(|next_hop| self.have.get(next_hop).is_some()));
    }

    fn note_refusal(&mut self, refusal: &Refusal, looked: bool, now: Instant) {
        let is_taken = match (refusal.errno, refusal.op.object()) {
            (libc::EEXIST, Object::Route(_)) => true,
            // A foreign route that replaced ours covers our gateway.
            (libc::EINVAL, Object::Route(route)) => route.next_hop().is_none(),
            _ => false,
        };
        if is_taken && matches!(refusal.op, Op::Create(_)) && self.replaced.contest(refusal.op.object()) {
            return;
        }
        match refusal.errno {
            // There is an object that we had not observed: read again, unless we just did. If we did, it is not ours.
            libc::EEXIST if !looked => {
                self.work.read_objects();
                return;
            }
            // Its next-hop object may be gone without a notification: read again, unless we just did.
            libc::EINVAL
                if !looked
                    && matches!(refusal.op.object(), Object::Route(route) if route.next_hop().is_some()) =>
            {
                self.work.read_objects();
                return;
            }
            // The device is gone or down, and its notification is on the way. Look again, unless we just did.
            libc::ENODEV | libc::ENETDOWN | libc::ENXIO => {
                self.work.check_devices();
                self.work.read_objects();
                if !looked {
                    return;
                }
            }
            _ => {}
        }
        let reason = self.driver.explain(refusal).unwrap_or_else(|| explain(refusal));
        self.block(&refusal.op, refusal.errno, reason, false, now);
    }

    /// Delays an operation that the kernel refuses, or, in a conflict, one whose key somebody else's object has.
    pub(super) fn block(&mut self, op: &Op, errno: i32, reason: Reason, conflict: bool, now: Instant) {
        self.block_for(self.needed(op), op, errno, reason, conflict, now);
    }

    /// The same for an object that these need, whoever needs it usually.
    pub(super) fn block_for(
        &mut self,
        needed: Needed,
        op: &Op,
        errno: i32,
        reason: Reason,
        conflict: bool,
        now: Instant,
    ) {
        // Before the first sync the node was not ready anyway, so a refusal counts at once.
        let at_once = !self.shown.synced;
        let peer = match &needed {
            Needed::By(peers) => peers.first().copied(),
            Needed::ByUs | Needed::ByNobody => None,
        };
        let (object, text) = (self.named(op.object()), reason.to_string());
        if self.blocked.add(object.clone(), errno, reason, needed, at_once, now) {
            self.events.send(NetworkEvent::ObjectRefused { object, peer, errno, reason: text, conflict });
        }
        self.mark_users([op.key()]);
    }

    /// An object with the name of its device, as far as that is known.
    pub(super) fn named(&self, object: &Object) -> NamedObject {
        let name = |link| {
            let device = self.devices.shown.iter().find(|device| device.link == link);
            let underlay =
                self.underlay.as_ref().map(|follower| &follower.current).filter(|it| it.link == link);
            device.map(|device| &device.name).or(underlay.map(|underlay| &underlay.name)).cloned()
        };
        NamedObject::new(object.key(), object.link().and_then(name))
    }

    /// Who needs the object of an operation.
    pub(super) fn needed(&self, op: &Op) -> Needed {
        let key = op.key();
        if let Op::Delete(_) = op {
            return Needed::ByNobody;
        }
        let is_own = |object: &Object| object.key() == key;
        if self.driver.own_objects().iter().any(is_own) {
            return Needed::ByUs;
        }
        match self.peers.users(&key) {
            users if users.is_empty() => Needed::ByNobody,
            users => Needed::By(users),
        }
    }

    fn note_repair(&mut self, done: Done, cause: &Cause) {
        let Done { ops, object, kinds, more_than_entries } = done;
        if ops == 0 {
        } else if cause.why.is_desired() || !self.leases.is_synced() || !self.shown.synced {
            debug!(ops, "kernel state follows the leases");
        } else if cause.why == Why::Resync && !more_than_entries {
            // Dumps of these entries sometimes miss some while others change; a real loss causes a notification.
            debug!(ops, "entries put again that the resync did not show");
        } else {
            if cause.why == Why::Resync {
                self.repair.found_by_resync();
            }
            self.repair.add(ops, object.map(|object| self.named(&object)), &kinds);
        }
    }

    fn tell_repair(&mut self) {
        if let Some((repaired, took)) = self.repair.end(Instant::now(), &mut self.shown.repaired) {
            self.shown.repairs += 1;
            self.shown.timings.repair.observe(took);
            self.events.send(repaired);
            self.shown.last_repair = Some(took);
        }
    }

    /// Ends the time that changed leases took to get into the kernel.
    fn end_programming(&mut self) {
        if let Some(since) = self.programming.take() {
            self.shown.timings.program.observe(since.elapsed());
        }
    }

    /// Looks at devices and objects again after a pause that grows with each failure.
    pub(super) fn retry_later(&mut self) {
        self.retry_at = Some(Instant::now() + blocked::backoff(self.failures));
        self.failures = self.failures.saturating_add(1);
    }

    fn put_off(&mut self, error: &KernelError) {
        let news = self.failures == 0;
        self.retry_later();
        if news {
            self.events.send(NetworkEvent::KernelAway { reason: error.to_string() });
        }
        if let KernelError::Refused { .. } = error {
            self.work.check_devices();
        }
    }
}

/// Why an operation was refused, as far as the errno shows.
fn explain(refusal: &Refusal) -> Reason {
    match (refusal.errno, refusal.op.object()) {
        (libc::EEXIST, Object::Route(route)) => Reason::new(
            format!("route {} is in the way: it is not ours, so it stays", route.dst),
            "remove it and ours is put in its place",
        ),
        (libc::EINVAL, Object::Route(route)) => format!(
            "route {} is refused as invalid; a route of another link that covers its gateway does that",
            route.dst
        )
        .into(),
        _ => refusal.to_string().into(),
    }
}

/// A sum of operations that succeeded.
#[derive(Debug, Clone, Copy, Default)]
struct Done {
    ops: usize,
    /// One of them.
    object: Option<Object>,
    /// How many of each kind.
    kinds: Tally,
    /// Whether there were operations other than new neighbour and FDB entries.
    more_than_entries: bool,
}

impl Done {
    fn add(&mut self, op: &Op) {
        self.ops += 1;
        self.object = self.object.or(Some(*op.object()));
        self.kinds[RepairKind::from(&op.key()) as usize] += 1;
        self.more_than_entries |= !matches!(op, Op::Create(Object::Neighbour(_) | Object::Fdb(_)));
    }
}

impl std::ops::AddAssign for Done {
    fn add_assign(&mut self, other: Self) {
        self.ops += other.ops;
        self.object = self.object.or(other.object);
        self.kinds.iter_mut().zip(other.kinds).for_each(|(all, more)| *all += more);
        self.more_than_entries |= other.more_than_entries;
    }
}

/// Why a pass runs.
struct Cause {
    why: Why,
    /// Whether all objects were read.
    looked: bool,
}
