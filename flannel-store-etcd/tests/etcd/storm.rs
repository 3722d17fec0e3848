//! A crowd of nodes that join one store at the same time: many fresh ones, some that come back with a subnet
//! which somebody else has meanwhile, some that die on the way. Shared by a test and by the example
//! `join_storm`, which runs it with a thousand.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::time::{Duration, Instant};

use flannel_core::addr::{Family, Subnet};
use flannel_core::lease::{Lease, LeaseAttrs, LeaseKey};
use flannel_core::subnet::SubnetManager;
use flannel_lab::etcd::{Etcd, KeyValue};
use flannel_store_etcd::{EtcdOptions, EtcdSubnetManager};

/// The crowd of IPv4, in a network of 4,095 subnets.
pub(crate) const STORM_V4: &str = r#"{"Network":"10.0.0.0/12","Backend":{"Type":"vxlan"}}"#;
/// The crowd of both families.
pub(crate) const STORM_DUAL: &str =
    r#"{"Network":"10.0.0.0/12","EnableIPv6":true,"IPv6Network":"fd00:5::/48"}"#;

/// Below it are the leases.
const LEASES: &str = "/coreos.com/network/subnets/";
/// One node in so many has a stale subnet, and one dies.
const EVERY: u16 = 10;
/// Times the number of nodes it is when the last of the dying nodes dies: about as long as all take.
const DEATHS: Duration = Duration::from_millis(6);

/// What came of it.
pub(crate) struct Report {
    pub(crate) joined: usize,
    pub(crate) died: usize,
    /// Leases of nodes that died, which end with their etcd lease.
    pub(crate) left_behind: usize,
    /// The time of the whole crowd, and each node's, ascending.
    pub(crate) took: Duration,
    pub(crate) each: Vec<Duration>,
    /// Requests by gRPC method.
    pub(crate) requests: BTreeMap<String, u64>,
}

impl Report {
    /// Requests for each node that tried.
    pub(crate) fn requests_per_join(&self) -> f64 {
        let all: u64 = self.requests.values().sum();
        all as f64 / (self.joined + self.died) as f64
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let at = |share: usize| self.each[(self.each.len() - 1) * share / 100];
        write!(
            f,
            "{} joined in {:.2?} (median {:.2?}, 99 % {:.2?}), {} died and left {} leases; {:.2} requests per join: {:?}",
            self.joined,
            self.took,
            at(50),
            at(99),
            self.died,
            self.left_behind,
            self.requests_per_join(),
            self.requests
        )
    }
}

/// Lets `nodes` nodes join a store that has a config and no leases yet, and checks what came of it.
///
/// # Panics
/// If a living node gets no lease, two leases share an address, or a dead node leaves something that stays.
pub(crate) async fn storm(etcd: &Etcd, nodes: u16, attrs: fn(u16) -> LeaseAttrs) -> Report {
    let strangers = strangers(etcd, nodes, attrs).await;
    let before = etcd.requests().unwrap();
    let start = Instant::now();
    let crowd: Vec<_> = (1..=nodes)
        .map(|node| {
            let mut options = EtcdOptions::new([etcd.endpoint()]);
            options.identity.subnets = (node % EVERY == 3).then(|| strangers[usize::from(node / EVERY)].key);
            let dies = (node % EVERY == 7).then(|| DEATHS.mul_f64(f64::from(nodes) * fastrand::f64()));
            tokio::spawn(async move {
                let life = join(options, attrs(node));
                match dies {
                    // Dropped wherever it is.
                    Some(after) => tokio::time::timeout(after, life).await.ok(),
                    None => Some(life.await),
                }
            })
        })
        .collect();
    let (mut leases, mut each, mut died) = (HashMap::new(), Vec::new(), Vec::new());
    for (node, task) in (1..=nodes).zip(crowd) {
        match task.await.unwrap() {
            Some((lease, took)) => {
                leases.insert(node, lease);
                each.push(took);
            }
            None => died.push(node),
        }
    }
    let took = start.elapsed();
    let mut requests = etcd.requests().unwrap();
    for (method, count) in &mut requests {
        *count -= before.get(method).copied().unwrap_or_default();
    }
    requests.retain(|_, count| *count > 0);
    each.sort_unstable();

    let stored = etcd.list(LEASES).unwrap();
    assert_apart(&stored);
    let living = leases.iter().map(|(node, lease)| (lease.key, attrs(*node)));
    let wanted: HashMap<String, String> = living
        .chain(strangers.iter().map(|lease| (lease.key, lease.attrs.clone())))
        .map(|(key, attrs)| (format!("{LEASES}{key}"), attrs.to_json()))
        .collect();
    let (known, left): (Vec<_>, Vec<_>) = stored.iter().partition(|found| wanted.contains_key(&found.key));
    assert_eq!(known.len(), wanted.len(), "leases of living nodes are missing");
    assert!(known.iter().all(|found| wanted[&found.key] == found.value));
    let of_the_dead = |found: &KeyValue| died.iter().any(|node| attrs(*node).to_json() == found.value);
    assert!(left.iter().all(|found| of_the_dead(found) && found.lease != 0), "{left:?}");
    // What the dead had begun ends with their etcd leases; nothing else is left of anybody.
    let granted = etcd.ctl(&["lease", "list"]).unwrap().lines().count() - 1;
    assert!((stored.len()..=stored.len() + died.len()).contains(&granted), "{granted} etcd leases");
    // Risen, they have again what they left.
    for node in &died {
        let before = left.iter().find(|found| found.value == attrs(*node).to_json());
        let lease = join(EtcdOptions::new([etcd.endpoint()]), attrs(*node)).await.0;
        assert!(
            before.is_none_or(|found| found.key == format!("{LEASES}{}", lease.key)),
            "{lease:?} {before:?}"
        );
    }
    Report { joined: leases.len(), died: died.len(), left_behind: left.len(), took, each, requests }
}

/// What `flanneld` asks of the store at its start.
async fn join(options: EtcdOptions, attrs: LeaseAttrs) -> (Lease, Duration) {
    let start = Instant::now();
    let manager = EtcdSubnetManager::new(options).unwrap();
    manager.network_config().await.unwrap();
    manager.published_attrs(&attrs.public_ips).await.unwrap();
    (manager.acquire_lease(&attrs).await.unwrap(), start.elapsed())
}

/// The leases of those who took the subnets that stale nodes will ask for.
async fn strangers(etcd: &Etcd, nodes: u16, attrs: fn(u16) -> LeaseAttrs) -> Vec<Lease> {
    let mut leases = Vec::new();
    for stranger in 0..=nodes / EVERY {
        leases.push(join(EtcdOptions::new([etcd.endpoint()]), attrs(60_000 + stranger)).await.0);
    }
    leases
}

fn assert_apart(stored: &[KeyValue]) {
    let keys: Vec<LeaseKey> = stored.iter().map(|found| found.key[LEASES.len()..].parse().unwrap()).collect();
    for family in Family::ALL {
        let mut subnets: Vec<Subnet> = keys.iter().filter_map(|key| key.subnet(family)).collect();
        subnets.sort_unstable();
        for pair in subnets.windows(2) {
            assert!(!pair[0].overlaps(pair[1]), "{} and {} overlap", pair[0], pair[1]);
        }
    }
}
