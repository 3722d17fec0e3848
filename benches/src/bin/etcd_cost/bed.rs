//! The server, and what it and the wire say that it did.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use flannel_benches::machine::Watch;
use flannel_benches::proc::{self, Activity};
use flannel_benches::{Fallible, machine::Usage};
use flannel_lab::cluster::Cluster;
use flannel_lab::netns::Netns;
use flannel_lab::store::{EtcdStore, Store as _};

/// Room for 65,536 nodes.
const CONFIG: &str = r#"{"Network":"10.0.0.0/8","SubnetLen":24,"Backend":{"Type":"vxlan"}}"#;
/// Counts messages from clients by gRPC method, and watches that were opened.
const RECEIVED: &str = "grpc_server_msg_received_total";
const WATCHES: &str = r#"grpc_server_started_total{grpc_method="Watch",grpc_service="etcdserverpb.Watch",grpc_type="bidi_stream"}"#;

/// An etcd on one side of a link, and the namespace of the agents on the other.
pub(crate) struct Bed {
    // The server goes before the namespaces.
    store: EtcdStore,
    cluster: Cluster,
}

/// All counters at one moment.
pub(crate) struct Reading {
    at: Instant,
    machine: Watch,
    /// Those of the server, by name and labels.
    metrics: BTreeMap<String, f64>,
    /// Bytes that the agents' link sent and received.
    wire: [f64; 2],
    server: Activity,
    agents: Activity,
}

/// What happened between two moments.
#[derive(Debug, Default)]
pub(crate) struct Cost {
    pub(crate) seconds: f64,
    /// Messages from clients by gRPC method: requests, and what is asked within a stream.
    pub(crate) requests: BTreeMap<String, f64>,
    /// Watches that were opened, each by one of these messages.
    pub(crate) watches: f64,
    /// Watch events sent.
    pub(crate) events: f64,
    /// Keys written or deleted.
    pub(crate) writes: f64,
    /// Bytes of messages, to the server and from it.
    pub(crate) messages: [f64; 2],
    /// Bytes on the wire, to the server and from it: with the headers of HTTP/2, TCP, IP and Ethernet.
    pub(crate) wire: [f64; 2],
    /// Processor time of the server, in seconds.
    pub(crate) server: f64,
    /// That of all agents.
    pub(crate) agents: f64,
    /// The share of the processor that others used.
    pub(crate) foreign: f64,
}

impl Bed {
    pub(crate) fn new() -> Fallible<Self> {
        let cluster = Cluster::builder().nodes(1).build()?;
        let store = EtcdStore::start(&cluster, &[])?;
        store.put_config(CONFIG)?;
        Ok(Self { store, cluster })
    }

    pub(crate) fn endpoint(&self) -> String {
        self.store.etcd().endpoint().to_owned()
    }

    /// Where the agents connect from.
    pub(crate) fn netns(&self) -> &Netns {
        self.cluster.node(1).netns()
    }

    pub(crate) fn read(&self) -> Fallible<Reading> {
        let etcd = self.store.etcd();
        let files = ["tx", "rx"].map(|way| format!("/sys/class/net/eth0/statistics/{way}_bytes"));
        let bytes = self.netns().run("cat", &[&files[0], &files[1]])?;
        let bytes = bytes.split_whitespace().map(str::parse).collect::<Result<Vec<f64>, _>>()?;
        Ok(Reading {
            at: Instant::now(),
            machine: Watch::start(),
            metrics: etcd.metrics()?,
            wire: bytes.try_into().map_err(|_| "two counts of bytes were asked for")?,
            server: proc::activity(etcd.agent().pid())?,
            agents: proc::activity(std::process::id())?,
        })
    }

    /// What happened since an earlier moment.
    pub(crate) fn since(&self, before: Reading) -> Fallible<Cost> {
        let now = self.read()?;
        let cpu = [now.server.since(&before.server).cpu, now.agents.since(&before.agents).cpu];
        let usage: Usage = before.machine.stop();
        let grown = |name: &str| -> f64 {
            let count = |metrics: &BTreeMap<String, f64>| metrics.get(name).copied().unwrap_or(0.0);
            count(&now.metrics) - count(&before.metrics)
        };
        let requests = now.metrics.keys().filter_map(|name| Some((method(name)?, grown(name))));
        let bytes = |way| grown(&format!("etcd_network_client_grpc_{way}_bytes_total"));
        Ok(Cost {
            seconds: (now.at - before.at).as_secs_f64(),
            requests: requests.filter(|(_, count)| *count > 0.0).collect(),
            watches: grown(WATCHES),
            events: grown("etcd_debugging_mvcc_events_total"),
            writes: grown("etcd_mvcc_put_total") + grown("etcd_mvcc_delete_total"),
            messages: [bytes("received"), bytes("sent")],
            wire: [now.wire[0] - before.wire[0], now.wire[1] - before.wire[1]],
            server: cpu[0].as_secs_f64(),
            agents: cpu[1].as_secs_f64(),
            foreign: usage.foreign(cpu.iter().sum::<Duration>()),
        })
    }
}

impl Cost {
    /// The messages of one method.
    pub(crate) fn of(&self, method: &str) -> f64 {
        self.requests.get(method).copied().unwrap_or(0.0)
    }

    /// Questions for the progress of watches.
    pub(crate) fn asks(&self) -> f64 {
        self.of("Watch") - self.watches
    }

    /// All messages but these questions.
    pub(crate) fn others(&self) -> f64 {
        self.requests.values().sum::<f64>() - self.asks()
    }

    /// Bytes on the wire in both directions.
    pub(crate) fn bytes(&self) -> f64 {
        self.wire.iter().sum()
    }
}

/// The method of a counter of received messages.
fn method(name: &str) -> Option<String> {
    let labels = name.strip_prefix(RECEIVED)?;
    let (_, rest) = labels.split_once("grpc_method=\"")?;
    Some(rest.split_once('"')?.0.to_owned())
}
