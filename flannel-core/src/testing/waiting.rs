//! Waiting for what a store does, and renewing a lease meanwhile.

use std::time::Duration;

use futures::StreamExt;
use tokio::task::JoinHandle;

use crate::lease::{Lease, LeaseUpdate};
use crate::subnet::{LeaseStream, SubnetError, SubnetManager};

/// Longer than anything takes in a store that is not an outage.
pub const SOON: Duration = Duration::from_secs(10);

/// Waits for some work, [`SOON`] at most.
///
/// # Panics
/// If the work takes longer.
pub async fn soon<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(SOON, work).await.expect("takes too long")
}

/// Waits until a condition holds, [`SOON`] at most. Looks at it every 20 ms.
///
/// # Panics
/// If it takes longer.
pub async fn until(mut holds: impl FnMut() -> bool) {
    soon(async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
}

/// Reads the next message of a watch, for which it waits [`SOON`] at most.
///
/// # Panics
/// If there is none by then, or if the watch ends or fails.
pub async fn next(watch: &mut LeaseStream) -> LeaseUpdate {
    soon(watch.next()).await.expect("a watch has no end").expect("a watch does not fail")
}

/// Renews a lease in the background, and returns why that ended.
pub fn renew<S: SubnetManager + Clone + 'static>(store: &S, lease: &Lease) -> JoinHandle<SubnetError> {
    let (store, lease) = (store.clone(), lease.clone());
    tokio::spawn(async move {
        match store.renew_lease(&lease).await {
            Err(error) => error,
            Ok(never) => match never {},
        }
    })
}
