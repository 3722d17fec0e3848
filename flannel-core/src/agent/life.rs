//! What the agent does from the network config to its end, using only the traits of the core.

mod addresses;
mod begin;
mod hidden;
mod prepare;
mod retry;
mod rules;
mod serve;
#[cfg(test)]
mod tests;

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use tokio_util::sync::CancellationToken;

pub(super) use self::begin::live;
use self::prepare::Prepared;
use self::retry::Retry;
use super::error::Failure;
use super::event::AgentEvent;
use super::firewall::FirewallOptions;
use super::node::Node;
use super::place::Place;
use super::setup::Backends;
use super::status::{Board, Phase};
use crate::addr::PerFamily;
use crate::backend::{Backend, BackendError, Network, Registration, Underlay};
use crate::config::NetworkConfig;
use crate::events::NetworkEventSender;
use crate::firewall::rules::Range;
use crate::kernel::Kernel;
use crate::netns::Netns;
use crate::probe::ProbeOptions;
use crate::state_file::State;
use crate::subnet::SubnetManager;
use crate::subnet_file::SubnetFile;
use crate::underlay::UnderlayOptions;

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
        let Prepared { config, told, backend, managers, underlay, options } = loop {
            let prepared = self.prepare(kernel).await?;
            let Some(error) = self.hidden_by(&prepared).await else { break prepared };
            let why = retry.failed(&error, "waiting for a network config that can be used");
            self.board.starting(format!("waiting for a network config that can be used: {why}"));
            retry.pause().await;
        };
        let kind = config.backend.kind.clone();
        let mut remarks = addresses::in_network(&config, &options.needed);

        self.board.starting(format!("setting up backend {kind} and taking a lease"));
        let network = self.register(&*backend, (&config, told.as_ref()), &underlay, &options).await?;
        let lease = network.lease().clone();
        remarks.extend(addresses::in_subnet(lease.key, &underlay, &self.store.remedy()));
        for remark in &remarks {
            self.board.emit(AgentEvent::AddressAmongPods { remark: remark.clone() });
        }
        if !config.backend.mixing.fallback.is_empty() && !self.probes.is_on() {
            remarks.push(
                "Backend.Fallback has no effect on what this node sends: only probes prove that a tunnel is blocked; start with \
                 --probe=auto"
                    .to_owned(),
            );
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

    async fn register(
        &self,
        backend: &dyn Backend,
        (config, told): (&NetworkConfig, Option<&NetworkConfig>),
        underlay: &Underlay,
        options: &UnderlayOptions,
    ) -> Result<Box<dyn Network>, Failure> {
        let mut retry = Retry::new(&self.board);
        loop {
            let events = NetworkEventSender::default();
            let registration = Registration::new(&self.netns, config, underlay, &*self.store)
                .previous(self.previous.as_ref())
                .chosen_by(options)
                .beside(self.backends.all())
                .told(told)
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

fn texts(addresses: &PerFamily<IpAddr>) -> Vec<String> {
    addresses.iter().map(|(_, addr)| addr.to_string()).collect()
}
