//! The one loop that every route-based backend runs: it keeps the kernel in the desired state.
//!
//! The loop has three values: the lease table (from the store), the desired state (a pure function of leases and
//! devices), and the observed state. It reads the observed state in full at the start, after lost notifications, when a
//! link changed, and in the regular resync; in between, notifications of the kernel update it. A lease or a
//! notification touches only the keys that it names.

mod blocked;
mod book;
mod claims;
mod config;
mod events;
mod guard;
mod hold;
mod host;
mod inspect;
mod leases;
mod leftovers;
mod network;
mod pass;
mod peer_work;
mod publish;
mod record;
mod repair;
mod replaced;
#[cfg(test)]
mod tests;
mod underlay;
mod work;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use async_trait::async_trait;
use futures::{FutureExt, StreamExt};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::addr::{Family, LinkIndex, Mtu, Subnet};
use crate::backend::{BackendError, HostProblem, NetworkStatus, Probing, Underlay};
use crate::config::{BackendConfig, ConfigError};
use crate::dataplane::{Dataplane, Object, ObjectKey, Route};
use crate::events::{NetworkEvent, NetworkEventSender, NetworkEvents, RepairCause};
use crate::firewall::gate::{Desk, Gate, Tunnels};
use crate::heartbeat::{self, Heart, Pulse};
use crate::inspect::{Differences, Inspector, Question};
use crate::kernel::{Kernel, KernelError, KernelEvent, LinkOp, Refusal, Scope};
use crate::lease::{AgedLease, Lease, LeaseAttrs, LeaseKey, LeaseTable};
use crate::netns::Netns;
use crate::ownership::Ownership;
use crate::peers::{Claim, Peer, PeerError, PeerTable, Segments};
use crate::resync;
use crate::state_file::State;
use crate::status::{Counters, DeviceStatus, Harm, Problem, Reason};
use crate::subnet::LeaseStream;
use crate::underlay::Follower;

use blocked::Blocked;
use book::PeerBook;
use claims::OwnClaims;
pub use config::AppliedConfig;
use config::FollowedConfig;
use guard::Guard;
pub use hold::{Held, Prune};
use host::Host;
use leases::Incoming;
pub use network::register;
pub use peer_work::PeerWork;
use publish::Shown;
use record::Record;
use repair::Repair;
use replaced::Replaced;
use work::{Why, Work};

/// How many messages of the watch, and how many changed leases, the loop processes before it turns to its other inputs.
/// That takes some milliseconds.
const AT_ONCE: usize = 512;

/// What a backend adds to the loop: its devices, and the objects that a lease needs on them.
#[async_trait]
pub trait Driver: Send {
    /// Creates the backend's devices, or changes them to what they should be. The loop calls it whenever one may have
    /// changed.
    ///
    /// A device that can't be made now is reported in [`Devices::problem`], so that it does not stop the others; the
    /// loop tries again. An error means that a request to the kernel failed.
    async fn ensure_devices(&mut self, kernel: &mut dyn Kernel) -> Result<Devices, KernelError>;

    /// The operations by which [`Self::ensure_devices`] would create the devices or change them, without carrying them out.
    /// A driver whose devices no operator could make, such as those with a datapath of its own, plans none.
    async fn plan_devices(&mut self, kernel: &mut dyn Kernel) -> Result<Vec<LinkOp>, KernelError> {
        let _ = kernel;
        Ok(Vec::new())
    }

    /// What else differs, beside links and objects, and what of the devices can't be compared. It changes nothing.
    async fn further_differences(&mut self, kernel: &mut dyn Kernel) -> Result<Differences, KernelError> {
        let _ = kernel;
        Ok(Differences::default())
    }

    /// Sets the lease of this node. The devices were made without it.
    fn set_lease(&mut self, lease: &Lease);

    /// Sets another underlay: its addresses changed, or its link. Afterwards the loop asks again for the devices, this
    /// node's claims and the objects of peers. An error says why the backend can't use it; then nothing changes.
    fn set_underlay(&mut self, underlay: &Underlay) -> Result<(), HostProblem>;

