//! The agent's files, and the configs of other programs.

use flannel_core::addr::MacAddr;
use flannel_doctor::Verdict::{Failure, Note, Warning};

use super::common::{Case, STATE_FILE, SUBNET_ENV, SUBNET_FILE, lease, state};

/// An agent that runs.
const AGENT: (&str, &str) = ("/proc/7/cmdline", "/usr/bin/flanneld\0-v=1\0");

#[test]
fn the_subnet_file() {
    let case = Case::of_files();
    case.fails("subnet-file", Failure, "there is no /run/flannel/subnet.env");
    case.agent_files(&state());
    case.passes("subnet-file");
    case.file(SUBNET_FILE, "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_MTU=1450\n");
    case.fails("subnet-file", Failure, "names no subnet");
    case.file(SUBNET_FILE, &SUBNET_ENV.replace("10.244.1.1/24", "10.244.8.1/24"));
    case.fails("subnet-file", Failure, "says 10.244.8.0-24, and the state file says 10.244.1.0-24");
    case.file(SUBNET_FILE, &SUBNET_ENV.replace("10.244.1.1/24", "nonsense"));
    case.fails("subnet-file", Failure, "nonsense");
    case.remove(SUBNET_FILE).file(&format!("{SUBNET_FILE}/x"), "");
    case.fails("subnet-file", Failure, "can't be read");
}

#[test]
fn the_state_file() {
    let case = Case::of_files();
    case.skips("state-file", "no agent runs");
    case.file(AGENT.0, AGENT.1);
    case.fails("state-file", Note, "there is no");
    case.agent_files(&state());
    case.passes("state-file");
    case.kernel.add_link("eth0", 1500);
    let mut elsewhere = state();
    elsewhere.host_macs = vec![MacAddr([2, 9, 9, 9, 9, 9])];
    case.agent_files(&elsewhere);
    case.fails("state-file", Warning, "on another host");
    case.file(STATE_FILE, "{}");
    case.fails("state-file", Warning, "can't be used");
}

#[test]
fn rights_of_files() {
    let mut case = Case::of_files();
    case.skips("file-rights", "none of the agent's files");
    case.agent_files(&state()).file("/etc/key.pem", "key").mode("/etc/key.pem", 0o600);
    case.places = case.places.clone().secrets(["/etc/key.pem".into()]).store_dir(Some("/store".into()));
    case.file("/store/config", "{}").mode("/store", 0o700).mode("/run/flannel", 0o755);
    case.passes("file-rights");
    case.mode(SUBNET_FILE, 0o600);
    case.fails("file-rights", Note, "not everybody can read it");
    case.mode("/etc/key.pem", 0o640);
    case.fails("file-rights", Warning, "/etc/key.pem has the mode 0640");
    case.mode("/etc/key.pem", 0o600).mode("/store", 0o777);
    case.fails("file-rights", Warning, "/store has the mode 0777: others can redirect");
    case.mode("/store", 0o700).mode(STATE_FILE, 0o644).mode(SUBNET_FILE, 0o666);
    case.fails("file-rights", Warning, "subnet.env.state has the mode 0644");
    let fix = case.finding("file-rights").fix.unwrap();
    assert!(
        fix.contains("chmod 600 /run/flannel/subnet.env.state`; `chmod go-w /run/flannel/subnet.env`"),
        "{fix}"
    );
}

#[test]
fn network_manager() {
    let case = Case::of_files();
    case.passes("networkmanager");
    case.file("/run/NetworkManager/no-stub", "");
    case.fails("networkmanager", Warning, "no config of it excludes");
    case.file(
        "/etc/NetworkManager/conf.d/flannel.conf",
        "[keyfile]\nunmanaged-devices+=interface-name:flannel*;interface-name:cni*\n",
    );
    case.passes("networkmanager");
    // What it does counts more than what it was told.
    case.agent_files(&state());
    let index = case.kernel.add_link("flannel.1", 1450);
    case.file(&format!("/run/NetworkManager/devices/{index}"), "[device]\nmanaged=managed\n");
    case.fails("networkmanager", Failure, "NetworkManager manages flannel.1");
    case.file(&format!("/run/NetworkManager/devices/{index}"), "[device]\nmanaged=unmanaged\n");
    case.passes("networkmanager");
}

#[test]
fn networkd() {
    let case = Case::of_files();
    case.passes("networkd");
    case.file("/run/systemd/netif/state", "OPER_STATE=routable\n");
    case.fails("networkd", Warning, "ManageForeignRoutes");
    case.file("/etc/systemd/networkd.conf.d/flannel.conf", "[Network]\nManageForeignRoutes=no\n");
    case.passes("networkd");
    case.agent_files(&state());
    let index = case.kernel.add_link("flannel.1", 1450);
    let link = format!("/run/systemd/netif/links/{index}");
    case.file(&link, "ADMIN_STATE=configured\nNETWORK_FILE=/etc/systemd/network/all.network\n");
    case.fails(
        "networkd",
        Failure,
        "systemd-networkd manages flannel.1 (configured, by /etc/systemd/network/all.network)",
    );
    case.file(&link, "ADMIN_STATE=unmanaged\n");
    case.passes("networkd");
    // The last file by name has the last word.
    case.file("/etc/systemd/networkd.conf.d/zz.conf", "[Network]\nManageForeignRoutes=yes\n");
    case.fails("networkd", Warning, "ManageForeignRoutes");
}

#[test]
fn dhcpcd() {
    let case = Case::of_files();
    case.passes("dhcpcd");
    case.file("/run/dhcpcd/pid", "1")
        .file("/etc/dhcpcd.conf", "hostname\ninterface eth0\ndenyinterfaces flannel*\n");
    case.fails("dhcpcd", Failure, "dhcpcd runs on every link");
    case.file("/etc/dhcpcd.conf", "denyinterfaces flannel* cni* veth*\ninterface eth0\n");
    case.passes("dhcpcd");
    case.file("/etc/dhcpcd.conf", "allowinterfaces eth*\n");
    case.passes("dhcpcd");
}

#[test]
fn udev() {
    let case = Case::of_files();
    case.passes("udev-mac-policy");
    case.file(
        "/usr/lib/systemd/network/99-default.link",
        "[Match]\nOriginalName=*\n[Link]\nMACAddressPolicy=persistent\n",
    );
    case.passes("udev-mac-policy");
    case.file(
        "/etc/systemd/network/10-all.link",
        "[Match]\nOriginalName=*\n[Link]\nMACAddressPolicy=persistent\n",
    );
    case.fails("udev-mac-policy", Warning, "10-all.link sets MACAddressPolicy=persistent");
    case.file(
        "/etc/systemd/network/10-all.link",
        "[Match]\nOriginalName=fl*\n[Link]\nMACAddress=02:00:00:00:00:01\n",
    );
    case.fails("udev-mac-policy", Failure, "two nodes with it");
    case.file(
        "/etc/systemd/network/10-all.link",
        "[Match]\nType=ether\n[Link]\nMACAddress=02:00:00:00:00:01\n",
    );
    case.passes("udev-mac-policy");
}

#[test]
fn a_lease_is_as_the_tests_say() {
    assert_eq!(lease(3, 1).key.to_string(), "10.244.3.0-24");
}
