//! The Kubernetes API as a store: the cluster assigns subnets to nodes (`spec.podCIDRs`), and nodes publish their
//! addresses in annotations. The wire forms are those of Go flannel, next to which it works.
//!
//! - All nodes are listed once, in pages or by a watch that begins with them if the server supports that. From there one
//!   watch follows their metadata alone (`PartialObjectMetadata`), which has all of a lease but its subnets, and resumes
//!   after disconnects where it was. Only the lease of a node is kept, so a kubelet's heartbeat costs only finding that
//!   nothing has changed.
//! - Subnets never change while a node exists, so each is read once: from the list, or by one GET for a node that joins
//!   later, when its agent publishes. After the server forgot the history (410), only metadata is listed again, unless many
//!   nodes are new.
//! - A server that does not send metadata alone (406, or whole objects in its place) is asked for whole objects.
//! - A node takes part once it carries the annotation `kube-subnet-manager: "true"` and has a subnet; a node without is
//!   no error. An unreadable node keeps its last readable state, and is named.
//! - If two nodes have the same subnet, all agents name the younger one (created later), and that one does not get
//!   `NetworkUnavailable: False`.
//! - A node publishes without comparing with other nodes first, since a list of all nodes at each start would be too
//!   expensive for the API server. The first snapshot of the watch shows conflicts.
//! - A lease has no end here: a node has its subnets for as long as its `Node` object is there. So there is nothing to renew,
//!   and [`StoreStatus::lease_term`](flannel_core::subnet::StoreStatus::lease_term) stays `None`.
//! - Annotations are written to `nodes/<own>/status`, and only those that differ. If somebody changes them later, they
//!   are set back. So is the condition `NetworkUnavailable`. It is no metadata, so once the network is up each change of the
//!   own node costs one GET of it: its kubelet's heartbeats, and one a second at most.
//! - Rights: pods get (only without a node name), nodes get, list and watch, nodes/status patch.
//!
//! Upstream: `pkg/subnet/kube`; differences are explained in the code where they are.

mod annotations;
mod asking;
mod client;
mod examine;
mod explain;
mod feed;
#[cfg(any(test, feature = "testing"))]
#[doc(hidden)]
pub mod fuzz;
mod known;
mod net_conf;
mod node;
mod options;
mod outline;
mod own;
mod page;
mod remedy;
mod renew;
#[cfg(test)]
mod tests;
mod view;
mod watch;

use std::convert::Infallible;
use std::fmt;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use async_trait::async_trait;
use flannel_core::addr::{Family, PerFamily};
use flannel_core::config::NetworkConfig;
use flannel_core::dataplane::command::word;
use flannel_core::lease::{Lease, LeaseAttrs, LeaseKey, brief};
use flannel_core::subnet::kit::Health;
use flannel_core::subnet::{
    ConfigStream, Examination, LeaseStream, Remedy, StoreStatus, SubnetError, SubnetManager,
};
use http::Request;
use tokio::sync::{OnceCell, watch as channel};
use tokio::time::Instant;

use self::annotations::Annotation;
pub use self::annotations::{AnnotationPrefix, AnnotationPrefixError};
pub use self::client::{ApiUrlError, check_api_url};
use self::client::{CallError, Clients};
use self::known::Known;
use self::node::Names;
pub use self::options::{KubeAccess, KubeOptions, KubeTimeouts, NodeIdentity};
use self::own::{OwnNode, Recent, is_object_name};

/// The Kubernetes API as a store. A clone shares connections and status.
#[derive(Debug, Clone)]
pub struct KubeSubnetManager(Arc<Store>);

#[derive(Debug)]
struct Store {
    options: KubeOptions,
    names: Names,
    clients: Clients,
    health: Health,
    /// The name of our node, once it is known.
    name: OnceCell<Arc<str>>,
    /// The own node as last read, and when.
    recent: Mutex<Option<Recent>>,
    /// The own node as the watch sees it; `None` while there is no watch.
    own_seen: channel::Sender<Option<OwnNode>>,
    /// Whether pods of this node have a network.
    is_up: channel::Sender<bool>,
    /// Why our node must not get pods: by the watch, an older node has its subnet.
    rival: channel::Sender<Option<String>>,
    /// The nodes, as the newest watch knows them.
    nodes: Mutex<Weak<Mutex<Known>>>,
    /// Tells the watch that our address has changed.
    moved: channel::Sender<()>,
    /// The config that was returned last.
    used_config: Mutex<Option<NetworkConfig>>,
}

impl KubeSubnetManager {
    /// Checks names, the URL and the kubeconfig; does not connect yet.
    pub fn new(options: KubeOptions) -> Result<Self, SubnetError> {
        let names: Vec<&String> = match &options.node {
            NodeIdentity::Name(name) => vec![name],
            NodeIdentity::Pod { namespace, name } => vec![namespace, name],
        };
        if let Some(bad) = names.into_iter().find(|name| !is_object_name(name)) {
            return Err(SubnetError::Refused {
                what: format!("use {bad:?} as the name of our node or pod"),
                source: "it is no name of a Kubernetes object; is NODE_NAME, or POD_NAME and POD_NAMESPACE, right?".into(),
            });
        }
        let clients = Clients::new(options.access.clone(), options.timeouts.clone())?;
        Ok(Self(Arc::new(Store {
            names: Names::new(&options.annotations),
            options,
            clients,
            health: Health::new("kube"),
            name: OnceCell::new(),
            recent: Mutex::default(),
            own_seen: channel::Sender::new(None),
            is_up: channel::Sender::new(false),
            rival: channel::Sender::new(None),
            nodes: Mutex::default(),
            moved: channel::Sender::new(()),
            used_config: Mutex::default(),
        })))
    }
}

