//! Pods by plain veth pairs: what the bridge plugin does, in a dozen `ip` commands.

use std::net::{Ipv4Addr, Ipv6Addr};

use ipnetwork::IpNetwork;

use super::BRIDGE;
use crate::LabError;
use crate::netns::Netns;
use crate::plan::address_line;
use crate::subnet_env::SubnetEnv;

/// Attaches the pod and returns its addresses.
pub(super) fn attach(
    node: &Netns,
    pod: &Netns,
    number: u32,
    env: &SubnetEnv,
) -> Result<Vec<IpNetwork>, LabError> {
    let gateways = env.families().into_iter().map(|family| family.gateway).collect::<Vec<_>>();
    let addresses = gateways.iter().map(|gateway| nth_after(*gateway, number));
    let addresses = addresses.collect::<Result<Vec<_>, _>>()?;
    make_bridge(node, &gateways, env.mtu)?;

    let (mtu, port) = (env.mtu, format!("pod{number}"));
    node.ip_batch(&[
        format!("link add {port} mtu {mtu} type veth peer name eth0 mtu {mtu} netns {}", pod.name()),
        format!("link set {port} master {BRIDGE} up"),
    ])?;
    let mut lines = vec!["link set eth0 up".to_owned()];
    lines.extend(addresses.iter().map(|address| address_line("add", *address, "eth0")));
    let routes = gateways.iter().map(|gateway| format!("route add default via {}", gateway.ip()));
    lines.extend(routes);
    pod.ip_batch(&lines)?;
    node.wait_for_port(BRIDGE, &port)?;
    Ok(addresses)
}

fn make_bridge(node: &Netns, gateways: &[IpNetwork], mtu: u32) -> Result<(), LabError> {
    let mut lines = Vec::new();
    if node.link_index(BRIDGE)?.is_none() {
        // A bridge without a MAC of its own takes another with each port, and pods lose it.
        let mac = "0a:58:00:00:00:01";
        lines.push(format!("link add {BRIDGE} address {mac} mtu {mtu} type bridge"));
    }
    lines.push(format!("link set {BRIDGE} up"));
    lines.extend(gateways.iter().map(|gateway| address_line("replace", *gateway, BRIDGE)));
    node.ip_batch(&lines)
}

/// The pod's address: `number` after the gateway's, within its subnet.
fn nth_after(gateway: IpNetwork, number: u32) -> Result<IpNetwork, LabError> {
    let address = match gateway {
        IpNetwork::V4(at) => {
            let address = Ipv4Addr::from(u32::from(at.ip()).saturating_add(number));
            (address < at.broadcast()).then_some(address.into())
        }
        IpNetwork::V6(at) => {
            let address = Ipv6Addr::from(u128::from(at.ip()).saturating_add(number.into()));
            at.contains(address).then_some(address.into())
        }
    };
    let address = address.and_then(|address| IpNetwork::new(address, gateway.prefix()).ok());
    address.ok_or_else(|| LabError::Invalid(format!("no room for pod {number} at {gateway}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_come_after_the_gateway_and_stay_in_the_subnet() {
        let nth = |gateway: &str, number| {
            nth_after(gateway.parse().unwrap(), number).ok().map(|address| address.to_string())
        };
        assert_eq!(nth("10.1.2.1/24", 1).as_deref(), Some("10.1.2.2/24"));
        assert_eq!(nth("10.1.2.1/24", 253).as_deref(), Some("10.1.2.254/24"));
        assert_eq!(nth("10.1.2.1/24", 254), None);
        assert_eq!(nth("fd00::1/64", 15).as_deref(), Some("fd00::10/64"));
        assert_eq!(nth("fd00::1/126", 3), None);
    }
}
