//! Whether a network of pods may cover what this node reaches without it: only where nodes work so.

use std::time::Duration;

use futures::StreamExt;

use super::{Life, Prepared};
use crate::config::NetworkConfig;
use crate::lease::{Lease, LeaseUpdate};
use crate::subnet::SubnetError;
use crate::underlay;

/// How long the store may take to list the leases, where it matters before the start.
const LIST_PATIENCE: Duration = Duration::from_secs(10);

impl Life {
    /// Why the config must not be used: what its networks would hide from this node.
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

    /// Whether some node has a lease in the networks of a config: this one, by its files, or any by the store. Where
    /// that can't be known, one has.
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
