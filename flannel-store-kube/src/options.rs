//! The options of the Kubernetes store: how to reach the API, which node this is, and the checks that need no server.

use std::path::PathBuf;
use std::time::Duration;

use flannel_core::clock::Clock;
use flannel_core::secret::ServerUrl;

use super::annotations::AnnotationPrefix;

/// How to reach and use the Kubernetes API as a store.
#[derive(Debug, Clone)]
pub struct KubeOptions {
    /// The API server and the credentials.
    pub access: KubeAccess,
    /// How to find the node on which this agent runs.
    pub node: NodeIdentity,
    /// The prefix of our annotations' names.
    pub annotations: AnnotationPrefix,
    /// The file with the network config, as a mounted `ConfigMap` has it.
    pub net_config: PathBuf,
    /// Whether to set the node's condition `NetworkUnavailable` to false once the network is up.
    pub set_condition: bool,
    /// How long to wait for answers.
    pub timeouts: KubeTimeouts,
    /// The clocks by which leases are counted.
    pub clock: Clock,
}

impl KubeOptions {
    /// The default annotations, paths and times.
    pub fn new(access: KubeAccess, node: NodeIdentity) -> Self {
        Self {
            access,
            node,
            annotations: AnnotationPrefix::default(),
            net_config: "/etc/kube-flannel/net-conf.json".into(),
            set_condition: true,
            timeouts: KubeTimeouts::default(),
            clock: Clock::default(),
        }
    }
}

/// The address of the API server, and our credentials. Files are read again when a connection fails, and tokens once a
/// minute, so that both can be rotated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KubeAccess {
    /// The access of a pod: the address of the service `kubernetes`, and the folder of its service account with
    /// `ca.crt` and `token` ([`KubeAccess::SERVICE_ACCOUNT`]).
    InCluster {
        /// Host and port, as `KUBERNETES_SERVICE_HOST` and `KUBERNETES_SERVICE_PORT` have them.
        server: (String, u16),
        /// The folder.
        service_account: PathBuf,
    },
    /// The current context of a kubeconfig file.
    Kubeconfig {
        /// The file.
        file: PathBuf,
        /// An API server that replaces the one in the file.
        server: Option<ServerUrl>,
    },
    /// An API server without credentials, such as `http://127.0.0.1:8080`, or with those in the URL.
    Url(ServerUrl),
}

impl KubeAccess {
    /// The folder where pods find their service account.
    pub const SERVICE_ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

    /// That of a pod, by the variables that Kubernetes sets in each, `KUBERNETES_SERVICE_HOST` and
    /// `KUBERNETES_SERVICE_PORT`. `None` if this is no pod. `env` looks a variable up; an empty one counts as unset.
    pub fn in_cluster(env: impl Fn(&str) -> Option<String>) -> Option<Self> {
        let env = |name| env(name).filter(|value| !value.is_empty());
        let port = env("KUBERNETES_SERVICE_PORT")?.parse().ok()?;
        let server = (env("KUBERNETES_SERVICE_HOST")?, port);
        Some(Self::InCluster { server, service_account: Self::SERVICE_ACCOUNT.into() })
    }
}

/// How an agent finds its node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NodeIdentity {
    /// By the node's name.
    Name(String),
    /// By the pod in which it runs: it asks the API for the pod's node.
    Pod {
        /// The pod's namespace.
        namespace: String,
        /// The pod's name.
        name: String,
    },
}

impl NodeIdentity {
    /// By the variables of upstream's manifest: `NODE_NAME`, else `POD_NAMESPACE` and `POD_NAME`. `None` if they say
    /// nothing. `env` looks a variable up; an empty one counts as unset.
    pub fn from_variables(env: impl Fn(&str) -> Option<String>) -> Option<Self> {
        let env = |name| env(name).filter(|value| !value.is_empty());
        let pod = || Some(Self::Pod { namespace: env("POD_NAMESPACE")?, name: env("POD_NAME")? });
        env("NODE_NAME").map(Self::Name).or_else(pod)
    }
}

/// How long to wait for an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KubeTimeouts {
    /// For a connection.
    pub connect: Duration,
    /// For the answer to a request about one object.
    pub request: Duration,
    /// For one page of a list.
    pub page: Duration,
    /// How long a watch may be silent. Servers send a bookmark every minute if nothing happens, so a longer silence
    /// means a dead connection, or a server without bookmarks, for which a new watch costs little.
    pub silence: Duration,
    /// How long the first event may take of a watch that begins with all objects. After that the server is asked for a
    /// list, since it may not support such watches.
    pub first_word: Duration,
}

impl Default for KubeTimeouts {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(5),
            request: Duration::from_secs(10),
            page: Duration::from_secs(30),
            silence: Duration::from_secs(80),
            first_word: Duration::from_secs(10),
        }
    }
}
