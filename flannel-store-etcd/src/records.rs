//! Reads the store: all leases at one revision, in pages.

use std::collections::{BTreeMap, HashSet};
use std::hash::{DefaultHasher, Hasher};
use std::net::IpAddr;

use etcd_client::{
    GetOptions, GetResponse, KeyValue, ResponseHeader, SortOrder, SortTarget, Txn, TxnOp, TxnOpResponse,
};
use flannel_core::addr::PerFamily;
use flannel_core::config::{LeaseSource, NetworkConfig};
use flannel_core::lease::{Lease, LeaseAttrs, LeaseKey, UnreadableRecord, UnreadableRecords};
use flannel_core::subnet::SubnetError;
use flannel_core::subnet::allocate::{Listing, Occupied, Record, occupied, published};
use tokio::time::Instant;

use super::Store;
use super::error::CallError;

/// The most keys in one answer. Values have a few hundred bytes, so this is about half of [`MAX_PAGE`].
const PAGE: i64 = 1000;
/// The largest page that is read, in bytes. The client learns a message's length before the message, so a longer one
/// costs only the request. It is requested again with fewer keys, and a single record that is too large is listed by
/// its key.
const MAX_PAGE: usize = 1 << 20;
/// The factor by which the number of keys shrinks if a page was too large.
const SHRINK: i64 = 8;
/// The largest other message that is read, in bytes: by default etcd accepts values of 1.5 MB, and cuts watch responses
/// into fragments of 2 MB.
pub(super) const MAX_MESSAGE: usize = 4 << 20;
/// The reason for a record that doesn't fit into a message.
const TOO_LARGE: &str = "the value is larger than any that is read; that of a lease has a few hundred bytes";
/// How many times a listing starts over because its revision was compacted meanwhile.
const RESTARTS: usize = 5;

/// A lease as the store has it.
#[derive(Debug, Clone)]
pub(super) struct Stored {
    pub(super) lease: Lease,
    /// The digest of the value; see [`digest`].
    pub(super) value: u64,
    /// The revision of its last change.
    pub(super) modified: i64,
    /// Its etcd lease; 0 for a reservation.
    pub(super) etcd_lease: i64,
}

/// An unreadable record.
#[derive(Debug, Clone)]
pub(super) struct Unreadable {
    /// The record. In a list it has no reason, to save memory.
    pub(super) record: UnreadableRecord,
    pub(super) occupied: Option<LeaseKey>,
    pub(super) created: u64,
    pub(super) modified: i64,
    pub(super) etcd_lease: i64,
}

/// A hash of a value, since the values themselves would take too much memory.
pub(super) fn digest(value: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    hasher.write(value);
    hasher.finish()
}

/// The first key after this one.
fn after(key: &[u8]) -> Vec<u8> {
    [key, &[0]].concat()
}

/// What distinguishes two states of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Known {
    modified: i64,
    etcd_lease: i64,
}

impl Known {
    pub(super) fn of(found: &KeyValue) -> Self {
        Self { modified: found.mod_revision(), etcd_lease: found.lease() }
    }
}

/// A revision with its history (cluster and raft term), which changes when a store is replaced or restored from a
/// backup.
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

/// The records created after a list.
pub(super) struct Newer {
    /// The position up to which they were read.
    pub(super) at: Position,
    pub(super) records: Vec<KeyValue>,
}

/// Whether the store still has the history that we know.
pub(super) enum History {
    /// It has, and is at this position now.
    Same(Position),
    /// It has another one: it was replaced, or restored from a backup.
    Other,
    /// Unknown, since it has compacted that history.
    Compacted,
}

/// What was found under a key.
pub(super) enum Found {
    Nothing,
    Lease(Stored),
    Unreadable(Unreadable),
}

/// All leases at one revision.
#[derive(Debug, Clone)]
pub(super) struct Listed {
    pub(super) at: Position,
    /// When it was begun to be read.
    pub(super) read: Instant,
    pub(super) stored: Vec<Stored>,
    /// Unreadable records whose keys occupy addresses.
    pub(super) bad: Vec<Unreadable>,
    /// All unreadable records.
    pub(super) unreadable: UnreadableRecords,
    /// All records by name.
    pub(super) known: BTreeMap<Box<str>, Known>,
}

