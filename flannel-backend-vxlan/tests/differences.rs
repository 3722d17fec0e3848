//! What an agent says that differs from its desired state, on the real kernel: pasted into a shell, it brings the kernel there.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use flannel_backend_vxlan::{NextHopObjects, VxlanBackend};
use flannel_core::addr::{Family, LinkIndex, Vni};
use flannel_core::agent::Agent;
use flannel_core::config::{LeaseSource, NetworkConfig};
use flannel_core::dataplane::{NextHop, Object, ObjectKey, Op, Route};
use flannel_core::inspect::{DifferenceKind, Differences};
use flannel_core::kernel::{
    Forwarding, Kernel, KernelError, KernelEvent, Link, LinkAddress, LinkKind, LinkOp, Refusal, RouteLookup,
    Scope,
};
use flannel_core::netlink::Netlink;
use flannel_core::testing::FakeStore;
use flannel_lab::kernel_state::KernelState;
use flannel_lab::netns::Netns;
use flannel_lab::sandbox::in_sandbox;
use flannel_lab::test_name;

const SOON: Duration = Duration::from_secs(20);
const CONFIG: &str =
    r#"{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:5::/48","Backend":{"Type":"vxlan"}}"#;

/// The real kernel, whose changes can be held up: then it takes none from the loop, and tells it of none.
struct Holdable {
    kernel: Netlink,
    is_held: Arc<AtomicBool>,
}

impl Holdable {
    fn is_held(&self) -> bool {
        self.is_held.load(Ordering::Relaxed)
    }
}

#[async_trait]
impl Kernel for Holdable {
    async fn links(&mut self) -> Result<Vec<Link>, KernelError> {
        self.kernel.links().await
    }

    async fn link(&mut self, name: &str) -> Result<Option<Link>, KernelError> {
        self.kernel.link(name).await
    }

    async fn link_at(&mut self, index: LinkIndex) -> Result<Option<Link>, KernelError> {
        self.kernel.link_at(index).await
    }

    async fn link_kind(&mut self, index: LinkIndex) -> Result<Option<LinkKind>, KernelError> {
        self.kernel.link_kind(index).await
    }

    async fn addresses(&mut self) -> Result<Vec<LinkAddress>, KernelError> {
        self.kernel.addresses().await
    }

    async fn default_routes(&mut self, family: Family) -> Result<Vec<RouteLookup>, KernelError> {
        self.kernel.default_routes(family).await
    }

    async fn lookup(&mut self, dst: IpAddr) -> Result<Option<RouteLookup>, KernelError> {
        self.kernel.lookup(dst).await
    }

    async fn objects(&mut self, scope: Scope) -> Result<Vec<Object>, KernelError> {
        self.kernel.objects(scope).await
    }

    async fn routes_by(&mut self, family: Family, protocol: u8) -> Result<Vec<Object>, KernelError> {
        self.kernel.routes_by(family, protocol).await
    }

    async fn forwarding(&mut self, family: Family) -> Result<Vec<Forwarding>, KernelError> {
        self.kernel.forwarding(family).await
    }

    async fn routes_at(
        &mut self,
        family: Family,
        keys: &BTreeSet<ObjectKey>,
    ) -> Result<Vec<Route>, KernelError> {
        self.kernel.routes_at(family, keys).await
    }

    fn next_hop_ids(&self, wanted: &BTreeSet<NextHop>) -> BTreeMap<NextHop, u32> {
        self.kernel.next_hop_ids(wanted)
    }

    async fn remove_gate(&mut self, vni: Vni) -> Result<(), KernelError> {
        self.kernel.remove_gate(vni).await
    }

    async fn change_link(&mut self, op: &LinkOp) -> Result<(), KernelError> {
        if self.is_held() {
            return Err(KernelError::Lost { what: op.to_string() });
        }
        self.kernel.change_link(op).await
    }

    async fn execute(&mut self, ops: &[Op]) -> Result<Vec<Refusal>, KernelError> {
        if self.is_held() {
            let refuse = |op: &Op| Refusal { op: *op, errno: libc::EPERM, reason: String::new() };
            return Ok(ops.iter().map(refuse).collect());
        }
        self.kernel.execute(ops).await
    }

    async fn events(&mut self) -> Vec<KernelEvent> {
        if self.is_held() {
            std::future::pending::<()>().await;
        }
        self.kernel.events().await
    }
}

/// A namespace with an underlay and a default route.
fn host() -> Netns {
    let host = Netns::add("host").unwrap();
    for args in [
        "link add eth0 type veth peer name far",
        "addr add 192.0.2.1/24 dev eth0",
        "addr add 2001:db8::1/64 dev eth0 nodad",
        "link set eth0 up",
        "link set far up",
        "route add default via 192.0.2.254",
        "-6 route add default via 2001:db8::fe",
    ] {
        host.ip(args).unwrap();
    }
    host
}

fn peer(n: u8) -> (String, String) {
    let key = format!("10.5.{n}.0-24&fd00:5:0:{n}::-64");
    let record = format!(
        r#"{{"PublicIP":"192.0.2.{n}","PublicIPv6":"2001:db8::{n}","BackendType":"vxlan","BackendData":{{"VNI":1,"VtepMAC":"0a:00:00:00:00:{n}"}},"BackendV6Data":{{"VNI":1,"VtepMAC":"0e:00:00:00:00:{n}"}}}}"#
    );
    (key, record)
}

