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
mod driver;
mod drivers;
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
mod permitted;
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

use futures::{FutureExt, StreamExt};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::addr::Subnet;
use crate::backend::{BackendError, HostProblem, NetworkStatus, Probing};
use crate::dataplane::{Dataplane, Object, ObjectKey, Route};
use crate::events::{NetworkEventSender, NetworkEvents, RepairCause};
use crate::heartbeat::{self, Heart, Pulse};
use crate::inspect::{Inspector, Question};
use crate::kernel::{Kernel, Scope};
use crate::lease::{AgedLease, LeaseAttrs, LeaseKey, LeaseTable};
use crate::netns::Netns;
use crate::ownership::Ownership;
use crate::peers::{PeerTable, Segments};
use crate::resync;
use crate::state_file::State;
use crate::status::{Counters, Harm};
use crate::subnet::LeaseStream;
use crate::underlay::Follower;

use blocked::Blocked;
use book::PeerBook;
use claims::OwnClaims;
pub use config::AppliedConfig;
use config::FollowedConfig;
pub use driver::{Devices, Driver};
pub use drivers::check_further;
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
    /// How the network is probed.
    probing: watch::Sender<Option<Probing>>,
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
        let probing = watch::Sender::new(driver.probing());
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
            probing,
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
        let device = self.devices.problems.text().or(self.held.problems.text()).map(HostProblem::Device);
        let problem = device.or_else(|| Some(HostProblem::Object(Box::new(vital?))));
        problem.map_or(Ok(()), |problem| Err(problem.into()))
    }

    /// Keeps the kernel in the desired state until `cancel` fires. It finishes a pass that has begun.
    pub async fn run(mut self, leases: LeaseStream, cancel: CancellationToken) -> Result<(), BackendError> {
        let mut leases = leases.ready_chunks(AT_ONCE);
        loop {
            // The first backend with tunnels of the kernel may come later.
            if let Some(guard) = &mut self.guard {
                guard.start(&self.events, &cancel);
            }
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
                    let redirected = self.driver.redirected_peers();
                    if !redirected.is_empty() {
                        self.compute_again(redirected);
                    } else if self.driver.desires_anew() {
                        self.desire_anew();
                    } else if let Some(peers) = self.driver.changed_peers() {
                        self.book.mark(peers);
                        if self.driver.holds_anew() {
                            self.why.add(Why::Desired);
                            self.set_peers();
                        }
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
