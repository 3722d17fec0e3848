//! A cluster with a store and an agent on every node: what tests, benches, the demo and the soak are built on.
//!
//! ```no_run
//! use std::path::Path;
//! use std::time::Duration;
//!
//! use flannel_lab::bed::Bed;
//! use flannel_lab::cluster::Cluster;
//! use flannel_lab::store::{Folder, Store as _};
//!
//! # fn main() -> Result<(), flannel_lab::LabError> {
//! let cluster = Cluster::builder().nodes(2).build()?;
//! let bed = Bed::new(cluster, Folder::new("/run/store")?, Path::new("flanneld")).flags(["--iface=eth0"]);
//! bed.store.put_config(r#"{ "Network": "10.244.0.0/16", "Backend": { "Type": "vxlan" } }"#)?;
//! bed.start(1)?;
//! bed.wait_ready(1, Duration::from_secs(20))?;
//! println!("{:?}", bed.env(1)?);
//! # Ok(())
//! # }
//! ```

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::LabError;
use crate::agent::{Agent, AgentBuilder};
use crate::cluster::Cluster;
use crate::flanneld::ready;
use crate::netns::Netns;
use crate::node::Node;
use crate::store::Store;
use crate::subnet_env::SubnetEnv;
use crate::wait::wait_for;

/// The port of every agent's health server.
pub const HEALTH_PORT: u16 = 8471;

/// The folder below which subnet files are, unless told.
pub const FOLDER: &str = "/run/flannel";

/// An agent on a node, started by a launcher (a program and its arguments before the agent's), with the flags that all
/// agents have. A [`Bed`] does the rest, unless its one store is too few.
pub fn flanneld<S: Store>(node: &Node, program: &[&str], store: &S, subnet_file: &Path) -> AgentBuilder {
    let agent = node.agent("flanneld", program[0]).args(&program[1..]);
    let env = store.env(node.name()).into_iter();
    env.fold(agent, |agent, (key, value)| agent.env(key, value))
        // Nodes share a file system, but not a key.
        .env("WIREGUARD_KEY_FILE", subnet_file.with_file_name("wgkey").display().to_string())
        .arg(format!("--subnet-file={}", subnet_file.display()))
        .arg(format!("--healthz-port={HEALTH_PORT}"))
        .args(store.flags())
}

/// Nodes with a store and agents.
#[derive(Debug)]
pub struct Bed<S> {
    // In the order in which they are dropped: an agent needs its node.
    agents: Mutex<BTreeMap<u8, Arc<Agent>>>,
    /// Where leases are.
    pub store: S,
    /// The nodes.
    pub cluster: Cluster,
    /// What runs the agents: a program, and its arguments before the agent's.
    pub launcher: Vec<String>,
    /// Flags of all agents.
    pub flags: Vec<String>,
    folder: PathBuf,
}

impl<S: Store> Bed<S> {
    /// A cluster whose agents are not started yet.
    pub fn new(cluster: Cluster, store: S, flanneld: &Path) -> Self {
        Self {
            agents: Mutex::default(),
            store,
            cluster,
            launcher: vec![flanneld.display().to_string()],
            flags: Vec::new(),
            folder: FOLDER.into(),
        }
    }

    /// Adds flags for all agents.
    pub fn flags<F: Into<String>>(mut self, flags: impl IntoIterator<Item = F>) -> Self {
        self.flags.extend(flags.into_iter().map(Into::into));
        self
    }

    /// Puts subnet files below this folder.
    pub fn folder(mut self, folder: impl Into<PathBuf>) -> Self {
        self.folder = folder.into();
        self
    }

    /// A node.
    pub fn node(&self, number: u8) -> &Node {
        self.cluster.node(number)
    }

    /// A node's namespace.
    pub fn netns(&self, number: u8) -> &Netns {
        self.node(number).netns()
    }

    /// The file that a node's agent writes for the CNI plugin.
    pub fn subnet_file(&self, number: u8) -> PathBuf {
        self.folder.join(format!("node{number}/subnet.env"))
    }

    /// What a node's agent wrote for the CNI plugin.
    pub fn env(&self, number: u8) -> Result<SubnetEnv, LabError> {
        SubnetEnv::read(&self.subnet_file(number))
    }

    /// The agent of a node as it is started here, to be given more flags and started by the caller.
    pub fn flanneld(&self, number: u8) -> AgentBuilder {
        let program = self.launcher.iter().map(String::as_str).collect::<Vec<_>>();
        flanneld(self.node(number), &program, &self.store, &self.subnet_file(number)).args(&self.flags)
    }

    /// Starts a node's agent, in the place of the one before, and does not wait for it.
    pub fn start(&self, number: u8) -> Result<(), LabError> {
        self.keep(number, &self.flanneld(number))
    }

    /// Starts this agent as a node's, in place of the one before.
    pub fn keep(&self, number: u8, agent: &AgentBuilder) -> Result<(), LabError> {
        let agent = agent.start()?;
        self.lock().insert(number, agent.into());
        Ok(())
    }

    /// A node's agent.
    ///
    /// # Panics
    ///
    /// If it was not started.
    #[track_caller]
    pub fn agent(&self, number: u8) -> Arc<Agent> {
        let agent = self.lock().get(&number).cloned();
        agent.unwrap_or_else(|| panic!("the agent of node {number} was not started"))
    }

    /// All agents that were started, by the numbers of their nodes.
    pub fn agents(&self) -> Vec<Arc<Agent>> {
        self.lock().values().cloned().collect()
    }

    /// The numbers of the nodes whose agents were started.
    pub fn numbers(&self) -> Vec<u8> {
        self.lock().keys().copied().collect()
    }

    /// Waits until a node's agent says that it is ready. Fails at once if it ends.
    pub fn wait_ready(&self, number: u8, deadline: Duration) -> Result<(), LabError> {
        let agent = self.agent(number);
        wait_for(deadline, &format!("{} to be ready", agent.name()), || match agent.exit_status() {
            Some(status) => Ok(Err(status)),
            None => ready(self.netns(number), HEALTH_PORT).map(Ok),
        })?
        .map_err(|status| LabError::Ended {
            name: agent.name().to_owned(),
            status,
            log: agent.last_lines(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<u8, Arc<Agent>>> {
        self.agents.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
