//! What an agent is made of.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use super::error::{AgentError, Failure, UnknownBackend};
use super::event::AgentEvent;
use super::firewall::{FirewallOptions, ranges};
use super::handle::Agent;
use super::leave::{self, LeavePlan};
use super::life::Life;
use super::place::Place;
use super::status::{Board, Phase};
use super::{lock, memory};
use crate::backend::{Backend, DeviceKind};
use crate::kernel::{Kernel, KernelError};
use crate::state_file::StoredOn;
use crate::subnet::{Remembering, SubnetManager};
use crate::subnet_file;
use crate::underlay::UnderlayOptions;

/// The backends of an agent. The network config names one of them by its kind.
#[derive(Clone, Default)]
pub(super) struct Backends(Vec<Arc<dyn Backend>>);

impl fmt::Debug for Backends {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.iter().map(|backend| backend.kind())).finish()
    }
}

impl Backends {
    /// The backend of a kind.
    pub(super) fn find(&self, kind: &str) -> Result<Arc<dyn Backend>, UnknownBackend> {
        let found = self.0.iter().find(|backend| backend.kind() == kind).cloned();
        found.ok_or_else(|| {
            let known = self.0.iter().map(|backend| backend.kind().to_owned()).collect();
            UnknownBackend { kind: kind.to_owned(), known }
        })
    }

    /// The devices that they make.
    pub(super) fn devices(&self) -> Vec<DeviceKind> {
        self.0.iter().flat_map(|backend| backend.devices().iter().copied()).collect()
    }
}

/// What was said of an agent.
#[derive(Clone)]
pub(super) struct Setup {
    pub(super) store: Arc<dyn SubnetManager>,
    pub(super) backends: Backends,
    pub(super) underlay: UnderlayOptions,
    pub(super) subnet_file: Option<PathBuf>,
    pub(super) state_file: Option<PathBuf>,
    pub(super) blackholes: bool,
    pub(super) firewall: FirewallOptions,
    pub(super) remarks: Vec<String>,
    pub(super) place: Place,
}

impl fmt::Debug for Setup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Setup")
            .field("store", &self.store.place())
            .field("backends", &self.backends)
            .field("subnet_file", &self.subnet_file)
            .finish_non_exhaustive()
    }
}

/// Makes an [`Agent`]. Everything but store and backend has a usual value.
#[derive(Debug, Clone)]
#[must_use]
pub struct AgentBuilder(Setup);

impl AgentBuilder {
    pub(super) fn new(store: Arc<dyn SubnetManager>) -> Self {
        Self(Setup {
            store,
            backends: Backends::default(),
            underlay: UnderlayOptions::default(),
            subnet_file: None,
            state_file: None,
            blackholes: false,
            firewall: FirewallOptions::default(),
            remarks: Vec::new(),
            place: Place::current(),
        })
    }

    /// Adds a way to carry packets. Which one is used is said by the network config, by [`Backend::kind`]; of two of a
    /// kind the first counts. Those that are not used tell [`Agent::leave`] by which devices leftovers are known.
    pub fn backend(self, backend: impl Backend + 'static) -> Self {
        self.shared_backend(Arc::new(backend))
    }

    /// The same for a backend that is somebody else's, too.
    pub fn shared_backend(mut self, backend: Arc<dyn Backend>) -> Self {
        self.0.backends.0.push(backend);
        self
    }

    /// Says how the underlay is chosen. Families and overlay are filled in from the network config, addresses that the
    /// store wants published win over those said here. Without a word it is the link of the default route.
    pub fn underlay(mut self, options: UnderlayOptions) -> Self {
        self.0.underlay = options;
        self
    }

