//! What is to be stored for the next start: changes are gathered here, and told as one once the kernel has what they
//! say. Until then what was told last stands.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::watch;

use crate::addr::{PerFamily, Subnet};
use crate::config::NetworkConfig;
use crate::lease::{AgedLease, LeaseChange, LeaseKey};
use crate::repack::repack;
use crate::state_file::State;

/// The state and what is not told of it yet.
#[derive(Debug)]
pub(super) struct Record {
    told: watch::Sender<State>,
    /// All but the leases, as it is to be told.
    head: State,
    /// The leases that changed since; `None` for one that is gone.
    leases: BTreeMap<LeaseKey, Option<Arc<AgedLease>>>,
    /// Whether there is anything to tell.
    is_changed: bool,
}

impl Record {
    /// The state as far as it is known without leases, which nobody was told of yet.
    pub(super) fn new(state: State) -> Self {
        let head = State { leases: BTreeMap::new(), ..state.clone() };
        Self { told: watch::Sender::new(state), head, leases: BTreeMap::new(), is_changed: true }
    }

    /// Learns of what is told from now on.
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

    /// Changes something besides the leases.
    pub(super) fn edit(&mut self, edit: impl FnOnce(&mut State)) {
        edit(&mut self.head);
        self.is_changed = true;
    }

    /// Gathers leases that changed.
    pub(super) fn add_leases(&mut self, changes: &[LeaseChange]) {
        self.leases.extend(changes.iter().map(|change| (change.key, change.after.clone())));
        self.is_changed |= !changes.is_empty();
    }

    /// Tells what changed. Costs those leases only.
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
