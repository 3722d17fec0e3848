//! Two nodes, an etcd server full of leases, and an agent.

use std::ops::Deref;
use std::path::Path;

use flannel_benches::etcd::{put_values, talk};
use flannel_benches::{Fallible, leases, wait_ready};
use flannel_lab::agent::Agent;
use flannel_lab::bed;
use flannel_lab::cluster::Cluster;
use flannel_lab::netns::Netns;
use flannel_lab::store::{EtcdStore, Store as _};

pub(crate) struct Bed {
    lab: bed::Bed<EtcdStore>,
    pub(crate) backend: String,
    pub(crate) leases: u32,
}

impl Deref for Bed {
    type Target = bed::Bed<EtcdStore>;

    fn deref(&self) -> &Self::Target {
        &self.lab
    }
}

impl Bed {
    /// Nodes, the server and the leases; no agent yet.
    pub(crate) fn build(
        flanneld: &Path,
        flags: &[String],
        backend: &str,
        fallback: Option<&str>,
        leases: u32,
    ) -> Fallible<Self> {
        let cluster = Cluster::builder().nodes(2).build()?;
        leases::make_room(&cluster)?;
        let store = EtcdStore::start(&cluster, &[])?;
        let config = fallback.map_or_else(
            || leases::config(backend),
            |fallback| leases::config_with_fallback(backend, fallback),
        );
        store.put_config(&config)?;
        let lab = flannel_benches::bed(cluster, store, flanneld, flags);
        let value = |n| match fallback {
            Some(fallback) => leases::value_with_fallback(backend, fallback, n),
            None => leases::value(backend, n),
        };
        talk(&lab, async |client| put_values(client, 0..leases, value).await)?;
        Ok(Self { lab, backend: backend.to_owned(), leases })
    }

    /// Starts the agent on node 1.
    pub(crate) fn start(&self) -> Fallible<Agent> {
        Ok(self.flanneld(1).start()?)
    }

    /// The agent's namespace.
    pub(crate) fn netns(&self) -> &Netns {
        self.lab.netns(1)
    }

    /// Seconds until the agent says that all peers are in the kernel.
    pub(crate) fn wait_ready(&self) -> Fallible<f64> {
        wait_ready(self.netns())
    }
}
