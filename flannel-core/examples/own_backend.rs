//! A way to carry packets of one's own: here none at all, a backend that only says who its peers are.
//!
//! A real one describes its kernel objects to `reconcile` instead, which holds them; see `flannel-backend-hostgw`.
//! `cargo run -p flannel-core --example own_backend -- STORE` needs `CAP_NET_ADMIN`; `STORE/config` is a network config such
//! as `{"Network":"10.244.0.0/16","Backend":{"Type":"list"}}`.

use std::sync::Arc;

use async_trait::async_trait;
use flannel_core::addr::Mtu;
use flannel_core::agent::Agent;
use flannel_core::backend::{Backend, BackendError, Network, NetworkStatus, Registration};
use flannel_core::lease::{Lease, LeaseAttrs, LeaseTable};
use flannel_core::state_file::State;
use flannel_core::subnet::LeaseStream;
use flannel_core::subnet::local::{LocalOptions, LocalSubnetManager};
use futures::StreamExt;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Lists the nodes, and carries nothing.
#[derive(Debug)]
pub struct ListBackend;

#[async_trait]
impl Backend for ListBackend {
    /// `Backend.Type` of the network config.
    fn kind(&self) -> &'static str {
        "list"
    }

    async fn register(&self, registration: Registration<'_>) -> Result<Box<dyn Network>, BackendError> {
        let Registration { config, underlay, subnets, .. } = registration;
        // What peers need to know besides the address would be in `backend_data`.
        let attrs = LeaseAttrs {
            public_ips: underlay.published,
            backend_type: self.kind().to_owned(),
            ..LeaseAttrs::default()
        };
        let lease = subnets.acquire_lease(&attrs).await?;
        let state = State::of_backend(self.kind(), config).own(lease.clone());
        let (status, state, attrs) =
            (watch::Sender::default(), watch::Sender::new(state), watch::Sender::new(attrs));
        Ok(Box::new(ListNetwork { lease, mtu: underlay.mtu, status, state, attrs }))
    }
}

/// This node's place among the others.
struct ListNetwork {
    lease: Lease,
    /// Nothing is put around packets.
    mtu: Mtu,
    status: watch::Sender<NetworkStatus>,
    state: watch::Sender<State>,
    attrs: watch::Sender<LeaseAttrs>,
}

#[async_trait]
impl Network for ListNetwork {
    fn lease(&self) -> &Lease {
        &self.lease
    }

    fn overlay_mtu(&self) -> Mtu {
        self.mtu
    }

    fn status(&self) -> watch::Receiver<NetworkStatus> {
        self.status.subscribe()
    }

    fn state(&self) -> watch::Receiver<State> {
        self.state.subscribe()
    }

    fn attrs(&self) -> watch::Receiver<LeaseAttrs> {
        self.attrs.subscribe()
    }

    async fn run(
        self: Box<Self>,
        mut leases: LeaseStream,
        cancel: CancellationToken,
    ) -> Result<(), BackendError> {
        let mut table = LeaseTable::default();
        while let Some(next) = cancel.run_until_cancelled(leases.next()).await {
            let changes = table.apply(next.ok_or(BackendError::WatchEnded)??);
            for change in changes.iter().filter(|change| change.key != self.lease.key) {
                println!("{} {}", if change.after.is_some() { "here is" } else { "gone is" }, change.key);
            }
            let peers = table.iter().filter(|it| it.lease.key != self.lease.key).count();
            self.status.send_modify(|status| {
                status.peers = peers;
                status.synced = table.is_synced();
                status.overlay_mtu = Some(self.mtu);
            });
        }
        Ok(())
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let dir = std::env::args_os().nth(1).ok_or("usage: own_backend STORE")?;
    let store = LocalSubnetManager::new(LocalOptions::new(dir));
    let agent = Agent::builder(Arc::new(store)).backend(ListBackend).start()?;
    println!("this is {}", agent.ready().await?.lease);
    tokio::signal::ctrl_c().await?;
    agent.stop().await?;
    Ok(())
}