impl Listed {
    pub(super) fn at(at: Position) -> Self {
        let (stored, bad) = (Vec::new(), Vec::new());
        Self {
            at,
            read: Instant::now(),
            stored,
            bad,
            unreadable: UnreadableRecords::default(),
            known: BTreeMap::new(),
        }
    }

    fn add(&mut self, store: &Store, found: &[KeyValue]) {
        for value in found {
            self.known.insert(store.keys.name(value.key()).into(), Known::of(value));
            match store.decode(value) {
                Ok(stored) => self.stored.push(stored),
                Err(bad) => self.add_unreadable(bad),
            }
        }
    }

    /// Adds records that are too large to be read, of which only the keys are known.
    fn add_large(&mut self, store: &Store, found: &[KeyValue]) {
        for value in found {
            self.known.insert(store.keys.name(value.key()).into(), Known::of(value));
            self.add_unreadable(store.unreadable(value, TOO_LARGE.to_owned()));
        }
    }

    fn add_unreadable(&mut self, mut bad: Unreadable) {
        let key = bad.record.key.clone();
        self.unreadable
            .insert(std::mem::replace(&mut bad.record, UnreadableRecord { key, reason: String::new() }));
        self.bad.extend(Some(bad).filter(|bad| bad.occupied.is_some()));
    }

    /// Adds the records created since, up to a later position. Records deleted since stay in the list and count as
    /// occupied, which does no harm.
    pub(super) fn catch_up(&mut self, store: &Store, newer: &Newer) {
        let names: HashSet<String> = newer.records.iter().map(|found| store.keys.name(found.key())).collect();
        self.stored.retain(|stored| !names.contains(&stored.lease.key.to_string()));
        self.bad.retain(|bad| !names.contains(&bad.record.key));
        for name in &names {
            self.unreadable.remove(name);
        }
        self.add(store, &newer.records);
        self.at = newer.at;
    }

    /// The input for the allocation.
    pub(super) fn listing(&self) -> Listing {
        let record =
            |stored: &Stored| Record { lease: stored.lease.clone(), reserved: stored.etcd_lease == 0 };
        let taken = |bad: &Unreadable| Some(Occupied { key: bad.occupied?, created: bad.created });
        Listing {
            records: self.stored.iter().map(record).collect(),
            taken: self.bad.iter().filter_map(taken).collect(),
        }
    }
}

impl Store {
    pub(super) async fn config(&self) -> Result<NetworkConfig, SubnetError> {
        Ok(self.config_at().await?.1)
    }

