//! Runs a registered network until its end, with all that goes on beside it.

use std::convert::Infallible;
use std::future::pending;
use std::time::Duration;

use futures::FutureExt;
use tokio::sync::watch;
use tokio::task::{JoinError, JoinHandle, unconstrained};
use tokio_util::sync::CancellationToken;

use super::{AgentEvent, Failure, Life, Phase, Started, texts};
use crate::agent::error::LOST_LEASE_GRACE;
use crate::backend::{BackendError, NetworkStatus, Probing};
use crate::error::chain;
use crate::events::NetworkEvents;
use crate::lease::LeaseAttrs;
use crate::probe::{ProbeOptions, Prober};
use crate::state_file::Keeper;
use crate::status::Subject;
use crate::subnet::{SubnetError, renew_and_publish};
use crate::subnet_file::SubnetFile;

/// The pause between attempts to write the subnet file.
const FILE_RETRY: Duration = Duration::from_secs(10);
/// How long the network may take to stop.
const FAREWELL: Duration = Duration::from_secs(5);

impl Life {
    /// Runs a registered network.
    pub(super) async fn serve(&self, started: Started) -> Result<(), Failure> {
        let Started { kind, network, file, managers, before } = started;
        let (lease, attrs, published) = (network.lease().clone(), network.attrs(), network.attrs());
        let (status, mut events) = (network.status(), network.events());
        self.board.watch_network(status.clone());
        self.board.watch_loop(network.pulse());
        self.board.change_inspectors(|inspectors| inspectors.network = network.inspector());
        let (mut probing, mut probings) = (network.probing(), network.probing_changes());
        let (own, mtu, of_network) = (lease.key, network.overlay_mtu(), status.clone());
        let probes = async {
            let Some(options) = self.options_of_probes() else { return pending().await };
            loop {
                let prober = Prober::new(self.netns.clone(), options, probing, own, mtu, of_network.clone());
                self.board.watch_probes(prober.status());
                // What is known of peers that are reached by another backend now says nothing of them.
                probing = tokio::select! {
                    never = prober.run(|event| self.board.emit(event.into())) => match never {},
                    next = other_probing(&mut probings) => next,
                };
            }
        };
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
            never = Box::pin(probes) => never,
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

    /// Tells what happens to the network.
    async fn tell_events(&self, events: &mut NetworkEvents) -> Infallible {
        while let Some(event) = events.recv_timed().await {
            self.board.forward(event);
        }
        // The network ended, which others notice.
        pending().await
    }

    /// Tells what happened to the network and was not told yet, and waits for no more.
    pub(super) fn tell_so_far(&self, events: &mut NetworkEvents) {
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

    /// Shows what this node publishes, and emits an event when it has other addresses.
    async fn follow_addresses(&self, mut attrs: watch::Receiver<LeaseAttrs>) -> Infallible {
        let mut known = attrs.borrow_and_update().public_ips;
        while attrs.changed().await.is_ok() {
            let now = attrs.borrow_and_update().clone();
            if now.public_ips != known {
                known = now.public_ips;
                self.board.emit(AgentEvent::PublishedAddressesChanged { published: texts(&known) });
            }
            self.board.set_published(now);
        }
        // The network ended, which others notice.
        pending().await
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

/// Waits until the network is probed otherwise.
async fn other_probing(changes: &mut Option<watch::Receiver<Option<Probing>>>) -> Option<Probing> {
    if let Some(changes) = changes
        && changes.changed().await.is_ok()
    {
        return changes.borrow_and_update().clone();
    }
    pending().await
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

type Ended = Result<Result<(), BackendError>, JoinError>;

fn why_ended(ended: Ended, kind: &str) -> Failure {
    match ended {
        Ok(Ok(())) => Failure::NetworkEnded,
        Ok(Err(source)) => Failure::Backend { kind: kind.to_owned(), source },
        Err(crash) => Failure::Crashed(crash),
    }
}
