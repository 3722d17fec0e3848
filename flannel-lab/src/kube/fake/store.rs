//! What the server knows: nodes, pods, the revision, and the changes of late.

use std::borrow::Cow;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use serde_json::{Value, json};

use super::clock;
use super::encoded::{Change, Encoded};

/// The nodes at one revision.
pub(super) type Nodes = BTreeMap<Arc<str>, Arc<Encoded>>;

/// A change of a node.
#[derive(Debug)]
pub(super) struct Event {
    pub(super) revision: u64,
    pub(super) name: Arc<str>,
    pub(super) after: Arc<Encoded>,
    /// What it was before, to go back by.
    before: Option<Arc<Encoded>>,
}

/// All objects, and how they came to be so.
#[derive(Debug, Clone)]
pub(super) struct Store {
    nodes: Nodes,
    pods: BTreeMap<(String, String), Value>,
    revision: u64,
    /// The oldest revision that a watch or a list may still begin at.
    oldest: u64,
    /// The last revision that fell out of the history.
    forgotten: u64,
    history: VecDeque<Arc<Event>>,
    /// How many changes are remembered.
    limit: usize,
}

impl Store {
    pub(super) fn new(limit: usize) -> Self {
        let (nodes, pods) = (Nodes::new(), BTreeMap::new());
        Self { nodes, pods, revision: 1, oldest: 0, forgotten: 0, history: VecDeque::new(), limit }
    }

    pub(super) fn revision(&self) -> u64 {
        self.revision
    }

    pub(super) fn oldest(&self) -> u64 {
        self.oldest
    }

    pub(super) fn nodes(&self) -> &Nodes {
        &self.nodes
    }

    pub(super) fn pod(&self, namespace: &str, name: &str) -> Option<&Value> {
        self.pods.get(&(namespace.to_owned(), name.to_owned()))
    }

    /// Creates or replaces a node. Nothing happens if it is that already; else it returns the new version.
    /// The server's own part of the metadata stays what it is.
    pub(super) fn put(&mut self, name: &str, mut node: Value) -> Option<Arc<Encoded>> {
        let old = self.nodes.get(name).cloned();
        strip_kind(&mut node);
        if !node["metadata"].is_object() {
            node["metadata"] = json!({});
        }
        node["metadata"]["name"] = json!(name);
        if let Some(old) = &old {
            let old = old.value();
            for key in ["uid", "creationTimestamp", "resourceVersion"] {
                node["metadata"][key] = old["metadata"][key].clone();
            }
            if node == old {
                return None;
            }
        } else {
            node["metadata"]["uid"] = json!(uid());
            node["metadata"]["creationTimestamp"] = json!(clock::now());
        }
        let change = if old.is_some() { Change::Modified } else { Change::Added };
        let revision = self.next_revision();
        node["metadata"]["resourceVersion"] = json!(revision.to_string());
        let new = Arc::new(Encoded::new(change, &node));
        let name: Arc<str> = name.into();
        self.nodes.insert(name.clone(), new.clone());
        self.remember(Event { revision, name, after: new.clone(), before: old });
        Some(new)
    }

    /// Deletes a node. Its last version carries the revision of the deletion.
    pub(super) fn delete(&mut self, name: &str) -> bool {
        let Some((name, old)) = self.nodes.remove_entry(name) else { return false };
        let revision = self.next_revision();
        let mut last = old.value();
        last["metadata"]["resourceVersion"] = json!(revision.to_string());
        let last = Arc::new(Encoded::new(Change::Deleted, &last));
        self.remember(Event { revision, name, after: last, before: Some(old) });
        true
    }

    pub(super) fn put_pod(&mut self, namespace: &str, name: &str, node: &str) {
        let revision = self.next_revision();
        let pod = json!({
            "kind": "Pod",
            "apiVersion": "v1",
            "metadata": {
                "name": name, "namespace": namespace, "uid": uid(), "resourceVersion": revision.to_string(),
                "creationTimestamp": clock::now(),
            },
            "spec": { "nodeName": node, "containers": [{ "name": "kube-flannel", "image": "flannel" }] },
            "status": { "phase": "Running" },
        });
        self.pods.insert((namespace.to_owned(), name.to_owned()), pod);
    }

    /// The nodes as they were at a revision, by undoing what came since. `None` if that is forgotten.
    pub(super) fn nodes_at(&self, revision: u64) -> Option<Cow<'_, Nodes>> {
        if revision < self.oldest {
            return None;
        }
        let mut nodes = Cow::Borrowed(&self.nodes);
        for event in self.history.iter().rev().take_while(|event| event.revision > revision) {
            match &event.before {
                Some(before) => nodes.to_mut().insert(event.name.clone(), before.clone()),
                None => nodes.to_mut().remove(&event.name),
            };
        }
        Some(nodes)
    }

    /// The changes after a revision, at most so many. `None` if some are forgotten.
    pub(super) fn since(&self, revision: u64, most: usize) -> Option<Vec<Arc<Event>>> {
        if revision < self.forgotten {
            return None;
        }
        let first = self.history.partition_point(|event| event.revision <= revision);
        Some(self.history.iter().skip(first).take(most).cloned().collect())
    }

    /// Forgets the history: watches and pages from before begin anew. Watches that are open go on.
    pub(super) fn compact(&mut self) {
        self.oldest = self.revision;
    }

    /// What a backup of this store is when it is served: the same objects, and no history.
    pub(super) fn without_history(&self) -> Self {
        let mut store = self.clone();
        store.history.clear();
        store.oldest = store.revision;
        store.forgotten = store.revision;
        store
    }

    fn next_revision(&mut self) -> u64 {
        self.revision += 1;
        self.revision
    }

    fn remember(&mut self, event: Event) {
        self.history.push_back(Arc::new(event));
        while self.history.len() > self.limit {
            self.forgotten = self.history.pop_front().map_or(0, |event| event.revision);
            self.oldest = self.oldest.max(self.forgotten);
        }
    }
}

fn strip_kind(object: &mut Value) {
    if let Some(object) = object.as_object_mut() {
        object.remove("kind");
        object.remove("apiVersion");
    }
}

/// A random UUID (RFC 9562 section 5.4).
fn uid() -> String {
    let bits = fastrand::u128(..) & !(0xf << 76 | 0x3 << 62) | 0x4 << 76 | 0x2 << 62;
    let hex = format!("{bits:032x}");
    format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}
