//! The floor of a cold start: the same entries by the tools of iproute2.

use std::fmt::Write as _;
use std::fs;
use std::time::Instant;

use flannel_lab::netns::Netns;
use flannel_lab::node::Node;

use crate::Fallible;
use crate::leases::{PREFIX, base, mac, subnet, underlay};

/// Puts the entries of `leases` by `ip -batch` and `bridge -batch`; seconds.
pub fn batch(node: &Node, backend: &str, leases: u32) -> Fallible<f64> {
    let netns = node.netns();
    let (mut ip, mut bridge) = (String::new(), String::new());
    if backend == "vxlan" {
        let local = node.address();
        let vxlan = format!("type vxlan id 1 dev eth0 local {local} dstport 8472 nolearning");
        netns.ip(&format!("link add flannel.1 mtu 1450 {vxlan}"))?;
        netns.ip("link set flannel.1 up")?;
    }
    for n in 0..leases {
        let (subnet, underlay, mac) = (subnet(n), underlay(backend, n), mac(n));
        if backend == "vxlan" {
            let base = base(n);
            writeln!(ip, "neigh replace {base} lladdr {mac} dev flannel.1 nud permanent")?;
            writeln!(ip, "route replace {subnet} via {base} dev flannel.1 onlink")?;
            writeln!(bridge, "fdb replace {mac} dev flannel.1 dst {underlay} self permanent")?;
        } else {
            writeln!(ip, "route replace {subnet} via {underlay} dev eth0")?;
        }
    }
    fs::write("/run/batch-ip", ip)?;
    fs::write("/run/batch-bridge", &bridge)?;
    let start = Instant::now();
    netns.run("ip", &["-batch", "/run/batch-ip"])?;
    if !bridge.is_empty() {
        netns.run("bridge", &["-batch", "/run/batch-bridge"])?;
    }
    Ok(start.elapsed().as_secs_f64())
}

/// Whether a route to every lease's subnet is there.
pub fn check_routes(netns: &Netns, leases: u32) -> Fallible<()> {
    let routes = netns.ip("-4 route show")?.lines().filter(|line| is_of_lease(line)).count();
    if routes == leases as usize {
        Ok(())
    } else {
        Err(format!("{routes} routes instead of {leases}").into())
    }
}

/// A route to a subnet of theirs, with a gateway or a next-hop object.
fn is_of_lease(line: &str) -> bool {
    let prefix = format!("/{PREFIX}");
    line.split_once(' ').is_some_and(|(dst, rest)| {
        dst.ends_with(&prefix) && (rest.starts_with("via ") || rest.starts_with("nhid "))
    })
}