/// What an operator would type.
fn sh(host: &Netns, script: &str) -> String {
    let output = host.command("sh").args(["-e", "-c", script]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{script}\n{said}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// The commands, as they would be pasted. What is held back stays out.
fn script(differences: &Differences) -> String {
    let done = differences.differences.iter().filter(|it| it.kind != DifferenceKind::Rule);
    done.flat_map(|it| &it.commands).flat_map(|command| [command.as_str(), "\n"]).collect()
}

async fn differences(agent: &Agent) -> Differences {
    let mut found = tokio::time::timeout(SOON, agent.differences()).await.unwrap().unwrap();
    found.differences.retain(|it| it.kind != DifferenceKind::Rule);
    found
}

fn pasted_commands_repair(form: NextHopObjects) {
    let host = host();
    let store = FakeStore::new(NetworkConfig::parse(CONFIG, LeaseSource::Store).unwrap());
    for n in [20, 30, 40] {
        let (key, record) = peer(n);
        store.put(&key, &record);
    }
    let is_held = Arc::new(AtomicBool::new(false));
    let held = Arc::clone(&is_held);
    let backend = VxlanBackend::with_kernel(move |netns| {
        let kernel = Netlink::open_in(netns)?;
        Ok(Box::new(Holdable { kernel, is_held: Arc::clone(&held) }))
    });
    let work = async {
        let agent = Agent::builder(Arc::new(store)).backend(backend.next_hop_objects(form)).start().unwrap();
        assert!(agent.differences().await.is_err(), "the network does not run yet");
        agent.ready().await.unwrap();
        let mut status = agent.status();
        let is_done = |it: &Arc<flannel_core::agent::AgentStatus>| {
            it.network.as_ref().is_some_and(|network| network.synced && network.peers == 3)
        };
        tokio::time::timeout(SOON, status.wait_for(is_done)).await.unwrap().unwrap();
        let before = KernelState::of(&host).unwrap();
        assert_eq!(differences(&agent).await, Differences::default());

        let lease = "10.5.20.0-24&fd00:5:0:20::-64".parse().unwrap();
        let objects = agent.peer_objects(lease).await.unwrap();
        assert!(objects.len() >= 6 && objects.iter().all(|object| object.present), "{objects:?}");
        for object in &objects {
            assert!(!sh(&host, &object.command).trim().is_empty(), "{object:?} shows nothing");
        }
        assert_eq!(agent.peer_objects("10.5.99.0-24".parse().unwrap()).await.unwrap(), []);

        is_held.store(true, Ordering::Relaxed);
        for damage in [
            "ip route del 10.5.20.0/24",
            "ip -6 route replace fd00:5:0:20::/64 via fd00:5:0:99:: dev flannel-v6.1 onlink",
            "by=$(ip route show 10.5.20.0/24 | grep -o 'nhid [0-9]*' || echo via 10.5.20.0 dev flannel.1 onlink)
             ip route replace 10.5.20.0/24 $by proto 102 mtu lock 1300",
            "by=$(ip -6 route show fd00:5:0:30::/64 | grep -o 'nhid [0-9]*' || echo via fd00:5:0:30:: dev flannel-v6.1 onlink)
             ip -6 route replace fd00:5:0:30::/64 $by proto 102 mtu lock 1300",
            "ip neigh del 10.5.20.0 dev flannel.1; ip -6 neigh del fd00:5:0:30:: dev flannel-v6.1",
            "bridge fdb del 0a:00:00:00:00:20 dev flannel.1 dst 192.0.2.20",
            "bridge fdb replace 0e:00:00:00:00:30 dev flannel-v6.1 dst 2001:db8::77 self permanent",
            "ip route add 10.5.77.0/24 via 10.5.77.0 dev flannel.1 onlink proto 102",
            "ip neigh add 10.5.77.0 lladdr 0a:00:00:00:00:77 dev flannel.1 nud permanent",
            "ip nexthop flush dev flannel.1 2>&1; ip -6 nexthop flush dev flannel-v6.1 2>&1",
            "ip link set flannel.1 mtu 1300",
            "ip link set flannel.1 down",
            "ip link del flannel.1",
            "ip link set flannel-v6.1 address 02:00:00:00:00:99; ip link del flannel-v6.1",
            "ip link del flannel.1; ip link add flannel.1 type vxlan id 1 dstport 4789 dev eth0",
        ] {
            if damage.contains("nexthop") && form == NextHopObjects::Off {
                continue;
            }
            sh(&host, damage);
            let found = differences(&agent).await;
            assert!(!found.differences.is_empty(), "{damage} is not seen");
            let script = script(&found);
            sh(&host, &script);
            // A device that was made has another number. The kernel's notification of it is held up, but after the first of
            // these questions the loop looks.
            differences(&agent).await;
            let left = differences(&agent).await.differences;
            assert_eq!(left, [], "after {damage} and\n{script}");
        }
        is_held.store(false, Ordering::Relaxed);
        agent.stop().await.unwrap();
        assert_eq!(KernelState::of(&host).unwrap(), before);
    };
    let run = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work);
    host.enter(run).unwrap();
}

#[test]
fn pasted_commands_repair_plain_routes() {
    in_sandbox(test_name!(), || pasted_commands_repair(NextHopObjects::Off));
}

#[test]
fn pasted_commands_repair_next_hop_objects() {
    in_sandbox(test_name!(), || pasted_commands_repair(NextHopObjects::Auto));
}
