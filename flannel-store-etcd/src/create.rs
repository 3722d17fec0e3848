//! Creates a record such that no two of our nodes ever have the same addresses.
//!
//! A list of leases is true only at its revision. So the transaction that creates a record checks that no conflicting
//! record was created since, and compares as few keys as possible: if a thousand nodes compared all leases, only one
//! transaction at a time would succeed, and all others would have to retry.

use std::time::Duration;

use etcd_client::{Compare, CompareOp, GetOptions, KeyValue, Txn, TxnOp};
use flannel_core::addr::Family;
use flannel_core::backoff::up_to;
use flannel_core::config::NetworkConfig;
use flannel_core::lease::{Lease, LeaseAttrs, LeaseKey};
use flannel_core::subnet::allocate::{is_pair, occupied, overlaps};
use tracing::{debug, warn};

use super::Store;
use super::error::CallError;
use super::records::{MAX_MESSAGE, Newer, Position, Stored};
use super::txn::{put, records};

/// How many times the same subnet is tried while other nodes create other records.
const TRIES: u32 = 100;
/// The longest pause between these attempts, in milliseconds, which spreads a thousand nodes well.
const LONGEST: u64 = 2560;

/// Which records must not have been created since the leases were listed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Guard {
    /// None near the IPv4 subnet. That is enough if this subnet determines the whole record. Conflicts that it can't
    /// see, such as a Go node's record with the same IPv6 subnet, show in the transaction's answer, and the younger
    /// record is withdrawn.
    Near,
    /// None at all, since the keys that overlap an IPv6 subnet are not a range.
    All,
}

impl Guard {
    /// The guard for a key of this config. In dual stack a [pair](is_pair) is determined by its IPv4 subnet.
    pub(super) fn of(config: Option<&NetworkConfig>, key: LeaseKey) -> Self {
        let has = |family| key.subnet(family).is_some();
        let is_v4 = has(Family::V4) && !has(Family::V6);
        if is_v4 || config.is_some_and(|config| is_pair(config, key)) { Self::Near } else { Self::All }
    }
}

/// A record to create.
pub(super) struct Wanted<'a> {
    pub(super) key: LeaseKey,
    pub(super) attrs: &'a LeaseAttrs,
    pub(super) guard: Guard,
    /// The revision of the list from which the key was chosen.
    pub(super) revision: i64,
    /// The record that it replaces.
    pub(super) replaced: Option<&'a Stored>,
    /// Former records of this node, which are deleted in the same transaction.
    pub(super) former: Vec<&'a Stored>,
}

/// The result of creating a record.
pub(super) enum Created {
    Ours(Lease),
    /// Another node has some of its addresses. With the records created since the list, if these could be read
    /// completely.
    Taken(Option<Newer>),
    /// The record was created and the replaced one deleted, but a rival was created a moment earlier, so it was
    /// withdrawn.
    Withdrawn,
}

