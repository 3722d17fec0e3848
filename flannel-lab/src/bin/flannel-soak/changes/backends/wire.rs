//! What the nodes are told, what lies between them, and by which way they send.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use flannel_lab::cluster::Families;
use flannel_lab::store::Store as _;
use flannel_lab::wait::wait_for;
use serde_json::{Value, json};

use super::plan::Block;
use crate::Fallible;
use crate::action::Victim;
use crate::changes::cause::Pair;
use crate::lab::{self, LIMIT, Lab};
use crate::model::Backend;

/// How long a change takes at most: devices, records in turn, and those of a node whose agent was away.
const LONG: Duration = Duration::from_secs(60);
/// After how many seconds a node that is away is waited for no longer.
const SWITCH_AFTER: u32 = 10;

/// The nodes and what is between them.
pub(super) struct Wire {
    pub(super) lab: Lab,
    flanneld: PathBuf,
    /// The keys of the nodes' records, which they keep.
    keys: BTreeMap<u8, String>,
}

impl Wire {
    /// Takes the nodes' records as they are.
    pub(super) fn new(lab: Lab, flanneld: &Path) -> Fallible<Self> {
        let key = |number| {
            let lease =
                lab.lease(Victim::Node(number)).ok_or_else(|| format!("node{number} has no lease"))?;
            Ok((number, lease.key()))
        };
        let keys = lab.numbers().map(key).collect::<Fallible<_>>()?;
        Ok(Self { lab, flanneld: flanneld.to_owned(), keys })
    }

    /// Writes the config with another backend than the `former` one.
    pub(super) fn configure(&self, to: Backend, former: Backend) -> Fallible<()> {
        let leaves = former == Backend::Wireguard;
        Ok(self.lab.store.put_config(&config(to, leaves, self.lab.cluster.families()))?)
    }

    /// Waits until the records of all nodes name this backend, its detour and no other.
    pub(super) fn wait_until_published(&self, kind: Backend) -> Fallible<()> {
        let what = format!("all records to name {} and nothing else", kind.name());
        Ok(wait_for(LONG, &what, || {
            let records = self.lab.store.records().map_err(|error| error.to_string())?;
            let is_done = |value: &String| publishes(value, kind);
            let are_all = records.keys().eq(self.keys.values().collect::<std::collections::BTreeSet<_>>());
            if are_all && records.values().all(is_done) { Ok(()) } else { Err(format!("{records:#?}")) }
        })?)
    }

    /// Drops the packets of a tunnel where they come in.
    pub(super) fn block(&self, block: Block) -> Fallible<()> {
        let port = port(block.kind).ok_or_else(|| format!("{} has no port", block.kind.name()))?;
        for [from, to] in block.ways() {
            let sender = self.lab.node(from);
            let table = table(from);
            let mut batch = vec![
                format!("add table inet {table}"),
                format!("add chain inet {table} input {{ type filter hook input priority -300; }}"),
            ];
            for (family, address) in [("ip", sender.ipv4()), ("ip6", sender.ipv6())] {
                let Some(address) = address else { continue };
                batch.push(format!(
                    "add rule inet {table} input udp dport {port} {family} saddr {address} drop"
                ));
            }
            self.lab.netns(to).run("nft", &[&batch.join("; ")])?;
        }
        Ok(())
    }

    /// Lets them in again.
    pub(super) fn unblock(&self, block: Block) -> Fallible<()> {
        for [from, to] in block.ways() {
            self.lab.netns(to).run("nft", &[&format!("delete table inet {}", table(from))])?;
        }
        Ok(())
    }

    /// Waits until the status of each node that is blocked says that its packets go another way, in all families.
    pub(super) fn wait_until_bridged(&self, block: Block) -> Fallible<()> {
        for [from, to] in block.ways() {
            let what = format!("node{from} to bridge its way to node{to}");
            wait_for(LIMIT, &what, || {
                let peer = self.verdicts(from, to).map_err(|error| error.to_string())?;
                let is_bridged = |v6: &bool| peer[if *v6 { "v6" } else { "v4" }]["verdict"] == "bridged";
                if self.lab.families().iter().all(is_bridged) { Ok(()) } else { Err(peer.to_string()) }
            })?;
        }
        Ok(())
    }

    /// What the probes of a node say of another one.
    fn verdicts(&self, from: u8, to: u8) -> Fallible<Value> {
        let status = crate::changes::status(&self.lab, &self.flanneld, from)?;
        let mut peers = status["probes"]["peers"].as_array().into_iter().flatten();
        let key = &self.keys[&to];
        Ok(peers.find(|peer| peer["lease"] == key.as_str()).cloned().unwrap_or_default())
    }