    /// Where the subnet file goes (`/run/flannel/subnet.env`), by which container runtimes and the CNI plugin learn this
    /// node's subnets. Without one nothing is written, and nobody is kept from cleaning up beside the agent.
    pub fn subnet_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.0.subnet_file = Some(path.into());
        self
    }

    /// Where the agent remembers what is its own over restarts; [`state_file_of`](super::state_file_of) says the usual
    /// place. Without one nothing is remembered: the agent waits for its store at each start, and leaves alone what only
    /// the file could prove to be its own.
    pub fn state_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.0.state_file = Some(path.into());
        self
    }

    /// Which firewall rules the agent keeps.
    pub fn firewall(mut self, options: FirewallOptions) -> Self {
        self.0.firewall = options;
        self
    }

    /// Whether to keep a blackhole route for each of this node's own subnets, so that packets to addresses that no pod
    /// has end here. For hosts without a bridge.
    pub fn blackholes(mut self, blackholes: bool) -> Self {
        self.0.blackholes = blackholes;
        self
    }

    /// Adds something that an operator should know of the process around the agent. It is shown beside the agent's own
    /// notes.
    pub fn remark(mut self, remark: impl Into<String>) -> Self {
        self.0.remarks.push(remark.into());
        self
    }

    /// Works with a kernel and managers of rules that were made elsewhere: those of a test.
    #[cfg(any(test, feature = "testing"))]
    pub fn fakes(
        mut self,
        kernel: impl Fn() -> Result<Box<dyn Kernel>, KernelError> + Send + Sync + 'static,
        managers: impl Fn() -> crate::firewall::Managers + Send + Sync + 'static,
    ) -> Self {
        let managers = move |_, _, _| -> futures::future::BoxFuture<'static, _> {
            Box::pin(std::future::ready(Ok(managers())))
        };
        self.0.place = Place::new(Arc::new(kernel), Arc::new(managers));
        self
    }

    /// Starts the agent as tasks of the tokio runtime around the call. Nothing blocks: it waits inside for store, config
    /// and lease, and tries again.
    ///
    /// The error says that there is no runtime, or no netlink (the agent needs `CAP_NET_ADMIN`).
    pub fn start(self) -> Result<Agent, AgentError> {
        if Handle::try_current().is_err() {
            return Err(Failure::NoRuntime.into());
        }
        let kernel = self.0.place.open_kernel().map_err(Failure::from)?;
        Ok(Agent::spawn(Arc::new(self.0), kernel))
    }

    /// What it takes to remove all that agents with these files left on this host, after they have ended: devices,
    /// routes, rules and files. The lease stays.
    pub async fn plan_cleanup(&self) -> Result<LeavePlan, KernelError> {
        leave::plan_for(&Arc::new(self.0.clone()), None, false).await
    }

    /// The same, and the lease is released.
    pub async fn plan_leave(&self) -> Result<LeavePlan, KernelError> {
        leave::plan_for(&Arc::new(self.0.clone()), None, true).await
    }
}

impl Setup {
    /// Runs the agent to its end.
    pub(super) async fn live(
        self: Arc<Self>,
        mut kernel: Box<dyn Kernel>,
        board: Arc<Board>,
        shutdown: CancellationToken,
    ) -> Result<(), Failure> {
        let begun = shutdown.run_until_cancelled(self.begin(&mut *kernel, &board, &shutdown)).await;
        let Some(begun) = begun else {
            board.enter(Phase::Stopping);
            return Ok(());
        };
        let (life, _running) = begun?;
        life.run(kernel).await
    }

    /// Reads what earlier runs left, and makes the store know this node by it.
    async fn begin(
        &self,
        kernel: &mut dyn Kernel,
        board: &Arc<Board>,
        shutdown: &CancellationToken,
    ) -> Result<(Life, Option<std::fs::File>), Failure> {
        let running = match &self.subnet_file {
            Some(path) => lock::hold(path).await,
            None => None,
        };
        let journal = &board.journal;
        let previous = self.subnet_file.as_deref().map(subnet_file::read_previous).unwrap_or_default();
        for problem in &previous.problems {
            journal.emit(AgentEvent::OldSubnetFile { problem: problem.clone() });
        }
        let mut state = self.state_file.as_deref().and_then(|path| memory::recall(path, journal));
        let host = memory::read_host(kernel, state.as_ref(), &previous).await?;
        let stored_on = memory::check_host(state.as_ref(), &host, journal);
        let place = self.store.place();
        // Without a file there is nothing to tell of it.
        let stand_in =
            self.state_file.is_some().then(|| memory::stand_in(state.as_ref(), &place, stored_on, journal));
        self.store.identify(memory::identity(&previous, state.as_ref(), &place, stored_on, &host));
        let store = Arc::new(Remembering::new(Arc::clone(&self.store), stand_in.flatten()));
        if let Some(state) = state.as_mut().filter(|_| stored_on == StoredOn::AnotherHost) {
            // What it published is another machine's, which may live.
            (state.own, state.former_ips) = (None, Vec::new());
        }
        let subnets = previous.key.map(|key| key.subnets()).unwrap_or_default();
        let life = Life {
            underlay: self.underlay.clone(),
            subnet_file: self.subnet_file.clone(),
            state_file: self.state_file.clone(),
            previous: state,
            blackholes: self.blackholes,
            firewall: self.firewall,
            written_for: ranges(previous.networks, subnets),
            place: self.place.clone(),
            store,
            backends: self.backends.clone(),
            board: Arc::clone(board),
            shutdown: shutdown.clone(),
        };
        Ok((life, running))
    }
}
