//! Reading the store: all leases at one revision, in pages.

use std::net::IpAddr;

use etcd_client::{GetOptions, GetResponse, KeyValue, ResponseHeader};

use super::Store;
use super::error::CallError;
use crate::addr::PerFamily;
use crate::config::{LeaseSource, NetworkConfig};
use crate::lease::{BadRecord, Lease, LeaseAttrs, LeaseKey};
use crate::subnet::SubnetError;
use crate::subnet::allocate::{Listing, Record, Taken, occupied, published};

/// Keys in one answer. Values have a few hundred bytes, so this stays far below a message's limit.
const PAGE: i64 = 1000;
/// The largest message that is read, in bytes: a page of values as large as etcd takes them (1.5 MB) is not
/// likely, but a few of them are no reason to fail.
pub(super) const MAX_MESSAGE: usize = 256 << 20;
/// How often a listing starts over because its revision went away under it.
const RESTARTS: usize = 5;

/// A lease as the store has it.
#[derive(Debug, Clone)]
pub(super) struct Stored {
    pub(super) lease: Lease,
    /// The value's bytes.
    pub(super) value: Vec<u8>,
    /// The revision of its last change.
    pub(super) modified: i64,
    /// The etcd lease that ends it; 0 for a reservation.
    pub(super) etcd_lease: i64,
}

/// A record that can't be read.
#[derive(Debug, Clone)]
pub(super) struct Unreadable {
    pub(super) record: BadRecord,
    pub(super) occupied: Option<LeaseKey>,
    pub(super) created: u64,
    pub(super) modified: i64,
    pub(super) etcd_lease: i64,
}

/// The history that a revision belongs to. It changes when a store is set up anew or from a backup.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Position {
    pub(super) revision: i64,
    cluster: u64,
    term: u64,
}

impl Position {
    pub(super) fn of(header: Option<&ResponseHeader>) -> Self {
        header.map_or(Self { revision: 0, cluster: 0, term: 0 }, |header| Self {
            revision: header.revision(),
            cluster: header.cluster_id(),
            term: header.raft_term(),
        })
    }

    /// Whether `later` can follow this one: same cluster, and neither revision nor raft term lower.
    pub(super) fn leads_to(self, later: Self) -> bool {
        self.cluster == later.cluster && self.revision <= later.revision && self.term <= later.term
    }
}

/// All leases at one revision.
#[derive(Debug, Clone)]
pub(super) struct Listed {
    pub(super) at: Position,
    pub(super) stored: Vec<Stored>,
    pub(super) bad: Vec<Unreadable>,
}

impl Listed {
    /// As the allocation wants it.
    pub(super) fn listing(&self) -> Listing {
        let record =
            |stored: &Stored| Record { lease: stored.lease.clone(), reserved: stored.etcd_lease == 0 };
        let taken = |bad: &Unreadable| Some(Taken { key: bad.occupied?, created: bad.created });
        Listing {
            records: self.stored.iter().map(record).collect(),
            taken: self.bad.iter().filter_map(taken).collect(),
        }
    }
}

impl Store {
    pub(super) async fn config(&self) -> Result<NetworkConfig, SubnetError> {
        let get = |mut client: etcd_client::Client| {
            let key = self.keys.config.clone();
            async move { client.get(key, None).await }
        };
        let (endpoint, found) = self.call("read the network config", get).await?;
        let place = || format!("{} in etcd {}", self.keys.config, self.clients.url(endpoint));
        let Some(value) = found.kvs().first() else { return Err(SubnetError::NoConfig { place: place() }) };
        let text = String::from_utf8_lossy(value.value());
        NetworkConfig::parse(&text, LeaseSource::Store)
            .map_err(|source| SubnetError::Config { place: place(), source })
    }

    pub(super) async fn published(
        &self,
        public_ips: &PerFamily<IpAddr>,
    ) -> Result<Option<LeaseAttrs>, SubnetError> {
        let listed = self.list().await?;
        Ok(published(listed.stored.iter().map(|stored| &stored.lease), public_ips))
    }

    /// Lists all leases, without a call for each.
    pub(super) async fn list(&self) -> Result<Listed, SubnetError> {
        let mut last = None;
        for _ in 0..RESTARTS {
            match self.list_once().await {
                Ok(listed) => {
                    let bad = listed.bad.iter().map(|bad| bad.record.clone()).collect();
                    self.health.set_undecodable(bad);
                    return Ok(listed);
                }
                // Compacted between two pages.
                Err(error) if error.is_other_revision() => last = Some(error),
                Err(error) => return Err(error.into()),
            }
        }
        Err(last.expect("at least one try").into())
    }

    async fn list_once(&self) -> Result<Listed, CallError> {
        let mut from = self.keys.first.clone().into_bytes();
        let mut listed: Option<Listed> = None;
        loop {
            let revision = listed.as_ref().map_or(0, |listed| listed.at.revision);
            let (_, mut page) = self.page(&from, revision).await?;
            let at = Position::of(page.header());
            let into = listed.get_or_insert_with(|| Listed { at, stored: Vec::new(), bad: Vec::new() });
            let found = page.take_kvs();
            for value in &found {
                match self.decode(value) {
                    Ok(stored) => into.stored.push(stored),
                    Err(bad) => into.bad.push(bad),
                }
            }
            match found.last() {
                Some(last) if page.more() => {
                    from = last.key().to_vec();
                    from.push(0);
                }
                _ => break,
            }
        }
        Ok(listed.expect("at least one page was read"))
    }

    async fn page(&self, from: &[u8], revision: i64) -> Result<(usize, GetResponse), CallError> {
        self.call("list leases", |client| {
            let (from, end) = (from.to_vec(), self.keys.end.clone());
            let options = GetOptions::new().with_range(end).with_limit(PAGE).with_revision(revision);
            let mut client = client.kv_client().max_decoding_message_size(MAX_MESSAGE);
            async move { client.get(from, Some(options)).await }
        })
        .await
    }

    /// The record of one key, and the position at which it was read.
    pub(super) async fn read(
        &self,
        key: LeaseKey,
    ) -> Result<(Position, Option<Result<Stored, Unreadable>>), CallError> {
        let get = |mut client: etcd_client::Client| {
            let key = self.keys.lease(key);
            async move { client.get(key, None).await }
        };
        let (_, found) = self.call("read the own lease", get).await?;
        Ok((Position::of(found.header()), found.kvs().first().map(|value| self.decode(value))))
    }

    pub(super) fn decode(&self, found: &KeyValue) -> Result<Stored, Unreadable> {
        let name = self.keys.name(found.key());
        let created = u64::try_from(found.create_revision()).unwrap_or(0);
        let bad = |reason: String| Unreadable {
            record: BadRecord { key: name.clone(), reason },
            occupied: occupied(&name),
            created,
            modified: found.mod_revision(),
            etcd_lease: found.lease(),
        };
        let lease = Lease::decode(&name, found.value(), created).map_err(|record| bad(record.reason))?;
        Ok(Stored {
            lease,
            value: found.value().to_vec(),
            modified: found.mod_revision(),
            etcd_lease: found.lease(),
        })
    }
}
