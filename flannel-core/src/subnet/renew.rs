//! Renews a lease, and publishes its attributes when they change.

use std::convert::Infallible;

use tokio::sync::watch;
use tracing::{info, warn};

use super::kit::Backoff;
use super::{SubnetError, SubnetManager};
use crate::error::chain;
use crate::lease::{Lease, LeaseAttrs};

/// Renews a lease as [`SubnetManager::renew_lease`] does, and publishes `attrs` whenever they change, for example with
/// the address of the underlay.
pub async fn renew_and_publish(
    store: &dyn SubnetManager,
    mut lease: Lease,
    mut attrs: watch::Receiver<LeaseAttrs>,
) -> Result<Infallible, SubnetError> {
    loop {
        let wanted = attrs.borrow_and_update().clone();
        if wanted != lease.attrs {
            // Publishes before it renews again: after a failed attempt the store may have the old or the new
            // attributes.
            lease = publish(store, &lease, &wanted).await?;
            continue;
        }
        tokio::select! {
            held = store.renew_lease(&lease) => return held,
            changed = attrs.changed() => if changed.is_err() {
                return store.renew_lease(&lease).await;
            },
        }
    }
}

/// Tries until the attributes are published, or the lease is lost.
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
