//! The life of the agent, from the network config to the end, over the traits of the core.

mod addresses;
mod hidden;
mod rules;
#[cfg(test)]
mod tests;

use std::convert::Infallible;
use std::future::pending;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use flannel_core::addr::{Family, PerFamily};
use flannel_core::backend::{Backend, BackendError, Network, NetworkStatus, Registration, Underlay};
use flannel_core::config::NetworkConfig;
use flannel_core::firewall::FirewallError;
use flannel_core::firewall::rules::Range;
use flannel_core::kernel::Kernel;
use flannel_core::lease::LeaseAttrs;
use flannel_core::netns::Netns;
use flannel_core::state_file::{Keeper, State};
use flannel_core::status::Subject;
use flannel_core::subnet::{SubnetError, SubnetManager, hold_and_publish};
use flannel_core::subnet_file::SubnetFile;
use flannel_core::underlay::{self, Overlay, UnderlayError, UnderlayOptions};
use tokio::sync::watch;
use tokio::task::{JoinError, JoinHandle};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::registry::UnknownBackend;
use crate::report::chain;
use crate::rules::{OpenManagers, RuleOptions};
use crate::status::{Asked, Board, Step};

/// The first pause between tries, and the longest.
const RETRY: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(5));
/// The pause between tries to write the subnet file.
const FILE_RETRY: Duration = Duration::from_secs(10);
/// How long the datapath of a lost lease is kept, so that an operator can see what happened while pods
/// still have their traffic.
const LOST_LEASE_GRACE: Duration = Duration::from_secs(60);
/// How long the network may take to stop.
const FAREWELL: Duration = Duration::from_secs(5);

/// What a supervisor is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Notice {
    /// The subnet file is there.
    Ready,
    /// The agent ends.
    Stopping,
}

/// Makes the backend of a kind.
pub(crate) type Backends<'a> = dyn Fn(&str) -> Result<Box<dyn Backend>, UnknownBackend> + 'a;

/// The agent and all that it works with.
pub(crate) struct Agent<'a> {
    /// Where the node's part of the network is.
    pub(crate) netns: Netns,
    /// What the operator said about the underlay; the families come from the network config.
    pub(crate) underlay: UnderlayOptions,
    /// Where the subnet file goes.
    pub(crate) subnet_file: PathBuf,
    /// Where the state file goes.
    pub(crate) state_file: PathBuf,
    /// What the state file said at the start.
    pub(crate) previous: Option<State>,
    /// Whether to keep blackhole routes for this node's own subnets.
    pub(crate) blackholes: bool,
    /// Which rules of others on this host the process can't see, and what to do.
    pub(crate) unseen_rules: Option<String>,
    /// What firewall rules there are to be.
    pub(crate) rules: RuleOptions,
    /// What an earlier run, of this agent or of Go's, wrote rules for, as far as the subnet file tells.
    pub(crate) written_for: PerFamily<Range>,
    /// Opens what keeps the rules.
    pub(crate) managers: &'a OpenManagers<'a>,
    /// The store of leases.
    pub(crate) store: &'a dyn SubnetManager,
    /// The hosts of the store's endpoints.
    pub(crate) store_hosts: Vec<String>,
    /// Makes backends by kind.
    pub(crate) backends: &'a Backends<'a>,
    /// Where the agent's status is shown.
    pub(crate) board: &'a Board,
    /// Tells the supervisor.
    pub(crate) notify: &'a dyn Fn(Notice),
    /// Fires when the agent is to stop.
    pub(crate) shutdown: CancellationToken,
}

