//! What the state file should store for the next start. Changes are collected here and published together, once the
//! kernel has been changed accordingly. Until then the state that was published last counts.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::watch;

use crate::addr::{PerFamily, Subnet};
use crate::config::NetworkConfig;
use crate::lease::{AgedLease, LeaseChange, LeaseKey};
use crate::repack::repack;
use crate::state_file::State;

/// The published state, and changes that are not published yet.
#[derive(Debug)]
pub(super) struct Record {
    told: watch::Sender<State>,
    /// Everything but the leases, as it should be published.
    head: State,
    /// The leases that changed since; `None` for one that is gone.
    leases: BTreeMap<LeaseKey, Option<Arc<AgedLease>>>,
    /// Whether there are unpublished changes.
    is_changed: bool,
}

impl Record {
    /// A record of this state, which is not published yet.
    pub(super) fn new(state: State) -> Self {
        let head = State { leases: BTreeMap::new(), ..state.clone() };
        Self { told: watch::Sender::new(state), head, leases: BTreeMap::new(), is_changed: true }
    }

    /// Returns a receiver of the published state.
    pub(super) fn subscribe(&self) -> watch::Receiver<State> {
        self.told.subscribe()
    }

    /// The overlay networks.
    pub(super) fn networks(&self) -> PerFamily<Subnet> {
        self.head.networks
    }

    /// The network config that is in force as a whole.
    pub(super) fn config(&self) -> Option<&NetworkConfig> {
        self.head.config.as_ref()
    }

    /// Everything but the leases, as it should be published.
    pub(super) fn head(&self) -> &State {
        &self.head
    }

    /// Changes something other than the leases.
    pub(super) fn edit(&mut self, edit: impl FnOnce(&mut State)) {
        edit(&mut self.head);
        self.is_changed = true;
    }

    /// Collects changed leases.
    pub(super) fn add_leases(&mut self, changes: &[LeaseChange]) {
        self.leases.extend(changes.iter().map(|change| (change.key, change.after.clone())));
        self.is_changed |= !changes.is_empty();
    }

    /// Publishes the changes. It costs work for the changed leases only.
    pub(super) fn tell(&mut self) {
        if !std::mem::take(&mut self.is_changed) {
            return;
        }
        let changes = std::mem::take(&mut self.leases);
        let head = self.head.clone();
        self.told.send_modify(|state| {
            let leases = std::mem::take(&mut state.leases);
            *state = State { leases, ..head };
            let are_many = changes.len() > state.leases.len() / 2;
            for (key, lease) in changes {
                match lease {
                    Some(lease) => _ = state.leases.insert(key, lease),
                    None => _ = state.leases.remove(&key),
                }
            }
            if are_many {
                repack(&mut state.leases);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lease::{Lease, LeaseAttrs};

    fn change(key: &str, is_there: bool) -> LeaseChange {
        let lease = Lease { key: key.parse().unwrap(), attrs: LeaseAttrs::default(), created: 1 };
        let (key, after) = (lease.key, is_there.then(|| Arc::new(lease.into())));
        LeaseChange { key, before: None, after }
    }

    #[test]
    fn nobody_sees_a_change_before_it_is_told() {
        let mut record = Record::new(State::default());
        let mut told = record.subscribe();
        record.add_leases(&[change("10.5.2.0-24", true), change("10.5.3.0-24", true)]);
        record.edit(|state| state.backend = "vxlan".into());
        assert!(!told.has_changed().unwrap() && *told.borrow() == State::default());
        record.tell();
        assert_eq!(told.borrow_and_update().leases.len(), 2);
        record.add_leases(&[change("10.5.2.0-24", false)]);
        record.tell();
        assert_eq!(
            told.borrow_and_update().leases.keys().collect::<Vec<_>>(),
            [&"10.5.3.0-24".parse().unwrap()]
        );
        assert_eq!(told.borrow().backend, "vxlan");
        record.tell();
        assert!(!told.has_changed().unwrap(), "nothing is new");
    }
}