    /// Applies what it can of a changed config of this backend without a restart; afterwards the loop asks again for
    /// the devices and the objects of peers. `changed` are the keys whose JSON differs from the config that is in
    /// force; some of them may mean the same. An error says what can't be used; then nothing changes.
    fn apply_config(
        &mut self,
        next: &BackendConfig,
        changed: Vec<String>,
    ) -> Result<AppliedConfig, ConfigError> {
        let _ = next;
        Ok(AppliedConfig { live: Vec::new(), restart: changed })
    }

    /// What this node publishes with its lease.
    fn attrs(&self) -> LeaseAttrs;

    /// Chooses other backend data for these families, since another node's lease had the same data first. `others` is
    /// what all other nodes publish. Afterwards the loop asks again for the devices, this node's claims and its
    /// attributes. Returns whether it did: a backend whose data only one node can have should.
    fn resign(&mut self, families: &[Family], others: &mut dyn Iterator<Item = &LeaseAttrs>) -> bool {
        let _ = (families, others);
        false
    }

    /// The objects that this node itself needs, such as the address of its device.
    fn own_objects(&self) -> Vec<Object>;

    /// What this node claims for itself, with precedence over every lease.
    fn own_claims(&self) -> Vec<Claim>;

    /// The objects and claims of another node's lease, on the devices as they are now or, while one is missing, as they
    /// were.
    fn peer(&self, lease: &Lease) -> Result<Peer, PeerError>;

    /// Where objects of ours can be, on links that exist. The loop finds routes that [`Ownership`] proves to be ours
    /// without it.
    fn scopes(&self) -> Vec<Scope>;

    /// Whether an object on a device of this backend is ours to replace and delete. For links that others use, too,
    /// [`Ownership`] decides. The loop leaves everything else alone.
    fn owns(&self, object: &Object) -> bool;

    /// Whether after this notification the loop must look at the devices again, and retry refused objects at once.
    fn concerns(&self, event: &KernelEvent) -> bool;

    /// The name of the way that packets to a programmed peer take in one family, if it is not that of the backend:
    /// `direct`, for example, for a peer that is reached without a tunnel. The status shows it.
    fn path(&self, family: Family, peer: &Peer) -> Option<&'static str> {
        let _ = (family, peer);
        None
    }

    /// Receives all programmed peers, whenever they may have changed, for a backend that carries packets itself.
    fn set_peers(&mut self, peers: &mut dyn Iterator<Item = (&LeaseKey, &Peer)>) {
        let _ = peers;
    }

    /// What the backend itself does for a programmed peer beyond its kernel objects, such as running a command, and how
    /// far that is. The status shows it.
    fn work_for(&self, peer: &LeaseKey) -> PeerWork {
        let _ = peer;
        PeerWork::Done
    }

    /// The programmed peers for which that failed, so that pods don't reach them.
    fn failed_peers(&self) -> Vec<LeaseKey> {
        Vec::new()
    }

    /// Problems of this node besides those of its devices; never many.
    fn problems(&self) -> Vec<Problem> {
        Vec::new()
    }

    /// The store has listed its leases, and all that came since is processed: what the backend does for peers that are
    /// not programmed any more it may end, except for those whose record is unreadable. The loop calls it again and again.
    fn prune_peers(&mut self, is_unreadable: &dyn Fn(&LeaseKey) -> bool) {
        let _ = is_unreadable;
    }

    /// Compares what the devices contain besides objects, such as keys of peers, with what it should be, and repairs the
    /// difference. The loop calls it before it puts objects, whenever the programmed peers may have changed, and with `read`
    /// whenever it reads all objects again. Without `read` the driver may rely on what it read or wrote last. What is there
    /// and not desired is removed only where `prune` allows it.
    async fn hold(&mut self, read: bool, prune: Prune<'_>) -> Held {
        let _ = (read, prune);
        Held::default()
    }

    /// Returns the gate of this backend's tunnels, if it has one. The loop calls it once.
    fn gate(&mut self) -> Option<(Gate, Desk)> {
        None
    }

    /// The tunnels that the gate protects; `None` while a device or the own subnet is missing.
    fn tunnels(&self) -> Option<Tunnels> {
        None
    }

    /// Returns when the loop must look at the devices although the kernel sent no notification about a link, or at the
    /// peers that [`Self::changed_peers`] names. Dropping the future loses nothing.
    async fn attention(&mut self) {
        std::future::pending::<()>().await;
    }

    /// After [`Self::attention`]: the peers whose [`Self::work_for`] is another now, if that is all that changed. With
    /// `None` the loop looks at the devices and all that is on them.
    fn changed_peers(&mut self) -> Option<Vec<LeaseKey>> {
        None
    }

    /// How the network is probed; `None` if nothing of it can be.
    fn probing(&self) -> Option<Probing> {
        None
    }

    /// Why the kernel refused an operation, if the backend knows more than the kernel's answer says.
    fn explain(&self, refusal: &Refusal) -> Option<Reason> {
        let _ = refusal;
        None
    }
}

