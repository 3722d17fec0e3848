//! The own node: its name, what the cluster assigned to it, and what it publishes.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use flannel_core::addr::{Family, PerFamily};
use flannel_core::clock::BootInstant;
use flannel_core::config::NetworkConfig;
use flannel_core::lease::{Lease, LeaseAttrs, LeaseKey};
use flannel_core::subnet::SubnetError;
use serde_json::{Value, json};
use tracing::{debug, info};

use super::Store;
use super::annotations::{Annotation, BadAnnotation, address, changes, removal};
use super::client::{CallError, get, patch};
use super::node::{Condition, NodeObject, revision_of};
use super::options::NodeIdentity;

/// How long one read of the own node serves several calls of a start.
const FRESH: Duration = Duration::from_secs(2);

/// The own node as last seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum OwnNode {
    /// The API server has no such node.
    Gone,
    There(OwnObject),
}

/// The parts of the own node that we need.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct OwnObject {
    pub(super) node: NodeObject,
    pub(super) condition: Condition,
}

/// The own node as last read or written.
#[derive(Debug, Clone)]
pub(super) struct Recent {
    at: BootInstant,
    pub(super) own: OwnObject,
    pub(super) revision: Option<u64>,
}

impl OwnObject {
    /// Adds what only the whole object has, from the one before it.
    fn complete(&mut self, before: &OwnNode) {
        if let OwnNode::There(before) = before
            && before.node.uid == self.node.uid
            && self.node.pod_cidrs.is_none()
        {
            self.node.pod_cidrs.clone_from(&before.node.pod_cidrs);
        }
    }

    /// Adds what only the whole object has, from one that was read or written; the condition if that is no older.
    pub(super) fn complete_by(&mut self, recent: &Recent) {
        self.complete(&OwnNode::There(recent.own.clone()));
        let Condition::Unseen(Some(seen)) = self.condition else { return };
        if recent.own.node.uid == self.node.uid && recent.revision >= Some(seen) {
            self.condition = recent.own.condition.clone();
        }
    }
}

impl Store {
    /// The name of our node. It is read once.
    pub(super) async fn node_name(&self) -> Result<Arc<str>, SubnetError> {
        let found = self.name.get_or_try_init(|| async {
            match &self.options.node {
                NodeIdentity::Name(name) => Ok(Arc::from(name.as_str())),
                NodeIdentity::Pod { namespace, name } => self.node_of_pod(namespace, name).await,
            }
        });
        found.await.cloned()
    }

    async fn node_of_pod(&self, namespace: &str, name: &str) -> Result<Arc<str>, SubnetError> {
        let request = get(&format!("/api/v1/namespaces/{namespace}/pods/{name}"));
        let text = self.call("read our pod", request, self.options.timeouts.request).await?;
        let pod: Value =
            serde_json::from_str(&text).map_err(|error| self.bad_answer("read our pod", &error))?;
        let node = pod["spec"]["nodeName"].as_str().filter(|node| is_object_name(node));
        let node = node.ok_or_else(|| SubnetError::NotAssigned {
            what: format!(
                "pod {namespace}/{name} is on no node by spec.nodeName; set NODE_NAME for the agent"
            ),
        })?;
        info!(node, "name of this node read from its pod");
        Ok(node.into())
    }

    /// Reads the whole object of a node, which is no older than a revision. With one the server can answer from memory,
    /// without asking etcd.
    pub(super) async fn read_node(
        &self,
        what: &'static str,
        name: &str,
        revision: Option<u64>,
    ) -> Result<String, CallError> {
        let (path, limit) = (format!("/api/v1/nodes/{name}"), self.options.timeouts.request);
        if let Some(revision) = revision {
            let request = get(&format!("{path}?resourceVersion={revision}"));
            match self.call(what, request, limit).await {
                // The server does not know the revision, or not yet.
                Err(error) if error.is_expired() || error.is_refused() => {}
                answer => return answer,
            }
        }
        self.call(what, get(&path), limit).await
    }

    /// Reads the own node.
    pub(super) async fn read_own(&self) -> Result<OwnObject, SubnetError> {
        self.read_own_at(None).await
    }

    /// Reads the own node, which is no older than a revision.
    pub(super) async fn read_own_at(&self, revision: Option<u64>) -> Result<OwnObject, SubnetError> {
        let name = self.node_name().await?;
        let text = match self.read_node("read our node", &name, revision).await {
            Ok(text) => text,
            Err(error) if error.is_not_found() => {
                let what = format!(
                    "the API server knows no node {name:?}; is the kubelet registered, and is NODE_NAME the node's name?"
                );
                return Err(SubnetError::NotAssigned { what });
            }
            Err(error) => return Err(error.into()),
        };
        let own = self.decode_own(&text).map_err(|reason| self.bad_answer("read our node", &reason))?;
        self.remember_own(own.clone(), &text);
        Ok(own)
    }

