//! Decides whether the pods' network may cover addresses that this node must reach: only in a cluster that already
//! works that way.

use std::time::Duration;

use futures::StreamExt;

use super::{Life, Prepared};
use crate::config::NetworkConfig;
use crate::lease::{Lease, LeaseUpdate};
use crate::subnet::SubnetError;
use crate::underlay;

/// How long the store may take to list the leases for this decision.
const LIST_PATIENCE: Duration = Duration::from_secs(10);

impl Life {
    /// Why the config must not be used: the addresses that its networks would hide from this node.
    pub(super) async fn hidden_by(&self, prepared: &Prepared) -> Option<SubnetError> {
        let Prepared { config, backend, options, .. } = prepared;
        let covered: Vec<_> = options.needed.iter().filter(|it| it.covered_by(config).is_some()).collect();
        if covered.is_empty() {
            return None;
        }
        let has_leases = self.has_leases(config).await;
        let how = underlay::Use { has_leases, is_routed_whole: backend.routes_whole_network() };
        let place = self.store.place();
        underlay::hides(config, covered, how).map(|source| SubnetError::Config { place, source })
    }

    /// Whether a node has a lease in the networks of a config: this one, by its files, or any other, by the store. If
    /// that can't be found out, the answer is yes.
    async fn has_leases(&self, config: &NetworkConfig) -> bool {
        let own = self.previous.iter().filter_map(|state| state.own.as_ref());
        let own = own.flat_map(|own| own.key.subnets().iter().map(|(_, subnet)| *subnet).collect::<Vec<_>>());
        let written = self.written_before();
        let written = written.iter().flat_map(|ranges| ranges.iter().map(|(_, range)| range.subnet));
        if own.chain(written).any(|subnet| config.covers(subnet)) {
            return true;
        }
        let is_inside = |lease: &Lease| lease.key.subnets().iter().any(|(_, subnet)| config.covers(*subnet));
        let mut updates = self.store.watch_leases();
        let listed = async {
            loop {
                match updates.next().await {
                    Some(Ok(LeaseUpdate::Snapshot { leases, .. } | LeaseUpdate::Recalled { leases, .. })) => {
                        return leases.iter().any(is_inside);
                    }
                    Some(Ok(_)) => {}
                    Some(Err(_)) | None => return true,
                }
            }
        };
        tokio::time::timeout(LIST_PATIENCE, listed).await.unwrap_or(true)
    }
}
