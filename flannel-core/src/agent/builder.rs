//! The builder of an agent.

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
use crate::probe::ProbeOptions;
use crate::subnet::SubnetManager;
use crate::underlay::UnderlayOptions;

/// Makes an [`Agent`]. Everything but store and backend has a default.
#[derive(Debug, Clone)]
#[must_use]
pub struct AgentBuilder(Setup);

impl Agent {
    /// A builder for an agent with this store. Everything else has its default.
    pub fn builder(store: Arc<dyn SubnetManager>) -> AgentBuilder {
        AgentBuilder(Setup {
            store,
            backends: Backends::default(),
            underlay: UnderlayOptions::auto(),
            subnet_file: None,
            state_file: None,
            blackholes: false,
            firewall: FirewallOptions::default(),
            probes: ProbeOptions::default(),
            remarks: Vec::new(),
            netns: None,
            place: Place::real(),
        })
    }
}

impl AgentBuilder {
    /// Adds a backend. The network config chooses one of them, by [`Backend::kind`]; of two of the same kind the first
    /// counts. The devices of all of them are recognised as leftovers by [`Agent::leave`].
    pub fn backend(self, backend: impl Backend + 'static) -> Self {
        self.shared_backend(Arc::new(backend))
    }

    /// The same for a shared backend.
    pub fn shared_backend(mut self, backend: Arc<dyn Backend>) -> Self {
        self.0.backends.add(backend);
        self
    }

    /// The backends that were added, so that others can ask them what the agent will: whether a network config can be used
    /// ([`Backend::check`]), or which devices are theirs.
    pub fn backends(&self) -> &[Arc<dyn Backend>] {
        self.0.backends.all()
    }

    /// Sets how the underlay is chosen; by default it is the link of the default route. The agent fills in families and
    /// overlay from the network config. Addresses that the store wants published override those given here.
    pub fn underlay(mut self, options: UnderlayOptions) -> Self {
        self.0.underlay = options;
        self
    }

    /// Sets the network namespace in which the agent and its backend open, read and change everything on the host. By
    /// default it is that of the thread that calls [`Self::start`]. The store connects from the namespace in which it
    /// was made.
    pub fn netns(mut self, netns: Netns) -> Self {
        self.0.netns = Some(netns);
        self
    }

    /// Sets the path of the subnet file (`/run/flannel/subnet.env`), from which container runtimes and the CNI plugin
    /// learn this node's subnets. Without it no file is written, and `flanneld cleanup` does not see that the agent
    /// runs.
    pub fn subnet_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.0.subnet_file = Some(path.into());
        self
    }

    /// Sets the path of the state file, in which the agent remembers over restarts what is its own;
    /// [`state_file_of`](super::state_file_of) returns the usual path. Without it nothing is remembered: the agent
    /// waits for its store at each start, and leaves alone what only the file could prove to be its own.
    pub fn state_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.0.state_file = Some(path.into());
        self
    }

    /// Sets which firewall rules the agent keeps.
    pub fn firewall(mut self, options: FirewallOptions) -> Self {
        self.0.firewall = options;
        self
    }

    /// Sets whether and how the agent probes its peers. By default it does not.
    pub fn probes(mut self, options: ProbeOptions) -> Self {
        self.0.probes = options;
        self
    }

    /// Sets whether to keep a blackhole route for each of this node's own subnets, so that packets to addresses that no
    /// pod has are dropped here. For hosts without a bridge.
    pub fn blackholes(mut self, blackholes: bool) -> Self {
        self.0.blackholes = blackholes;
        self
    }

    /// Adds a remark of the embedding program for operators. It is shown with the agent's own notes.
    pub fn remark(mut self, remark: impl Into<String>) -> Self {
        self.0.remarks.push(remark.into());
        self
    }

    /// Uses a fake kernel and fake firewall managers, for tests.
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

    /// Starts the agent as tasks of the current tokio runtime. It does not block: the tasks wait for store, config and
    /// lease, and try again.
    ///
    /// It fails without a runtime, without netlink sockets (the agent needs `CAP_NET_ADMIN`), or if a regular expression
    /// for the underlay's interface is none.
    ///
    /// # Panics
    /// If the runtime was built without I/O (`enable_io`). The agent also needs time (`enable_time`).
    pub fn start(mut self) -> Result<Agent, AgentError> {
        if Handle::try_current().is_err() {
            return Err(Failure::NoRuntime.into());
        }
        self.0.underlay.check().map_err(Failure::from)?;
        let netns = self.0.netns().map_err(Failure::from)?;
        let kernel = self.0.place.open_kernel(&netns).map_err(Failure::from)?;
        // The tasks may run on threads in other namespaces.
        self.0.netns = Some(netns.clone());
        Ok(Agent::spawn(Arc::new(self.0), netns, kernel))
    }

    /// Plans the removal of everything that agents with these files left on this host, after they have ended: devices,
    /// routes, rules and files. The lease stays.
    pub async fn plan_cleanup(&self) -> Result<LeavePlan, KernelError> {
        leave::plan_for(&Arc::new(self.0.clone()), None, false).await
    }

    /// The same, and releases the lease.
    pub async fn plan_leave(&self) -> Result<LeavePlan, KernelError> {
        leave::plan_for(&Arc::new(self.0.clone()), None, true).await
    }
}
