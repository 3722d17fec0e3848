//! The store that the operator chose.

use std::sync::Arc;

use flannel_core::lease::LeaseKey;
use flannel_core::subnet::local::{LocalOptions, LocalSubnetManager};
use flannel_core::subnet::{SubnetError, SubnetManager};

use crate::cli::{Options, StoreChoice};

/// The store can't be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StoreError {
    /// Its options are wrong.
    #[error(transparent)]
    Refused(#[from] SubnetError),
    /// The build lacks it.
    #[cfg(not(feature = "etcd"))]
    #[error(
        "this build has no etcd store; give --store=local:DIR, or build flanneld with the feature \"etcd\""
    )]
    NoEtcd,
}

/// Makes the store, which connects when it is used. `previous` is what this node had before, so that it can
/// have it again.
pub(crate) fn open(
    options: &Options,
    previous: Option<LeaseKey>,
) -> Result<Arc<dyn SubnetManager>, StoreError> {
    match &options.store {
        StoreChoice::Etcd => etcd(options, previous),
        StoreChoice::Local(dir) => {
            let renew_margin = options.renew_margin;
            let local = LocalOptions { previous, renew_margin, ..LocalOptions::new(dir) };
            Ok(Arc::new(LocalSubnetManager::new(local)))
        }
    }
}

#[cfg(feature = "etcd")]
fn etcd(options: &Options, previous: Option<LeaseKey>) -> Result<Arc<dyn SubnetManager>, StoreError> {
    use flannel_core::subnet::etcd::{EtcdOptions, EtcdSubnetManager, EtcdTls};

    let flags = &options.etcd;
    let (cert_file, key_file) = flags.identity.clone().unzip();
    let (username, password) = flags.user.clone().unzip();
    let etcd = EtcdOptions {
        prefix: flags.prefix.clone(),
        tls: EtcdTls { ca_file: flags.ca_file.clone(), cert_file, key_file },
        username,
        password: password.map(Into::into),
        previous,
        renew_margin: options.renew_margin,
        ..EtcdOptions::new(flags.endpoints.iter().cloned())
    };
    Ok(Arc::new(EtcdSubnetManager::new(etcd)?))
}

#[cfg(not(feature = "etcd"))]
fn etcd(_: &Options, _: Option<LeaseKey>) -> Result<Arc<dyn SubnetManager>, StoreError> {
    Err(StoreError::NoEtcd)
}