    /// The config, and the position at which it was read.
    pub(super) async fn config_at(&self) -> Result<(Position, NetworkConfig), SubnetError> {
        let get = |mut client: etcd_client::Client| {
            let key = self.keys.config.clone();
            async move { client.get(key, None).await }
        };
        match self.call("read the network config", get).await {
            Ok((endpoint, found)) => {
                Ok((Position::of(found.header()), self.parse_config(endpoint, found.kvs())?))
            }
            Err(error) if error.is_too_large() => {
                let place = format!("{} in etcd", self.keys.config);
                Err(SubnetError::Config { place, source: NetworkConfig::too_long() })
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Reads the config and all leases, by one request if they fit into one answer.
    pub(super) async fn config_and_leases(&self) -> Result<(NetworkConfig, Listed), SubnetError> {
        let read = |client: etcd_client::Client| {
            let mut client = client.kv_client().max_decoding_message_size(MAX_PAGE);
            let leases = TxnOp::get(self.keys.first.as_str(), Some(self.page_options(0, PAGE)));
            let txn = Txn::new().and_then([TxnOp::get(self.keys.config.as_str(), None), leases]);
            async move { client.txn(txn).await }
        };
        let (endpoint, done) = match self.call("read the network config and list leases", read).await {
            Err(error) if error.is_too_large() => {
                return Ok((Box::pin(self.config()).await?, Box::pin(self.list()).await?));
            }
            done => done?,
        };
        let mut answers = done.op_responses().into_iter().filter_map(|answer| match answer {
            TxnOpResponse::Get(found) => Some(found),
            _ => None,
        });
        let config = answers.next();
        let config = self.parse_config(endpoint, config.as_ref().map_or(&[], GetResponse::kvs))?;
        let listed = match answers.next() {
            Some(page) => {
                let mut listed = Listed::at(Position::of(done.header()));
                listed.add(self, page.kvs());
                if let Some(last) = page.kvs().last().filter(|_| page.more()) {
                    Box::pin(self.list_from(Some((listed, after(last.key()))))).await?
                } else {
                    self.note_unreadable(&listed);
                    listed
                }
            }
            None => Box::pin(self.list()).await?,
        };
        Ok((config, listed))
    }

    fn parse_config(&self, endpoint: usize, found: &[KeyValue]) -> Result<NetworkConfig, SubnetError> {
        let place = || format!("{} in etcd {}", self.keys.config, self.clients.url(endpoint));
        let Some(value) = found.first() else { return Err(SubnetError::NoConfig { place: place() }) };
        let text = String::from_utf8_lossy(value.value());
        NetworkConfig::parse(&text, LeaseSource::Store)
            .map_err(|source| SubnetError::Config { place: place(), source })
    }

    pub(super) async fn published(
        &self,
        public_ips: &PerFamily<IpAddr>,
    ) -> Result<Option<LeaseAttrs>, SubnetError> {
        let listed = self.list().await?;
        let leases = listed.stored.iter().map(|stored| &stored.lease);
        let attrs = published(leases, public_ips, &self.identity());
        self.kept.keep(listed);
        Ok(attrs)
    }

    /// Lists all leases, in pages.
    pub(super) async fn list(&self) -> Result<Listed, SubnetError> {
        self.list_from(None).await
    }

    /// Lists all leases, in pages. `begun` is a list of those before a key, with that key.
    async fn list_from(&self, mut begun: Option<(Listed, Vec<u8>)>) -> Result<Listed, SubnetError> {
        let mut last = None;
        for _ in 0..RESTARTS {
            match Box::pin(self.list_once(begun.take())).await {
                Ok(listed) => {
                    self.note_unreadable(&listed);
                    return Ok(listed);
                }
                // The revision was compacted between two pages.
                Err(error) if error.is_other_revision() => last = Some(error),
                Err(error) => return Err(error.into()),
            }
        }
        Err(last.expect("at least one try").into())
    }

    fn note_unreadable(&self, listed: &Listed) {
        self.health.set_unreadable(&listed.unreadable);
    }

    async fn list_once(&self, begun: Option<(Listed, Vec<u8>)>) -> Result<Listed, CallError> {
        let (mut listed, mut from) = match begun {
            Some((listed, from)) => (Some(listed), from),
            None => (None, self.keys.first.clone().into_bytes()),
        };
        let mut limit = PAGE;
        loop {
            let revision = listed.as_ref().map_or(0, |listed| listed.at.revision);
            let page = self.page(&from, self.page_options(revision, limit)).await;
            let is_large = page.as_ref().is_err_and(CallError::is_too_large);
            if is_large && limit > 1 {
                limit = (limit / SHRINK).max(1);
                continue;
            }
            let mut page = if is_large {
                self.page(&from, self.page_options(revision, 1).with_keys_only()).await?
            } else {
                limit = (limit * 2).min(PAGE);
                page?
            };
            let at = Position::of(page.header());
            let found = page.take_kvs();
            let listed = listed.get_or_insert_with(|| Listed::at(at));
            if is_large {
                listed.add_large(self, &found);
            } else {
                listed.add(self, &found);
            }
            match found.last() {
                Some(last) if page.more() => from = after(last.key()),
                _ => break,
            }
        }
        Ok(listed.expect("at least one page was read"))
    }

    async fn page(&self, from: &[u8], options: GetOptions) -> Result<GetResponse, CallError> {
        let get = |client: etcd_client::Client| {
            let (from, options) = (from.to_vec(), options.clone());
            let mut client = client.kv_client().max_decoding_message_size(MAX_PAGE);
            async move { client.get(from, Some(options)).await }
        };
        Ok(self.call("list leases", get).await?.1)
    }

    /// Whether the leases at `revision` are those of `known`: the same number, and the same record changed last, on the
    /// same etcd lease, whose id is unique over all histories.
    pub(super) async fn compare(
        &self,
        revision: i64,
        known: &BTreeMap<Box<str>, Known>,
    ) -> Result<History, CallError> {
        let newest = |client: etcd_client::Client| {
            let mut client = client.kv_client().max_decoding_message_size(MAX_MESSAGE);
            let options = GetOptions::new().with_range(self.keys.end.as_str()).with_revision(revision);
            let options =
                options.with_sort(SortTarget::Mod, SortOrder::Descend).with_limit(1).with_keys_only();
            let first = self.keys.first.clone();
            async move { client.get(first, Some(options)).await }
        };
        match self.call("compare leases after a break", newest).await {
            Ok((_, found)) => {
                let is_same = usize::try_from(found.count()) == Ok(known.len())
                    && found.kvs().first().is_none_or(|newest| {
                        known.get(self.keys.name(newest.key()).as_str()) == Some(&Known::of(newest))
                    });
                Ok(if is_same { History::Same(Position::of(found.header())) } else { History::Other })
            }
            Err(error) if error.is_compacted() => Ok(History::Compacted),
            // The store has not reached a revision that we know.
            Err(error) if error.is_other_revision() => Ok(History::Other),
            Err(error) => Err(error),
        }
    }

    fn page_options(&self, revision: i64, limit: i64) -> GetOptions {
        GetOptions::new().with_range(self.keys.end.as_str()).with_limit(limit).with_revision(revision)
    }

    /// The record of one key, and the position at which it was read.
    pub(super) async fn read(&self, key: LeaseKey) -> Result<(Position, Found), CallError> {
        let get = |options: GetOptions| {
            move |client: etcd_client::Client| {
                let (key, options) = (self.keys.lease(key), options.clone());
                let mut client = client.kv_client().max_decoding_message_size(MAX_MESSAGE);
                async move { client.get(key, Some(options)).await }
            }
        };
        match self.call("read the own lease", get(GetOptions::new())).await {
            Ok((_, found)) => {
                let record = found.kvs().first().map(|value| self.decode(value));
                let at = Position::of(found.header());
                Ok((
                    at,
                    record.map_or(Found::Nothing, |read| read.map_or_else(Found::Unreadable, Found::Lease)),
                ))
            }
            Err(error) if error.is_too_large() => {
                let keys = get(GetOptions::new().with_keys_only());
                let (_, found) = self.call("read the own lease", keys).await?;
                let large = found.kvs().first().map(|value| self.unreadable(value, TOO_LARGE.to_owned()));
                Ok((Position::of(found.header()), large.map_or(Found::Nothing, Found::Unreadable)))
            }
            Err(error) => Err(error),
        }
    }

    pub(super) fn decode(&self, found: &KeyValue) -> Result<Stored, Unreadable> {
        let name = self.keys.name(found.key());
        let created = u64::try_from(found.create_revision()).unwrap_or(0);
        let bad = |record: UnreadableRecord| self.unreadable(found, record.reason);
        let lease = Lease::decode(&name, found.value(), created).map_err(bad)?;
        Ok(Stored {
            lease,
            value: digest(found.value()),
            modified: found.mod_revision(),
            etcd_lease: found.lease(),
        })
    }

    /// An unusable record.
    fn unreadable(&self, found: &KeyValue, reason: String) -> Unreadable {
        let name = self.keys.name(found.key());
        Unreadable {
            occupied: occupied(&name),
            record: UnreadableRecord { key: name, reason },
            created: u64::try_from(found.create_revision()).unwrap_or(0),
            modified: found.mod_revision(),
            etcd_lease: found.lease(),
        }
    }
}
