//! Holding a lease whose attributes change, or somebody else changes.

use std::convert::Infallible;

use tokio::sync::watch;
use tracing::{info, warn};

use super::kit::Backoff;
use super::{SubnetError, SubnetManager};
use crate::error::chain;
use crate::lease::{Lease, LeaseAttrs};

/// Holds a lease as [`SubnetManager::hold_lease`] does, and publishes what `attrs` says whenever it changes, such
/// as when the address of the underlay did.
pub async fn hold_and_publish(
    store: &dyn SubnetManager,
    mut lease: Lease,
    mut attrs: watch::Receiver<LeaseAttrs>,
) -> Result<Infallible, SubnetError> {
    loop {
        let wanted = attrs.borrow_and_update().clone();
        if wanted != lease.attrs {
            // Not by holding what was published before: after a failure either may be in the store.
            lease = publish(store, &lease, &wanted).await?;
            continue;
        }
        tokio::select! {
            held = store.hold_lease(&lease) => return held,
            changed = attrs.changed() => if changed.is_err() {
                return store.hold_lease(&lease).await;
            },
        }
    }
}

/// Tries until it is published, or the lease is lost.
async fn publish(store: &dyn SubnetManager, lease: &Lease, attrs: &LeaseAttrs) -> Result<Lease, SubnetError> {
    let mut backoff = Backoff::new();
    let mut told = None;
    loop {
        match store.publish(lease, attrs).await {
            Ok(lease) => {
                let ips = attrs.public_ips.iter().map(|(_, ip)| ip.to_string()).collect::<Vec<_>>();
                info!(subnet = %lease.key, underlay = ips.join(","), "lease published again");
                return Ok(lease);
            }
            Err(
                last @ (SubnetError::LeaseLost { .. }
                | SubnetError::ConfigChanged
                | SubnetError::Claimed { .. }),
            ) => return Err(last),
            Err(error) => {
                let why = chain(&error);
                if told.as_ref() != Some(&why) {
                    warn!(subnet = %lease.key, error = why, "lease not published again yet; trying again");
                    told = Some(why);
                }
            }
        }
        tokio::time::sleep(backoff.pause()).await;
    }
}
