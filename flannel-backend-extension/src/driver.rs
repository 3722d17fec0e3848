//! The extension backend's part of the reconcile loop: which commands nodes need, and the commands that run.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use async_trait::async_trait;
use flannel_core::addr::Family;
use flannel_core::backend::{HostProblem, Underlay};
use flannel_core::config::{BackendConfig, ConfigError};
use flannel_core::dataplane::Object;
use flannel_core::kernel::{Kernel, KernelError, KernelEvent, Scope};
use flannel_core::lease::{BackendData, Lease, LeaseAttrs, LeaseKey};
use flannel_core::peers::{Claim, Peer, PeerError};
use flannel_core::reconcile::{AppliedConfig, Devices, Driver, PeerWork};
use flannel_core::status::{Harm, Problem, Subject};
use tokio::task::{Id, JoinError, JoinSet};
use tokio::time::{Instant, sleep_until};
use tracing::{info, warn};

use crate::command::{CommandError, Request, Run};
use crate::config::{ExtensionConfig, KIND, POST_STARTUP, SUBNET_ADD, SUBNET_REMOVE};
use crate::node::Node;
use crate::table::{Action, Input, Job, Table};
use crate::values::Values;
use crate::words::Template;

/// How many commands run at once.
const AT_ONCE: usize = 8;

/// How the command of a node ended.
type Ended = (LeaseKey, Result<(), String>);

/// Runs a command with the values of a node.
pub(crate) fn request(
    command: &Template,
    config: &ExtensionConfig,
    environment: &BTreeMap<String, String>,
    input: Option<&Input>,
) -> Request {
    let variables = input.map(|input| input.values.variables()).unwrap_or_default();
    let value = |name: &str| {
        let of_node = variables.iter().find(|(of, _)| *of == name).map(|(_, value)| value.clone());
        of_node.or_else(|| environment.get(name).cloned())
    };
    let args = command.fill(value);
    let input = input.map(|input| input.data.clone()).unwrap_or_default();
    Request { args, variables, input, limit: config.timeout }
}

/// This node, its peers, and the commands for them.
pub(crate) struct ExtensionDriver {
    node: Node,
    config: ExtensionConfig,
    /// What the command before the start printed.
    data: Option<BackendData>,
    runner: Arc<dyn Run>,
    /// The environment by which variables in commands are replaced that are not a node's.
    environment: Arc<BTreeMap<String, String>>,
    table: Table,
    /// Whether the command of this node's start has succeeded.
    started: bool,
    running: JoinSet<Ended>,
    /// Whose commands run.
    leases: HashMap<Id, LeaseKey>,
}

impl ExtensionDriver {
    pub(crate) fn new(
        node: Node,
        config: ExtensionConfig,
        data: Option<BackendData>,
        runner: Arc<dyn Run>,
        environment: Arc<BTreeMap<String, String>>,
        table: Table,
    ) -> Self {
        Self {
            node,
            config,
            data,
            runner,
            environment,
            table,
            started: false,
            running: JoinSet::new(),
            leases: HashMap::new(),
        }
    }

    /// This node's own values; `None` before it has its lease.
    fn own(&self) -> Option<(LeaseKey, Input)> {
        let key = self.node.own?;
        let lease = Lease { key, attrs: self.attrs(), created: 0 };
        let values = Values::of(&lease, self.node.networks);
        Some((key, Input { values, data: String::new() }))
    }

    /// The command of a job, and the key that has it.
    fn command(&self, job: &Job) -> (&'static str, Option<&Template>) {
        match job.action {
            _ if Some(job.lease) == self.node.own => (POST_STARTUP, self.config.post_startup.as_ref()),
            Action::Add => (SUBNET_ADD, self.config.subnet_add.as_ref()),
            Action::Remove => (SUBNET_REMOVE, self.config.subnet_remove.as_ref()),
        }
    }

    /// Runs the command of this node's start to its end.
    async fn start(&mut self) -> Option<String> {
        let (key, input) = self.own()?;
        if self.started {
            return None;
        }
        if let Some(command) = &self.config.post_startup {
            let request = request(command, &self.config, &self.environment, Some(&input));
            if let Err(error) = self.runner.run(request).await {
                return Some(format!("{POST_STARTUP}: {error}"));
            }
        }
        self.table.was_added(key, input);
        self.started = true;
        None
    }

    /// Starts the commands that are due, as many as may run at once.
    fn go_on(&mut self) {
        while self.running.len() < AT_ONCE
            && let Some(job) = self.table.start()
        {
            let (key, command) = self.command(&job);
            let Some(command) = command else {
                self.table.ended(job.lease, Ok(()), Instant::now());
                continue;
            };
            let request = request(command, &self.config, &self.environment, Some(&job.input));
            let (runner, lease) = (Arc::clone(&self.runner), job.lease);
            let run = async move {
                let result = runner.run(request).await;
                (lease, tell(key, lease, &result))
            };
            let id = self.running.spawn(run).id();
            self.leases.insert(id, lease);
        }
    }

    fn ended(&mut self, ended: Result<(Id, Ended), JoinError>) {
        let (id, lease, result) = match ended {
            Ok((id, (lease, result))) => (id, Some(lease), result),
            Err(error) => (error.id(), None, Err(format!("a task crashed, please report this: {error}"))),
        };
        let known = self.leases.remove(&id);
        if let Some(lease) = lease.or(known) {
            self.table.ended(lease, result, Instant::now());
        }
    }
}

