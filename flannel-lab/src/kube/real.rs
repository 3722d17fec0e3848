//! A real `kube-apiserver` for one test: it can be started, killed, restarted and asked, and its audit log read.
//!
//! For an agent it is like a cluster's: TLS by an authority of its own, RBAC, service account tokens that expire and
//! can be withdrawn, and an audit log that says who asked what.

mod audit;
mod curl;

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;

pub use self::audit::Audited;
pub use self::curl::{Answer, Body};
use crate::agent::{Agent, AgentBuilder};
use crate::etcd::TlsFiles;
use crate::netns::Netns;
use crate::{LabError, exec, sandbox};

/// How long a server may take until it is ready; it has a hundred roles to write at its first start.
const START: Duration = Duration::from_secs(120);
/// Where nodes reach it.
const PORT: u16 = 6443;
/// Who may do everything.
const ADMIN: &str = "admin";
/// The tokens' issuer and audience.
const ISSUER: &str = "https://kubernetes.default.svc.cluster.local";

/// What is written to the audit log: requests about nodes and pods, once answered; and watches once asked for, since
/// versions around 1.20 don't write that one began.
const AUDIT_POLICY: &str = r#"apiVersion: audit.k8s.io/v1
kind: Policy
rules:
- level: Metadata
  verbs: [watch]
  resources: [{group: "", resources: ["nodes"]}]
- level: Metadata
  omitStages: [RequestReceived]
  resources: [{group: "", resources: ["nodes", "nodes/status", "pods"]}]
- level: None
"#;

/// How to run a server.
#[derive(Debug, Clone)]
pub struct ApiServerOptions {
    /// The `kube-apiserver` to run.
    pub program: PathBuf,
    /// The namespace to run in.
    pub netns: Netns,
    /// The address that nodes reach it by.
    pub listen: IpAddr,
    /// The URL of its etcd.
    pub etcd: String,
    /// More arguments.
    pub args: Vec<String>,
}

/// A running server. Killed when dropped.
#[derive(Debug)]
pub struct ApiServer {
    agent: Agent,
    server: AgentBuilder,
    netns: Netns,
    nodes_reach: SocketAddr,
    /// Where it listens now; on loopback alone while it is [hidden](Self::restart_hidden).
    listens: SocketAddr,
    tls: TlsFiles,
    dir: TempDir,
}

impl ApiServer {
    /// Starts a server and waits until it is ready.
    pub fn start(options: ApiServerOptions) -> Result<Self, LabError> {
        let ApiServerOptions { program, netns, listen, etcd, args } = options;
        let dir = sandbox::state_dir("kube-apiserver")?;
        let tls = TlsFiles::create(dir.path(), &[listen])?;
        let account_key = account_key(dir.path())?;
        let file = |name: &str, text: &str| {
            let path = dir.path().join(name);
            let written = fs::write(&path, text).map_err(LabError::io(format!("writing {}", path.display())));
            written.map(|()| path)
        };
        let tokens = file("tokens.csv", &format!("{ADMIN},{ADMIN},1,system:masters\n"))?;
        let policy = file("audit-policy.yaml", AUDIT_POLICY)?;
        let flag = |name: &str, value: &Path| format!("--{name}={}", value.display());
        let server = AgentBuilder::new("kube-apiserver", program)
            .netns(&netns)
            .args([
                format!("--etcd-servers={etcd}"),
                flag("tls-cert-file", &tls.server_cert),
                flag("tls-private-key-file", &tls.server_key),
                flag("client-ca-file", &tls.ca),
                flag("token-auth-file", &tokens),
                flag("service-account-key-file", &account_key),
                flag("service-account-signing-key-file", &account_key),
                flag("audit-policy-file", &policy),
                flag("audit-log-path", &dir.path().join("audit.log")),
                format!("--service-account-issuer={ISSUER}"),
                format!("--secure-port={PORT}"),
                format!("--advertise-address={listen}"),
            ])
            .args(["--authorization-mode=RBAC", "--service-cluster-ip-range=10.96.0.0/16"])
            // This plugin waits for a controller that makes tokens. There is none here; the code that makes a pod makes
            // its token.
            .arg("--disable-admission-plugins=ServiceAccount")
            // Nobody looks for the `kubernetes` service, so it need not write to the store every 10 s.
            .arg("--endpoint-reconciler-type=none")
            .args(args);
        let nodes_reach = SocketAddr::new(listen, PORT);
        let agent = bound(&server, nodes_reach).start()?;
        let server = Self { agent, server, netns, nodes_reach, listens: nodes_reach, tls, dir };
        server.wait_until_ready()?;
        Ok(server)
    }

    /// Where nodes reach it, whether it is there or not.
    pub fn address(&self) -> SocketAddr {
        self.nodes_reach
    }

    /// The URL that nodes use.
    pub fn url(&self) -> String {
        format!("https://{}", self.nodes_reach)
    }

