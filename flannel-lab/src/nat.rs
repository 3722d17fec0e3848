//! Routers with NATs, as nftables makes them, each in a namespace of its own between a node and the underlay.

use std::net::{IpAddr, Ipv4Addr};

use crate::LabError;
use crate::netns::Netns;
use crate::node::{Node, set_host_sysctls};

/// How a NAT treats UDP (the names of RFC 3489).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NatKind {
    /// The outer port is the inner one, and whoever sends there gets in.
    FullCone,
    /// The outer port is the inner one, and only who was sent something from it gets in.
    PortRestricted,
    /// Each destination sees another port, and only it gets in.
    Symmetric,
}

/// A router between a node and the underlay.
#[derive(Debug)]
pub struct NatBox {
    netns: Netns,
    number: u8,
    host: IpAddr,
    outside: IpAddr,
    rules: String,
}

impl NatBox {
    /// Puts a router between the bridges of the underlay and of a node's segment, and has the node send by it.
    pub(crate) fn add(
        node: &Node,
        fabric: &Netns,
        [outer, inner]: [String; 2],
        segment: u8,
        kind: NatKind,
    ) -> Result<Self, LabError> {
        let netns = Netns::add(&format!("nat{segment}"))?;
        set_host_sysctls(&netns)?;
        let outside = IpAddr::from(Ipv4Addr::new(192, 168, 77, 200 + segment));
        let inside = Ipv4Addr::new(192, 168, 77 + segment, 1);
        let plugs = [("outside", outer, outside), ("inside", inner, inside.into())];
        for (name, bridge, address) in plugs {
            let port = format!("nat{segment}-{name}");
            fabric.ip_batch(&[
                format!("link add {port} type veth peer name {name} netns {}", netns.name()),
                format!("link set {port} master {bridge} up"),
            ])?;
            netns
                .ip_batch(&[format!("link set {name} up"), format!("address add {address}/24 dev {name}")])?;
            fabric.wait_for_port(&bridge, &port)?;
        }
        node.netns().ip(&format!("route replace default via {inside} dev eth0"))?;
        let host =
            node.ipv4().ok_or_else(|| LabError::Invalid("a node behind a NAT needs IPv4".to_owned()))?;
        let rules = rules(kind, host);
        let nat = Self { netns, number: node.number(), host, outside, rules };
        nat.load()?;
        Ok(nat)
    }

    /// The number of the node behind it.
    pub fn number(&self) -> u8 {
        self.number
    }

    /// Its address on the underlay, by which all see the node.
    pub fn outside(&self) -> IpAddr {
        self.outside
    }

    /// Its namespace.
    pub fn netns(&self) -> &Netns {
        &self.netns
    }

    /// Restarts the router: all mappings are forgotten at once. The kernel forgets those of a link that masquerades when it goes
    /// down.
    pub fn restart(&self) -> Result<(), LabError> {
        self.netns.ip("link set outside down")?;
        self.netns.ip("link set outside up")?;
        self.load()
    }

    /// Puts a router of another kind in its place.
    pub fn exchange(&mut self, kind: NatKind) -> Result<(), LabError> {
        self.rules = rules(kind, self.host);
        self.restart()
    }

    fn load(&self) -> Result<(), LabError> {
        self.netns.run("nft", &[&self.rules]).map(drop)
    }
}

/// What a router at home has: it answers nothing from outside, and passes what answers somebody inside.
fn rules(kind: NatKind, host: IpAddr) -> String {
    let (port, more) = match kind {
        NatKind::FullCone => {
            let to_host = format!(
                "chain in {{ type nat hook prerouting priority dstnat; iifname outside meta l4proto udp dnat to {host}; }};"
            );
            ("", to_host)
        }
        NatKind::PortRestricted => ("", String::new()),
        NatKind::Symmetric => (" fully-random", String::new()),
    };
    format!(
        "flush ruleset; \
         table ip nat {{ {more} chain out {{ type nat hook postrouting priority srcnat; oifname outside masquerade{port}; }}; }}; \
         table ip filter {{ \
           chain input {{ type filter hook input priority 0; policy drop; iifname != outside accept; }}; \
           chain forward {{ type filter hook forward priority 0; policy drop; \
             ct state established,related accept; ct status dnat accept; iifname inside accept; }}; \
         }};"
    )
}

#[cfg(test)]
mod tests {
    use std::net::{SocketAddr, UdpSocket};
    use std::time::Duration;

    use super::*;
    use crate::cluster::Cluster;

    /// The ports that two hosts outside see of one socket inside, and whether a third gets in at the port that the first saw.
    fn seen(kind: NatKind) -> (u16, u16, bool) {
        let mut cluster = Cluster::builder().nodes(3).build().unwrap();
        let nat = cluster.add_node_behind(1, kind).unwrap();
        let bind = |number: u8| {
            let netns = cluster.node(number).netns();
            let socket = netns.enter(|| UdpSocket::bind("0.0.0.0:5000")).unwrap().unwrap();
            socket.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
            socket
        };
        let (inside, outside) = (bind(nat.number()), [1, 2, 3].map(bind));
        let mut buffer = [0; 8];
        let mut hears = |number: u8| {
            let to = SocketAddr::new(cluster.node(number).address(), 5000);
            inside.send_to(b"hello", to).unwrap();
            let (_, from) = outside[usize::from(number) - 1].recv_from(&mut buffer).unwrap();
            assert_eq!(from.ip(), nat.outside());
            from.port()
        };
        let (first, second) = (hears(1), hears(2));
        outside[0].send_to(b"answer", (nat.outside(), first)).unwrap();
        inside.recv_from(&mut buffer).unwrap();
        outside[2].send_to(b"stranger", (nat.outside(), first)).unwrap();
        (first, second, inside.recv_from(&mut buffer).is_ok())
    }

    #[test]
    fn a_full_cone_keeps_the_port_and_lets_strangers_in() {
        crate::sandbox::in_sandbox(crate::test_name!(), || {
            assert_eq!(seen(NatKind::FullCone), (5000, 5000, true));
        });
    }

    #[test]
    fn a_port_restricted_nat_keeps_the_port_and_strangers_out() {
        crate::sandbox::in_sandbox(crate::test_name!(), || {
            assert_eq!(seen(NatKind::PortRestricted), (5000, 5000, false));
        });
    }

    #[test]
    fn a_symmetric_nat_has_a_port_for_each_destination() {
        crate::sandbox::in_sandbox(crate::test_name!(), || {
            let (first, second, gets_in) = seen(NatKind::Symmetric);
            assert!(first != second && !gets_in, "{first} {second} {gets_in}");
        });
    }
}
