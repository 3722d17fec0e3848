//! The etcd leases of our keys.

use std::time::Duration;

use tracing::debug;

use super::Store;
use super::error::CallError;

/// The remaining and granted time of an etcd lease.
#[derive(Debug, Clone, Copy)]
pub(super) struct Remaining {
    pub(super) left: Duration,
    pub(super) granted: Duration,
}

impl Store {
    pub(super) async fn grant(&self) -> Result<i64, CallError> {
        let seconds = i64::try_from(self.options.ttl.as_secs()).unwrap_or(i64::MAX).max(1);
        let grant = |mut client: etcd_client::Client| async move { client.lease_grant(seconds, None).await };
        Ok(self.call("grant an etcd lease", grant).await?.1.id())
    }

    /// Revokes an etcd lease. If that fails it expires by itself.
    pub(super) async fn revoke(&self, id: i64) {
        if id == 0 {
            return;
        }
        let revoke = |mut client: etcd_client::Client| async move { client.lease_revoke(id).await };
        if let Err(error) = self.call("revoke an etcd lease", revoke).await {
            debug!(?error, "etcd lease not revoked");
        }
    }

    /// How long an etcd lease still lives; `None` if it is gone.
    pub(super) async fn remaining(&self, id: i64) -> Result<Option<Remaining>, CallError> {
        let ask = |mut client: etcd_client::Client| async move { client.lease_time_to_live(id, None).await };
        match self.call("read the etcd lease", ask).await {
            Ok((_, found)) if found.ttl() > 0 => {
                let seconds = |number: i64| Duration::from_secs(u64::try_from(number).unwrap_or(0));
                Ok(Some(Remaining { left: seconds(found.ttl()), granted: seconds(found.granted_ttl()) }))
            }
            Ok(_) => Ok(None),
            Err(error) if error.is_lease_gone() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Renews an etcd lease for its full granted time; `false` if it is gone.
    pub(super) async fn keep_alive(&self, id: i64) -> Result<bool, CallError> {
        let keep =
            |mut client: etcd_client::Client| async move { client.lease_keep_alive(id).await.map(drop) };
        match self.call("keep the etcd lease alive", keep).await {
            Ok(_) => Ok(true),
            Err(error) if error.is_lease_gone() => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Renews an etcd lease if we can use it; `false` if it is gone, or was granted for a shorter time.
    pub(super) async fn renew(&self, id: i64) -> Result<bool, CallError> {
        match self.remaining(id).await? {
            Some(remaining) if remaining.granted >= self.options.ttl => self.keep_alive(id).await,
            _ => Ok(false),
        }
    }
}
