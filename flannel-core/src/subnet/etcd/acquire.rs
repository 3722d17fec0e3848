//! Taking a lease: adopt, create or replace, each in one transaction that fails if the store moved on.

use std::time::Duration;

use etcd_client::{
    Compare, CompareOp, GetOptions, KeyValue, PutOptions, ResponseHeader, Txn, TxnOp, TxnOpResponse,
    TxnResponse,
};
use tracing::{debug, info};

use super::Store;
use super::error::CallError;
use super::records::{Listed, MAX_MESSAGE, Stored};
use crate::addr::Family;
use crate::config::NetworkConfig;
use crate::lease::{Lease, LeaseAttrs, LeaseKey};
use crate::subnet::SubnetError;
use crate::subnet::allocate::{Decision, decide, occupied, overlaps};

/// How often a subnet is chosen anew because others took the chosen one.
const ATTEMPTS: u32 = 20;
/// How often the same subnet is tried while others take others.
const TRIES: u32 = 100;

impl Store {
    pub(super) async fn acquire(&self, attrs: &LeaseAttrs) -> Result<Lease, SubnetError> {
        let config = self.config().await?;
        for attempt in 1..=ATTEMPTS {
            let listed = self.list().await?;
            refuse_ipv6_only(&config, &listed)?;
            let rng = &mut fastrand::Rng::new();
            let decision = decide(&config, &listed.listing(), attrs, self.options.previous, rng)?;
            let stored = |key| listed.stored.iter().find(|stored| stored.lease.key == key);
            let taken = match &decision {
                Decision::Adopt(own) => match stored(own.lease.key) {
                    Some(own) => self.adopt(own, attrs).await?,
                    None => None,
                },
                Decision::Reclaim(key) => {
                    let name = key.to_string();
                    match listed.bad.iter().find(|bad| bad.record.key == name) {
                        Some(bad) => {
                            let swapped = self.swap(*key, bad.modified, bad.etcd_lease, attrs).await?;
                            swapped.then(|| Lease { key: *key, attrs: attrs.clone(), created: bad.created })
                        }
                        // Another spelling of the same subnets, which is not ours to write.
                        None => self.create(*key, attrs, listed.at.revision, None).await?,
                    }
                }
                Decision::Take(key) => self.create(*key, attrs, listed.at.revision, None).await?,
                Decision::Replace { old, new } => {
                    self.create(*new, attrs, listed.at.revision, stored(old.lease.key)).await?
                }
            };
            if let Some(lease) = taken {
                info!(subnet = %lease.key, "lease taken");
                return Ok(lease);
            }
            debug!(attempt, "lost the race for a subnet");
            tokio::time::sleep(Duration::from_millis(fastrand::u64(5..=50 * u64::from(attempt)))).await;
        }
        Err(SubnetError::Contended { attempts: ATTEMPTS })
    }

    /// Publishes under a record of ours. `None` if it changed meanwhile.
    ///
    /// What is there already with a living etcd lease is only kept alive: a restart is no event for peers.
    async fn adopt(&self, own: &Stored, attrs: &LeaseAttrs) -> Result<Option<Lease>, SubnetError> {
        let unchanged = own.value == attrs.to_json().as_bytes();
        if own.etcd_lease == 0 && unchanged {
            return Ok(Some(own.lease.clone()));
        }
        if own.etcd_lease != 0 && self.is_kept(own.etcd_lease).await? && unchanged {
            return Ok(Some(own.lease.clone()));
        }
        let swapped = self.swap(own.lease.key, own.modified, own.etcd_lease, attrs).await?;
        Ok(swapped.then(|| Lease { attrs: attrs.clone(), ..own.lease.clone() }))
    }

    /// Puts our value under a key that was last changed at `modified`: on its etcd lease if that lives, else
    /// on a new one; a reservation (0) stays one. `false` if the key changed meanwhile.
    pub(super) async fn swap(
        &self,
        key: LeaseKey,
        modified: i64,
        etcd_lease: i64,
        attrs: &LeaseAttrs,
    ) -> Result<bool, CallError> {
        let is_kept = etcd_lease == 0 || self.is_kept(etcd_lease).await?;
        let id = if is_kept { etcd_lease } else { self.grant().await? };
        let (name, value) = (self.keys.lease(key), attrs.to_json());
        let txn = Txn::new()
            .when([Compare::mod_revision(name.as_str(), CompareOp::Equal, modified)])
            .and_then([put(&name, &value, id)])
            .or_else([TxnOp::get(name.as_str(), None)]);
        let done = self.txn("publish the lease", txn).await?;
        // A request that was sent twice finds its own work.
        let mut there = records(&done).into_iter();
        let swapped = done.succeeded()
            || there.any(|found| found.value() == value.as_bytes() && found.lease() == id && id != 0);
        if !swapped && !is_kept {
            self.revoke(id).await;
        }
        Ok(swapped)
    }

