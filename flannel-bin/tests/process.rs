//! The real binary as a process: health, signals, and the way from no config to a running agent.

mod common;

use std::fs::{self, Permissions};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use common::{FLANNELD, get};
use flannel_lab::cluster::{Cluster, Families};
use flannel_lab::sandbox::in_sandbox;
use flannel_lab::test_name;
use flannel_lab::wait::eventually;
use nix::sys::signal::{Signal, kill};
use nix::sys::stat::Mode;
use nix::unistd::{Pid, mkfifo};

const SOON: Duration = Duration::from_secs(10);

/// A daemon on loopback whose folder has no config, so that it never gets to touching the network.
struct Daemon {
    child: Child,
    folder: tempfile::TempDir,
    health: SocketAddr,
}

impl Daemon {
    fn start(args: &[&str]) -> Self {
        Self::start_in(tempfile::tempdir().unwrap(), args)
    }

    fn start_in(folder: tempfile::TempDir, args: &[&str]) -> Self {
        let store = format!("--store=local:{}", folder.path().display());
        let daemon = Self::spawn(folder, &[&[store.as_str()], args].concat());
        eventually(SOON, "the health server to answer", || TcpStream::connect(daemon.health).is_ok());
        daemon
    }

    /// Without waiting for anything. What it writes is below this folder.
    fn spawn(folder: tempfile::TempDir, args: &[&str]) -> Self {
        let health = free_port();
        let child = Command::new(FLANNELD)
            .env_clear()
            .env("NODE_NAME", "node1")
            .arg(format!("--subnet-file={}", folder.path().join("subnet.env").display()))
            .arg("--healthz-ip=127.0.0.1")
            .arg(format!("--healthz-port={}", health.port()))
            .args(args)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        Self { child, folder, health }
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("subnet.env.sock")
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id().cast_signed()), signal).unwrap();
    }

    /// Waits for its end; the log is what it wrote.
    fn end(mut self) -> (ExitStatus, String) {
        let status = eventually(SOON, "the daemon to end", || self.child.try_wait().unwrap());
        let mut log = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut log).unwrap();
        (status, log)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn free_port() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

#[test]
fn is_alive_but_not_ready_without_a_config() {
    let daemon = Daemon::start(&[]);
    assert_eq!(get(daemon.health, "/healthz").unwrap(), (200, "flanneld is running".into()));
    eventually(SOON, "the reason", || {
        let (status, body) = get(daemon.health, "/readyz").unwrap();
        assert_eq!(status, 503);
        assert!(body.starts_with("flanneld is not ready yet\n"), "{body}");
        body.contains("waiting for the network config: ")
    });
    assert_eq!(get(daemon.health, "/other").unwrap().0, 404);
    assert!(!daemon.folder.path().join("subnet.env").exists());
    daemon.signal(Signal::SIGTERM);
    let (status, log) = daemon.end();
    assert_eq!(status.code(), Some(0), "{log}");
    assert_eq!(log.matches("WARN").count(), 1, "the outage is logged once: {log}");
}

