//! Two nodes, an etcd server full of leases, and an agent.

use std::path::{Path, PathBuf};

use etcd_client::{Client, Txn, TxnOp};
use flannel_benches::{Fallible, HEALTH_PORT, leases, wait_ready};
use flannel_lab::agent::Agent;
use flannel_lab::cluster::Cluster;
use flannel_lab::etcd::{Etcd, EtcdOptions};
use flannel_lab::netns::Netns;

/// What etcd takes in one transaction unless told otherwise.
const TXN: u32 = 128;
const PREFIX: &str = "/coreos.com/network";

pub(crate) struct Bed {
    pub(crate) cluster: Cluster,
    etcd: Etcd,
    flanneld: PathBuf,
    flags: Vec<String>,
    pub(crate) backend: String,
    pub(crate) leases: u32,
}

impl Bed {
    /// Nodes, the server and the leases; no agent yet.
    pub(crate) fn build(flanneld: &Path, flags: &[String], backend: &str, leases: u32) -> Fallible<Self> {
        let cluster = Cluster::builder().nodes(2).build()?;
        for node in cluster.nodes() {
            // Room for every node's own gateway on the link.
            node.netns().ip(&format!("address add 10.200.{}.254/16 dev eth0", 254 + node.number() % 2))?;
        }
        let etcd = Etcd::start(EtcdOptions::at(cluster.fabric(), cluster.fabric_address()))?;
        let (flanneld, flags) = (flanneld.to_owned(), flags.to_vec());
        let bed = Self { cluster, etcd, flanneld, flags, backend: backend.to_owned(), leases };
        bed.store(async |client| {
            client.put(format!("{PREFIX}/config"), leases::config(backend), None).await?;
            put(client, backend, 0..leases).await
        })?;
        Ok(bed)
    }

    /// Talks to the server.
    pub(crate) fn store<T: Send>(
        &self,
        talk: impl AsyncFnOnce(&mut Client) -> Result<T, etcd_client::Error> + Send,
    ) -> Fallible<T> {
        let endpoint = self.etcd.endpoint();
        let talk = || -> Result<T, String> {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let runtime = runtime.map_err(|error| error.to_string())?;
            let talk = async {
                let mut client = Client::connect([endpoint], None).await?;
                talk(&mut client).await
            };
            runtime.block_on(talk).map_err(|error: etcd_client::Error| error.to_string())
        };
        Ok(self.cluster.fabric().enter(talk)??)
    }

    /// Starts the agent on node 1.
    pub(crate) fn start(&self) -> Fallible<Agent> {
        let agent = self.cluster.node(1).agent("flanneld", &self.flanneld).args([
            "--iface=eth0".to_owned(),
            format!("--etcd-endpoints={}", self.etcd.endpoint()),
            "--subnet-file=/run/control-plane.env".to_owned(),
            format!("--healthz-port={HEALTH_PORT}"),
        ]);
        Ok(agent.args(&self.flags).start()?)
    }

    /// The agent's namespace.
    pub(crate) fn netns(&self) -> &Netns {
        self.cluster.node(1).netns()
    }

    /// Seconds until the agent says that all peers are in the kernel.
    pub(crate) fn wait_ready(&self) -> Fallible<f64> {
        wait_ready(self.netns())
    }
}

/// The full key of a lease.
pub(crate) fn key(n: u32) -> String {
    format!("{PREFIX}/subnets/{}", leases::key(n))
}

/// Puts leases, in as few transactions as possible.
pub(crate) async fn put(
    client: &mut Client,
    backend: &str,
    leases: std::ops::Range<u32>,
) -> Result<(), etcd_client::Error> {
    let ops: Vec<TxnOp> = leases.map(|n| TxnOp::put(key(n), leases::value(backend, n), None)).collect();
    for part in ops.chunks(TXN as usize) {
        client.txn(Txn::new().and_then(part)).await?;
    }
    Ok(())
}

/// Deletes leases.
pub(crate) async fn delete(
    client: &mut Client,
    leases: std::ops::Range<u32>,
) -> Result<(), etcd_client::Error> {
    let ops: Vec<TxnOp> = leases.map(|n| TxnOp::delete(key(n), None)).collect();
    for part in ops.chunks(TXN as usize) {
        client.txn(Txn::new().and_then(part)).await?;
    }
    Ok(())
}
