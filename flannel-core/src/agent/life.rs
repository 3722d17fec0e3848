//! What the agent does from the network config to its end, using only the traits of the core.

mod addresses;
mod begin;
mod hidden;
mod retry;
mod rules;
#[cfg(test)]
mod tests;

use std::convert::Infallible;
use std::future::pending;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use tokio::sync::watch;
use tokio::task::{JoinError, JoinHandle, unconstrained};
use tokio_util::sync::CancellationToken;

pub(super) use self::begin::live;
use self::retry::Retry;
use super::error::{Failure, LOST_LEASE_GRACE};
use super::event::AgentEvent;
use super::firewall::FirewallOptions;
use super::node::Node;
use super::place::Place;
use super::setup::Backends;
use super::status::{Board, Phase};
use crate::addr::{Family, PerFamily};
use crate::backend::{Backend, BackendError, Network, NetworkStatus, Registration, Underlay};
use crate::config::NetworkConfig;
use crate::error::chain;
use crate::events::{NetworkEventSender, NetworkEvents};
use crate::firewall::rules::Range;
use crate::kernel::Kernel;
use crate::lease::LeaseAttrs;
use crate::netns::Netns;
use crate::probe::{ProbeOptions, Prober};
use crate::state_file::{Keeper, State};
use crate::status::Subject;
use crate::subnet::{SubnetError, SubnetManager, renew_and_publish};
use crate::subnet_file::SubnetFile;
use crate::underlay::{self, Overlay, UnderlayError, UnderlayOptions};

/// The pause between attempts to write the subnet file.
const FILE_RETRY: Duration = Duration::from_secs(10);
/// How long the network may take to stop.
const FAREWELL: Duration = Duration::from_secs(5);

/// The agent's parts and options.
pub(super) struct Life {
    /// The agent's network namespace.
    pub(super) netns: Netns,
    /// The operator's options for the underlay; the families come from the network config.
    pub(super) underlay: UnderlayOptions,
    /// The path of the subnet file, if there is one.
    pub(super) subnet_file: Option<PathBuf>,
    /// The path of the state file, if there is one.
    pub(super) state_file: Option<PathBuf>,
    /// What the state file said at the start.
    pub(super) previous: Option<State>,
    /// Whether to keep blackhole routes for this node's own subnets.
    pub(super) blackholes: bool,
    /// Which firewall rules to keep.
    pub(super) firewall: FirewallOptions,
    /// Whether and how peers are probed.
    pub(super) probes: ProbeOptions,
    /// The networks for which an earlier run, of this agent or of Go's, wrote rules, by the subnet file.
    pub(super) written_for: PerFamily<Range>,
    /// Opens kernel and firewall managers in the network namespace.
    pub(super) place: Place,
    /// The store of leases.
    pub(super) store: Arc<dyn SubnetManager>,
    /// The backends by kind.
    pub(super) backends: Backends,
    /// Where the agent publishes its status.
    pub(super) board: Arc<Board>,
    /// Fires when the agent is to stop.
    pub(super) shutdown: CancellationToken,
}

impl Life {
    /// Runs until it is told to stop, which is a success, or until it can't go on. Kernel state stays, so that pods
    /// keep their traffic.
    pub(super) async fn run(self, kernel: Box<dyn Kernel>) -> Result<(), Failure> {
        self.board.watch_store(self.store.status());
        let board = Arc::clone(&self.board);
        tokio::select! {
            never = board.follow() => match never {},
            ended = self.live(kernel) => ended,
        }
    }

    async fn live(mut self, mut kernel: Box<dyn Kernel>) -> Result<(), Failure> {
        // The start can be dropped at every await: the next start adopts what it did.
        let result = match self.shutdown.run_until_cancelled(self.start(&mut *kernel)).await {
            Some(Ok(started)) => {
                // Frees as many leases as the store is about to list.
                self.previous = None;
                drop(kernel);
                return self.serve(started).await;
            }
            Some(Err(error)) => Err(error),
            None => Ok(()),
        };
        self.stopping();
        result
    }

    fn stopping(&self) {
        self.board.enter(Phase::Stopping);
        self.board.emit(AgentEvent::Stopping);
    }