/// The devices of a backend after [`Driver::ensure_devices`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Devices {
    /// The links with our objects, as last known. A missing link stays in the list, since only store and config take
    /// objects off the desired state. When the list changes, the loop computes all peers again.
    pub links: Vec<LinkIndex>,
    /// Links that are gone or down. The loop puts nothing there, and drops nothing from the desired state.
    pub away: Vec<LinkIndex>,
    /// Whether a device was changed, so that the objects on the devices must be read again.
    pub changed: bool,
    /// Whether leases need other objects than before, so that the loop computes all peers again.
    pub peers_changed: bool,
    /// Why a device is missing or wrong.
    pub problem: Option<String>,
    /// Families that the devices can't carry for now. Their objects that still work are left alone.
    pub unserved: Vec<Problem>,
    /// The largest pod packet in bytes.
    pub overlay_mtu: Option<Mtu>,
    /// How packets travel, if the backend has a choice.
    pub datapath: Option<String>,
    /// What the status shows of [`Self::links`].
    pub shown: Vec<DeviceStatus>,
    /// Reads what a datapath outside of the kernel counts. What the kernel counts of [`Self::shown`] is read by their names.
    pub counters: Counters,
    /// What the driver did to the devices, and what else happened: the loop logs these events and sends them to the
    /// readers of [`Reconciler::events`].
    pub events: Vec<NetworkEvent>,
}

/// The loop and its state.
pub struct Reconciler<D> {
    driver: D,
    kernel: Box<dyn Kernel>,
    /// The backend's name.
    backend: String,
    events: NetworkEventSender,
    own: LeaseKey,
    leases: LeaseTable,
    /// What came from the watch and is not processed yet.
    incoming: Incoming,
    /// The last usable version of each lease whose present version is not.
    last_good: BTreeMap<LeaseKey, Arc<AgedLease>>,
    peers: PeerTable,
    /// The subnets of the underlay's link, as last seen.
    segments: Segments,
    devices: Devices,
    /// What is wrong in the devices.
    held: Held,
    /// Where the devices are; `None` on a kernel in memory, which counts nothing.
    netns: Option<Netns>,
    /// Reads what the kernel counts of the devices.
    device_counters: Counters,
    have: Dataplane,
    /// What the next pass has to look at, and why.
    work: Work,
    why: Why,
    blocked: Blocked,
    /// Objects that are not desired but belong to the subnet of an unreadable record. They are checked again with the
    /// next lease.
    withheld: BTreeSet<ObjectKey>,
    /// How many times in a row reading the kernel or making the devices failed.
    failures: u32,
    retry_at: Option<Instant>,
    resync_at: Instant,
    shown: Shown,
    /// The entry of each peer in the status.
    book: PeerBook,
    ownership: Ownership,
    /// Blackhole routes for the own subnets, if they are kept.
    blackholes: Vec<Object>,
    /// Whether devices of others that look like ours were named in the log.
    named_suspects: bool,
    /// What the state file should store for the next start.
    record: Record,
    /// Follows the underlay; `None` if it never changes.
    underlay: Option<Follower>,
    /// Follows the network config; `None` if the store does not announce changes.
    config: Option<FollowedConfig>,
    repair: Repair,
    /// Since when there are changed leases that are not all in the kernel.
    programming: Option<Instant>,
    host: Host,
    /// Routes of ours that somebody else replaced.
    replaced: Replaced,
    /// The conflicts of this node's own record.
    claims: OwnClaims,
    attrs: watch::Sender<LeaseAttrs>,
    /// The gate that lets only nodes into the tunnels; `None` without tunnels that the kernel carries.
    guard: Option<Guard>,
    /// Shows others that the loop turns.
    heart: Heart,
    pulse: Pulse,
    /// What others ask.
    questions: (Inspector, mpsc::Receiver<Question>),
}