    /// The own node, from the cache or read now.
    pub(super) async fn recent_own(&self) -> Result<OwnObject, SubnetError> {
        match self.recent(FRESH) {
            Some(recent) => Ok(recent.own),
            None => self.read_own().await,
        }
    }

    /// The own node, if it was read or written within this time.
    pub(super) fn recent(&self, age: Duration) -> Option<Recent> {
        let recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner).clone();
        recent.filter(|recent| self.options.clock.now().since(recent.at) < age)
    }

    fn remember_own(&self, own: OwnObject, json: &str) {
        let recent = Recent { at: self.options.clock.now(), own, revision: revision_of(json) };
        *self.recent.lock().unwrap_or_else(PoisonError::into_inner) = Some(recent);
    }

    fn decode_own(&self, json: &str) -> Result<OwnObject, String> {
        let node = NodeObject::decode(json, &self.names).map_err(|bad| bad.reason)?;
        Ok(OwnObject { node, condition: NodeObject::condition(json) })
    }

    /// Records that the watch saw the own node, or that there is none.
    pub(super) fn saw_own(&self, json: Option<&str>) {
        let mut seen = match json.map(|json| self.decode_own(json)) {
            None => OwnNode::Gone,
            Some(Ok(own)) => OwnNode::There(own),
            // It will be read when it is needed.
            Some(Err(_)) => return,
        };
        self.own_seen.send_if_modified(|known| {
            if let (OwnNode::There(own), Some(before)) = (&mut seen, &known) {
                own.complete(before);
            }
            let is_news = known.as_ref() != Some(&seen);
            *known = Some(seen);
            is_news
        });
    }

    /// Records that there is no watch that would see the own node.
    pub(super) fn forget_own(&self) {
        self.own_seen.send_replace(None);
    }

    /// The addresses that the operator wants published, by annotations of the node.
    pub(super) async fn wanted_ips(&self) -> Result<PerFamily<IpAddr>, SubnetError> {
        let own = self.recent_own().await?;
        let annotations = &own.node.annotations;
        PerFamily::try_from_fn(|family| address(annotations, Annotation::NodePublicIp(family), family))
            .map_err(|error| self.bad_annotation(&own.node, &error))
    }

    pub(super) async fn published(&self) -> Result<Option<LeaseAttrs>, SubnetError> {
        match self.recent_own().await {
            Ok(own) => Ok(own.node.published()),
            // It has published nothing yet.
            Err(SubnetError::NotAssigned { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    pub(super) async fn acquire(&self, attrs: &LeaseAttrs) -> Result<Lease, SubnetError> {
        let config = self.config()?;
        let own = self.recent_own().await?;
        let key = self.assigned(&own.node, &config)?;
        self.write(&own.node, attrs).await?;
        debug!(subnet = %key, node = %own.node.name, "subnet of the node");
        Ok(Lease { key, attrs: attrs.clone(), created: own.node.created })
    }

    pub(super) async fn publish(&self, lease: &Lease, attrs: &LeaseAttrs) -> Result<Lease, SubnetError> {
        if attrs.public_ips != lease.attrs.public_ips {
            // Open connections may use an address that the host no longer has, which nothing reports.
            self.clients.renew();
            self.moved.send_replace(());
        }
        let own = self.read_own().await?;
        check_held(&own.node, lease.key)?;
        self.write(&own.node, attrs).await?;
        Ok(Lease { key: lease.key, attrs: attrs.clone(), created: own.node.created })
    }

    pub(super) async fn release(&self, lease: &Lease) -> Result<(), SubnetError> {
        let own = match self.read_own().await {
            Err(SubnetError::NotAssigned { .. }) => return Ok(()),
            own => own?,
        };
        if check_held(&own.node, lease.key).is_err() {
            return Ok(());
        }
        self.patch_annotations(&own.node, removal(&own.node.annotations)).await
    }

    /// The subnets of the node, which must be assigned and inside the network.
    fn assigned(&self, node: &NodeObject, config: &NetworkConfig) -> Result<LeaseKey, SubnetError> {
        let families: Vec<Family> = config.families().collect();
        let bad = |why: String| SubnetError::Conflict(format!("node {}: {why}", node.name));
        let subnets = node.assigned(&families).map_err(bad)?;
        for (family, network) in config.networks.iter() {
            let Some(subnet) = subnets.get(family) else {
                let what = format!(
                    "node {} has no {family} subnet in spec.podCIDRs yet; kube-controller-manager assigns them with \
                     --allocate-node-cidrs and a --cluster-cidr of each family that {} enables",
                    node.name,
                    self.options.net_config.display()
                );
                return Err(SubnetError::NotAssigned { what });
            };
            if !network.network.covers(*subnet) {
                return Err(bad(format!(
                    "its podCIDR {subnet} is outside of the network {} in {}; both must agree with --cluster-cidr of \
                     kube-controller-manager",
                    network.network,
                    self.options.net_config.display()
                )));
            }
        }
        node.key(&families).map_err(bad)?.ok_or_else(|| bad("it has no subnet".to_owned()))
    }

    /// The annotations to write so that the node publishes `attrs`.
    pub(super) fn missing_annotations(
        &self,
        node: &NodeObject,
        attrs: &LeaseAttrs,
    ) -> Result<BTreeMap<Annotation, Option<String>>, SubnetError> {
        changes(attrs, &node.annotations).map_err(|error| self.bad_annotation(node, &error))
    }

    async fn write(&self, node: &NodeObject, attrs: &LeaseAttrs) -> Result<(), SubnetError> {
        self.patch_annotations(node, self.missing_annotations(node, attrs)?).await
    }

    /// Writes annotations, if there are any to write. It patches the status, for which the role of Go flannel is
    /// enough.
    async fn patch_annotations(
        &self,
        node: &NodeObject,
        changes: BTreeMap<Annotation, Option<String>>,
    ) -> Result<(), SubnetError> {
        if changes.is_empty() {
            return Ok(());
        }
        let pairs: serde_json::Map<String, Value> = changes
            .into_iter()
            .map(|(name, value)| (self.names.full(name).to_owned(), value.into()))
            .collect();
        // With the uid the server refuses a patch of a node that was created again meanwhile.
        let body = json!({"metadata": {"uid": node.uid, "annotations": pairs}});
        self.patch_own(node, "write the annotations of our node", &body).await
    }

    /// Sets the condition that the node's network is up.
    pub(super) async fn patch_condition(&self, node: &NodeObject) -> Result<(), SubnetError> {
        let now = k8s_openapi::jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
        let condition = json!({
            "type": "NetworkUnavailable",
            "status": "False",
            "lastHeartbeatTime": now,
            "lastTransitionTime": now,
            "reason": "FlannelIsUp",
            "message": "Flannel is running on this node",
        });
        let body = json!({"status": {"conditions": [condition]}});
        self.patch_own(node, "set NetworkUnavailable of our node to False", &body).await
    }

    async fn patch_own(
        &self,
        node: &NodeObject,
        what: &'static str,
        body: &Value,
    ) -> Result<(), SubnetError> {
        let request = patch(&format!("/api/v1/nodes/{}/status", node.name), body);
        let answer = self.call(what, request, self.options.timeouts.request).await;
        // The cached node is older than the write; after a failure its state is unknown.
        let text = match answer {
            // It was written, and the watch will show the node.
            Err(error) if error.is_too_large => {
                self.forget_recent();
                return Ok(());
            }
            answer => answer.inspect_err(|_| self.forget_recent())?,
        };
        match self.decode_own(&text) {
            Ok(own) => self.remember_own(own, &text),
            Err(_) => self.forget_recent(),
        }
        Ok(())
    }

    fn forget_recent(&self) {
        *self.recent.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    fn bad_annotation(&self, node: &NodeObject, error: &BadAnnotation) -> SubnetError {
        let what = format!(
            "node {}: annotation {} = {:?} {}; mend or remove it",
            node.name,
            self.names.full(error.annotation),
            error.value,
            error.problem
        );
        SubnetError::NotAssigned { what }
    }
}

/// Whether the node still has the subnet.
pub(super) fn check_held(node: &NodeObject, key: LeaseKey) -> Result<(), SubnetError> {
    let families: Vec<Family> = key.subnets().families().collect();
    match node.key(&families) {
        Ok(Some(now)) if now == key => Ok(()),
        Ok(Some(now)) => {
            let holder = format!("nobody, since node {} was made anew with {now}", node.name);
            Err(SubnetError::LeaseLost { key, holder })
        }
        Ok(None) => {
            let what = format!("node {} has no podCIDR any more; it had {key}", node.name);
            Err(SubnetError::NotAssigned { what })
        }
        Err(why) => Err(SubnetError::Conflict(format!("node {}: {why}", node.name))),
    }
}

/// Whether a text can be the name of an object (RFC 1123 subdomain), since it becomes part of paths.
pub(super) fn is_object_name(text: &str) -> bool {
    let is_name = |it: char| it.is_ascii_lowercase() || it.is_ascii_digit() || matches!(it, '-' | '.');
    !text.is_empty() && text.len() <= 253 && text.chars().all(is_name) && !text.starts_with('.')
}
