//! A fake of the Kubernetes API server, as far as a network agent uses it: nodes in a store with revisions are listed,
//! watched and patched as the real server does it, and faults can be switched on while it runs.
//!
//! It runs in a thread of this process, on a socket in any namespace, and answers from memory: thousands of nodes and
//! hundreds of changes a second are cheap. Every version of a node is encoded once for all readers.
//!
//! ```no_run
//! use flannel_lab::kube::fake::{Faults, KubeApi, KubeApiOptions, kubelet_node};
//!
//! # fn main() -> Result<(), flannel_lab::LabError> {
//! let api = KubeApi::start(KubeApiOptions::default())?;
//! api.put_node(kubelet_node("node1", &["10.244.1.0/24"], 3000));
//! println!("an agent uses --kube-api-url={}", api.url());
//! api.set_faults(Faults { stall: true, ..Faults::default() });
//! # Ok(())
//! # }
//! ```

mod clock;
mod connection;
mod encoded;
mod faults;
mod full_node;
mod kubelet;
mod list;
mod listener;
mod login;
mod patch;
mod seen;
mod serve;
mod server;
mod status;
mod store;
mod tls;
mod view;
mod watch;
mod write;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use axum::Router;
use serde_json::Value;
use tokio::runtime::{self, Handle};
use tokio::sync::oneshot;

pub use self::faults::Faults;
pub use self::full_node::full_node;
pub use self::kubelet::{kubelet_node, touch_status};
pub use self::login::Login;
pub use self::seen::{Counts, Request};
pub use self::view::MetadataOnly;
use crate::LabError;
use crate::etcd::{TlsFiles, free_port};
use crate::netns::Netns;

use self::connection::Connections;
use self::listener::{Client, Incoming, Port};
use self::server::Server;
use self::store::Store;

/// How to run a server.
#[derive(Debug, Clone)]
pub struct KubeApiOptions {
    /// The namespace to listen in; ours unless told.
    pub netns: Option<Netns>,
    /// The address clients reach it by.
    pub listen: IpAddr,
    /// The port; 6443 in a namespace unless told, else one that is free.
    pub port: Option<u16>,
    /// Keys for TLS; plain TCP unless told. A client with a certificate of the same authority needs no token.
    pub tls: Option<TlsFiles>,
    /// The bearer tokens that are accepted; everyone is served unless told.
    pub tokens: Option<Vec<String>>,
    /// Whether watches can begin with all objects (`sendInitialEvents`), which servers can since 1.32.
    pub watch_list: bool,
    /// What it does when it is asked for the metadata of nodes alone.
    pub metadata_only: MetadataOnly,
    /// How often watches get a bookmark, if they want them. The real server takes a minute.
    pub bookmark_interval: Duration,
    /// How many changes the server remembers. Watches and pages from before are answered with 410, and a watch that
    /// lags further behind is cut off.
    pub history: usize,
}

impl Default for KubeApiOptions {
    /// Plain TCP on loopback for everyone, with watch lists.
    fn default() -> Self {
        Self {
            netns: None,
            listen: Ipv4Addr::LOCALHOST.into(),
            port: None,
            tls: None,
            tokens: None,
            watch_list: true,
            metadata_only: MetadataOnly::Served,
            bookmark_interval: Duration::from_mins(1),
            history: 10_000,
        }
    }
}

impl KubeApiOptions {
    /// A server in a namespace, at one of its addresses.
    pub fn at(netns: &Netns, listen: IpAddr) -> Self {
        Self { netns: Some(netns.clone()), listen, ..Self::default() }
    }
}

/// A running server. It ends when dropped.
#[derive(Debug)]
pub struct KubeApi {
    server: Arc<Server>,
    connections: Arc<Connections>,
    port: Port,
    address: SocketAddr,
    tls: Option<TlsFiles>,
    runtime: Handle,
    /// Ends the thread when dropped.
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// The objects of a server at one moment; see [`KubeApi::snapshot`].
#[derive(Debug, Clone)]
pub struct Snapshot(Store);

impl KubeApi {
    /// Starts a server, which answers once this returns.
    pub fn start(options: KubeApiOptions) -> Result<Self, LabError> {
        let server = Arc::new(Server::new(&options));
        let KubeApiOptions { netns, listen, port, tls, .. } = options;
        let port = port.or(netns.is_some().then_some(6443)).map_or_else(free_port, Ok)?;
        let address = SocketAddr::new(listen, port);
        let acceptor = tls.as_ref().map(tls::acceptor).transpose()?;
        let connections = Arc::new(Connections::default());
        let (port, incoming) = Port::new(netns, address, connections.clone(), acceptor);

        let what = || LabError::io("starting a runtime for the API server");
        let runtime = runtime::Builder::new_current_thread().enable_all().build().map_err(what())?;
        let handle = runtime.handle().clone();
        let (stop, stopped) = oneshot::channel();
        let serving = server.clone();
        let thread = thread::Builder::new()
            .name("kube-api".to_owned())
            .spawn(move || {
                runtime.spawn(serve(incoming, serving));
                let _ = runtime.block_on(stopped);
            })
            .map_err(what())?;
        let api = Self {
            server,
            connections,
            port,
            address,
            tls,
            runtime: handle,
            stop: Some(stop),
            thread: Some(thread),
        };
        api.listen_again()?;
        Ok(api)
    }