/// Compiles the code in the README.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

#[async_trait]
impl SubnetManager for KubeSubnetManager {
    async fn network_config(&self) -> Result<NetworkConfig, SubnetError> {
        let config = self.0.config()?;
        // The config file does not show whether the store answers, so the own node is read first.
        match self.0.recent_own().await {
            Ok(_) | Err(SubnetError::NotAssigned { .. }) => {}
            Err(error) => return Err(error),
        }
        *self.0.used_config.lock().unwrap_or_else(PoisonError::into_inner) = Some(config.clone());
        Ok(config)
    }

    fn config_changes(&self) -> Option<ConfigStream> {
        Some(net_conf::changes(Arc::clone(&self.0)))
    }

    async fn wanted_ips(&self) -> Result<PerFamily<IpAddr>, SubnetError> {
        self.0.wanted_ips().await
    }

    fn wanted_by(&self) -> Option<String> {
        let [v4, v6] = Family::ALL.map(|family| self.0.names.full(Annotation::NodePublicIp(family)));
        Some(format!("annotations {v4} and {v6} of node {}", self.0.name.get()?))
    }

    async fn published_attrs(&self, _: &PerFamily<IpAddr>) -> Result<Option<LeaseAttrs>, SubnetError> {
        // The node is identified by its name, whatever its address is.
        self.0.published().await
    }

    async fn acquire_lease(&self, attrs: &LeaseAttrs) -> Result<Lease, SubnetError> {
        let lease = self.0.acquire(attrs).await?;
        self.0.health.set_lost(None);
        Ok(lease)
    }

    async fn publish(&self, lease: &Lease, attrs: &LeaseAttrs) -> Result<Lease, SubnetError> {
        let published = self.0.publish(lease, attrs).await;
        if let Err(lost @ SubnetError::LeaseLost { .. }) = &published {
            self.0.health.set_lost(Some(lost.to_string()));
        }
        published
    }

    async fn renew_lease(&self, lease: &Lease) -> Result<Infallible, SubnetError> {
        self.0.keep_renewed(lease).await
    }

    async fn release_lease(&self, lease: &Lease) -> Result<(), SubnetError> {
        self.0.release(lease).await
    }

    fn watch_leases(&self) -> LeaseStream {
        watch::stream(Arc::clone(&self.0))
    }

    fn network_is_up(&self) {
        self.0.is_up.send_replace(true);
    }

    fn knows_node_by_name(&self) -> bool {
        true
    }

    fn hosts(&self) -> Vec<String> {
        self.0.clients.host().into_iter().collect()
    }

    fn remedy(&self) -> Remedy {
        remedy::of(&self.0)
    }

    fn status(&self) -> channel::Receiver<StoreStatus> {
        self.0.health.subscribe()
    }

    async fn examine(&self) -> Examination {
        self.0.examine().await
    }

    fn place(&self) -> String {
        match &self.0.options.node {
            NodeIdentity::Name(name) => format!("kube:{name}"),
            // The pod is another one at each start, so it does not identify the store.
            NodeIdentity::Pod { .. } => "kube".to_owned(),
        }
    }

    /// What makes a node one of the network is an annotation.
    fn release_command(&self, _: LeaseKey) -> Option<String> {
        let node = match &self.0.options.node {
            NodeIdentity::Name(name) => word(name),
            NodeIdentity::Pod { .. } => "$NODE_NAME".to_owned(),
        };
        let managed = self.0.options.annotations.name(Annotation::Managed.suffix());
        Some(format!("kubectl annotate node {node} {managed}-"))
    }
}

impl Store {
    /// A call with a complete answer. The status records whether there was one.
    async fn call(
        &self,
        what: &'static str,
        request: Request<Vec<u8>>,
        limit: Duration,
    ) -> Result<String, CallError> {
        self.note(what, self.clients.call(what, request, limit)).await
    }

    /// Makes a call, and records in the status whether the server works.
    async fn note<T>(
        &self,
        what: &'static str,
        call: impl Future<Output = Result<T, CallError>>,
    ) -> Result<T, CallError> {
        let began = Instant::now();
        let answer = call.await;
        let outage = answer.as_ref().err().filter(|error| error.is_outage());
        self.health.count(what, began, outage.is_none());
        match outage {
            Some(error) => self.health.fail(error.to_string()),
            None => self.health.succeed(),
        }
        answer
    }

    fn bad_answer(&self, what: &str, error: &dyn fmt::Display) -> CallError {
        let error = CallError::new(
            &format!("{what} at {}", self.clients.server()),
            format!("no such answer: {}", brief(&error.to_string())),
        );
        self.health.fail(error.to_string());
        error
    }
}