    /// Whether packets of two nodes travel through an agent, in some direction and family. What has no route does not travel, which
    /// is what an agent leaves that has ended.
    pub(super) fn is_through_agents(&self, [a, b]: Pair) -> bool {
        let pods = self.lab.pods();
        let goes = |from: u8, to: u8| {
            pods[&to].addresses().iter().any(|address| {
                let route = self.lab.netns(from).ip(&format!("route get {}", address.ip()));
                route.is_ok_and(|route| is_through_agent(&route))
            })
        };
        goes(a, b) || goes(b, a)
    }
}

/// The table that drops what a node sends.
fn table(from: u8) -> String {
    format!("soak_block_from{from}")
}

/// Whether a route leads to a device that is an agent's.
fn is_through_agent(route: &str) -> bool {
    let link = |kind: Backend, v6| route.contains(&format!("dev {} ", kind.link(v6)));
    [Backend::Udp, Backend::Wireguard].into_iter().any(|kind| link(kind, false) || link(kind, true))
}

/// The port of the tunnels that may be blocked.
fn port(kind: Backend) -> Option<u16> {
    match kind {
        Backend::Vxlan => Some(8472),
        Backend::Udp => Some(8285),
        Backend::HostGw | Backend::Wireguard | Backend::Ipip => None,
    }
}

/// The backend by which nodes get round a blocked tunnel of another one.
fn detour(kind: Backend) -> Option<Backend> {
    match kind {
        Backend::Vxlan => Some(Backend::Udp),
        Backend::Udp => Some(Backend::Vxlan),
        Backend::HostGw | Backend::Wireguard | Backend::Ipip => None,
    }
}

/// The config of a cluster with this backend, which leaves encryption if the former one has it.
pub(super) fn config(kind: Backend, leaves: bool, families: Families) -> String {
    let mut backend = json!({ "Type": kind.name(), "SwitchAfter": SWITCH_AFTER });
    if let Some(detour) = detour(kind) {
        backend["Fallback"] = json!([detour.name()]);
    }
    if leaves {
        backend["LeaveEncryption"] = true.into();
    }
    lab::config(&backend, families)
}

/// Whether a record names this backend, its detour and no other.
fn publishes(record: &str, kind: Backend) -> bool {
    let record = serde_json::from_str::<Value>(record).unwrap_or_default();
    let named = record["BackendType"].as_str().unwrap_or(Backend::Udp.name());
    let receives = record["Receives"].as_array().into_iter().flatten().map(|other| other["Type"].as_str());
    named == kind.name() && receives.eq(detour(kind).map(|detour| Some(detour.name())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_names_the_backend_its_detour_and_no_other() {
        for (record, kind, wanted) in [
            (r#"{"BackendType":"vxlan","Receives":[{"Type":"udp"}]}"#, Backend::Vxlan, true),
            (r#"{"BackendType":"vxlan"}"#, Backend::Vxlan, false),
            (
                r#"{"BackendType":"vxlan","Receives":[{"Type":"udp"},{"Type":"host-gw"}]}"#,
                Backend::Vxlan,
                false,
            ),
            (r#"{"Receives":[{"Type":"vxlan"}]}"#, Backend::Udp, true),
            (r#"{"BackendType":"vxlan","Receives":[{"Type":"udp"}]}"#, Backend::Udp, false),
            (r#"{"BackendType":"host-gw"}"#, Backend::HostGw, true),
            (r#"{"BackendType":"wireguard","Receives":[{"Type":"vxlan"}]}"#, Backend::Wireguard, false),
            ("no JSON", Backend::Vxlan, false),
        ] {
            assert_eq!(publishes(record, kind), wanted, "{record}");
        }
    }

    #[test]
    fn configs_have_what_a_change_takes() {
        let backend = |kind, leaves| {
            let config = config(kind, leaves, Families::Dual);
            serde_json::from_str::<Value>(&config).unwrap()["Backend"].clone()
        };
        let vxlan =
            json!({ "Type": "vxlan", "SwitchAfter": 10, "Fallback": ["udp"], "LeaveEncryption": true });
        assert_eq!(backend(Backend::Vxlan, true), vxlan);
        assert_eq!(backend(Backend::HostGw, false), json!({ "Type": "host-gw", "SwitchAfter": 10 }));
    }

    #[test]
    fn routes_tell_what_goes_through_an_agent() {
        for (route, wanted) in [
            ("10.42.201.2 dev flannel0 src 10.42.200.0 uid 0 \n", true),
            ("fd00:42:0:c9::2 from :: dev flannel-wg-v6 src fd00:: metric 1024 pref medium", true),
            ("10.42.201.2 via 10.42.201.0 dev flannel.1 src 10.42.200.0", false),
            ("10.42.201.2 via 192.168.77.12 dev eth0 src 192.168.77.11", false),
        ] {
            assert_eq!(is_through_agent(route), wanted, "{route}");
        }
    }
}
