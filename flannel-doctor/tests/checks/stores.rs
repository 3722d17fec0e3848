//! Stores that say what a test tells them. That etcd and Kubernetes say it is tested with them.

use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use flannel_backend_vxlan::VxlanBackend;
use flannel_core::addr::PerFamily;
use flannel_core::config::{ConfigError, NetworkConfig};
use flannel_core::kernel::LinkAddress;
use flannel_core::lease::{Lease, LeaseAttrs, LeaseUpdate, UnreadableRecord};
use flannel_core::subnet::{
    ClockGap, Examination, LeaseStream, NodeFacts, NodeRecord, Right, RightAnswer, Server, ServerAnswer,
    StoreStatus, SubnetError, SubnetManager,
};
use flannel_doctor::StoreToAsk;
use flannel_doctor::Verdict::{Failure, Note, Warning};
use futures::StreamExt as _;
use tokio::sync::watch;

use super::common::{Case, config, lease, state};

/// What a store says.
#[derive(Clone)]
struct Scripted {
    place: &'static str,
    config: Result<NetworkConfig, &'static str>,
    leases: Vec<Lease>,
    unreadable: Vec<UnreadableRecord>,
    examination: Examination,
    /// Whether it lists no leases, and says why not.
    is_silent: bool,
    status: watch::Sender<StoreStatus>,
}