    async fn start(&self, kernel: &mut dyn Kernel) -> Result<Started, Failure> {
        let mut retry = Retry::new(&self.board);
        let Prepared { config, backend, managers, underlay, options } = loop {
            let prepared = self.prepare(kernel).await?;
            let Some(error) = self.hidden_by(&prepared).await else { break prepared };
            let why = retry.failed(&error, "waiting for a network config that can be used");
            self.board.starting(format!("waiting for a network config that can be used: {why}"));
            retry.pause().await;
        };
        let kind = config.backend.kind.clone();
        let mut remarks = addresses::in_network(&config, &options.needed);

        self.board.starting(format!("setting up backend {kind} and taking a lease"));
        let network = self.register(&*backend, &config, &underlay, &options).await?;
        let lease = network.lease().clone();
        remarks.extend(addresses::in_subnet(lease.key, &underlay, &self.store.remedy()));
        for remark in &remarks {
            self.board.emit(AgentEvent::AddressAmongPods { remark: remark.clone() });
        }
        self.board.remark(remarks);
        let overlay_mtu = network.overlay_mtu();
        self.board.emit(AgentEvent::LeaseAcquired { lease: lease.key.to_string(), overlay_mtu });
        let networks = config.networks.map(|_, network| network.network);
        self.board.set_node(Node { lease, networks, backend: kind.clone(), overlay_mtu, underlay });
        let file = SubnetFile {
            networks,
            subnets: network.lease().key.subnets(),
            mtu: overlay_mtu,
            ip_masq: self.firewall.masquerade,
        };
        let before = self.written_before();
        Ok(Started { kind, network, file, managers, before })
    }

    /// Reads the config and checks what this node has for it. Changes nothing.
    async fn prepare(&self, kernel: &mut dyn Kernel) -> Result<Prepared, Failure> {
        let config = self.wait_for_config().await?;
        let kind = config.backend.kind.clone();
        let networks = config.networks.iter().map(|(_, it)| it.network).collect();
        self.board.emit(AgentEvent::ConfigRead { networks, backend: kind.clone() });
        // A wrong backend kind is an error before anything is changed.
        let backend = self.backends.find(&kind)?;
        let managers = self.open_managers(&config).await?;

        self.board.starting("choosing the underlay interface");
        let wanted = self.wait_for_wanted_ips().await?;
        let public_ips =
            PerFamily::from_fn(|family| wanted.get(family).or(self.underlay.public_ips.get(family)).copied());
        let overlay = self.overlay(&config);
        let options = self.underlay.clone().for_config(&config).public_ips(public_ips).overlay(overlay);
        let chosen = self.choose_underlay(kernel, options).await;
        let (underlay, mut options) =
            chosen.map_err(|error| match (error, self.store.wanted_by().filter(|_| !wanted.is_empty())) {
                (Failure::Underlay(source), Some(by)) => Failure::WantedUnderlay { by, source },
                (error, _) => error,
            })?;
        self.board.emit(chosen_event(&underlay));
        options.needed = addresses::needed(kernel, &config, &underlay, &self.store.hosts())
            .await
            .map_err(UnderlayError::from)?;
        Ok(Prepared { config, backend, managers, underlay, options })
    }

    /// Waits as long as necessary: the store may be unavailable, and an operator may still write or correct the config.
    async fn wait_for_config(&self) -> Result<NetworkConfig, Failure> {
        self.board.starting("waiting for the network config");
        let mut retry = Retry::new(&self.board);
        loop {
            match self.store.network_config().await {
                Ok(config) => return Ok(config),
                Err(error) if can_be_mended(&error) => {
                    let why = retry.failed(&error, "waiting for the network config");
                    self.board.starting(format!("waiting for the network config: {why}"));
                }
                Err(error) => return Err(error.into()),
            }
            retry.pause().await;
        }
    }

    /// Asks the store which addresses this node should publish; the answer overrides the flags, as upstream.
    async fn wait_for_wanted_ips(&self) -> Result<PerFamily<IpAddr>, Failure> {
        let mut retry = Retry::new(&self.board);
        loop {
            match self.store.wanted_ips().await {
                Ok(wanted) => return Ok(wanted),
                Err(error) if error.is_transient() => {
                    let why = retry.failed(&error, "waiting for the store");
                    self.board.starting(format!("waiting for the store: {why}"));
                }
                Err(error) => return Err(error.into()),
            }
            retry.pause().await;
        }
    }

