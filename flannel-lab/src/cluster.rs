//! The underlay and the nodes on it.
//!
//! The underlay lives in a namespace of its own, the fabric. It has segments, each a bridge with a
//! subnet; the fabric routes between them. Segment `s` is `192.168.(77+s).0/24` and
//! `fd00:(77+s)::/64`, with the fabric itself as `.1` and node `n` as `.(10+n)`.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnetwork::IpNetwork;

use crate::LabError;
use crate::nat::{NatBox, NatKind};
use crate::netns::Netns;
use crate::node::{Node, set_host_sysctls};
pub use crate::plan::Families;
use crate::plan::{Attachment, address_line, bridge_name};

/// What to build; from [`Cluster::builder`].
#[derive(Debug, Clone)]
pub struct ClusterBuilder {
    nodes: u8,
    families: Families,
    mtu: u32,
    segments: Vec<u8>,
}

impl ClusterBuilder {
    /// How many nodes to start with; none unless told.
    pub fn nodes(mut self, nodes: u8) -> Self {
        self.nodes = nodes;
        self
    }

    /// The underlay's address families; IPv4 unless told.
    pub fn families(mut self, families: Families) -> Self {
        self.families = families;
        self
    }

    /// The underlay's MTU in bytes; 1500 unless told.
    pub fn mtu(mut self, mtu: u32) -> Self {
        self.mtu = mtu;
        self
    }

    /// The segments each node has a NIC on, in order: eth0, eth1, .... Segment 0 alone unless told.
    pub fn segments(mut self, segments: &[u8]) -> Self {
        self.segments = segments.to_vec();
        self
    }

    /// Builds it.
    pub fn build(self) -> Result<Cluster, LabError> {
        let fabric = Netns::add("fabric")?;
        set_host_sysctls(&fabric)?;
        let nodes = self.nodes;
        let mut cluster =
            Cluster { nodes: BTreeMap::new(), next: 1, bridges: BTreeSet::new(), defaults: self, fabric };
        for _ in 0..nodes {
            cluster.add_node()?;
        }
        Ok(cluster)
    }
}

/// Nodes on an underlay.
#[derive(Debug)]
pub struct Cluster {
    // Before the fabric: nodes take their ports with them.
    nodes: BTreeMap<u8, Node>,
    next: u8,
    bridges: BTreeSet<u8>,
    defaults: ClusterBuilder,
    fabric: Netns,
}

impl Cluster {
    /// Starts to describe a cluster.
    pub fn builder() -> ClusterBuilder {
        ClusterBuilder { nodes: 0, families: Families::default(), mtu: 1500, segments: vec![0] }
    }

    /// The underlay's namespace: a good place for a store that all nodes reach.
    pub fn fabric(&self) -> &Netns {
        &self.fabric
    }

    /// The fabric's own addresses on segment 0: the nodes' gateways.
    pub fn fabric_addresses(&self) -> Vec<IpAddr> {
        self.defaults.families.addresses(0, 1).iter().map(IpNetwork::ip).collect()
    }

    /// The fabric's IPv4 address on segment 0, or its IPv6 address if there is no IPv4.
    pub fn fabric_address(&self) -> IpAddr {
        self.fabric_addresses()[0]
    }

    /// The underlay's address families.
    pub fn families(&self) -> Families {
        self.defaults.families
    }

    /// Node `number`; they count from 1.
    ///
    /// # Panics
    ///
    /// If there is none of that number.
    #[track_caller]
    pub fn node(&self, number: u8) -> &Node {
        match self.nodes.get(&number) {
            Some(node) => node,
            None => panic!("no node {number} in this cluster"),
        }
    }

    /// All nodes in order.
    pub fn nodes(&self) -> impl Iterator<Item = &Node> {
        self.nodes.values()
    }

    /// Adds a node like the others. A number isn't used twice.
    pub fn add_node(&mut self) -> Result<&Node, LabError> {
        let segments = self.defaults.segments.clone();
        self.add_node_on(&segments)
    }

    /// Adds a node with a NIC on each of these segments, its default route through the first.
    pub fn add_node_on(&mut self, segments: &[u8]) -> Result<&Node, LabError> {
        let number = self.next;
        if number > 244 || segments.iter().any(|segment| *segment > 22) {
            let what = format!("node {number} on segments {segments:?}: no addresses left for it");
            return Err(LabError::Invalid(what));
        }
        for segment in segments {
            self.add_bridge(*segment)?;
        }
        let families = self.defaults.families;
        let attachments = segments.iter().map(|segment| Attachment {
            segment: *segment,
            mtu: self.defaults.mtu,
            addresses: families.addresses(*segment, 10 + number),
            gateways: families.addresses(*segment, 1).iter().map(IpNetwork::ip).collect(),
        });
        let node = Node::add(number, &self.fabric, attachments.collect())?;
        self.next += 1;
        Ok(self.nodes.entry(number).or_insert(node))
    }

    /// Adds a node with an IPv4 address behind a NAT of its own, whose outside is on segment 0. `segment` is its inside, which
    /// nobody else may use. The fabric is no router between the two.
    pub fn add_node_behind(&mut self, segment: u8, kind: NatKind) -> Result<NatBox, LabError> {
        let number = self.add_node_on(&[segment])?.number();
        let bridge = bridge_name(segment);
        for address in self.defaults.families.addresses(segment, 1) {
            self.fabric.ip(&address_line("del", address, &bridge))?;
        }
        let inside = self.node(number);
        NatBox::add(inside, &self.fabric, [bridge_name(0), bridge], segment, kind)
    }

    /// Takes a node off the underlay and forgets it. Agents still in it run on, alone.
    pub fn remove_node(&mut self, number: u8) -> Result<(), LabError> {
        let node = self.nodes.remove(&number);
        node.ok_or_else(|| LabError::Invalid(format!("no node {number} to remove")))?.remove()
    }

    fn add_bridge(&mut self, segment: u8) -> Result<(), LabError> {
        if !self.bridges.insert(segment) {
            return Ok(());
        }
        let bridge = bridge_name(segment);
        // Without snooping, neighbour discovery works from the first packet on.
        let mut lines = vec![
            format!("link add {bridge} mtu {} type bridge mcast_snooping 0", self.defaults.mtu),
            format!("link set {bridge} up"),
        ];
        for address in self.defaults.families.addresses(segment, 1) {
            lines.push(address_line("add", address, &bridge));
        }
        self.fabric.ip_batch(&lines)
    }
}
