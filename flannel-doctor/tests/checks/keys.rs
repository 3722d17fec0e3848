//! Tunnels with keys: the key of the node, peers in the devices, ports, and the clock.

use std::net::UdpSocket;
use std::os::unix::fs::chown;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use flannel_backend_wireguard::WireguardBackend;
use flannel_backend_wireguard::device::PeerState;
use flannel_backend_wireguard::key::PrivateKey;
use flannel_backend_wireguard::testing::FakeDevices;
use flannel_core::addr::LinkIndex;
use flannel_core::kernel::Kernel;
use flannel_core::lease::Lease;
use flannel_core::netns::Netns;
use flannel_core::state_file::{Device, State};
use flannel_core::testing::FakeKernel;
use flannel_core::times::rfc3339;
use flannel_doctor::Verdict::{Failure, Note, Warning};
use flannel_lab::sandbox::in_sandbox;
use flannel_lab::test_name;
use serde_json::json;

use super::common::{Case, STATE_FILE, config, networks, sh, with_peer};

const KEY_FILE: &str = "/run/flannel/wgkey";

/// The private key of a node, as its file has it.
fn key(number: u8) -> String {
    // 32 bytes in base64.
    format!("{}CQk=", format!("C{}kJ", char::from(b'A' + number)).repeat(10))
}

fn public(number: u8) -> String {
    key(number).parse::<PrivateKey>().unwrap().public().to_string()
}

fn lease(number: u8) -> Lease {
    let key = public(number);
    let value = format!(
        r#"{{"PublicIP":"192.0.2.{number}","BackendType":"wireguard","BackendData":{{"PublicKey":"{key}","Port":51820}}}}"#
    );
    Lease::decode(&format!("10.244.{number}.0-24"), value.as_bytes(), 1).unwrap()
}