    /// What is known of the overlay before it exists, from the config and from the files of earlier runs.
    fn overlay(&self, config: &NetworkConfig) -> Overlay {
        let mut overlay = Overlay::new(config.networks.map(|_, network| network.network));
        for ranges in self.written_before() {
            for (_, range) in ranges.iter() {
                overlay.networks.push(range.network);
                overlay.own.push(range.subnet);
            }
        }
        let devices = self.previous.iter().flat_map(|state| &state.devices);
        overlay.devices.extend(devices.map(|device| device.name.clone()));
        overlay
    }

    /// Chooses the underlay. If its link has several addresses, it keeps the one that this node published last: by the
    /// state file, else by the store's record with one of these addresses.
    async fn choose_underlay(
        &self,
        kernel: &mut dyn Kernel,
        mut options: UnderlayOptions,
    ) -> Result<(Underlay, UnderlayOptions), Failure> {
        let stored = self.previous.as_ref().and_then(|state| state.own.as_ref());
        options.kept = stored.map(|own| own.attrs.public_ips).unwrap_or_default();
        let underlay = underlay::choose(kernel, &options).await?;
        let rivals = if stored.is_some() {
            Vec::new()
        } else {
            underlay::rivals(kernel, &underlay).await.map_err(UnderlayError::from)?
        };
        if rivals.is_empty() {
            return Ok((underlay, options));
        }
        let first = underlay.published.iter().map(|(_, addr)| *addr);
        for addr in first.chain(rivals).collect::<Vec<_>>() {
            let asked = PerFamily::from_fn(|family| (Family::of(addr) == family).then_some(addr));
            if let Some(own) = self.wait_for_published(&asked).await? {
                options.kept = own.public_ips;
                return Ok((underlay::choose(kernel, &options).await?, options));
            }
        }
        Ok((underlay, options))
    }

    async fn wait_for_published(&self, ips: &PerFamily<IpAddr>) -> Result<Option<LeaseAttrs>, Failure> {
        let mut retry = Retry::new(&self.board);
        loop {
            match self.store.published_attrs(ips).await {
                Ok(published) => return Ok(published),
                Err(error) if error.is_transient() => {
                    let why = retry.failed(&error, "waiting for the store");
                    self.board.starting(format!("waiting for the store: {why}"));
                }
                Err(error) => return Err(error.into()),
            }
            retry.pause().await;
        }
    }

    async fn register(
        &self,
        backend: &dyn Backend,
        config: &NetworkConfig,
        underlay: &Underlay,
        options: &UnderlayOptions,
    ) -> Result<Box<dyn Network>, Failure> {
        let mut retry = Retry::new(&self.board);
        loop {
            let events = NetworkEventSender::default();
            let registration = Registration::new(&self.netns, config, underlay, &*self.store)
                .previous(self.previous.as_ref())
                .chosen_by(options)
                .events(&events)
                .blackholes(self.blackholes);
            let registered = backend.register(registration).await;
            if registered.is_err() {
                // No network will tell it.
                self.tell_so_far(&mut events.subscribe());
            }
            match registered {
                Ok(network) => return Ok(network),
                Err(BackendError::Subnet(error)) if error.is_transient() => {
                    let why = retry.failed(&error, "waiting for a lease");
                    self.board.starting(format!("waiting for a lease: {why}"));
                }
                Err(source) => return Err(Failure::Backend { kind: config.backend.kind.clone(), source }),
            }
            retry.pause().await;
        }
    }

