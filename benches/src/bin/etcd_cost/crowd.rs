//! Agents of one process.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use flannel_backend_vxlan::VxlanBackend;
use flannel_benches::stats::Sample;
use flannel_benches::{Fallible, leases};
use flannel_core::agent::{Agent, AgentStatus};
use flannel_core::firewall::Managers;
use flannel_core::kernel::LinkAddress;
use flannel_core::lease::Lease;
use flannel_core::subnet::SubnetManager as _;
use flannel_core::testing::FakeKernel;
use flannel_core::underlay::UnderlayOptions;
use flannel_store_etcd::EtcdOptions;
use futures::future::try_join_all;
use tokio::time::{sleep, timeout};

use crate::heard::Heeded;

const DEADLINE: Duration = Duration::from_secs(600);
const LOOK: Duration = Duration::from_millis(2);

/// An agent with a connection and a kernel of its own.
pub(crate) struct Node {
    agent: Agent,
    pub(crate) store: Arc<Heeded>,
}

impl Node {
    pub(crate) fn start(number: u32, options: EtcdOptions) -> Fallible<Self> {
        let store = Arc::new(Heeded::new(options)?);
        let kernel = kernel(number)?;
        let own = kernel.clone();
        let agent = Agent::builder(Arc::clone(&store) as Arc<_>)
            .backend(VxlanBackend::with_kernel(move |_| Ok(Box::new(kernel.clone()))))
            .underlay(UnderlayOptions::auto().iface("eth0"))
            .fakes(move || Ok(Box::new(own.clone())), || Managers::none("a fake host"));
        Ok(Self { agent: agent.start()?, store })
    }

    /// Waits until it has its lease.
    pub(crate) async fn lease(&self) -> Fallible<Lease> {
        self.wait("a lease", |status| status.node.is_some()).await?;
        let status = self.agent.status();
        let lease = status.borrow().node.as_ref().map(|node| node.lease.clone());
        Ok(lease.ok_or("a lease that was there is gone")?)
    }

    /// Waits until so many peers are programmed, and no more.
    pub(crate) async fn sees(&self, peers: usize) -> Fallible<()> {
        let sees = |status: &AgentStatus| {
            status.network.as_ref().is_some_and(|network| network.synced && network.peers == peers)
        };
        self.wait("all peers", sees).await
    }

    async fn wait(&self, what: &str, holds: impl Fn(&AgentStatus) -> bool) -> Fallible<()> {
        let mut status = self.agent.status();
        let waited = async {
            tokio::select! {
                ended = self.agent.ended() => Err(format!("an agent ended: {ended:?}")),
                seen = status.wait_for(|status| holds(status)) => seen.map(drop).map_err(|error| error.to_string()),
            }
        };
        Ok(timeout(DEADLINE, waited).await.map_err(|_| format!("an agent has not got {what}"))??)
    }

    /// Ends the agent; its lease stays.
    pub(crate) async fn stop(&self) -> Fallible<()> {
        Ok(self.agent.stop().await?)
    }
}

/// All agents, which started at once.
pub(crate) struct Crowd {
    pub(crate) nodes: Vec<Node>,
    /// Seconds until each had its lease.
    pub(crate) leased: Sample,
    /// Seconds until all had programmed all others.
    pub(crate) known: f64,
}

impl Crowd {
    pub(crate) async fn start(count: u32, options: &EtcdOptions) -> Fallible<Self> {
        let start = Instant::now();
        let nodes = (0..count).map(|number| Node::start(number, options.clone()));
        let nodes = nodes.collect::<Fallible<Vec<_>>>()?;
        let leased = nodes.iter().map(async |node| {
            node.lease().await?;
            Fallible::Ok(start.elapsed().as_secs_f64())
        });
        let leased = try_join_all(leased).await?.into_iter().collect();
        let crowd = Self { nodes, leased, known: 0.0 };
        crowd.see(count as usize - 1).await?;
        Ok(Self { known: start.elapsed().as_secs_f64(), ..crowd })
    }

    /// Waits until every agent has so many peers.
    pub(crate) async fn see(&self, peers: usize) -> Fallible<()> {
        try_join_all(self.nodes.iter().map(|node| node.sees(peers))).await.map(drop)
    }

    /// Changes that all agents were told so far, and lists that they read.
    pub(crate) fn heard(&self) -> (u64, u64) {
        let sum = |count: fn(&Heeded) -> u64| self.nodes.iter().map(|node| count(&node.store)).sum();
        (sum(Heeded::changes), sum(Heeded::snapshots))
    }

    /// Waits until all agents together were told so many changes.
    pub(crate) async fn hear(&self, changes: u64) -> Fallible<()> {
        let heard = async {
            while self.heard().0 < changes {
                sleep(LOOK).await;
            }
        };
        Ok(timeout(DEADLINE, heard).await.map_err(|_| "not all agents were told of a change")?)
    }

    /// What the agents' stores asked so far, and what of it was not answered, by kind.
    pub(crate) fn asked(&self) -> BTreeMap<&'static str, (u64, u64)> {
        let mut asked: BTreeMap<_, (u64, u64)> = BTreeMap::new();
        for node in &self.nodes {
            for count in node.store.status().borrow().requests.read() {
                let (sent, failed) = asked.entry(count.request).or_default();
                (*sent, *failed) = (*sent + count.sent, *failed + count.failed);
            }
        }
        asked
    }
}

/// The kernel of a host with one link.
fn kernel(number: u32) -> Fallible<FakeKernel> {
    let kernel = FakeKernel::default();
    let link = kernel.add_link("eth0", 1500);
    // The first address of the network is no host's.
    let addr = format!("{}/12", leases::underlay("vxlan", number + 1)).parse()?;
    let (global, permanent) = (true, true);
    let (deprecated, temporary, tentative) = (false, false, false);
    kernel.add_address(LinkAddress { link, addr, global, deprecated, permanent, temporary, tentative });
    Ok(kernel)
}