/// The state of node 1, with node 2 as its peer.
fn state() -> State {
    let config = config(r#"{"Network":"10.244.0.0/16","Backend":{"Type":"wireguard"}}"#);
    let devices = ["flannel-wg", "flannel-wg-v6"].map(|name| Device::of_kind(name, "wireguard"));
    let mut state = State::of_backend("wireguard", &config).devices(devices).own(lease(1));
    state.config = Some(config);
    with_peer(state, lease(2))
}

/// A host with the agent's files, its backend, and the device for IPv4.
fn case() -> (Case, FakeDevices, LinkIndex) {
    let mut case = Case::of_files();
    let devices = FakeDevices::default();
    let open = |_: &Netns| Ok(Box::new(FakeKernel::default()) as Box<dyn Kernel>);
    let backend = WireguardBackend::with_kernel(open, Arc::new(devices.clone())).key_file(KEY_FILE);
    case.backends = vec![Arc::new(backend)];
    case.agent_files(&state());
    let link = case.kernel.add_link("flannel-wg", 1420);
    case.kernel.edit_link("flannel-wg", true, |link| link.kind = Some("wireguard".to_owned()));
    (case, devices, link)
}

#[test]
fn the_key_of_the_node() {
    let (case, ..) = case();
    case.fails("key-file", Warning, "the key file /run/flannel/wgkey is gone, and a lease was published");
    case.file(KEY_FILE, &key(1)).mode(KEY_FILE, 0o400);
    case.passes("key-file");
    case.mode(KEY_FILE, 0o440);
    case.fails("key-file", Failure, "has the mode 0440: others than its owner can use the key");
    case.mode(KEY_FILE, 0o600);
    case.passes("key-file");
    chown(case.path(KEY_FILE), Some(1234), None).unwrap();
    case.fails("key-file", Warning, "belongs to the user 1234, who is neither root nor the agent");
    // The agent's own user has both.
    chown(case.path(STATE_FILE), Some(1234), None).unwrap();
    case.passes("key-file");
    case.file(KEY_FILE, &key(2)).mode(KEY_FILE, 0o400);
    case.fails("key-file", Failure, "no peer can begin a session");
    case.file(KEY_FILE, "c2VjcmV0").mode(KEY_FILE, 0o400);
    case.fails("key-file", Failure, "has 6 bytes; a WireGuard key has 32");
    let said = case.finding("key-file");
    assert!(!format!("{said:?}").contains("c2VjcmV0"), "{said:?}");
    let mut without = state();
    without.own = None;
    case.agent_files(&without).remove(KEY_FILE);
    case.fails("key-file", Note, "there is no key file /run/flannel/wgkey yet");
    case.agent_files(&super::common::state());
    case.skips("key-file", "the backend vxlan has no key");
}

#[test]
fn peers_of_others_in_the_device() {
    let (case, devices, link) = case();
    let add = |number: u8, ip: &str| {
        let peer = PeerState { allowed_ips: [ip.parse().unwrap()].into(), ..PeerState::default() };
        let key = public(number).parse().unwrap();
        devices.edit(link, |state| _ = state.peers.insert(key, peer));
    };
    add(2, "10.244.2.0/24");
    case.passes("device-peers");
    add(3, "172.16.0.0/12");
    case.skips("other-vxlan", "the backend wireguard has no VXLAN device");
    case.skips("duplicate-mac", "2 leases publish no MAC");
    case.fails("device-peers", Warning, &format!("flannel-wg has the peer {} with 172.16.0.0/12", public(3)));
    devices.fail(Some(std::io::ErrorKind::PermissionDenied));
    case.skips("device-peers", "read the peers of flannel-wg");
    devices.fail(None);
    // That of a change of keys is the agent's, too.
    case.passes("leftover-devices");
    case.kernel.add_link("flannel-wg-r", 1420);
    case.kernel.edit_link("flannel-wg-r", true, |link| link.kind = Some("wireguard".to_owned()));
    case.passes("leftover-devices");
    case.kernel.delete_link("flannel-wg-r");
    // One in user space is the agent's own business.
    case.kernel.edit_link("flannel-wg", true, |link| link.kind = Some("tun".to_owned()));
    case.skips("device-peers", "no device of the kernel has peers");
}

#[test]
fn a_clock_that_was_set_back() {
    let (mut case, ..) = case();
    case.skips("handshake-clock", "no status of a running agent");
    let told = |case: &mut Case, last: SystemTime| {
        let session =
            json!({"lease": "10.244.2.0-24", "device": "flannel-wg", "last_handshake": rfc3339(last)});
        let idle = json!({"lease": "10.244.3.0-24", "device": "flannel-wg", "last_handshake": null});
        case.status = Some(json!({"ready": true, "network": {"sessions": [idle, session]}}));
    };
    told(&mut case, SystemTime::now());
    case.passes("handshake-clock");
    told(&mut case, SystemTime::now() + Duration::from_secs(7200));
    case.fails("handshake-clock", Failure, "the last handshake of flannel-wg with 10.244.2.0-24 was 7");
    case.status = Some(json!({"ready": true, "network": {"sessions": []}}));
    case.skips("handshake-clock", "there was no handshake yet");
    case.status = Some(json!({"ready": true, "network": {}}));
    case.skips("handshake-clock", "the tunnel has no sessions");
}

/// Each device has a port of its own; in user space a process has it.
#[test]
fn the_ports_of_both_devices() {
    in_sandbox(test_name!(), || {
        let case = Case::of_netns(Netns::current().unwrap());
        let mut state = state();
        state.networks = networks("10.244.0.0/16");
        state.write(&case.path(STATE_FILE)).unwrap_or_else(|_| {
            case.file(STATE_FILE, "");
            state.write(&case.path(STATE_FILE)).unwrap();
        });
        case.fails("tunnel-port", Note, "nobody has UDP port 51820");
        case.fails("tunnel-port", Note, "nobody has UDP port 51821");
        sh("ip link set lo up");
        let _socket = UdpSocket::bind("0.0.0.0:51821").unwrap();
        case.fails("tunnel-port", Failure, "UDP port 51821 belongs to process");
        let fix = case.finding("tunnel-port").fix.unwrap();
        assert!(fix.contains("another Backend.ListenPortV6"), "{fix}");
    });
}
