//! An etcd server for one test: started, paused, killed, restarted, filled and emptied.

mod cluster;
mod ctl;
mod gateway;
mod tls;

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use tempfile::TempDir;

pub use self::cluster::EtcdCluster;
pub use self::ctl::{KeyValue, LeaseInfo};
pub use self::tls::TlsFiles;
use crate::agent::{Agent, AgentBuilder};
use crate::netns::Netns;
use crate::{LabError, exec, sandbox};

/// How long a server may take until it answers.
const START: Duration = Duration::from_secs(30);

/// How to run a server.
#[derive(Debug, Clone)]
pub struct EtcdOptions {
    /// The namespace to run in; ours unless told.
    pub netns: Option<Netns>,
    /// The address clients reach it by.
    pub listen: IpAddr,
    /// The client port; 2379 in a namespace unless told, else one that is free.
    pub client_port: Option<u16>,
    /// Where its data is; a new directory unless told, which goes with the server.
    pub data_dir: Option<PathBuf>,
    /// Keys for TLS in both directions; plain TCP unless told.
    pub tls: Option<TlsFiles>,
    /// More arguments.
    pub args: Vec<String>,
}

impl Default for EtcdOptions {
    /// Plain TCP on loopback.
    fn default() -> Self {
        Self {
            netns: None,
            listen: Ipv4Addr::LOCALHOST.into(),
            client_port: None,
            data_dir: None,
            tls: None,
            args: Vec::new(),
        }
    }
}

impl EtcdOptions {
    /// A server in a namespace, at one of its addresses.
    pub fn at(netns: &Netns, listen: IpAddr) -> Self {
        Self { netns: Some(netns.clone()), listen, ..Self::default() }
    }
}

/// Who a server is, and who else is in its cluster.
#[derive(Debug, Clone)]
struct Membership {
    name: String,
    /// Where the others reach it.
    peer: SocketAddr,
    /// All members, as `name=url,..`.
    all: String,
}

impl Membership {
    fn alone(peer: SocketAddr) -> Self {
        Self { name: "default".to_owned(), peer, all: format!("default=http://{peer}") }
    }

    /// The flags that server and restored backup must agree on.
    fn args(&self) -> [String; 3] {
        [
            format!("--name={}", self.name),
            format!("--initial-advertise-peer-urls=http://{}", self.peer),
            format!("--initial-cluster={}", self.all),
        ]
    }
}

/// A running server: the only member of its cluster, or one of an [`EtcdCluster`]. Killed when dropped.
#[derive(Debug)]
pub struct Etcd {
    agent: Agent,
    server: AgentBuilder,
    netns: Option<Netns>,
    endpoint: String,
    /// Where it answers `/health` without TLS.
    health: SocketAddr,
    data_dir: PathBuf,
    member: Membership,
    tls: Option<TlsFiles>,
    login: Option<String>,
    _own_dir: Option<TempDir>,
}

impl Etcd {
    /// Starts a server and waits until it answers.
    pub fn start(options: EtcdOptions) -> Result<Self, LabError> {
        let member = Membership::alone(loopback(port(None, options.netns.is_some(), 2380)?));
        let etcd = Self::spawn(options, member)?;
        etcd.wait_until_healthy()?;
        Ok(etcd)
    }

    fn spawn(options: EtcdOptions, member: Membership) -> Result<Self, LabError> {
        let EtcdOptions { netns, listen, client_port, data_dir, tls, args } = options;
        let own_dir = if data_dir.is_none() { Some(sandbox::state_dir("etcd-data")?) } else { None };
        let given = data_dir.or_else(|| own_dir.as_ref().map(|dir| dir.path().to_owned()));
        let data_dir = given.expect("one of the two is there");

        let client_port = port(client_port, netns.is_some(), 2379)?;
        let scheme = if tls.is_some() { "https" } else { "http" };
        let endpoint = format!("{scheme}://{}", SocketAddr::new(listen, client_port));
        let health = loopback(port(None, netns.is_some(), 2381)?);
        let mut server = AgentBuilder::new("etcd", "etcd")
            // Only the process is killed here, never the machine, so what it wrote needs no fsync.
            .arg("--unsafe-no-fsync")
            .args(["--logger", "zap", "--log-level", "error"])
            // The lowest cost that etcd accepts: checking a password then takes milliseconds, not half a second.
            .args(["--bcrypt-cost", "4"])
            .arg("--data-dir")
            .arg(&data_dir)
            .args(["--listen-client-urls", &endpoint, "--advertise-client-urls", &endpoint])
            .args(["--listen-peer-urls", &format!("http://{}", member.peer)])
            .args(member.args())
            .args(["--listen-metrics-urls", &format!("http://{health}")])
            .args(args);
        if let Some(tls) = &tls {
            server = server.args(tls.server_args());
        }
        if let Some(netns) = &netns {
            server = server.netns(netns);
        }
        let agent = server.start()?;
        Ok(Self {
            agent,
            server,
            netns,
            endpoint,
            health,
            data_dir,
            member,
            tls,
            login: None,
            _own_dir: own_dir,
        })
    }

    /// The URL that clients use.
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// The process.
    pub fn agent(&self) -> &Agent {
        &self.agent
    }

    /// Where its data is.
    pub fn data_dir(&self) -> &Path {
        &self.data_dir
    }

    /// Stops it where it is: connections stay open and nothing answers.
    pub fn pause(&self) -> Result<(), LabError> {
        self.agent.pause()
    }