impl Scripted {
    fn new() -> Self {
        let answer = ServerAnswer::new(Duration::from_millis(2), "3.5.16");
        let answer = answer.clock(Some(ClockGap::Ahead(Duration::from_secs(1))));
        Self {
            place: "etcd:/coreos.com/network/config",
            config: Ok(config(r#"{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan"}}"#)),
            leases: vec![lease(1, 1), lease(2, 2)],
            unreadable: Vec::new(),
            examination: Examination::default().servers([server(answer)]),
            is_silent: false,
            status: watch::Sender::new(StoreStatus::unknown()),
        }
    }

    fn with(mut self, change: impl FnOnce(&mut Self)) -> Self {
        change(&mut self);
        self
    }

    fn server(self, answer: ServerAnswer) -> Self {
        self.with(|it| it.examination = it.examination.clone().servers([server(answer)]))
    }

    fn case(self) -> Case {
        let mut case = Case::of_files();
        case.agent_files(&state());
        case.store = Some(StoreToAsk::named(Arc::new(self)));
        case
    }
}

fn server(answer: ServerAnswer) -> Server {
    Server { name: "http://192.0.2.100:2379".to_owned(), answer: Ok(answer) }
}

#[async_trait::async_trait]
impl SubnetManager for Scripted {
    async fn network_config(&self) -> Result<NetworkConfig, SubnetError> {
        match &self.config {
            Ok(config) => Ok(config.clone()),
            Err("away") => Err(SubnetError::Unavailable {
                what: "read the config".to_owned(),
                source: "connection refused".into(),
            }),
            Err(problem) => {
                let source = ConfigError::new("Network", None, *problem);
                Err(SubnetError::Config { place: self.place.to_owned(), source })
            }
        }
    }

    async fn published_attrs(&self, _: &PerFamily<IpAddr>) -> Result<Option<LeaseAttrs>, SubnetError> {
        unreachable!("the doctor does not ask for it")
    }

    async fn acquire_lease(&self, _: &LeaseAttrs) -> Result<Lease, SubnetError> {
        unreachable!("the doctor writes nothing")
    }

    async fn publish(&self, _: &Lease, _: &LeaseAttrs) -> Result<Lease, SubnetError> {
        unreachable!("the doctor writes nothing")
    }

    async fn renew_lease(&self, _: &Lease) -> Result<Infallible, SubnetError> {
        unreachable!("the doctor writes nothing")
    }

    async fn release_lease(&self, _: &Lease) -> Result<(), SubnetError> {
        unreachable!("the doctor writes nothing")
    }

    fn watch_leases(&self) -> LeaseStream {
        if self.is_silent {
            self.status.send_modify(|status| _ = status.fail("connection refused".to_owned()));
            return futures::stream::pending().boxed();
        }
        let unreadable = self.unreadable.iter().cloned().collect();
        let snapshot = LeaseUpdate::Snapshot { leases: self.leases.clone(), unreadable };
        futures::stream::iter([Ok(snapshot)]).chain(futures::stream::pending()).boxed()
    }

    fn status(&self) -> watch::Receiver<StoreStatus> {
        self.status.subscribe()
    }

    fn place(&self) -> String {
        self.place.to_owned()
    }

    async fn examine(&self) -> Examination {
        self.examination.clone()
    }
}

#[test]
fn a_healthy_store() {
    let case = Scripted::new().case();
    case.passes("store-reachable");
    case.passes("store-latency");
    case.passes("store-version");
    case.passes("store-clock");
    case.passes("network-config");
    case.passes("store-leases");
    case.passes("duplicate-mac");
    case.skips("kube-pod-cidrs", "not Kubernetes");
    case.skips("kube-rights", "not Kubernetes");
}

#[test]
fn a_store_that_does_not_answer() {
    let away = Scripted::new().with(|it| it.config = Err("away"));
    let mut case = away.clone().case();
    case.fails("store-reachable", Failure, "connection refused");
    case.skips("store-leases", "did not answer");
    // Nobody said that there is one.
    case.store = Some(StoreToAsk::guessed(Arc::new(away)));
    case.skips("store-reachable", "no store was named");
    case.store = Some(StoreToAsk::unusable("kubeconfig: line 3, column 1"));
    case.fails("store-reachable", Failure, "line 3");
    let half = Scripted::new().with(|it| {
        let dead = Server {
            name: "http://192.0.2.101:2379".to_owned(),
            answer: Err("no answer within 5s".to_owned()),
        };
        it.examination = Examination::default().servers([it.examination.servers[0].clone(), dead]);
    });
    half.clone().case().fails(
        "store-reachable",
        Warning,
        "server http://192.0.2.101:2379 of the store does not answer",
    );
    // Of the addresses that nobody named, one is enough.
    let mut case = half.clone().case();
    case.store = Some(StoreToAsk::named(Arc::new(half)).with_usual_servers(true));
    case.passes("store-reachable");
    // A config that comes from a file says nothing of the only server.
    let alone = Scripted::new().with(|it| {
        let dead = Server { name: "https://192.0.2.9:6443".to_owned(), answer: Err("refused".to_owned()) };
        it.examination = Examination::default().servers([dead]);
        it.is_silent = true;
    });
    let case = alone.case();
    case.fails("store-reachable", Failure, "does not answer: refused");
    case.skips("store-leases", "refused");
}

#[test]
fn a_store_that_can_not_be_asked() {
    let mut case = Case::of_files();
    case.store = Some(StoreToAsk::unusable("nothing says which node this is; set the variable NODE_NAME"));
    case.fails("store-reachable", Failure, "NODE_NAME");
    let fix = case.finding("store-reachable").fix.unwrap();
    assert!(fix.contains("flags and variables") && !fix.contains("start the store"), "{fix}");
    case.skips("kube-rights", "NODE_NAME");
    case.skips("network-config", "NODE_NAME");
}

/// What the agent would refuse is no good config, by the backend's own reader.
#[test]
fn configs_that_no_agent_takes() {
    let with_backend = |backend: &str| {
        let text = format!(r#"{{"Network":"10.244.0.0/16","Backend":{backend}}}"#);
        let mut case = Scripted::new().with(|it| it.config = Ok(config(&text))).case();
        case.backends = vec![Arc::new(VxlanBackend::new())];
        case
    };
    with_backend(r#"{"Type":"vxlan","VNI":5,"Port":8472,"MTU":1400}"#).passes("network-config");
    for (backend, part) in [
        (r#"{"Type":"vxlan","VNI":"x"}"#, "Backend.VNI"),
        (r#"{"Type":"vxlan","VNI":99999999}"#, "Backend.VNI = 99999999"),
        (r#"{"Type":"vxlan","Port":70000}"#, "Backend.Port = 70000"),
        (r#"{"Type":"vxlan","MTU":"a"}"#, "Backend.MTU"),
        (
            r#"{"Type":"vxlan","Accept":["host-gw"]}"#,
            "Backend.Accept[0] = host-gw: is no backend that can share",
        ),
        (
            r#"{"Type":"vxlan","Fallback":["hostgw"]}"#,
            "Backend.Fallback[0] = hostgw: is no backend that can share",
        ),
        (r#"{"Type":"vxlna"}"#, "Backend.Type = \"vxlna\": the agent of this host has vxlan"),
        (r#"{"Type":"ipsec","PSK":"x"}"#, "Backend.Type = \"ipsec\""),
    ] {
        with_backend(backend).fails("network-config", Failure, part);
    }
    // Without the backends of an agent nobody can say it.
    let mut unknown = with_backend(r#"{"Type":"vxlna"}"#);
    unknown.backends.clear();
    unknown.fails("network-config", Warning, "older config");
}

#[test]
fn networks_that_cover_the_underlay() {
    let covering = config(r#"{"Network":"192.0.2.0/23","Backend":{"Type":"vxlan"}}"#);
    let script = Scripted::new().with(|it| it.config = Ok(covering));
    let add = |case: &Case| {
        let link = case.kernel.add_link("eth0", 1500);
        case.kernel.add_address(LinkAddress {
            link,
            addr: "192.0.2.1/24".parse().unwrap(),
            global: true,
            deprecated: false,
            permanent: true,
            temporary: false,
            tentative: false,
        });
    };
    let case = script.clone().case();
    add(&case);
    case.fails("network-config", Failure, "covers the underlay address of eth0 192.0.2.1");
    // A cluster that works this way goes on.
    let used = script.clone().with(|it| {
        let value = r#"{"PublicIP":"192.0.2.1","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"02:00:00:00:00:01"}}"#;
        it.leases = vec![Lease::decode("192.0.3.0-24", value.as_bytes(), 1).unwrap()];
    });
    let case = used.case();
    add(&case);
    case.fails("network-config", Warning, "covers the underlay address");
    // Where no agent ran yet, the store names the network.
    let mut fresh = Case::of_files();
    fresh.store = Some(StoreToAsk::named(Arc::new(script)));
    fresh.kernel.add_link("lo0", 1500);
    add(&fresh);
    fresh.fails("network-overlap", Failure, "eth0 has 192.0.2.1/24");
}

#[test]
fn slow_old_and_late_servers() {
    let slow = |millis| ServerAnswer::new(Duration::from_millis(millis), "3.5.16");
    Scripted::new().server(slow(300)).case().fails("store-latency", Warning, "300.0 ms");
    Scripted::new().server(slow(3_000)).case().fails("store-latency", Failure, "3000.0 ms");
    let answer = |version: &str| ServerAnswer::new(Duration::ZERO, version);
    Scripted::new().server(answer("3.3.27")).case().fails("store-version", Warning, "etcd 3.3.27");
    Scripted::new().server(answer("")).case().skips("store-version", "no server says");
    let mixed = Scripted::new().with(|it| {
        it.examination =
            Examination::default().servers(["3.4.1", "3.5.1"].map(|version| server(answer(version))));
    });
    mixed.case().fails("store-version", Note, "different versions");
    let clock = |gap| Scripted::new().server(answer("3.5.16").clock(Some(gap))).case();
    clock(ClockGap::Behind(Duration::from_secs(60))).fails("store-clock", Warning, "60 s behind");
    clock(ClockGap::Ahead(Duration::from_secs(3600))).fails("store-clock", Failure, "3600 s ahead of");
    Scripted::new().server(answer("3.5.16")).case().skips("store-clock", "tells the time");
}

#[test]
fn what_the_store_has() {
    Scripted::new().with(|it| it.config = Err("is no CIDR")).case().fails(
        "network-config",
        Failure,
        "is no CIDR",
    );
    let other = config(r#"{"Network":"10.9.0.0/16","Backend":{"Type":"vxlan"}}"#);
    Scripted::new().with(|it| it.config = Ok(other)).case().fails("network-config", Warning, "older config");
    let gone = Scripted::new().with(|it| it.leases = vec![lease(2, 2)]);
    gone.case().fails("store-leases", Failure, "no lease 10.244.1.0-24");
    let bad = UnreadableRecord { key: "10.244.3.0-24".to_owned(), reason: "no JSON".to_owned() };
    Scripted::new().with(|it| it.unreadable = vec![bad]).case().fails("store-leases", Warning, "no JSON");
    let twice = Scripted::new().with(|it| it.leases.push(lease(3, 2)));
    twice.case().fails("duplicate-mac", Failure, "publish one IPv4 VTEP MAC 02:00:00:00:00:02");
}

/// What Kubernetes says of a node that is well.
fn kube(subnets: &[&str], published: Option<LeaseAttrs>, rights: &[(&str, RightAnswer)]) -> Case {
    let node = NodeFacts::new("n1", subnets.iter().copied()).published(published);
    let rights =
        rights.iter().map(|(what, answer)| Right { what: (*what).to_owned(), answer: answer.clone() });
    let examination = Examination::default().node(NodeRecord::Read(node)).rights(rights);
    Scripted::new().with(|it| (it.place, it.examination) = ("kube:n1", examination)).case()
}

#[test]
fn kubernetes() {
    use flannel_core::addr::MacAddr;

    let attrs = || Some(lease(1, 1).attrs);
    let allowed = ("list nodes", RightAnswer::Allowed);
    let case = kube(&["10.244.1.0/24"], attrs(), std::slice::from_ref(&allowed));
    let eth0 = case.kernel.add_link("eth0", 1500);
    let add = |case: &Case, link| {
        case.kernel.add_address(LinkAddress {
            link,
            addr: "192.0.2.1/24".parse().unwrap(),
            global: true,
            deprecated: false,
            permanent: true,
            temporary: false,
            tentative: false,
        });
    };
    add(&case, eth0);
    case.passes("kube-pod-cidrs");
    case.passes("kube-annotations");
    case.passes("kube-rights");
    case.kernel.add_link("flannel.1", 1450);
    case.kernel.edit_link("flannel.1", false, |link| {
        (link.kind, link.mac) = (Some("vxlan".to_owned()), Some(MacAddr([2, 0, 0, 0, 0, 9])));
    });
    case.fails(
        "kube-annotations",
        Failure,
        "publishes the VTEP MAC 02:00:00:00:00:01, and flannel.1 has another",
    );

    kube(&["10.9.1.0/24"], attrs(), &[]).fails(
        "kube-pod-cidrs",
        Failure,
        "has 10.9.1.0/24, and the network is 10.244.0.0/16",
    );
    kube(&[], attrs(), &[]).fails("kube-pod-cidrs", Failure, "has no IPv4 subnet");
    kube(&[], None, &[]).fails("kube-annotations", Failure, "no annotations");
    kube(&[], attrs(), &[]).fails("kube-annotations", Warning, "192.0.2.1, which is on no link");
    let denied = ("patch nodes/status", RightAnswer::Denied("RBAC".to_owned()));
    kube(&[], None, &[allowed, denied]).fails(
        "kube-rights",
        Failure,
        "does not let us patch nodes/status (RBAC)",
    );
    kube(&[], None, &[("list nodes", RightAnswer::Unknown("503".to_owned()))]).skips("kube-rights", "503");
}
