//! The one loop that every route-based backend runs: it holds the kernel in the wanted state.
//!
//! Three values: the lease table (from the store), what is wanted (a pure function of leases and devices),
//! and what the kernel holds. The last is read in full at the start, after lost announcements, when a link
//! changed, and in a slow audit; in between it follows the kernel's announcements. A lease or an announcement
//! touches only the keys that it names.

mod blocked;
mod book;
mod claims;
mod config;
mod events;
mod guard;
mod host;
mod leases;
mod leftovers;
mod log;
mod network;
mod pass;
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
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::addr::{Family, LinkIndex, Mtu, Subnet};
use crate::backend::{BackendError, HostProblem, NetworkStatus, Underlay};
use crate::config::{BackendConfig, ConfigError};
use crate::dataplane::{Dataplane, Object, ObjectKey, Route};
use crate::events::{NetworkEvent, NetworkEventSender, NetworkEvents, RepairCause};
use crate::firewall::gate::{Desk, Gate, Tunnels};
use crate::kernel::{Kernel, KernelError, KernelEvent, Refusal, Scope};
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
use host::Host;
use leases::Incoming;
pub use network::register;
use publish::Shown;
use record::Record;
use repair::Repair;
use replaced::Replaced;
use work::{Why, Work};

/// How many messages of the watch, and how many leases that changed, are taken before all others get their turn. It
/// takes some milliseconds.
const AT_ONCE: usize = 512;

/// What a backend adds to the loop: its devices, and what a lease means on them.
#[async_trait]
pub trait Driver: Send {
    /// Makes the backend's devices exist and be right. Called again whenever one may have changed.
    ///
    /// A device that can't be had now is told in [`Devices::problem`], so that it does not stop the others;
    /// the loop tries again. An error means that the kernel could not be asked.
    async fn ensure_devices(&mut self, kernel: &mut dyn Kernel) -> Result<Devices, KernelError>;

    /// Takes the lease of this node, which the devices were made without.
    fn set_lease(&mut self, lease: &Lease);

    /// Takes another underlay: its addresses changed, or the link. Devices, what this node claims and what
    /// peers ask for are asked for again. An error says why the backend can't use it; then all stays as it is.
    fn set_underlay(&mut self, underlay: &Underlay) -> Result<(), HostProblem>;

    /// Takes what it can of another config of this backend without a restart; devices and what peers ask for
    /// are asked for again then. `changed` are the keys whose JSON differs from that of the config that is in
    /// force as a whole, which not all have to mean a change. An error says what can't be used; then all stays
    /// as it is.
    fn take_config(
        &mut self,
        next: &BackendConfig,
        changed: Vec<String>,
    ) -> Result<AppliedConfig, ConfigError> {
        let _ = next;
        Ok(AppliedConfig { live: Vec::new(), restart: changed })
    }

    /// What this node publishes with its lease.
    fn attrs(&self) -> LeaseAttrs;

    /// Takes other backend data for these families, which another node's lease has by right. `others` is what all
    /// other nodes publish. Devices, what this node claims and what it publishes are asked for again then. Returns
    /// whether it did: a backend whose data only one node can have should.
    fn resign(&mut self, families: &[Family], others: &mut dyn Iterator<Item = &LeaseAttrs>) -> bool {
        let _ = (families, others);
        false
    }

    /// The objects this node needs for itself, such as the address of its device.
    fn own_objects(&self) -> Vec<Object>;

    /// What this node claims for itself before any lease.
    fn own_claims(&self) -> Vec<Claim>;

    /// What a lease of another node asks for on the devices as they are now or, while one is away, as they were.
    fn peer(&self, lease: &Lease) -> Result<Peer, PeerError>;

    /// Where objects of ours can be: on links that are there. Routes that [`Ownership`] proves to be ours are found without it.
    fn scopes(&self) -> Vec<Scope>;

    /// Whether an object on a device of this backend is ours to replace and delete. What is ours on links
    /// that others use, too, [`Ownership`] says. Everything else is left alone.
    fn owns(&self, object: &Object) -> bool;

    /// Whether an announcement makes it necessary to look at the devices again, and to try at once what was
    /// refused.
    fn concerns(&self, event: &KernelEvent) -> bool;

