//! A host on the underlay that is no node. It sends packets that no node expects, and listens where none of them may
//! arrive.

mod sink;
mod wire;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

pub use self::sink::Sink;
pub use self::wire::{damaged, udp_packet, vxlan};
use crate::LabError;
use crate::cluster::Cluster;
use crate::netns::Netns;

/// The segment of hosts that are no neighbours of nodes; the fabric routes to it.
const ELSEWHERE: u8 = 22;

/// Addresses at which clouds tell hosts their secrets: <https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/ec2-instance-metadata.html>.
pub const METADATA: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(169, 254, 169, 254)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254)),
];

/// Makes a host beyond the nodes' network answer at [`METADATA`], as a cloud's does. Returns its number.
pub fn add_metadata_host(cluster: &mut Cluster) -> Result<u8, LabError> {
    let host = cluster.add_node_on(&[ELSEWHERE])?;
    let (number, netns) = (host.number(), host.netns().clone());
    let gateways = [host.ipv4(), host.ipv6()];
    for (address, gateway) in METADATA.into_iter().zip(gateways) {
        let Some(gateway) = gateway else { continue };
        let (bits, nodad) = if address.is_ipv4() { (32, "") } else { (128, " nodad") };
        netns.ip(&format!("address add {address}/{bits} dev eth0{nodad}"))?;
        cluster.fabric().ip(&format!("route add {address}/{bits} via {gateway}"))?;
    }
    Ok(number)
}

/// Sends tunnel datagrams from a namespace.
#[derive(Debug)]
pub struct Stranger {
    socket: UdpSocket,
}

impl Stranger {
    /// A socket in a namespace for datagrams in one family.
    pub fn in_netns(netns: &Netns, v6: bool) -> Result<Self, LabError> {
        let any = if v6 { IpAddr::from(Ipv6Addr::UNSPECIFIED) } else { Ipv4Addr::UNSPECIFIED.into() };
        let what = format!("a datagram socket in {}", netns.name());
        let socket = netns.enter(|| UdpSocket::bind((any, 0)))?.map_err(LabError::io(what))?;
        Ok(Self { socket })
    }

    /// Sends a datagram. A datagram that the network refuses counts as lost, not as an error.
    pub fn send(&self, to: SocketAddr, datagram: &[u8]) -> bool {
        self.socket.send_to(datagram, to).is_ok()
    }
}