    /// Runs a registered network.
    async fn serve(&self, started: Started) -> Result<(), Failure> {
        let Started { kind, network, file, managers, before } = started;
        let (lease, attrs, published) = (network.lease().clone(), network.attrs(), network.attrs());
        let (status, mut events) = (network.status(), network.events());
        self.board.watch_network(status.clone());
        self.board.watch_loop(network.pulse());
        self.board.change_inspectors(|inspectors| inspectors.network = network.inspector());
        let prober = self.options_of_probes().map(|options| {
            let (netns, mtu) = (self.netns.clone(), network.overlay_mtu());
            Prober::new(netns, options, network.probing(), lease.key, mtu, status.clone())
        });
        if let Some(prober) = &prober {
            self.board.watch_probes(prober.status());
        }
        let mut keeper = Remembers(
            self.state_file
                .as_ref()
                .map(|path| Keeper::new(path.clone(), network.state(), self.store.status()))
                .map(|keeper| keeper.telling(self.board.sender())),
        );
        let cancel = CancellationToken::new();
        // The end of this function ends its tasks.
        let _guard = cancel.clone().drop_guard();
        let mut task = tokio::spawn(network.run(self.store.watch_leases(), cancel.clone()));
        let firewall = self.firewall(managers, &file, before).await?;
        let rules = firewall.status();
        self.board.watch_firewall(rules.clone());
        self.board.change_inspectors(|inspectors| inspectors.firewall = Some(firewall.inspector()));
        let mut firewall = tokio::spawn(firewall.run(cancel.clone()));

        let announce = async {
            // A pod may send packets to the world as soon as it starts.
            self.wait_for_rules(rules).await;
            self.write_subnet_file(&file).await;
            self.board.enter(Phase::Running);
            tokio::join!(
                self.follow_mtu(status.clone(), &file),
                self.follow_addresses(published),
                self.tell_store(status)
            )
            .0
        };
        let renewal = async {
            match renew_and_publish(&*self.store, lease, attrs).await {
                Ok(never) => match never {},
                // No other node has this node's subnets, so there is no need for a grace period: the next start uses
                // the new config, or chooses backend data that no other node has.
                Err(error @ (SubnetError::ConfigChanged | SubnetError::Claimed { .. })) => error.into(),
                Err(error) => self.outlive_lease(error).await,
            }
        };
        let result = tokio::select! {
            biased;
            () = self.shutdown.cancelled() => Ok(()),
            ended = &mut task => {
                self.tell_so_far(&mut events);
                self.stopping();
                return Err(why_ended(ended, &kind));
            }
            crashed = &mut firewall => {
                let crashed = crashed.expect_err("it ends only when it is told to");
                Err(Failure::Crashed(crashed))
            }
            error = renewal => Err(error),
            never = announce => match never {},
            never = keeper.run() => match never {},
            never = self.tell_events(&mut events) => match never {},
            never = self.probe(prober) => match never {},
        };
        self.tell_so_far(&mut events);
        self.stopping();
        cancel.cancel();
        self.stop(task, &kind).await;
        self.tell_so_far(&mut events);
        self.stop_rules(firewall).await;
        keeper.finish().await;
        result
    }

    fn options_of_probes(&self) -> Option<ProbeOptions> {
        Some(self.probes).filter(ProbeOptions::is_on)
    }

    /// Probes the peers, if that was asked for.
    async fn probe(&self, prober: Option<Prober>) -> Infallible {
        match prober {
            Some(prober) => prober.run(|event| self.board.emit(event.into())).await,
            None => pending().await,
        }
    }

    /// Tells what happens to the network.
    async fn tell_events(&self, events: &mut NetworkEvents) -> Infallible {
        while let Some(event) = events.recv_timed().await {
            self.board.forward(event);
        }
        // The network ended, which others notice.
        pending().await
    }

    /// Tells what happened to the network and was not told yet, and waits for no more.
    fn tell_so_far(&self, events: &mut NetworkEvents) {
        let _ = unconstrained(self.tell_events(events)).now_or_never();
    }

    /// Tells the store that pods have a network, once the first snapshot is programmed and no other record has
    /// precedence over this node's. Supervisor and subnet file don't wait for that, since pods that already run have
    /// their traffic without the store.
    async fn tell_store(&self, mut status: watch::Receiver<NetworkStatus>) {
        let is_up = |status: &NetworkStatus| {
            status.synced && status.recalled.is_none() && status.problems.texts(&Subject::OwnLease).is_empty()
        };
        // The status ends with the network, whose end is handled elsewhere.
        if status.wait_for(is_up).await.is_ok() {
            self.store.network_is_up();
        }
    }

    /// Updates the MTU in the subnet file when that of the underlay changes.
    async fn follow_mtu(&self, mut status: watch::Receiver<NetworkStatus>, file: &SubnetFile) -> Infallible {
        let mut file = *file;
        loop {
            let changed =
                status.wait_for(|status| status.overlay_mtu.is_some_and(|mtu| mtu != file.mtu)).await;
            let Some(mtu) = changed.ok().and_then(|status| status.overlay_mtu) else {
                // The network ended, which others notice.
                return pending().await;
            };
            self.board.emit(AgentEvent::MtuChanged { before: file.mtu, overlay_mtu: mtu });
            file.mtu = mtu;
            self.write_subnet_file(&file).await;
            self.board.enter(Phase::Running);
        }
    }

