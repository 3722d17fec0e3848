//! Advice for operators about a node that conflicts with others: which node, which field, and what to change.

use std::sync::{Arc, PoisonError};

use flannel_core::lease::{Field, LeaseKey};
use flannel_core::subnet::Remedy;

use super::Store;
use super::annotations::Annotation;

pub(super) fn of(store: &Arc<Store>) -> Remedy {
    let store = Arc::downgrade(store);
    Remedy::new(move |key, field| match store.upgrade() {
        Some(store) => store.advise(key, field),
        None => String::new(),
    })
}

impl Store {
    fn advise(&self, key: LeaseKey, field: Field) -> String {
        let node = self.node_with(key);
        let name = |annotation| self.names.full(annotation);
        match field {
            Field::Subnet(_) => format!(
                "if spec.podCIDRs of {node} is wrong: it can't be changed in place, so drain the node and let its kubelet \
                 register it anew"
            ),
            Field::PublicIp(family) => format!(
                "if annotation {} of {node} is wrong, restart its agent, which writes it anew, or set {}",
                name(Annotation::PublicIp(family)),
                name(Annotation::Overwrite(family))
            ),
            Field::BackendData(family) => format!(
                "if annotation {} of {node} is wrong, restart its agent, which writes it anew",
                name(Annotation::BackendData(family))
            ),
        }
    }

    /// The node of a lease, as text.
    fn node_with(&self, key: LeaseKey) -> String {
        let nodes = self.nodes.lock().unwrap_or_else(PoisonError::into_inner).upgrade();
        let nodes = nodes.as_ref().map(|nodes| nodes.lock().unwrap_or_else(PoisonError::into_inner));
        match nodes.as_ref().and_then(|nodes| nodes.node_of(key)) {
            Some(name) => format!("node {name}"),
            None => format!("the node with spec.podCIDRs {key}"),
        }
    }
}