#[test]
fn waits_for_a_config_that_is_wrong() {
    let daemon = Daemon::start(&["--log-format=json", "--v=1"]);
    fs::write(daemon.folder.path().join("config"), r#"{"Network": "10.42.0.0/33"}"#).unwrap();
    eventually(SOON, "the reason", || get(daemon.health, "/readyz").unwrap().1.contains("10.42.0.0/33"));
    daemon.signal(Signal::SIGINT);
    let (status, log) = daemon.end();
    assert_eq!(status.code(), Some(0), "{log}");
    assert!(log.lines().all(|line| line.starts_with('{') && line.ends_with('}')), "{log}");
}

/// Whoever can write to the folders has put a FIFO, on which `open` waits, or a link to a new file everywhere.
#[test]
fn fifos_and_links_hold_up_no_start_and_make_no_file() {
    let names = ["config", "subnets", ".lock", "subnet.env", "subnet.env.lock", "subnet.env.state"];
    let elsewhere = tempfile::tempdir().unwrap();
    let fifo = |path: &Path| mkfifo(path, Mode::S_IRWXU).unwrap();
    let link = |path: &Path| symlink(elsewhere.path().join("made"), path).unwrap();
    for (make, why) in [(&fifo as &dyn Fn(&Path), "not a regular file"), (&link, "symbolic link")] {
        let folder = tempfile::tempdir().unwrap();
        for name in names {
            make(&folder.path().join(name));
        }
        let daemon = Daemon::start_in(folder, &[]);
        eventually(SOON, "the reason", || {
            let (_, body) = get(daemon.health, "/readyz").unwrap();
            body.contains("waiting for the network config: ") && body.contains(why)
        });
        daemon.signal(Signal::SIGTERM);
        let (status, log) = daemon.end();
        assert_eq!(status.code(), Some(0), "{log}");
        assert!(log.contains("won't see that this agent runs") && log.contains("subnet.env.lock"), "{log}");
        assert!(log.contains("state file can't be used"), "{log}");
        assert_eq!(fs::read_dir(elsewhere.path()).unwrap().count(), 0);
    }
}

/// Files that an operator names may be links, as Kubernetes makes them, and still are no FIFOs.
#[test]
fn a_fifo_among_certificates_and_configs_is_named_and_not_waited_for() {
    let folder = tempfile::tempdir().unwrap();
    let (fifo, link) = (folder.path().join("fifo"), folder.path().join("link"));
    mkfifo(&fifo, Mode::S_IRWXU).unwrap();
    symlink(&fifo, &link).unwrap();
    let config = folder.path().join("net-conf.json");
    fs::write(&config, r#"{"Network": "10.42.0.0/16", "Backend": {"Type": "vxlan"}}"#).unwrap();
    let flag = |name: &str, path: &Path| format!("--{name}={}", path.display());
    let reason = |args: &[String]| {
        let args = args.iter().map(String::as_str).collect::<Vec<_>>();
        let mut daemon = Daemon::spawn(tempfile::tempdir().unwrap(), &args);
        let health = daemon.health;
        let mut told = String::new();
        eventually(SOON, "the reason, or the end", || {
            told = get(health, "/readyz").map(|(_, body)| body).unwrap_or_default();
            daemon.child.try_wait().unwrap().is_some() || told.contains("not a regular file")
        });
        let _ = daemon.child.kill();
        let log = told + &daemon.end().1;
        assert!(log.contains("it is not a regular file"), "{log}");
        log
    };
    let kube = ["--kube-subnet-mgr".to_owned(), "--kube-api-url=http://127.0.0.1:1".to_owned()];
    let log = reason(&[&kube[..], &[flag("net-config-path", &link)]].concat());
    assert!(log.contains("/link"), "{log}");
    let kube = [kube[0].clone(), flag("kubeconfig-file", &link), flag("net-config-path", &config)];
    let log = reason(&kube);
    assert!(log.contains("can't read") && log.contains("/link"), "{log}");
    let log = reason(&["--etcd-endpoints=https://127.0.0.1:1".to_owned(), flag("etcd-cafile", &link)]);
    assert!(log.contains("TLS file") && log.contains("/link"), "{log}");
}

#[test]
fn a_store_that_others_can_write_to_is_refused_unless_a_flag_says_otherwise() {
    let shared = || {
        let folder = tempfile::tempdir().unwrap();
        fs::set_permissions(folder.path(), Permissions::from_mode(0o777)).unwrap();
        folder
    };
    let folder = shared();
    let output = Command::new(FLANNELD)
        .env_clear()
        .arg(format!("--store=local:{}", folder.path().display()))
        .arg(format!("--subnet-file={}", folder.path().join("subnet.env").display()))
        .output()
        .unwrap();
    let log = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{log}");
    assert!(log.contains("everybody can write there (mode 0777)"), "{log}");
    assert!(log.contains("chmod go-w") && log.contains("--local-store-allow-shared"), "{log}");
    let daemon = Daemon::start_in(shared(), &["--local-store-allow-shared"]);
    eventually(SOON, "the wait", || {
        get(daemon.health, "/readyz").unwrap().1.contains("no network config at")
    });
}

#[test]
fn a_second_signal_ends_it_at_once() {
    for (signal, code) in [(Signal::SIGTERM, 143), (Signal::SIGINT, 130)] {
        let daemon = Daemon::start(&[]);
        // A request that never ends keeps the health server for a while.
        let mut slow = TcpStream::connect(daemon.health).unwrap();
        slow.write_all(b"GET /healthz HTTP/1.1\r\n").unwrap();
        assert_eq!(get(daemon.health, "/healthz").unwrap().0, 200);
        daemon.signal(Signal::SIGTERM);
        eventually(SOON, "the server to close", || TcpStream::connect(daemon.health).is_err());
        daemon.signal(signal);
        let (status, log) = daemon.end();
        assert_eq!(status.code(), Some(code), "{log}");
    }
}

#[test]
fn a_taken_health_port_is_an_error() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let output = Command::new(FLANNELD)
        .env_clear()
        // Misspelt ones have no effect, which is said without their values.
        .env("FLANNELD_ETCD_PASWORD", "hunter2")
        .args(["--store=local:/nonexistent", "--healthz-ip=127.0.0.1", &format!("--healthz-port={port}")])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let log = String::from_utf8(output.stderr).unwrap();
    assert!(log.contains("variable has no effect") && log.contains("FLANNELD_ETCD_PASSWORD"), "{log}");
    assert!(!log.contains("hunter2"), "{log}");
    assert!(log.contains(&format!("health server can't listen on 127.0.0.1 port {port}")), "{log}");
}

#[test]
fn the_log_level_of_a_running_agent_can_be_changed() {
    let daemon = Daemon::start(&["--vmodule=h2=1"]);
    let file = format!("--subnet-file={}", daemon.folder.path().join("subnet.env").display());
    let ask = |args: &[&str]| {
        let words = [&["log-level"], args, &[&file]].concat();
        let output = Command::new(FLANNELD).env_clear().args(words).output().unwrap();
        let text = [output.stdout, output.stderr].map(|it| String::from_utf8(it).unwrap()).concat();
        (output.status.code().unwrap(), text)
    };
    let said = |text: &str| (0, format!("{text}\n"));
    eventually(SOON, "the socket", || ask(&[]) == said("info (--v=0 --vmodule=h2=1)"));
    assert_eq!(ask(&["debug"]), said("debug (--v=1 --vmodule=h2=1)"));
    // The store is asked again and again, which is a debug line by now or later.
    assert_eq!(ask(&["trace", "--modules=netlink=0"]), said("trace (--v=4 --vmodule=netlink=0)"));
    assert_eq!(ask(&[]), said("trace (--v=4 --vmodule=netlink=0)"));
    assert_eq!(ask(&["--modules="]), said("trace (--v=4)"));
    let (code, text) = ask(&["loud"]);
    assert!(code == 2 && text.contains("is not info, debug, trace or a whole number"), "{text}");
    let (mut stream, mut answer) = (UnixStream::connect(daemon.socket()).unwrap(), String::new());
    stream.write_all(b"{\"version\":1,\"request\":\"log-level\",\"loud\":1}\n").unwrap();
    stream.read_to_string(&mut answer).unwrap();
    assert!(
        answer.contains("\"kind\":\"bad-field\"") && answer.contains("field loud is not known"),
        "{answer}"
    );
    daemon.signal(Signal::SIGTERM);
    let (_, log) = daemon.end();
    let changed: Vec<_> = log.lines().filter(|line| line.contains("log level changed")).collect();
    assert_eq!(changed.len(), 3, "{log}");
    assert!(changed[0].contains("before=info (--v=0 --vmodule=h2=1) after=debug (--v=1"), "{log}");
    let quiet = log.split("log level changed").next().unwrap();
    assert!(!quiet.contains("DEBUG") && log.contains("DEBUG"), "{log}");
    let gone = ask(&[]);
    assert!(gone.0 == 2 && gone.1.contains("no agent answers at"), "{gone:?}");
}

#[test]
fn secrets_do_not_reach_the_log() {
    let daemon = Daemon::start(&["--etcd-username=root", "--etcd-password=hunter2", "--v=9"]);
    daemon.signal(Signal::SIGTERM);
    let (_, log) = daemon.end();
    assert!(log.contains("--etcd-password=***") && !log.contains("hunter2"), "{log}");
}

#[test]
fn comes_up_once_the_config_appears_and_leaves_the_kernel_as_it_is() {
    in_sandbox(test_name!(), || {
        let cluster = Cluster::builder().nodes(2).families(Families::Dual).build().unwrap();
        let store = tempfile::tempdir().unwrap();
        let health = SocketAddr::from(([127, 0, 0, 1], 8471));
        let agents: Vec<_> = cluster
            .nodes()
            .map(|node| {
                let file = store.path().join(format!("{}.env", node.name()));
                let agent = node
                    .agent("flanneld", FLANNELD)
                    .arg(format!("--store=local:{}", store.path().display()))
                    .arg(format!("--subnet-file={}", file.display()))
                    .args(["--iface=eth0", "--healthz-ip=127.0.0.1", "--healthz-port=8471"]);
                (node, file, agent.start().unwrap())
            })
            .collect();
        let config = r#"{"Network": "10.42.0.0/16", "EnableIPv6": true, "IPv6Network": "fd00:42::/56",
                         "Backend": {"Type": "vxlan"}}"#;
        let ask = |node: &flannel_lab::node::Node, path: &'static str| {
            node.netns().enter(|| get(health, path)).unwrap()
        };
        for (node, ..) in &agents {
            eventually(SOON, "the health server", || {
                ask(node, "/readyz").is_ok_and(|(status, _)| status == 503)
            });
        }
        fs::write(store.path().join("config"), config).unwrap();
        for (node, file, agent) in &agents {
            eventually(SOON, "the node to be ready", || {
                ask(node, "/readyz").is_ok_and(|answer| answer == (200, "flanneld is ready".to_owned()))
            });
            let text = fs::read_to_string(file).unwrap();
            assert!(text.starts_with("FLANNEL_NETWORK=10.42.0.0/16\nFLANNEL_SUBNET=10.42."), "{text}");
            assert!(text.ends_with("FLANNEL_IPMASQ=false\n"), "{text}\n{}", agent.log());
        }
        let before = subnets(&agents[0].1);
        for (_, _, agent) in &agents {
            assert_eq!(agent.terminate().unwrap().code(), Some(0), "{}", agent.log());
        }
        for (node, ..) in &agents {
            let routes = node.netns().ip("route show dev flannel.1").unwrap();
            assert!(routes.contains("10.42."), "{routes}");
        }
        // A new start has the same subnets.
        let (node, file, _) = &agents[0];
        let notices = UnixDatagram::bind(store.path().join("notify")).unwrap();
        notices.set_read_timeout(Some(SOON)).unwrap();
        let agent = node
            .agent("flanneld-2", FLANNELD)
            .env("NOTIFY_SOCKET", store.path().join("notify"))
            .env("WATCHDOG_USEC", "100000")
            .arg(format!("--store=local:{}", store.path().display()))
            .arg(format!("--subnet-file={}", file.display()))
            .start()
            .unwrap();
        agent.wait_for_log("subnet file is in place", SOON).unwrap();
        assert_eq!(subnets(file), before);
        // systemd is told, also what the agent does, and that its loop turns.
        let (_, ready) = notices_until(&notices, "READY=1");
        assert!(ready.iter().any(|line| line.starts_with("STATUS=not ready: ")), "{ready:?}");
        let (status, _) = notices_until(&notices, "STATUS=ready: ");
        assert!(status.contains(" by vxlan, 1 peer"), "{status}");
        notices_until(&notices, "WATCHDOG=1");
        notices_until(&notices, "WATCHDOG=1");
        agent.terminate().unwrap();
        let (_, last) = notices_until(&notices, "STOPPING=1");
        assert!(!last.iter().any(|line| line.starts_with("READY")), "{last:?}");
    });
}

/// The first notice that begins like this, and those before it.
fn notices_until(socket: &UnixDatagram, begin: &str) -> (String, Vec<String>) {
    let (mut before, mut buffer) = (Vec::new(), [0; 1024]);
    loop {
        let length = socket.recv(&mut buffer).unwrap();
        let notice = String::from_utf8(buffer[..length].to_vec()).unwrap();
        match notice.trim_end() {
            found if found.starts_with(begin) => return (found.to_owned(), before),
            other => before.push(other.to_owned()),
        }
    }
}

fn subnets(file: &Path) -> Vec<String> {
    let text = fs::read_to_string(file).unwrap();
    text.lines().filter(|line| line.contains("SUBNET")).map(str::to_owned).collect()
}