/// Logs how a command ended.
fn tell(key: &str, lease: LeaseKey, result: &Result<String, CommandError>) -> Result<(), String> {
    match result {
        Ok(said) => {
            info!(command = key, subnet = %lease, output = last_line(said), "command succeeded");
            Ok(())
        }
        Err(error) => {
            let reason = format!("{key}: {error}; it is tried again");
            warn!(command = key, subnet = %lease, %error, "command failed; trying again");
            Err(reason)
        }
    }
}

/// The last line of what a command printed, if it is a short one.
fn last_line(said: &str) -> Option<&str> {
    said.lines().next_back().filter(|line| line.len() < 200)
}

/// What a node publishes for the commands of others: text, as a JSON string.
fn data_of(peer: &Peer) -> Option<String> {
    peer.data.as_ref().map_or(Some(String::new()), |data| data.decode().ok())
}

#[async_trait]
impl Driver for ExtensionDriver {
    async fn ensure_devices(&mut self, kernel: &mut dyn Kernel) -> Result<Devices, KernelError> {
        let mut devices = self.node.look(kernel).await?;
        if devices.problems.is_empty() {
            devices.problems.extend(self.start().await);
        }
        Ok(devices)
    }

    fn set_lease(&mut self, lease: &Lease) {
        self.node.own = Some(lease.key);
    }

    /// The command of this node's start is run again with the new addresses.
    fn set_underlay(&mut self, underlay: &Underlay) -> Result<(), HostProblem> {
        self.node.set_underlay(underlay)?;
        if let Some((key, input)) = self.own().filter(|_| self.started) {
            self.table.desire(key, input);
            self.go_on();
        }
        Ok(())
    }

    fn apply_config(&mut self, next: &BackendConfig, _: Vec<String>) -> Result<AppliedConfig, ConfigError> {
        let (now, applied) = self.config.towards(ExtensionConfig::parse(next)?);
        let is_new = now.subnet_add != self.config.subnet_add;
        self.config = now;
        if is_new {
            self.table.add_again(self.node.own);
            self.go_on();
        }
        Ok(applied)
    }

    fn attrs(&self) -> LeaseAttrs {
        let mut attrs = LeaseAttrs {
            public_ips: self.node.underlay.published,
            backend_type: KIND.to_owned(),
            ..LeaseAttrs::default()
        };
        attrs.backend_data.v4.clone_from(&self.data);
        attrs
    }

    fn own_objects(&self) -> Vec<Object> {
        Vec::new()
    }

    fn own_claims(&self) -> Vec<Claim> {
        self.node.claims()
    }

    fn peer(&self, lease: &Lease) -> Result<Peer, PeerError> {
        PeerError::check_backend(&lease.attrs, KIND)?;
        let data = lease.attrs.backend_data.get(Family::V4).cloned();
        let peer = Peer { data, ..self.node.peer(lease)? };
        match data_of(&peer) {
            Some(_) => Ok(peer),
            None => Err(PeerError::Unreadable(format!("BackendData is no string; {}", LeaseAttrs::MEND))),
        }
    }

    fn set_peers(&mut self, peers: &mut dyn Iterator<Item = (&LeaseKey, &Peer)>) {
        let networks = self.node.networks;
        let input = |(key, peer): (&LeaseKey, &Peer)| {
            let mut attrs = LeaseAttrs::default();
            for claim in &peer.claims {
                if let Claim::Underlay(addr) = claim {
                    *attrs.public_ips.get_mut(Family::of(*addr)) = Some(*addr);
                }
            }
            let values = Values::of(&Lease { key: *key, attrs, created: 0 }, networks);
            (*key, Input { values, data: data_of(peer).unwrap_or_default() })
        };
        self.table.desire_all(peers.map(input).collect(), self.node.own);
        self.go_on();
    }

    fn prune_peers(&mut self, is_unreadable: &dyn Fn(&LeaseKey) -> bool) {
        self.table.prune(is_unreadable);
        self.go_on();
    }

    fn work_for(&self, peer: &LeaseKey) -> PeerWork {
        self.table.work_for(peer)
    }

    fn failed_peers(&self) -> Vec<LeaseKey> {
        let failures = self.table.failures(Action::Add).map(|(lease, _)| lease);
        failures.filter(|lease| Some(*lease) != self.node.own).collect()
    }

    /// What failed for this node itself, and for nodes that are gone.
    fn problems(&self) -> Vec<Problem> {
        let of = |key: &str, harm, text: String| Problem::new(Subject::Command(key.to_owned()), harm, text);
        let own = self.table.failures(Action::Add).find(|(lease, _)| Some(*lease) == self.node.own);
        let own = own.map(|(_, reason)| of(POST_STARTUP, Harm::Some, reason.to_owned()));
        let mut gone = self.table.failures(Action::Remove);
        let first = gone.next();
        let more = gone.count();
        let gone = first.map(|(lease, reason)| {
            let more = if more > 0 { format!(" (and for {more} more)") } else { String::new() };
            of(SUBNET_REMOVE, Harm::None, format!("lease {lease}, which is gone: {reason}{more}"))
        });
        own.into_iter().chain(gone).collect()
    }

    async fn attention(&mut self) {
        loop {
            let due = self.table.due();
            let retry = async {
                match due {
                    Some(at) => sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                Some(ended) = self.running.join_next_with_id() => {
                    self.ended(ended);
                    self.go_on();
                    return;
                }
                () = retry => {
                    self.table.wake(Instant::now());
                    self.go_on();
                }
            }
        }
    }

    fn changed_peers(&mut self) -> Option<Vec<LeaseKey>> {
        Some(self.table.changed())
    }

    fn scopes(&self) -> Vec<Scope> {
        Vec::new()
    }

    fn owns(&self, _: &Object) -> bool {
        false
    }

    fn concerns(&self, event: &KernelEvent) -> bool {
        self.node.concerns(event)
    }
}