    /// The name of the way that packets to a programmed peer take in one family, where that is not the backend's own:
    /// `direct`, say, for a peer that is reached without a tunnel. The status shows it.
    fn path(&self, family: Family, peer: &Peer) -> Option<&'static str> {
        let _ = (family, peer);
        None
    }

    /// Takes the peers that hold, whenever they may have changed: for a backend that carries packets itself.
    fn take_peers(&mut self, peers: &mut dyn Iterator<Item = (&LeaseKey, &Peer)>) {
        let _ = peers;
    }

    /// Hands over, once, the gate that is to be kept for the tunnels of this backend, if there is one.
    fn gate(&mut self) -> Option<(Gate, Desk)> {
        None
    }

    /// The tunnels that the gate is for; `None` while a device or the own subnet is missing.
    fn tunnels(&self) -> Option<Tunnels> {
        None
    }

    /// Returns when the devices must be looked at although no link announced anything. Dropping the future
    /// loses nothing.
    async fn attention(&mut self) {
        std::future::pending::<()>().await;
    }

    /// Why the kernel refused an operation, where the backend knows better than the kernel says.
    fn explain(&self, refusal: &Refusal) -> Option<Reason> {
        let _ = refusal;
        None
    }
}

/// The devices of a backend after [`Driver::ensure_devices`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Devices {
    /// The links that hold our objects, as last known: one that is away stays among them, since what is desired
    /// on it shrinks only by what store and config say. When it differs from the last, all peers are worked out
    /// again.
    pub links: Vec<LinkIndex>,
    /// Links on which nothing can be put now: they are gone or down. Nothing is tried there, and nothing is given
    /// up.
    pub away: Vec<LinkIndex>,
    /// Whether something was changed, so that what hangs on the devices must be read again.
    pub changed: bool,
    /// Whether leases mean something else than before, so that all peers are worked out again.
    pub peers_changed: bool,
    /// Why a device is not there or not right.
    pub problem: Option<String>,
    /// Families that the devices can't carry for now. What carries packets all the same is left as it is.
    pub unserved: Vec<Problem>,
    /// The largest pod packet in bytes.
    pub overlay_mtu: Option<Mtu>,
    /// How packets travel, where there is a choice.
    pub datapath: Option<String>,
    /// What the status shows of [`Self::links`].
    pub shown: Vec<DeviceStatus>,
    /// Reads what a datapath outside of the kernel counts. What the kernel counts of [`Self::shown`] is read by their names.
    pub counters: Counters,
    /// What was done to the devices, and what else happened: the loop logs it and tells who listens.
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
    /// What of it is not worked out yet.
    incoming: Incoming,
    /// The last version that could be used of each lease whose present one can't.
    last_good: BTreeMap<LeaseKey, Arc<AgedLease>>,
    peers: PeerTable,
    /// The subnets of the underlay's link, as last seen.
    segments: Segments,
    devices: Devices,
    /// Where the devices are; `None` on a kernel in memory, which counts nothing.
    netns: Option<Netns>,
    /// Reads what the kernel counts of the devices.
    device_counters: Counters,
    have: Dataplane,
    /// What has to be looked at, and why.
    work: Work,
    why: Why,
    blocked: Blocked,
    /// What nobody wants any more but hangs together with an unreadable record: looked at again with the next
    /// lease.
    withheld: BTreeSet<ObjectKey>,
    /// Consecutive failures to read the kernel or to have the devices.
    failures: u32,
    retry_at: Option<Instant>,
    audit_at: Instant,
    shown: Shown,
    /// The entry of each peer in the status.
    book: PeerBook,
    ownership: Ownership,
    /// Blackhole routes for the own subnets, if they are kept.
    blackholes: Vec<Object>,
    /// Whether devices of others that look like ours were named in the log.
    named_suspects: bool,
    /// What is to be stored for the next start.
    record: Record,
    /// Follows the underlay; `None` where it stays what it is.
    underlay: Option<Follower>,
    /// Follows the network config; `None` where the store does not tell.
    config: Option<FollowedConfig>,
    repair: Repair,
    host: Host,
    /// Routes of ours that somebody else replaced.
    replaced: Replaced,
    /// The conflicts of this node's own record.
    claims: OwnClaims,
    attrs: watch::Sender<LeaseAttrs>,
    /// Lets only nodes into the tunnels; `None` without tunnels that the kernel carries.
    guard: Option<Guard>,
}