impl<D: Driver> Reconciler<D> {
    /// A loop for the node that has the lease `own`. `state` is what should be stored, without leases yet; `previous`
    /// is what was stored last.
    pub fn new(
        mut driver: D,
        kernel: Box<dyn Kernel>,
        own: LeaseKey,
        state: State,
        previous: Option<&State>,
    ) -> Self {
        let attrs = watch::Sender::new(driver.attrs());
        let claims = OwnClaims::new(previous, &state.store);
        let guard = driver.gate().map(Guard::new);
        let (pulse, heart) = heartbeat::pair();
        Self {
            driver,
            kernel,
            backend: state.backend.clone(),
            events: NetworkEventSender::default(),
            own,
            leases: previous.map(|it| LeaseTable::remembering(it.ages_at(&state.store))).unwrap_or_default(),
            incoming: Incoming::default(),
            last_good: BTreeMap::new(),
            peers: PeerTable::default(),
            segments: Segments::default(),
            devices: Devices::default(),
            held: Held::default(),
            netns: None,
            device_counters: Counters::default(),
            have: Dataplane::default(),
            work: Work::of_start(),
            why: Why::default(),
            blocked: Blocked::default(),
            withheld: BTreeSet::new(),
            failures: 0,
            retry_at: None,
            resync_at: next_resync(),
            shown: Shown::default(),
            book: PeerBook::default(),
            ownership: Ownership::new(&state, previous),
            blackholes: Vec::new(),
            named_suspects: false,
            record: Record::new(state),
            underlay: None,
            config: None,
            repair: Repair::default(),
            programming: None,
            host: Host::default(),
            replaced: Replaced::default(),
            claims,
            attrs,
            guard,
            heart,
            pulse,
            questions: Inspector::channel(),
        }
    }

    /// Keeps blackhole routes for this node's own subnets from now on; see [`crate::backend::Registration`].
    pub(crate) fn keep_blackholes(&mut self) {
        let networks = self.record.networks();
        let is_enabled = |family| networks.get(family).is_some();
        let own = self.own.subnets();
        let own = own.iter().filter(|(family, _)| is_enabled(*family)).map(|(_, subnet)| *subnet);
        let own: Vec<Subnet> = own.collect();
        self.blackholes = own.iter().copied().map(Route::blackhole).map(Object::Route).collect();
        self.ownership.keep_blackholes(own);
    }

    /// What to store for the next start; see [`crate::backend::Network::state`].
    pub fn state(&self) -> watch::Receiver<State> {
        self.record.subscribe()
    }

    /// The status of the loop.
    pub fn status(&self) -> watch::Receiver<NetworkStatus> {
        self.shown.subscribe()
    }

    /// The events of the network. The first reader has all events since the loop was made.
    pub fn events(&self) -> NetworkEvents {
        self.events.subscribe()
    }

    /// Asks the running loop whether it still turns.
    pub fn pulse(&self) -> Pulse {
        self.pulse.clone()
    }

    /// Puts devices and own objects in place before the first lease of others is known. Deletes nothing.
    pub async fn prepare(&mut self) -> Result<(), BackendError> {
        self.converge().await;
        // The status reports a family that is out of service, and other problems that pods can do without.
        let vital = self.blocked.ours().find(|problem| problem.harm != Harm::Family);
        let device = self.devices.problem.clone().or(self.held.problem.clone()).map(HostProblem::Device);
        let problem = device.or_else(|| Some(HostProblem::Object(Box::new(vital?))));
        problem.map_or(Ok(()), |problem| Err(problem.into()))
    }

