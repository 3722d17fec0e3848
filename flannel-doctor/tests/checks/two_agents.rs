//! Two agents with networks of their own on one host: what is the other one's is neither ours nor a fault.

use flannel_core::addr::Vni;
use flannel_core::kernel::LinkAddress;
use flannel_core::state_file::{Device, State};
use flannel_doctor::Verdict::{Failure, Note, Warning};

use super::common::{Case, SUBNET_FILE, config, lease, state, with_peer};
use super::link::vxlan;

/// The first agent's files, which are none of the doctor's that is asked for the second one.
const FIRST: &str = "/run/first/subnet.env";

fn address(case: &Case, link: &str, text: &str) {
    case.kernel.add_address(LinkAddress {
        link: case.kernel.link_named(link).unwrap().index,
        addr: text.parse().unwrap(),
        global: true,
        deprecated: false,
        permanent: true,
        temporary: false,
        tentative: false,
    });
}

/// The state of an agent whose network is `10.N.0.0/16`, with this device.
fn state_of(network: u8, device: Device) -> State {
    let config =
        config(&format!(r#"{{"Network":"10.{network}.0.0/16","Backend":{{"Type":"vxlan","VNI":5}}}}"#));
    State::of_backend("vxlan", &config).devices([device])
}

/// Two agents: the first with `flannel.1` for `10.9.0.0/16`, the second, which the doctor is asked for, with `flannel.5`.
fn two() -> Case {
    let case = Case::of_files();
    vxlan(&case, "flannel.1", 1);
    vxlan(&case, "flannel.5", 5);
    case.kernel.edit_link("flannel.1", false, |link| link.mtu = flannel_core::addr::Mtu(1400));
    case.kernel.edit_link("flannel.1", false, |link| link.mac = None);
    address(&case, "flannel.1", "10.9.1.0/32");
    address(&case, "flannel.5", "10.244.1.0/32");
    let second = Device::vxlan("flannel.5", Vni::new(5).unwrap());
    let mut second = state().devices([second]);
    second.own = Some(lease(1, 1));
    case.agent_files(&second);
    case.file("/proc/7/cmdline", "/usr/bin/flanneld\0").file("/proc/7/status", "PPid:\t1\n");
    case.file("/proc/9/cmdline", &format!("/usr/bin/flanneld\0--subnet-file={FIRST}\0"));
    case.file("/proc/9/status", "PPid:\t1\n");
    case.file(FIRST, "FLANNEL_NETWORK=10.9.0.0/16\nFLANNEL_SUBNET=10.9.1.1/24\n");
    let first = state_of(9, Device::vxlan("flannel.1", Vni::new(1).unwrap()));
    first.write(&case.path(&format!("{FIRST}.state"))).unwrap();
    case
}

#[test]
fn nothing_of_the_other_is_blamed() {
    let case = two();
    for check in [
        "vtep-mac",
        "mtu-subnet-file",
        "device-addresses",
        "leftover-devices",
        "other-vxlan",
        "overlay-device",
    ] {
        case.passes(check);
    }
    // Where the agent's own device is wrong, that is said, and of that one.
    case.kernel.edit_link("flannel.5", false, |link| link.mac = None);
    case.fails("vtep-mac", Failure, "the MAC of flannel.5 is none");
    let fix = case.finding("vtep-mac").fix.unwrap();
    assert!(fix.contains("ip link set flannel.5 address") && !fix.contains("flannel.1"), "{fix}");
    address(&case, "flannel.5", "169.254.7.7/16");
    address(&case, "flannel.1", "169.254.7.8/16");
    assert_eq!(case.finding("device-addresses").evidence.len(), 1, "one of the two devices is ours");
    let twice = with_peer(state().devices([Device::vxlan("flannel.5", Vni::new(5).unwrap())]), lease(3, 1));
    case.agent_files(&twice);
    let fix = case.finding("duplicate-mac").fix.unwrap();
    assert!(fix.contains("ip link delete flannel.5"), "{fix}");
    // An agent whose devices are not known may have this one.
    case.remove(&format!("{FIRST}.state")).remove(FIRST);
    case.fails("leftover-devices", Note, "another agent runs here (pid 9), and may own it");
}

#[test]
fn an_agent_without_devices_has_none() {
    let case = two();
    let mut hostgw = state().devices([]);
    hostgw.backend = "host-gw".to_owned();
    case.agent_files(&hostgw);
    case.skips("mtu-subnet-file", "no device of flannel");
    case.skips("device-addresses", "no device of flannel");
}

#[test]
fn routes_that_others_put() {
    let case = two();
    case.agent_files(&state().with_routes_of_others());
    case.skips("peer-routes", "others put the routes");
}

#[test]
fn an_agent_in_go_has_the_device_with_its_address() {
    let case = two();
    // No state file at all, but a subnet file.
    case.remove(&format!("{SUBNET_FILE}.state"));
    case.kernel.edit_link("flannel.5", false, |link| link.mtu = flannel_core::addr::Mtu(1440));
    case.fails("mtu-subnet-file", Failure, "flannel.5 has MTU 1440");
}

#[test]
fn which_agent_is_meant() {
    let case = two();
    case.fails("agents", Note, "2 agents run here");
    case.remove("/proc/7/cmdline");
    case.fails("agents", Warning, "no agent with the subnet file /run/flannel/subnet.env runs here");
    let fix = case.finding("subnet-file").fix;
    assert_eq!(fix, None, "its file is there");
    // Each network has a config, of which the runtime takes the first.
    let conflist = |file: &str| {
        format!(r#"{{"cniVersion":"1.0.0","plugins":[{{"type":"flannel","subnetFile":"{file}"}}]}}"#)
    };
    case.file("/etc/cni/net.d/10-first.conflist", &conflist(FIRST));
    case.fails("cni-config", Note, "another agent runs here and writes /run/first/subnet.env");
    case.file("/etc/cni/net.d/20-second.conflist", &conflist(SUBNET_FILE));
    case.passes("cni-config");
    case.fails(
        "cni-order",
        Note,
        "10-first.conflist comes before 20-second.conflist, and is of another agent",
    );
}