    /// The URL that clients use.
    pub fn url(&self) -> String {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        format!("{scheme}://{}", self.address)
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Creates a node, or replaces it. If it is as it was, nothing happens. What the server sets by itself stays: uid,
    /// creation and revision.
    ///
    /// # Panics
    ///
    /// If it has no name.
    pub fn put_node(&self, node: Value) {
        let name = node["metadata"]["name"].as_str().expect("a node has a name").to_owned();
        self.server.change(|store| store.put(&name, node));
    }

    /// Changes a node, if it is there.
    pub fn edit_node(&self, name: &str, edit: impl FnOnce(&mut Value)) -> bool {
        self.server.change(|store| {
            let Some(node) = store.nodes().get(name) else { return false };
            let mut node = node.value();
            edit(&mut node);
            store.put(name, node);
            true
        })
    }

    /// Deletes a node, if it is there.
    pub fn delete_node(&self, name: &str) -> bool {
        self.server.change(|store| store.delete(name))
    }

    /// A node.
    pub fn node(&self, name: &str) -> Option<Value> {
        let node = self.server.store().nodes().get(name)?.clone();
        Some(node.value())
    }

    /// The names of all nodes, in order.
    pub fn node_names(&self) -> Vec<String> {
        self.server.store().nodes().keys().map(ToString::to_string).collect()
    }

    /// Creates a pod that runs on a node, or replaces it.
    pub fn put_pod(&self, namespace: &str, name: &str, node: &str) {
        self.server.change(|store| store.put_pod(namespace, name, node));
    }

    /// The revision now: the number of the last change.
    pub fn revision(&self) -> u64 {
        self.server.store().revision()
    }

    /// Forgets all revisions before the present one: watches and pages that want them are answered with 410. Watches
    /// that are open go on.
    pub fn compact(&self) {
        self.server.change(Store::compact);
    }

    /// All objects as they are now.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot(self.server.store().without_history())
    }

    /// Puts a snapshot in the place of what there is, as when a cluster's etcd is restored from a backup and its
    /// API servers are started again: revisions go back, the history is empty, all connections are cut.
    ///
    /// A watch that asks for a revision which is now to come hears nothing until that is there, as with the real
    /// server; a list that asks for it is answered with 504.
    pub fn restore(&self, snapshot: Snapshot) {
        self.server.change(|store| {
            // Under the store's lock: no watch from before hears of what comes after, nor that it has ended.
            self.disconnect();
            *store = snapshot.0;
            self.server.life.fetch_add(1, Ordering::SeqCst);
        });
    }

    /// From now on the server does these things wrong, and no others.
    pub fn set_faults(&self, faults: Faults) {
        let stall = faults.stall;
        self.server.set_faults(faults);
        self.connections.stall(stall);
    }

    /// Which faults there are now.
    pub fn faults(&self) -> Faults {
        self.server.faults()
    }

    /// Cuts all connections in the middle of whatever they are at. New ones are served.
    pub fn disconnect(&self) {
        self.connections.cut();
    }

    /// Forgets all connections that there are: nothing comes on them any more and nobody is told, as when the address
    /// of a client is gone. New ones are served.
    pub fn forget_connections(&self) {
        self.connections.forget();
    }

    /// Ends all watches as the server does when their time is over.
    pub fn end_watches(&self) {
        self.server.change(|_| self.server.life.fetch_add(1, Ordering::SeqCst));
    }

    /// Closes the port: new connections are refused once this returns. Those that are open go on, unless they are
    /// cut by [`disconnect`](Self::disconnect).
    pub fn stop_listening(&self) {
        self.port.close();
    }

    /// Opens the port again.
    pub fn listen_again(&self) -> Result<(), LabError> {
        self.port.open(&self.runtime)
    }

    /// Accepts these bearer tokens from the next request on, or serves everyone.
    pub fn set_tokens(&self, tokens: Option<Vec<String>>) {
        self.server.set_tokens(tokens);
    }

    /// Uses these keys from the next connection on. The URL stays what it is.
    pub fn set_tls(&self, tls: &TlsFiles) -> Result<(), LabError> {
        self.port.set_tls(Some(tls::acceptor(tls)?));
        Ok(())
    }

    /// All requests since the last [`clear_requests`](Self::clear_requests), in the order in which they came.
    pub fn requests(&self) -> Vec<Request> {
        self.server.seen().0.clone()
    }

    /// How many requests of each kind there were since the last [`clear_requests`](Self::clear_requests).
    pub fn counts(&self) -> Counts {
        self.server.seen().1
    }

    /// Forgets all requests so far.
    pub fn clear_requests(&self) {
        *self.server.seen() = <_>::default();
    }

    /// How many watches are open.
    pub fn open_watches(&self) -> usize {
        self.server.open_watches.load(Ordering::SeqCst)
    }

    /// How many bytes of endless answers ([`Faults::endless`]) clients have taken, or the kernel for them.
    pub fn endless_bytes(&self) -> u64 {
        self.server.endless.load(Ordering::SeqCst)
    }

    /// How many connections are open.
    pub fn open_connections(&self) -> usize {
        self.connections.count()
    }
}

impl Drop for KubeApi {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // It panics only if its runtime did, and then there is nothing left to end.
            let _ = thread.join();
        }
    }
}

async fn serve(incoming: Incoming, server: Arc<Server>) {
    let app = Router::new().fallback(serve::answer).with_state(server);
    let app = app.into_make_service_with_connect_info::<Client>();
    // It ends with its runtime.
    let _ = axum::serve(incoming, app).await;
}