/// The agent can't go on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RunError {
    /// The store refused something for good.
    #[error(transparent)]
    Store(#[from] SubnetError),
    /// No underlay.
    #[error(transparent)]
    Underlay(#[from] UnderlayError),
    /// No underlay with the addresses that the store wants published.
    #[error("the addresses of {by} can't be used")]
    WantedUnderlay {
        /// What says them there.
        by: String,
        /// Why not.
        source: UnderlayError,
    },
    /// The backend is not in this build.
    #[error("config key Backend.Type can't be used")]
    UnknownBackend(#[from] UnknownBackend),
    /// There is no way to write firewall rules.
    #[error("firewall rules can't be written ({})", rules::asked_by(*.masquerade))]
    Firewall {
        /// Whether masquerading was asked for.
        masquerade: bool,
        /// Why.
        source: FirewallError,
    },
    /// The backend can't start or go on.
    #[error("backend {kind} failed")]
    Backend {
        /// Which one.
        kind: String,
        /// Why.
        source: BackendError,
    },
    /// The network ended by itself, which it never should.
    #[error("the network ended by itself")]
    NetworkEnded,
    /// A bug.
    #[error("the network task crashed; please report this")]
    Crashed(#[source] JoinError),
    /// Another node has our subnets.
    #[error("the lease was lost {} s ago", LOST_LEASE_GRACE.as_secs())]
    LeaseLost(#[source] SubnetError),
}

impl Agent<'_> {
    /// Runs until told to stop, which is a success, or until it can't go on. What is in the kernel stays
    /// there, so that pods keep their traffic.
    pub(crate) async fn run(mut self, kernel: &mut dyn Kernel) -> Result<(), RunError> {
        self.board.watch_store(self.store.status());
        // Every wait of the start-up can simply be dropped: what it did is adopted by the next start.
        let result = match self.shutdown.run_until_cancelled(self.start(kernel)).await {
            Some(Ok(started)) => {
                // As many leases as the store is about to list.
                self.previous = None;
                return self.serve(started).await;
            }
            Some(Err(error)) => Err(error),
            None => Ok(()),
        };
        self.stopping();
        result
    }

    fn asked(&self) -> Asked {
        Asked { rules: self.rules.are_asked_for(), masquerade: self.rules.masquerade }
    }

    fn stopping(&self) {
        self.board.set(Step::Stopping);
        (self.notify)(Notice::Stopping);
    }

    async fn start(&self, kernel: &mut dyn Kernel) -> Result<Started, RunError> {
        let mut retry = Retry::default();
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
        remarks.extend(addresses::in_subnet(network.lease().key, &underlay, &self.store.remedy()));
        for remark in &remarks {
            warn!(remark, "underlay address among the pods' addresses");
        }
        remarks.extend(self.unseen_rules.clone());
        self.board.remark(remarks);
        let file = SubnetFile {
            networks: config.networks.map(|_, network| network.network),
            subnets: network.lease().key.subnets(),
            mtu: network.overlay_mtu(),
            ip_masq: self.rules.masquerade,
        };
        let before = self.written_before();
        Ok(Started { kind, network, file, managers, before })
    }

    /// Reads the config and looks what this node has for it. Touches nothing.
    async fn prepare(&self, kernel: &mut dyn Kernel) -> Result<Prepared, RunError> {
        let config = self.wait_for_config().await?;
        let kind = config.backend.kind.clone();
        let networks: Vec<_> = config.networks.iter().map(|(_, it)| it.network.to_string()).collect();
        info!(networks = networks.join(","), backend = kind, "network config read");
        // A wrong kind is said before anything is touched.
        let backend = (self.backends)(&kind)?;
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
                (RunError::Underlay(source), Some(by)) => RunError::WantedUnderlay { by, source },
                (error, _) => error,
            })?;
        log_underlay(&underlay);
        options.needed = addresses::needed(kernel, &config, &underlay, &self.store_hosts)
            .await
            .map_err(UnderlayError::from)?;
        Ok(Prepared { config, backend, managers, underlay, options })
    }

    /// Waits as long as it takes: the store may be away, and an operator may still write or mend the config.
    async fn wait_for_config(&self) -> Result<NetworkConfig, RunError> {
        self.board.starting("waiting for the network config");
        let mut retry = Retry::default();
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

    /// Asks the store which addresses this node is to publish; what it says wins over the flags, as upstream.
    async fn wait_for_wanted_ips(&self) -> Result<PerFamily<IpAddr>, RunError> {
        let mut retry = Retry::default();
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

    /// What is known of the overlay before it is there: by the config, and by what earlier runs left in their files.
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

    /// Chooses the underlay. Where its link has several addresses, the one that this node published last is kept:
    /// by the state file, else by what the store has of the node with one of these addresses.
    async fn choose_underlay(
        &self,
        kernel: &mut dyn Kernel,
        mut options: UnderlayOptions,
    ) -> Result<(Underlay, UnderlayOptions), RunError> {
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

    async fn wait_for_published(&self, ips: &PerFamily<IpAddr>) -> Result<Option<LeaseAttrs>, RunError> {
        let mut retry = Retry::default();
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
    ) -> Result<Box<dyn Network>, RunError> {
        let mut retry = Retry::default();
        loop {
            let registration = Registration::new(&self.netns, config, underlay, self.store)
                .previous(self.previous.as_ref())
                .chosen_by(options)
                .blackholes(self.blackholes);
            match backend.register(registration).await {
                Ok(network) => return Ok(network),
                Err(BackendError::Subnet(error)) if error.is_transient() => {
                    let why = retry.failed(&error, "waiting for a lease");
                    self.board.starting(format!("waiting for a lease: {why}"));
                }
                Err(source) => return Err(RunError::Backend { kind: config.backend.kind.clone(), source }),
            }
            retry.pause().await;
        }
    }

    /// Runs a registered network.
    async fn serve(&self, started: Started) -> Result<(), RunError> {
        let Started { kind, network, file, managers, before } = started;
        let (lease, attrs) = (network.lease().clone(), network.attrs());
        let status = network.status();
        self.board.watch_network(status.clone());
        let path = self.state_file.clone();
        let mut keeper = Keeper::new(path, network.state(), self.store.status());
        let cancel = CancellationToken::new();
        let mut task = tokio::spawn(network.run(self.store.watch_leases(), cancel.clone()));
        let firewall = self.firewall(managers, &file, before).await?;
        let rules = firewall.status();
        self.board.watch_firewall(rules.clone(), self.asked());
        let mut firewall = tokio::spawn(firewall.run(cancel.clone()));

        let announce = async {
            // A pod that starts may reach for the world at once.
            self.wait_for_rules(rules).await;
            self.write_subnet_file(&file).await;
            self.board.set(Step::Running);
            (self.notify)(Notice::Ready);
            tokio::join!(self.follow_mtu(status.clone(), &file), self.tell_store(status)).0
        };
        let hold = async {
            match hold_and_publish(self.store, lease, attrs).await {
                Ok(never) => match never {},
                // Nobody shares this node's addresses, and the next start does what the new config says, or takes
                // backend data that no other node has.
                Err(error @ (SubnetError::ConfigChanged | SubnetError::Claimed { .. })) => error.into(),
                Err(error) => self.outlive_lease(error).await,
            }
        };
        let result = tokio::select! {
            biased;
            () = self.shutdown.cancelled() => Ok(()),
            ended = &mut task => {
                self.stopping();
                return Err(why_ended(ended, &kind));
            }
            crashed = &mut firewall => {
                let crashed = crashed.expect_err("it ends only when it is told to");
                Err(RunError::Crashed(crashed))
            }
            error = hold => Err(error),
            never = announce => match never {},
            never = keeper.run() => match never {},
        };
        self.stopping();
        cancel.cancel();
        stop(task, &kind).await;
        stop_rules(firewall).await;
        keeper.finish().await;
        result
    }

    /// Tells the store that pods have a network: once peers know this node for what it says. Supervisor and subnet file
    /// don't wait for that, since without the store pods have the traffic that they had.
    async fn tell_store(&self, mut status: watch::Receiver<NetworkStatus>) {
        let is_up = |status: &NetworkStatus| {
            status.synced && status.recalled.is_none() && status.problems.texts(&Subject::OwnLease).is_empty()
        };
        // It ends with the network, which others notice.
        if status.wait_for(is_up).await.is_ok() {
            self.store.network_is_up();
        }
    }

    /// Keeps the MTU in the subnet file true when that of the underlay changes.
    async fn follow_mtu(&self, mut status: watch::Receiver<NetworkStatus>, file: &SubnetFile) -> Infallible {
        let mut file = *file;
        loop {
            let changed =
                status.wait_for(|status| status.overlay_mtu.is_some_and(|mtu| mtu != file.mtu)).await;
            let Some(mtu) = changed.ok().and_then(|status| status.overlay_mtu) else {
                // The network ended, which others notice.
                return pending().await;
            };
            warn!(before = file.mtu.0, overlay_mtu = mtu.0, "pod MTU changed; pods that run keep theirs");
            file.mtu = mtu;
            self.write_subnet_file(&file).await;
            self.board.set(Step::Running);
        }
    }

    /// Pods keep their traffic for a while, and the status says what is wrong. Never renumber while running.
    async fn outlive_lease(&self, lost: SubnetError) -> RunError {
        let why = chain(&lost);
        error!(error = why, "lease lost; the datapath stays, and the agent ends in a minute");
        self.board.set(Step::LeaseLost(why));
        tokio::time::sleep(LOST_LEASE_GRACE).await;
        RunError::LeaseLost(lost)
    }

    /// Tries until it is there: without it no pod can start, but those that run need the network.
    async fn write_subnet_file(&self, file: &SubnetFile) {
        let mut told = false;
        loop {
            match file.write(&self.subnet_file) {
                Ok(written) => {
                    let path = self.subnet_file.display();
                    info!(%path, overlay_mtu = file.mtu.0, written, "subnet file is in place");
                    return;
                }
                Err(error) => {
                    let why = chain(&error);
                    if !std::mem::replace(&mut told, true) {
                        warn!(error = why, "not ready; trying again");
                    }
                    self.board.starting(why);
                }
            }
            tokio::time::sleep(FILE_RETRY).await;
        }
    }
}

/// What the start leads to.
struct Started {
    kind: String,
    network: Box<dyn Network>,
    file: SubnetFile,
    managers: rules::Opening,
    /// What rules may be left for.
    before: Vec<PerFamily<Range>>,
}

/// What a start needs before it touches anything.
struct Prepared {
    config: NetworkConfig,
    backend: Box<dyn Backend>,
    managers: rules::Opening,
    underlay: Underlay,
    options: UnderlayOptions,
}

fn log_underlay(underlay: &Underlay) {
    let list = |addresses: flannel_core::addr::PerFamily<std::net::IpAddr>| {
        addresses.iter().map(|(_, addr)| addr.to_string()).collect::<Vec<_>>().join(",")
    };
    info!(
        link = underlay.name,
        mtu = underlay.mtu.0,
        local = list(underlay.local),
        published = list(underlay.published),
        reason = %underlay.reason,
        "underlay chosen"
    );
}

/// Whether waiting for the config can help.
fn can_be_mended(error: &SubnetError) -> bool {
    error.is_transient() || matches!(error, SubnetError::NoConfig { .. } | SubnetError::Config { .. })
}

type Ended = Result<Result<(), BackendError>, JoinError>;

fn why_ended(ended: Ended, kind: &str) -> RunError {
    match ended {
        Ok(Ok(())) => RunError::NetworkEnded,
        Ok(Err(source)) => RunError::Backend { kind: kind.to_owned(), source },
        Err(crash) => RunError::Crashed(crash),
    }
}

/// Lets a network that was told to stop finish its last step.
async fn stop(mut task: JoinHandle<Result<(), BackendError>>, kind: &str) {
    match tokio::time::timeout(FAREWELL, &mut task).await {
        Ok(Ok(Ok(()))) => {}
        Ok(ended) => warn!(error = chain(&why_ended(ended, kind)), "the network failed while it stopped"),
        Err(_) => {
            task.abort();
            warn!("the network did not stop in time");
        }
    }
}

/// Lets a change of rules that has begun come to its end.
async fn stop_rules(mut task: JoinHandle<()>) {
    if tokio::time::timeout(FAREWELL, &mut task).await.is_err() {
        task.abort();
        warn!("the firewall rules did not settle in time");
    }
}

/// Tries again and again, with growing pauses, and logs only what is new.
#[derive(Default)]
struct Retry {
    tries: u32,
    told: Option<String>,
}

impl Retry {
    /// Notes a failure and returns its text. Stores log their outages themselves.
    fn failed(&mut self, error: &SubnetError, doing: &'static str) -> String {
        let why = chain(error);
        if !matches!(error, SubnetError::Unavailable { .. }) && self.told.as_ref() != Some(&why) {
            warn!(error = why, "{doing}");
            self.told = Some(why.clone());
        }
        why
    }

    /// Waits before the next try; the jitter keeps nodes that fail together from trying together.
    async fn pause(&mut self) {
        let pause = RETRY.0.saturating_mul(1 << self.tries.min(8)).min(RETRY.1);
        self.tries += 1;
        tokio::time::sleep(pause.mul_f64(0.75 + fastrand::f64() / 2.0)).await;
    }
}