    /// The certificate that clients trust it by, in PEM.
    pub fn ca(&self) -> &Path {
        &self.tls.ca
    }

    /// The process.
    pub fn agent(&self) -> &Agent {
        &self.agent
    }

    /// Ends it at once.
    pub fn kill(&self) -> Result<ExitStatus, LabError> {
        self.agent.kill()
    }

    /// Starts it again on the same store, ending it first if need be, and waits until it is ready.
    pub fn restart(&mut self) -> Result<(), LabError> {
        self.restart_at(self.nodes_reach)
    }

    /// As [`restart`](Self::restart), on loopback alone: we reach it and no node does.
    pub fn restart_hidden(&mut self) -> Result<(), LabError> {
        self.restart_at(SocketAddr::new(Ipv4Addr::LOCALHOST.into(), PORT))
    }

    fn restart_at(&mut self, address: SocketAddr) -> Result<(), LabError> {
        if self.agent.is_running() {
            self.agent.kill()?;
        }
        self.agent = bound(&self.server, address).start()?;
        self.listens = address;
        self.wait_until_ready()
    }

    /// What it says of its own version: `v1.20.2`.
    pub fn version(&self) -> Result<String, LabError> {
        let answer = self.get("/version")?;
        let version = answer["gitVersion"].as_str().map(str::to_owned);
        version.ok_or_else(|| LabError::unexpected("the API server's version", answer.to_string()))
    }

    /// Asks as the administrator; any status is an answer.
    pub fn ask(&self, method: &str, path: &str, body: Option<Body>) -> Result<Answer, LabError> {
        self.ask_as(ADMIN, method, path, body)
    }

    /// Asks with somebody's token; any status is an answer.
    pub fn ask_as(
        &self,
        token: &str,
        method: &str,
        path: &str,
        body: Option<Body>,
    ) -> Result<Answer, LabError> {
        let url = format!("https://{}{path}", self.listens);
        curl::ask(&self.netns, Some((&self.tls.ca, token)), method, &url, body)
    }

    /// Reads an object or a list.
    pub fn get(&self, path: &str) -> Result<Value, LabError> {
        self.ask("GET", path, None)?.success()
    }

    /// Makes an object; `path` is the collection's.
    pub fn create(&self, path: &str, object: &Value) -> Result<Value, LabError> {
        self.ask("POST", path, Some(Body::json(object)))?.success()
    }

    /// Changes an object by a merge patch (RFC 7396).
    pub fn merge(&self, path: &str, change: &Value) -> Result<Value, LabError> {
        self.ask("PATCH", path, Some(Body::merge_patch(change)))?.success()
    }

    /// Deletes an object.
    pub fn delete(&self, path: &str) -> Result<Value, LabError> {
        self.ask("DELETE", path, None)?.success()
    }

    /// A token for a service account as the kubelet gets one. With `bound_to`, the name of a secret, it is
    /// good only for as long as that secret is there.
    pub fn token(&self, namespace: &str, account: &str, bound_to: Option<&str>) -> Result<String, LabError> {
        let path = format!("/api/v1/namespaces/{namespace}/serviceaccounts/{account}/token");
        let bound = bound_to.map(|name| json!({ "kind": "Secret", "apiVersion": "v1", "name": name }));
        let request = json!({
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenRequest",
            "spec": { "audiences": [ISSUER], "expirationSeconds": 3600, "boundObjectRef": bound },
        });
        let answer = self.create(&path, &request)?;
        let token = answer["status"]["token"].as_str().map(str::to_owned);
        token.ok_or_else(|| LabError::unexpected("a token request", answer.to_string()))
    }

    /// What was asked so far about nodes and pods: watches in the order in which they came, others in that of
    /// their answers.
    pub fn audited(&self) -> Result<Vec<Audited>, LabError> {
        audit::read(&self.dir.path().join("audit.log"))
    }

    fn wait_until_ready(&self) -> Result<(), LabError> {
        self.agent.wait_while_running(START, "kube-apiserver to be ready", || {
            self.ask("GET", "/readyz", None).is_ok_and(|answer| answer.status == 200)
        })
    }
}

/// Asks a server that serves everyone, such as a [`KubeApi`](crate::kube::fake::KubeApi), from inside a namespace; any
/// status is an answer.
pub fn ask_plainly(netns: &Netns, method: &str, url: &str, body: Option<Body>) -> Result<Answer, LabError> {
    curl::ask(netns, None, method, url, body)
}

fn bound(server: &AgentBuilder, address: SocketAddr) -> AgentBuilder {
    server.clone().arg(format!("--bind-address={}", address.ip()))
}

/// The key that service account tokens are signed with.
fn account_key(dir: &Path) -> Result<PathBuf, LabError> {
    let file = dir.join("service-account.key");
    let mut openssl = exec::command("openssl")?;
    openssl.args(["ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out"]).arg(&file);
    exec::output(openssl)?;
    Ok(file)
}
