//! The watchdog, with a real socket: a process of its own, whose network hangs after some signs of life.

use std::io::{BufRead, BufReader};
use std::net::IpAddr;
use std::os::unix::net::UnixDatagram;
use std::process::{Command, Stdio};

use async_trait::async_trait;
use flannel_core::addr::Mtu;
use flannel_core::backend::{Backend, BackendError, Network, NetworkStatus, Registration, Underlay};
use flannel_core::config::{LeaseSource, NetworkConfig};
use flannel_core::dataplane::{Object, Route};
use flannel_core::firewall::Managers;
use flannel_core::heartbeat::{self, Heart, Pulse};
use flannel_core::kernel::LinkAddress;
use flannel_core::lease::{Lease, LeaseAttrs};
use flannel_core::state_file::State;
use flannel_core::subnet::LeaseStream;
use flannel_core::testing::{FakeKernel, FakeStore};
use flannel_core::underlay::UnderlayOptions;
use tokio_util::sync::CancellationToken;

use super::*;

/// How many signs of life the network gives.
const SIGNS: usize = 2;
/// Marks the process that hangs.
const ROLE: &str = "FLANNEL_TEST_HANGS";
/// That of the watchdog: long enough that a busy machine is no hang before the test says so.
const LIMIT: Duration = Duration::from_secs(2);

/// A network that hangs.
struct Hanging {
    lease: Lease,
    status: watch::Sender<NetworkStatus>,
    pulse: Pulse,
    heart: Heart,
}

#[async_trait]
impl Network for Hanging {
    fn lease(&self) -> &Lease {
        &self.lease
    }

    fn overlay_mtu(&self) -> Mtu {
        Mtu(1450)
    }

    fn status(&self) -> watch::Receiver<NetworkStatus> {
        self.status.subscribe()
    }

    fn state(&self) -> watch::Receiver<State> {
        watch::Sender::new(State::default()).subscribe()
    }

    fn attrs(&self) -> watch::Receiver<LeaseAttrs> {
        watch::Sender::new(self.lease.attrs.clone()).subscribe()
    }

    fn pulse(&self) -> Option<Pulse> {
        Some(self.pulse.clone())
    }

    async fn run(self: Box<Self>, _: LeaseStream, cancel: CancellationToken) -> Result<(), BackendError> {
        for _ in 0..SIGNS {
            self.heart.asked().await;
            self.heart.beat();
        }
        cancel.cancelled().await;
        Ok(())
    }
}

struct HangingBackend;

#[async_trait]
impl Backend for HangingBackend {
    fn kind(&self) -> &'static str {
        "hanging"
    }

    async fn register(&self, registration: Registration<'_>) -> Result<Box<dyn Network>, BackendError> {
        let Underlay { published, .. } = registration.underlay;
        let attrs = LeaseAttrs { public_ips: *published, ..LeaseAttrs::default() };
        let lease = registration.subnets.acquire_lease(&attrs).await?;
        let (pulse, heart) = heartbeat::pair();
        let status: watch::Sender<NetworkStatus> = watch::Sender::default();
        status.send_modify(|status| status.synced = true);
        Ok(Box::new(Hanging { lease, status, pulse, heart }))
    }
}

/// A host with one interface and a default route.
fn kernel() -> FakeKernel {
    let kernel = FakeKernel::default();
    let link = kernel.add_link("eth0", 1500);
    let addr = "192.0.2.1/24".parse().unwrap();
    let (global, deprecated, permanent, temporary, tentative) = (true, false, true, false, false);
    kernel.add_address(LinkAddress { link, addr, global, deprecated, permanent, temporary, tentative });
    let gateway: IpAddr = "192.0.2.254".parse().unwrap();
    kernel.put(Object::Route(Route::by_node("0.0.0.0/0".parse().unwrap(), gateway, link)), false);
    kernel
}

/// What the process of the test does: an agent with a network that hangs, until it is killed.
fn hang() {
    tracing_subscriber::fmt().with_ansi(false).with_writer(std::io::stderr).init();
    let config = r#"{"Network":"10.5.0.0/16","Backend":{"Type":"hanging"}}"#;
    let store = FakeStore::new(NetworkConfig::parse(config, LeaseSource::Store).unwrap());
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let agent = Agent::builder(Arc::new(store))
            .backend(HangingBackend)
            .underlay(UnderlayOptions::auto().iface("eth0"))
            .fakes(|| Ok(Box::new(kernel())), || Managers::new(None, Vec::new(), ""))
            .start()
            .unwrap();
        agent.ready().await.unwrap();
        tell(&agent).await;
    });
}

#[test]
fn a_loop_that_hangs_is_not_kept_alive() {
    if std::env::var_os(ROLE).is_some() {
        return hang();
    }
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("notify");
    let notices = UnixDatagram::bind(&socket).unwrap();
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "supervisor::tests::a_loop_that_hangs_is_not_kept_alive", "--nocapture"])
        .env(ROLE, "1")
        .env("NOTIFY_SOCKET", &socket)
        .env("WATCHDOG_USEC", LIMIT.as_micros().to_string())
        .stderr(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    // Half of the time after the last sign of life it says so.
    let log = BufReader::new(child.stderr.take().unwrap());
    let told = log.lines().map_while(Result::ok).find(|line| line.contains("the agent hangs"));
    child.kill().unwrap();
    child.wait().unwrap();
    told.expect("it says that it hangs");
    notices.set_nonblocking(true).unwrap();
    let mut buffer = [0; 1024];
    let all = std::iter::from_fn(|| notices.recv(&mut buffer).ok().map(|length| buffer[..length].to_vec()));
    let all: Vec<String> = all.map(|bytes| String::from_utf8(bytes).unwrap()).collect();
    let count = |text: &str| all.iter().filter(|notice| notice.trim_end() == text).count();
    assert_eq!((count("WATCHDOG=1"), count("READY=1")), (SIGNS, 1), "{all:?}");
    assert_eq!(count("STATUS=ready: 10.5.1.0/24 by hanging, 0 peers"), 1, "{all:?}");
}