    /// Keeps the kernel in the desired state until `cancel` fires. It finishes a pass that has begun.
    pub async fn run(mut self, leases: LeaseStream, cancel: CancellationToken) -> Result<(), BackendError> {
        let mut leases = leases.ready_chunks(AT_ONCE);
        let _gate = self.guard.as_mut().and_then(|guard| guard.start(&self.events, &cancel));
        loop {
            let wake = self.next_wake();
            let is_taking = self.incoming.is_pending();
            // A fixed order makes tests of the loop reproducible. All inputs still get their turn: a storm of one kind
            // does not starve the others.
            tokio::select! {
                biased;
                () = cancel.cancelled() => return Ok(()),
                () = self.heart.asked() => {
                    self.heart.beat();
                    continue;
                }
                () = self.driver.attention() => {
                    if let Some(peers) = self.driver.changed_peers() {
                        self.book.mark(peers);
                    } else {
                        self.repair.begin(Instant::now(), RepairCause::Datapath);
                        self.look_at_all();
                    }
                }
                events = self.kernel.events() => self.fold_events(events),
                batch = leases.next(), if !is_taking => self.fold_leases(batch.ok_or(BackendError::WatchEnded)?)?,
                // Leases that came earlier and are not processed yet.
                () = tokio::task::yield_now(), if is_taking => {}
                told = config::next(&mut self.config) => self.fold_config(told),
                () = guard::news(&mut self.guard) => {}
                Some(question) = self.questions.1.recv() => self.answer(question).await,
                () = sleep_until(wake) => {}
            }
            // The time of a repair counts from here, whatever woke the loop.
            self.repair.begin(Instant::now(), RepairCause::Retry);
            if !self.incoming.is_pending()
                && let Some(batch) = leases.next().now_or_never()
            {
                self.fold_leases(batch.ok_or(BackendError::WatchEnded)?)?;
            }
            if let Some(told) = config::next(&mut self.config).now_or_never() {
                self.fold_config(told);
            }
            if Instant::now() >= wake {
                self.run_timers(Instant::now());
            }
            self.work_out_some();
            // Half a snapshot is not a desired state: until all of it is processed, the kernel stays as it is.
            if !self.incoming.is_pending() {
                self.converge().await;
            }
            tokio::task::yield_now().await;
        }
    }

    /// Computes all peers again, because this node, its administrator or an operator changed which objects leases need.
    /// What differs then is not drift.
    fn desire_anew(&mut self) {
        self.work.rebuild_peers();
        self.work.read_objects();
        self.why.add(Why::Desired);
    }

    /// Computes all peers from scratch, on devices that did not exist before.
    fn rebuild_peers(&mut self) {
        let mut own = self.driver.own_objects();
        own.extend(&self.blackholes);
        self.peers = PeerTable::new(own, self.driver.own_claims());
        self.incoming.forget_resolved();
        self.peers.advise(self.claims.remedy.clone());
        self.work.check_claims();
        let shared = self.driver.scopes().into_iter().filter(Scope::is_shared);
        self.peers.share(shared.map(|scope| scope.link));
        self.peers.confine(self.record.networks());
        self.peers.place(self.segments.clone());
        for lease in self.leases.iter().filter(|lease| lease.key != self.own) {
            if let Some(good) = self.last_good.get(&lease.key) {
                self.peers.stage(good.key, (&**good).into(), self.driver.peer(good));
            }
            self.peers.stage(lease.key, (&**lease).into(), self.driver.peer(lease));
        }
        self.peers.settle();
        self.peers.drain_decided();
        self.book.mark_all();
        self.peers.repack();
        self.set_peers();
        self.blocked.restart(Instant::now());
    }

    /// Gives the programmed peers to the driver, which may have to hold something for them.
    fn set_peers(&mut self) {
        self.driver.set_peers(&mut self.peers.programmed_peers());
        self.work.hold();
    }

    fn next_wake(&self) -> Instant {
        let settled = self.underlay.as_ref().and_then(Follower::due);
        // Work that failed is left to its retry time. Without this check, everything else that is due would meet the
        // same failure in a busy loop.
        let can_work = !self.work.is_pending();
        [
            Some(self.resync_at),
            self.retry_at,
            self.blocked.next_due().filter(|_| can_work),
            settled.filter(|_| can_work),
            self.claims.due(),
            self.shown.due(),
        ]
        .into_iter()
        .flatten()
        .min()
        .unwrap_or(self.resync_at)
    }

    fn run_timers(&mut self, now: Instant) {
        if now >= self.resync_at {
            self.resync_at = next_resync();
            if !self.work.has_objects() {
                self.why.add(Why::Resync);
            }
            self.work.check_all();
        }
        if self.retry_at.is_some_and(|at| now >= at) {
            self.retry_at = None;
            self.work.check_underlay();
            self.work.check_devices();
            self.work.read_objects();
        }
        if self.underlay.as_ref().and_then(Follower::due).is_some_and(|at| now >= at) {
            self.work.check_underlay();
        }
        self.work.compare(self.blocked.due(now));
    }
}

fn next_resync() -> Instant {
    resync::next(Instant::now())
}