impl Store {
    /// Creates a record if the list from which its key was chosen is still true. It replaces `replaced`, if given. The
    /// record is on the etcd lease `grant`, which is created if there is none, and stays if it was not needed.
    ///
    /// (A Go node can still create a lease that overlaps an existing one in one of two families; then the older one is
    /// used.)
    pub(super) async fn create(
        &self,
        wanted: &Wanted<'_>,
        grant: &mut Option<i64>,
    ) -> Result<Created, CallError> {
        let is_reserved = wanted.replaced.is_some_and(|old| old.etcd_lease == 0);
        let id = match *grant {
            _ if is_reserved => 0,
            Some(id) => id,
            None => *grant.insert(self.grant().await?),
        };
        // A reservation could not be withdrawn by revoking an etcd lease.
        let guard = if is_reserved { Guard::All } else { wanted.guard };
        let name = self.keys.lease(wanted.key);
        let (mut revision, mut seen) = (wanted.revision, Vec::new());
        for attempt in 0..TRIES {
            let txn = self.creation(wanted, guard, &name, id, revision);
            let done = match self.txn("create the lease", txn).await {
                // There are more new records than fit into the answer. A new list shows the result.
                Err(error) if error.is_too_large() => return Ok(Created::Taken(None)),
                done => done?,
            };
            let mut at = Position::of(done.header());
            let mut newer = records(&done);
            // If the request was sent twice, the second one finds the result of the first.
            let own =
                newer.iter().find(|found| found.key() == name.as_bytes() && found.lease() == id && id != 0);
            let created =
                if done.succeeded() { Some(at.revision) } else { own.map(KeyValue::create_revision) };
            if let Some(created) = created {
                let is_rival = |found: &&KeyValue| found.create_revision() < created;
                if let Some(rival) =
                    newer.iter().filter(is_rival).find(|found| self.overlaps_key(found, wanted.key))
                {
                    warn!(
                        subnet = %wanted.key,
                        rival = self.keys.name(rival.key()),
                        "lease withdrawn: an older record overlaps it"
                    );
                    self.revoke(id).await;
                    *grant = None;
                    return Ok(Created::Withdrawn);
                }
                if !is_reserved {
                    *grant = None;
                }
                let created = u64::try_from(created).unwrap_or(0);
                return Ok(Created::Ours(Lease { key: wanted.key, attrs: wanted.attrs.clone(), created }));
            }
            if newer.is_empty() {
                return Ok(Created::Taken(None));
            }
            if guard == Guard::All && !newer.iter().any(|found| self.overlaps_key(found, wanted.key)) {
                // Other nodes took other subnets, and ours is still free. The pause spreads the nodes, and reading the
                // revision after it leaves little time for others to make it stale.
                let most = (10 << attempt.min(8)).min(LONGEST);
                tokio::time::sleep(up_to(Duration::from_millis(most))).await;
                seen.append(&mut newer);
                Newer { at, records: newer } = match self.newer(at.revision).await {
                    Err(error) if error.is_too_large() => return Ok(Created::Taken(None)),
                    found => found?,
                };
            }
            let is_taken = newer.iter().any(|found| self.overlaps_key(found, wanted.key));
            seen.append(&mut newer);
            if is_taken {
                return Ok(Created::Taken(Some(Newer { at, records: seen })));
            }
            debug!(attempt, "lost the race for a revision");
            revision = at.revision;
        }
        Ok(Created::Taken(None))
    }

    /// Whether a record occupies addresses of a key.
    fn overlaps_key(&self, found: &KeyValue, key: LeaseKey) -> bool {
        occupied(&self.keys.name(found.key())).is_some_and(|other| overlaps(other, key))
    }

    /// The records created after a revision, and the position at which they were read.
    async fn newer(&self, revision: i64) -> Result<Newer, CallError> {
        let get = |client: etcd_client::Client| {
            let mut client = client.kv_client().max_decoding_message_size(MAX_MESSAGE);
            let (first, options) = (self.keys.first.clone(), self.since(revision));
            async move { client.get(first, Some(options)).await }
        };
        let (_, mut found) = self.call("list new leases", get).await?;
        Ok(Newer { at: Position::of(found.header()), records: found.take_kvs() })
    }

    /// All records created after a revision.
    fn since(&self, revision: i64) -> GetOptions {
        GetOptions::new().with_range(self.keys.end.as_str()).with_min_create_revision(revision + 1)
    }

    fn creation(&self, wanted: &Wanted<'_>, guard: Guard, name: &str, id: i64, revision: i64) -> Txn {
        let (first, end) = (self.keys.first.as_str(), self.keys.end.as_str());
        let ranges = match (guard, wanted.key.subnet(Family::V4)) {
            (Guard::Near, Some(subnet)) => self.keys.near(subnet),
            _ => vec![(first.to_owned(), end.to_owned())],
        };
        let unchanged =
            |(first, end)| Compare::create_revision(first, CompareOp::Less, revision + 1).with_range(end);
        let mut when: Vec<Compare> = ranges.into_iter().map(unchanged).collect();
        when.push(Compare::version(name, CompareOp::Equal, 0));
        let newer = self.since(revision);
        let seen = TxnOp::get(first, Some(newer.clone().with_keys_only()));
        let mut then = vec![put(name, &wanted.attrs.to_json(), id), seen];
        for old in wanted.replaced.iter().chain(&wanted.former) {
            let old_name = self.keys.lease(old.lease.key);
            when.push(Compare::mod_revision(old_name.as_str(), CompareOp::Equal, old.modified));
            then.insert(0, TxnOp::delete(old_name, None));
        }
        Txn::new().when(when).and_then(then).or_else([TxnOp::get(first, Some(newer))])
    }
}
