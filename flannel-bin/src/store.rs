//! The store that the operator chose.

use flannel_core::lease::LeaseKey;
use flannel_core::subnet::SubnetManager;
use flannel_core::subnet::local::{LocalOptions, LocalSubnetManager};

use crate::cli::{Options, StoreChoice};

/// The store's options can't be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StoreError {
    /// The build lacks it.
    #[cfg(not(feature = "etcd"))]
    #[error(
        "this build has no etcd store; give --store=local:DIR, or build flanneld with the feature \"etcd\""
    )]
    NoEtcd,
}

/// Makes the store. `previous` is what this node had before, so that it can have it again.
pub(crate) async fn open(
    options: &Options,
    previous: Option<LeaseKey>,
) -> Result<Box<dyn SubnetManager>, StoreError> {
    match &options.store {
        StoreChoice::Etcd => etcd(options, previous).await,
        StoreChoice::Local(dir) => {
            let local =
                LocalOptions { previous, renew_margin: options.renew_margin, ..LocalOptions::new(dir) };
            Ok(Box::new(LocalSubnetManager::new(local)))
        }
    }
}

#[cfg(not(feature = "etcd"))]
#[expect(clippy::unused_async, reason = "the etcd store connects")]
async fn etcd(_: &Options, _: Option<LeaseKey>) -> Result<Box<dyn SubnetManager>, StoreError> {
    Err(StoreError::NoEtcd)
}