    /// Emits an event when this node publishes other addresses.
    async fn follow_addresses(&self, mut attrs: watch::Receiver<LeaseAttrs>) -> Infallible {
        let mut known = attrs.borrow_and_update().public_ips;
        loop {
            let Ok(moved) = attrs.wait_for(|attrs| attrs.public_ips != known).await else {
                // The network ended, which others notice.
                return pending().await;
            };
            known = moved.public_ips;
            drop(moved);
            self.board.emit(AgentEvent::PublishedAddressesChanged { published: texts(&known) });
        }
    }

    /// Keeps the datapath for a grace period and shows the problem in the status. A running agent never changes its
    /// subnet.
    async fn outlive_lease(&self, lost: SubnetError) -> Failure {
        let why = chain(&lost);
        self.board.emit(AgentEvent::LeaseLost { why: why.clone() });
        self.board.enter(Phase::LeaseLost { why });
        tokio::time::sleep(LOST_LEASE_GRACE).await;
        Failure::LeaseLost(lost)
    }

    /// Tries until the file is written: without it no pod can start, but running pods need the network.
    async fn write_subnet_file(&self, file: &SubnetFile) {
        let Some(path) = &self.subnet_file else { return };
        let mut told = false;
        loop {
            match file.write(path) {
                Ok(written) => {
                    let (path, overlay_mtu) = (path.clone(), file.mtu);
                    self.board.emit(AgentEvent::SubnetFileWritten { path, overlay_mtu, written });
                    return;
                }
                Err(error) => {
                    let why = chain(&error);
                    if !std::mem::replace(&mut told, true) {
                        self.board.emit(AgentEvent::SubnetFileRefused { why: why.clone() });
                    }
                    self.board.starting(why);
                }
            }
            tokio::time::sleep(FILE_RETRY).await;
        }
    }

    /// Lets a network that was told to stop finish its last step.
    async fn stop(&self, mut task: JoinHandle<Result<(), BackendError>>, kind: &str) {
        let why = match tokio::time::timeout(FAREWELL, &mut task).await {
            Ok(Ok(Ok(()))) => return,
            Ok(ended) => chain(&why_ended(ended, kind)),
            Err(_) => {
                task.abort();
                "it did not stop in time".to_owned()
            }
        };
        self.board.emit(AgentEvent::StopFailed { part: "network", why });
    }

    /// Lets a change of rules that has begun come to its end.
    async fn stop_rules(&self, mut task: JoinHandle<()>) {
        if tokio::time::timeout(FAREWELL, &mut task).await.is_err() {
            task.abort();
            let why = "they did not settle in time".to_owned();
            self.board.emit(AgentEvent::StopFailed { part: "firewall rules", why });
        }
    }
}

/// Keeps the state file, if there is one.
struct Remembers(Option<Keeper>);

impl Remembers {
    async fn run(&mut self) -> Infallible {
        match &mut self.0 {
            Some(keeper) => keeper.run().await,
            None => pending().await,
        }
    }

    async fn finish(self) {
        if let Some(keeper) = self.0 {
            keeper.finish().await;
        }
    }
}

/// The result of the start.
struct Started {
    kind: String,
    network: Box<dyn Network>,
    file: SubnetFile,
    managers: rules::Opening,
    /// The networks for which rules of earlier runs may be left.
    before: Vec<PerFamily<Range>>,
}

/// What the start reads before it changes anything.
struct Prepared {
    config: NetworkConfig,
    backend: Arc<dyn Backend>,
    managers: rules::Opening,
    underlay: Underlay,
    options: UnderlayOptions,
}

fn texts(addresses: &PerFamily<IpAddr>) -> Vec<String> {
    addresses.iter().map(|(_, addr)| addr.to_string()).collect()
}

fn chosen_event(underlay: &Underlay) -> AgentEvent {
    AgentEvent::UnderlayChosen {
        link: underlay.name.clone(),
        mtu: underlay.mtu,
        local: texts(&underlay.local),
        published: texts(&underlay.published),
        reason: underlay.reason.clone(),
    }
}

/// Whether the config may be corrected, so that waiting helps.
fn can_be_mended(error: &SubnetError) -> bool {
    error.is_transient() || matches!(error, SubnetError::NoConfig { .. } | SubnetError::Config { .. })
}

type Ended = Result<Result<(), BackendError>, JoinError>;

fn why_ended(ended: Ended, kind: &str) -> Failure {
    match ended {
        Ok(Ok(())) => Failure::NetworkEnded,
        Ok(Err(source)) => Failure::Backend { kind: kind.to_owned(), source },
        Err(crash) => Failure::Crashed(crash),
    }
}
