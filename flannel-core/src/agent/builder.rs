//! What an agent is made of.

use std::path::PathBuf;
use std::sync::Arc;

use tokio::runtime::Handle;

use super::error::{AgentError, Failure};
use super::firewall::FirewallOptions;
use super::handle::Agent;
use super::leave::{self, LeavePlan};
use super::place::Place;
use super::setup::{Backends, Setup};
use crate::backend::Backend;
#[cfg(any(test, feature = "testing"))]
use crate::kernel::Kernel;
use crate::kernel::KernelError;
use crate::netns::Netns;
use crate::subnet::SubnetManager;
use crate::underlay::UnderlayOptions;

/// Makes an [`Agent`]. Everything but store and backend has a usual value.
#[derive(Debug, Clone)]
#[must_use]
pub struct AgentBuilder(Setup);

impl Agent {
    /// An agent of this store, with everything else yet to be said.
    pub fn builder(store: Arc<dyn SubnetManager>) -> AgentBuilder {
        AgentBuilder(Setup {
            store,
            backends: Backends::default(),
            underlay: UnderlayOptions::auto(),
            subnet_file: None,
            state_file: None,
            blackholes: false,
            firewall: FirewallOptions::default(),
            remarks: Vec::new(),
            netns: None,
            place: Place::real(),
        })
    }
}

impl AgentBuilder {
    /// Adds a way to carry packets. Which one is used is said by the network config, by [`Backend::kind`]; of two of a
    /// kind the first counts. Those that are not used tell [`Agent::leave`] by which devices leftovers are known.
    pub fn backend(self, backend: impl Backend + 'static) -> Self {
        self.shared_backend(Arc::new(backend))
    }

    /// The same for a backend that is somebody else's, too.
    pub fn shared_backend(mut self, backend: Arc<dyn Backend>) -> Self {
        self.0.backends.add(backend);
        self
    }

    /// Says how the underlay is chosen. Families and overlay are filled in from the network config, addresses that the
    /// store wants published win over those said here. Without a word it is the link of the default route.
    pub fn underlay(mut self, options: UnderlayOptions) -> Self {
        self.0.underlay = options;
        self
    }

    /// The network namespace that the node's part of the network is in: all that the agent and its backend open, read and
    /// change on the host. Without a word it is that of the thread that calls [`Self::start`]. The store is reached from
    /// wherever it was made.
    pub fn netns(mut self, netns: Netns) -> Self {
        self.0.netns = Some(netns);
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
        let managers = move |_, _, _, _| -> futures::future::BoxFuture<'static, _> {
            Box::pin(std::future::ready(Ok(managers())))
        };
        self.0.place = Place::new(Arc::new(move |_: &Netns| kernel()), Arc::new(managers));
        self
    }

    /// Starts the agent as tasks of the tokio runtime around the call. Nothing blocks: it waits inside for store, config
    /// and lease, and tries again.
    ///
    /// The error says that there is no runtime, or no netlink (the agent needs `CAP_NET_ADMIN`).
    pub fn start(mut self) -> Result<Agent, AgentError> {
        if Handle::try_current().is_err() {
            return Err(Failure::NoRuntime.into());
        }
        let netns = self.0.netns().map_err(Failure::from)?;
        let kernel = self.0.place.open_kernel(&netns).map_err(Failure::from)?;
        // Its tasks may run on threads that are elsewhere.
        self.0.netns = Some(netns.clone());
        Ok(Agent::spawn(Arc::new(self.0), netns, kernel))
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