    /// Creates a record if none was created since `revision`, in place of `replaced` if that is given. `None`
    /// if another node took addresses of it.
    ///
    /// The comparison spans all leases, since a key only says by its text what it occupies. It makes the list
    /// at `revision` still hold when the record is created, also against Go nodes. (One of those can still
    /// overlap a lease that is there, in one family of two; the older one holds then.)
    pub(super) async fn create(
        &self,
        key: LeaseKey,
        attrs: &LeaseAttrs,
        mut revision: i64,
        replaced: Option<&Stored>,
    ) -> Result<Option<Lease>, SubnetError> {
        let reserved = replaced.is_some_and(|old| old.etcd_lease == 0);
        let id = if reserved { 0 } else { self.grant().await? };
        let (name, value) = (self.keys.lease(key), attrs.to_json());
        for attempt in 0..TRIES {
            let done =
                self.txn("create the lease", self.creation(&name, &value, id, revision, replaced)).await?;
            let at = done.header().map_or(0, ResponseHeader::revision);
            let lease = |created: i64| {
                Ok(Some(Lease { key, attrs: attrs.clone(), created: u64::try_from(created).unwrap_or(0) }))
            };
            if done.succeeded() {
                return lease(at);
            }
            let newer = records(&done);
            // A request that was sent twice finds its own work.
            let is_own = |found: &&KeyValue| found.key() == name.as_bytes() && found.lease() == id;
            if let Some(own) = newer.iter().find(is_own).filter(|_| id != 0) {
                return lease(own.create_revision());
            }
            if newer.is_empty() || self.takes(&newer, key) {
                break;
            }
            // Others took other subnets: ours is still free. The pause spreads the crowd, and a fresh revision
            // after it leaves them little time to make it stale.
            let most = 10 << attempt.min(6);
            tokio::time::sleep(Duration::from_millis(fastrand::u64(0..most))).await;
            let (now, newer) = self.newer(at).await?;
            if self.takes(&newer, key) {
                break;
            }
            revision = now;
        }
        self.revoke(id).await;
        Ok(None)
    }

    /// Whether one of these records occupies addresses of a key.
    fn takes(&self, found: &[KeyValue], key: LeaseKey) -> bool {
        let keys = found.iter().filter_map(|found| occupied(&self.keys.name(found.key())));
        keys.into_iter().any(|other| overlaps(other, key))
    }

    /// The records created after a revision, and the revision at which they were read.
    async fn newer(&self, revision: i64) -> Result<(i64, Vec<KeyValue>), CallError> {
        let get = |client: etcd_client::Client| {
            let mut client = client.kv_client().max_decoding_message_size(MAX_MESSAGE);
            let options =
                GetOptions::new().with_range(self.keys.end.as_str()).with_min_create_revision(revision + 1);
            let first = self.keys.first.clone();
            async move { client.get(first, Some(options)).await }
        };
        let (_, mut found) = self.call("list new leases", get).await?;
        Ok((found.header().map_or(0, ResponseHeader::revision), found.take_kvs()))
    }

    fn creation(&self, name: &str, value: &str, id: i64, revision: i64, replaced: Option<&Stored>) -> Txn {
        let (first, end) = (self.keys.first.as_str(), self.keys.end.as_str());
        let mut when = vec![
            Compare::version(name, CompareOp::Equal, 0),
            Compare::create_revision(first, CompareOp::Less, revision + 1).with_range(end),
        ];
        let mut then = vec![put(name, value, id)];
        if let Some(old) = replaced {
            let old_name = self.keys.lease(old.lease.key);
            when.push(Compare::mod_revision(old_name.as_str(), CompareOp::Equal, old.modified));
            then.insert(0, TxnOp::delete(old_name, None));
        }
        let newer = GetOptions::new().with_range(end).with_min_create_revision(revision + 1);
        Txn::new().when(when).and_then(then).or_else([TxnOp::get(first, Some(newer))])
    }

    async fn txn(&self, what: &'static str, txn: Txn) -> Result<TxnResponse, CallError> {
        let run = |client: etcd_client::Client| {
            let mut client = client.kv_client().max_decoding_message_size(MAX_MESSAGE);
            let txn = txn.clone();
            async move { client.txn(txn).await }
        };
        Ok(self.call(what, run).await?.1)
    }
}

fn put(name: &str, value: &str, id: i64) -> TxnOp {
    let options = (id != 0).then(|| PutOptions::new().with_lease(id));
    TxnOp::put(name, value, options)
}

/// What the reads of a transaction found.
fn records(done: &TxnResponse) -> Vec<KeyValue> {
    let found = done.op_responses().into_iter().map(|response| match response {
        TxnOpResponse::Get(mut found) => found.take_kvs(),
        _ => Vec::new(),
    });
    found.flatten().collect()
}

/// Leases of IPv6 alone have keys that Go nodes misread as `0.0.0.0/0`: none is written where such a node may
/// be, which is where a lease has IPv4.
fn refuse_ipv6_only(config: &NetworkConfig, listed: &Listed) -> Result<(), SubnetError> {
    if config.networks.v4.is_some() {
        return Ok(());
    }
    let keys = listed.stored.iter().map(|stored| stored.lease.key);
    let mut keys = keys.chain(listed.bad.iter().filter_map(|bad| bad.occupied));
    match keys.find(|key| key.subnet(Family::V4).is_some()) {
        None => Ok(()),
        Some(key) => Err(SubnetError::Conflict(format!(
            "the network config says EnableIPv4: false, but lease {key} has an IPv4 subnet, and its node may not \
             understand leases without one; delete such leases first"
        ))),
    }
}