    /// Lets it go on after a pause, and waits until it answers.
    pub fn resume(&self) -> Result<(), LabError> {
        self.agent.resume()?;
        self.wait_until_healthy()
    }

    /// Ends it at once. The data stays for [`restart`](Self::restart).
    pub fn kill(&self) -> Result<ExitStatus, LabError> {
        self.agent.kill()
    }

    /// Starts it again on the same data and port, ending it first if need be.
    pub fn restart(&mut self) -> Result<(), LabError> {
        self.restart_now()?;
        self.wait_until_healthy()
    }

    fn restart_now(&mut self) -> Result<(), LabError> {
        if self.agent.is_running() {
            self.agent.kill()?;
        }
        self.agent = self.server.start()?;
        Ok(())
    }

    /// Writes a backup to a new file.
    pub fn save(&self, file: &Path) -> Result<(), LabError> {
        self.ctl(&["snapshot", "save", &file.display().to_string()]).map(drop)
    }

    /// Ends it, puts a backup in the place of its data and starts it on that. Revisions go back by it, and
    /// cluster and member keep their ids.
    pub fn restore(&mut self, file: &Path) -> Result<(), LabError> {
        if self.agent.is_running() {
            self.agent.kill()?;
        }
        let what = || format!("removing {}", self.data_dir.display());
        fs::remove_dir_all(&self.data_dir).map_err(LabError::io(what()))?;
        let mut restore = exec::command("etcdctl")?;
        restore.env("ETCDCTL_API", "3").args(["snapshot", "restore"]).arg(file);
        restore.arg("--data-dir").arg(&self.data_dir).args(self.member.args());
        exec::output(restore)?;
        self.restart()
    }

    /// Whether it says that it serves requests.
    pub fn is_healthy(&self) -> bool {
        self.ask("/health").is_some_and(|answer| answer.contains(r#""health":"true""#))
    }

    /// How many requests it has answered since it started, by the name of the gRPC method. Streams, such as
    /// watches, count when they end.
    pub fn requests(&self) -> Result<BTreeMap<String, u64>, LabError> {
        let mut counts = BTreeMap::new();
        for (name, count) in self.metrics()? {
            let Some(labels) = name.strip_prefix("grpc_server_handled_total{") else { continue };
            let bad = || LabError::unexpected("etcd's /metrics", &name);
            let method = labels.split_once("grpc_method=\"").and_then(|(_, rest)| rest.split_once('"'));
            let (method, _) = method.ok_or_else(bad)?;
            let count: u64 = whole(count).ok_or_else(bad)?;
            *counts.entry(method.to_owned()).or_default() += count;
        }
        Ok(counts)
    }

    /// All its metrics, by their names with the labels.
    pub fn metrics(&self) -> Result<BTreeMap<String, f64>, LabError> {
        let text =
            self.ask("/metrics").ok_or_else(|| LabError::unexpected("etcd's /metrics", "no answer"))?;
        let metrics = text.lines().filter(|line| line.starts_with("etcd_") || line.starts_with("grpc_"));
        metrics
            .map(|line| {
                let value = line
                    .rsplit_once(' ')
                    .and_then(|(name, value)| Some((name.to_owned(), value.parse().ok()?)));
                value.ok_or_else(|| LabError::unexpected("etcd's /metrics", line))
            })
            .collect()
    }

    fn ask(&self, path: &str) -> Option<String> {
        let health = self.health;
        match &self.netns {
            Some(netns) => netns.enter(|| get(health, path)).ok().flatten(),
            None => get(health, path),
        }
    }

    fn wait_until_healthy(&self) -> Result<(), LabError> {
        self.agent.wait_while_running(START, "etcd to answer", || self.is_healthy())
    }
}

/// A namespace has all ports to itself; else one is looked for.
fn port(wanted: Option<u16>, has_netns: bool, usual: u16) -> Result<u16, LabError> {
    wanted.or(has_netns.then_some(usual)).map_or_else(free_port, Ok)
}

/// A port of loopback that nobody has. It is none of those that the kernel gives to outgoing connections, so a
/// server that is restarted finds it free again.
pub fn free_port() -> Result<u16, LabError> {
    const FIRST: u32 = 10_000;
    const COUNT: u32 = 22_000;
    /// No port twice in one process; other processes begin elsewhere.
    static TAKEN: AtomicU32 = AtomicU32::new(0);
    let mut last = None;
    for _ in 0..1000 {
        let number = std::process::id().wrapping_mul(613).wrapping_add(TAKEN.fetch_add(1, Ordering::Relaxed));
        let port = u16::try_from(FIRST + number % COUNT).expect("a port");
        match TcpListener::bind(loopback(port)) {
            Ok(_) => return Ok(port),
            Err(error) => last = Some(error),
        }
    }
    Err(LabError::io("looking for a free port")(last.expect("it was tried")))
}

/// A count, which Prometheus writes as a float, large ones like `1.234567e+06`.
fn whole(count: f64) -> Option<u64> {
    format!("{count:.0}").parse().ok()
}

fn loopback(port: u16) -> SocketAddr {
    SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port)
}

/// A tiny HTTP client: the answer to a GET, headers and all.
fn get(server: SocketAddr, path: &str) -> Option<String> {
    let time = Duration::from_secs(1);
    let mut stream = TcpStream::connect_timeout(&server, time).ok()?;
    stream.set_read_timeout(Some(time)).ok()?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: {server}\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    Some(answer)
}
