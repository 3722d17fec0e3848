//! Two nodes with a WireGuard device in user space each.

use std::path::Path;
use std::time::Duration;

use flannel_backend_wireguard::userspace::testing::{base64, private_key, public_key};
use flannel_benches::Fallible;
use flannel_lab::agent::Agent;
use flannel_lab::cluster::Cluster;
use flannel_lab::subnet_env::SubnetEnv;
use flannel_lab::wait::eventually;

const PORT: u16 = 51820;
/// As both have it over 1500 bytes.
const MTU: u16 = 1420;

pub(crate) fn env(number: u8) -> Fallible<SubnetEnv> {
    let (network, rest) =
        ("FLANNEL_NETWORK=10.98.0.0/16", format!("FLANNEL_MTU={MTU}\nFLANNEL_IPMASQ=false"));
    Ok(format!("{network}\nFLANNEL_SUBNET=10.98.{number}.1/24\n{rest}\n").parse()?)
}

/// Ours, by the program beside the naive forwarder.
pub(crate) fn start_ours(cluster: &Cluster, number: u8, other: u8, naive: &Path) -> Fallible<Agent> {
    let node = cluster.node(number);
    let agent = node
        .agent(&format!("wireguard{number}"), naive.with_file_name("wireguard_user"))
        .args(["--tun", "wgu0"])
        .arg(format!("--port={PORT}"))
        .arg(format!("--number={number}"))
        .arg(format!("--peer={other}"))
        .arg(format!("--endpoint={}:{PORT}", cluster.node(other).address()))
        .arg(format!("--allowed=10.98.{other}.0/24"))
        .start()?;
    agent.wait_for_log("up", Duration::from_secs(5))?;
    route(cluster, number, "wgu0")?;
    Ok(agent)
}

/// Debian's `wireguard-go`, set up by `wg`.
pub(crate) fn start_go(cluster: &Cluster, number: u8, other: u8, _: &Path) -> Fallible<Agent> {
    let (node, link) = (cluster.node(number), format!("wggo{number}"));
    let agent = node
        .agent(&link, "wireguard-go")
        .args(["-f", &link])
        .env("WG_I_PREFER_BUGGY_USERSPACE_TO_POLISHED_KMOD", "1")
        .start()?;
    let socket = format!("/var/run/wireguard/{link}.sock");
    eventually(Duration::from_secs(5), "wireguard-go listens", || Path::new(&socket).exists());
    let key = format!("/run/{link}.key");
    std::fs::write(&key, base64(&private_key(number).0))?;
    let (port, peer) = (PORT.to_string(), base64(&public_key(other).0));
    let endpoint = format!("{}:{PORT}", cluster.node(other).address());
    let allowed = format!("10.98.{other}.0/24");
    node.netns().run("wg", &["set", &link, "listen-port", &port, "private-key", &key])?;
    node.netns().run("wg", &["set", &link, "peer", &peer, "endpoint", &endpoint, "allowed-ips", &allowed])?;
    route(cluster, number, &link)?;
    Ok(agent)
}

fn route(cluster: &Cluster, number: u8, link: &str) -> Fallible<()> {
    let netns = cluster.node(number).netns();
    netns.ip(&format!("link set {link} mtu {MTU} up"))?;
    netns.ip(&format!("address add 10.98.{number}.0/32 dev {link}"))?;
    netns.ip(&format!("route add 10.98.0.0/16 dev {link}"))?;
    Ok(())
}