impl<D: Driver> Reconciler<D> {
    /// A loop for the node that holds the lease `own`. `state` is what is to be stored as far as it is known
    /// without leases, `previous` what was stored last.
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
            netns: None,
            device_counters: Counters::default(),
            have: Dataplane::default(),
            work: Work::of_start(),
            why: Why::default(),
            blocked: Blocked::default(),
            withheld: BTreeSet::new(),
            failures: 0,
            retry_at: None,
            audit_at: next_audit(),
            shown: Shown::default(),
            book: PeerBook::default(),
            ownership: Ownership::new(&state, previous),
            blackholes: Vec::new(),
            named_suspects: false,
            record: Record::new(state),
            underlay: None,
            config: None,
            repair: Repair::default(),
            host: Host::default(),
            replaced: Replaced::default(),
            claims,
            attrs,
            guard,
        }
    }

    /// From now on this node's own subnets have blackhole routes; see [`crate::backend::Registration`].
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

    /// What the loop is doing.
    pub fn status(&self) -> watch::Receiver<NetworkStatus> {
        self.shown.subscribe()
    }

    /// What happens to the network. The first reader has all events since the loop was made.
    pub fn events(&self) -> NetworkEvents {
        self.events.subscribe()
    }

    /// Makes devices and own addresses right before the first lease is known. Deletes nothing.
    pub async fn prepare(&mut self) -> Result<(), BackendError> {
        self.converge().await;
        // The status tells of a family that is out of service, and of what pods have their traffic without.
        let vital = self.blocked.ours().find(|problem| problem.harm != Harm::Family);
        let device = self.devices.problem.clone().map(HostProblem::Device);
        let problem = device.or_else(|| Some(HostProblem::Object(Box::new(vital?))));
        problem.map_or(Ok(()), |problem| Err(problem.into()))
    }

    /// Holds the kernel in the wanted state until `cancel` fires. A pass that has begun is finished first.
    pub async fn run(mut self, leases: LeaseStream, cancel: CancellationToken) -> Result<(), BackendError> {
        let mut leases = leases.ready_chunks(AT_ONCE);
        let _gate = self.guard.as_mut().and_then(|guard| guard.start(&cancel));
        loop {
            let wake = self.next_wake();
            let is_taking = self.incoming.is_pending();
            // In a fixed order, so that a test of the loop can be run again. Whoever comes first, all get their
            // turn: a storm of one kind holds up no other.
            tokio::select! {
                biased;
                () = cancel.cancelled() => return Ok(()),
                () = self.driver.attention() => {
                    self.repair.begin(Instant::now(), RepairCause::Datapath);
                    self.look_at_all();
                }
                events = self.kernel.events() => self.take_events(events),
                batch = leases.next(), if !is_taking => self.take_leases(batch.ok_or(BackendError::WatchEnded)?)?,
                // The rest of what came before.
                () = tokio::task::yield_now(), if is_taking => {}
                told = config::next(&mut self.config) => self.take_config(told),
                () = guard::news(&mut self.guard) => {}
                () = sleep_until(wake) => {}
            }
            // Whatever woke the loop, what it finds now counts from now.
            self.repair.begin(Instant::now(), RepairCause::Retry);
            if !self.incoming.is_pending()
                && let Some(batch) = leases.next().now_or_never()
            {
                self.take_leases(batch.ok_or(BackendError::WatchEnded)?)?;
            }
            if let Some(told) = config::next(&mut self.config).now_or_never() {
                self.take_config(told);
            }
            if Instant::now() >= wake {
                self.take_time(Instant::now());
            }
            self.work_out_some();
            // Half a snapshot is no wish: until all of it is worked out, the kernel stays as it is.
            if !self.incoming.is_pending() {
                self.converge().await;
            }
            tokio::task::yield_now().await;
        }
    }

    /// Leases mean something else than before, by the doing of this node, its host's administrator or an operator: peers
    /// are worked out again, and what differs then is no drift.
    fn desire_anew(&mut self) {
        self.work.rebuild_peers();
        self.work.read_objects();
        self.why.add(Why::Desired);
    }

    /// Works out all peers anew, on devices that were not there before.
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
        self.driver.take_peers(&mut self.peers.iter());
        self.blocked.restart(Instant::now());
    }

    fn next_wake(&self) -> Instant {
        let settled = self.underlay.as_ref().and_then(Follower::due);
        // What could not be done has its own retry time. Until then whatever is due meets the same failure, without
        // a pause.
        let can_work = !self.work.is_pending();
        [
            Some(self.audit_at),
            self.retry_at,
            self.blocked.next_due().filter(|_| can_work),
            settled.filter(|_| can_work),
            self.claims.due(),
            self.shown.due(),
        ]
        .into_iter()
        .flatten()
        .min()
        .unwrap_or(self.audit_at)
    }

    fn take_time(&mut self, now: Instant) {
        if now >= self.audit_at {
            self.audit_at = next_audit();
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

fn next_audit() -> Instant {
    resync::next(Instant::now())
}
