//! A UDP datagram whose checksum the kernel leaves to the device, masqueraded and then carried by VXLAN, over a link that
//! completes no checksums: a TUN, whose other end this process reads. The kernel has to complete the checksum inside of
//! the tunnel. Kernels that got it wrong dropped UDP and TCP between pods while ping worked
//! (kubernetes/kubernetes#87852).

use std::fs::File;
use std::io::{self, Read as _};
use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use flannel_core::addr::{IpNetwork, LinkIndex, MacAddr};
use flannel_core::dataplane::{Address, FdbEntry, Neighbour, Object, Op, ROUTE_PROTOCOL, Route, Through};
use flannel_core::error::chain;
use flannel_core::kernel::{Kernel, LinkOp};
use flannel_core::netlink::Netlink;
use flannel_core::netns::Netns;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::Tried;
use super::features::{LOCAL, Step, execute, failed, make_vxlan, masquerade, open_tun, opened};

/// The other node.
const REMOTE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
const REMOTE_MAC: MacAddr = MacAddr([0x02, 0, 0, 0, 0, 2]);
/// The address by which a pod of this node is seen after masquerading.
const OUTSIDE: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 0);
/// A pod of this node.
const POD: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 9);
/// The subnet of the other node, and a pod there.
const SUBNET: &str = "198.51.101.0/24";
const GATEWAY: Ipv4Addr = Ipv4Addr::new(198, 51, 101, 0);
const PEER_POD: Ipv4Addr = Ipv4Addr::new(198, 51, 101, 9);
/// The network of this side's pod.
const NETWORK: &str = "203.0.113.0/24";
/// How long the datagram may take.
const PATIENCE: Duration = Duration::from_secs(3);

pub(super) async fn checksums(netns: &Netns) -> Tried {
    let attempt = async {
        let wire = open_tun(netns, "wire0")?;
        set_up(&mut opened(netns)?).await?;
        masquerade(netns, NETWORK).await?;
        let sent = netns.run(send).map_err(|error| Tried::Untried(chain(&error)))?;
        sent.map_err(|error| Tried::Fails(format!("send a datagram into the tunnel: {error}")))?;
        let seen = tokio::task::spawn_blocking(move || receive(wire)).await;
        let seen = seen.map_err(|error| Tried::Untried(error.to_string()))?;
        let packet = seen.map_err(|error| Tried::Fails(format!("read from the link: {error}")))?;
        let packet = packet
            .ok_or_else(|| Tried::Fails("a datagram into the tunnel never reached the link".to_owned()))?;
        Ok(judge(&packet))
    };
    attempt.await.unwrap_or_else(|ended: Tried| ended)
}

async fn set_up(kernel: &mut Netlink) -> Step<()> {
    let what = "set up a tunnel";
    let mut up = Vec::new();
    for name in ["lo", "wire0"] {
        let link = kernel.link(name).await.map_err(|error| failed(what, &error))?;
        let link = link.ok_or_else(|| Tried::Untried(format!("there is no link {name}")))?;
        kernel.change_link(&LinkOp::SetUp(link.index)).await.map_err(|error| failed(what, &error))?;
        up.push(link.index);
    }
    let [lo, wire] = up[..] else { return Err(Tried::Untried("there are no links".to_owned())) };
    let address = |link, address: Ipv4Addr, prefix| {
        let addr = IpNetwork::new(address.into(), prefix);
        addr.map(|addr| Object::Address(Address { link, addr }))
            .map_err(|error| Tried::Untried(error.to_string()))
    };
    let first = [address(wire, LOCAL, 24)?, address(lo, POD, 32)?];
    execute(kernel, what, &first.map(Op::Create)).await?;
    let vxlan = make_vxlan(kernel, Some(wire)).await?;
    let dst = SUBNET.parse().map_err(|error| Tried::Untried(format!("{error}")))?;
    let objects = [
        address(vxlan, OUTSIDE, 32)?,
        Object::Neighbour(Neighbour { link: vxlan, addr: GATEWAY.into(), mac: REMOTE_MAC }),
        Object::Fdb(FdbEntry {
            link: vxlan,
            mac: REMOTE_MAC,
            dst: REMOTE.into(),
            port: None,
            vni: None,
            via: None,
        }),
        Object::Route(Route {
            dst,
            metric: 0,
            via: Some(IpAddr::V4(GATEWAY)),
            link: Some(LinkIndex(vxlan.0)),
            onlink: true,
            through: Through::Itself,
            protocol: ROUTE_PROTOCOL,
            mtu: None,
            plain: true,
        }),
    ];
    execute(kernel, what, &objects.map(Op::Create)).await
}

fn send() -> io::Result<()> {
    let socket = UdpSocket::bind((POD, 0))?;
    socket.send_to(b"flannel doctor, a datagram of odd length", (PEER_POD, 9))?;
    Ok(())
}

/// The first packet of the tunnel that comes out of the link.
fn receive(mut wire: File) -> io::Result<Option<Vec<u8>>> {
    let start = Instant::now();
    let mut buffer = vec![0; 2048];
    while let Some(left) = PATIENCE.checked_sub(start.elapsed()) {
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        if poll(&mut [PollFd::new(wire.as_fd(), PollFlags::POLLIN)], timeout)? == 0 {
            break;
        }
        let length = wire.read(&mut buffer)?;
        if inner(&buffer[..length]).is_some() {
            return Ok(Some(buffer[..length].to_vec()));
        }
    }
    Ok(None)
}

/// The IPv4 packet in a VXLAN packet that has no IP options.
fn inner(outer: &[u8]) -> Option<&[u8]> {
    let is_vxlan =
        outer.first()? == &0x45 && outer.get(9)? == &17 && outer.get(22..24)? == 8472_u16.to_be_bytes();
    // Outer IP, UDP, VXLAN and inner Ethernet (RFC 7348 section 5).
    let ethernet = outer.get(20 + 8 + 8..).filter(|_| is_vxlan)?;
    (ethernet.get(12..14)? == [0x08, 0x00]).then(|| ethernet.get(14..))?
}

/// Whether the packet in the tunnel is masqueraded and has its checksum.
fn judge(packet: &[u8]) -> Tried {
    let verdict = || {
        let ip = inner(packet).filter(|ip| ip.first() == Some(&0x45) && ip.get(9) == Some(&17))?;
        let udp = ip.get(20..usize::from(u16::from_be_bytes([*ip.get(2)?, *ip.get(3)?])))?;
        let source: [u8; 4] = ip.get(12..16)?.try_into().ok()?;
        let checksum = u16::from_be_bytes([*udp.get(6)?, *udp.get(7)?]);
        let pseudo = [ip.get(12..20)?, &[0, 17], &u16::try_from(udp.len()).ok()?.to_be_bytes()].concat();
        Some((Ipv4Addr::from(source), checksum, sum(&[&pseudo, udp]) == 0xffff))
    };
    match verdict() {
        None => Tried::Fails("what came out of the tunnel is not the datagram that was sent".to_owned()),
        Some((source, _, _)) if source != OUTSIDE => {
            Tried::Fails(format!("the datagram left with the source {source} and was not masqueraded"))
        }
        // No checksum at all is allowed in IPv4, and every receiver takes it.
        Some((_, checksum, is_good)) if is_good || checksum == 0 => Tried::Works(format!(
            "a masqueraded datagram left the tunnel with the right checksum {checksum:#06x}"
        )),
        Some((_, checksum, _)) => Tried::Fails(format!(
            "a masqueraded datagram left the tunnel with the wrong checksum {checksum:#06x}: receivers drop it"
        )),
    }
}

/// The sum of 16-bit words with the carries (RFC 1071), over parts of which all but the last have an even length.
fn sum(parts: &[&[u8]]) -> u16 {
    let words = parts.iter().flat_map(|part| part.chunks(2));
    let sum = words.map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0))).sum::<u32>();
    let sum = (sum & 0xffff) + (sum >> 16);
    ((sum & 0xffff) + (sum >> 16)) as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A packet of the tunnel as the trial sees it, with a right checksum.
    fn packet() -> Vec<u8> {
        let payload = b"odd";
        let mut udp = vec![0x12, 0x34, 0, 9, 0, 11, 0, 0];
        udp.extend(payload);
        let mut ip = vec![0x45, 0, 0, 31, 0, 0, 0, 0, 64, 17, 0, 0];
        ip.extend(OUTSIDE.octets());
        ip.extend(PEER_POD.octets());
        let pseudo = [&ip[12..20], &[0, 17, 0, 11]].concat();
        let checksum = !sum(&[&pseudo, &udp]);
        udp[6..8].copy_from_slice(&checksum.to_be_bytes());
        let mut outer = vec![0x45; 20];
        outer[9] = 17;
        outer.extend([0xc0, 0, 0x21, 0x18, 0, 0, 0, 0]);
        outer.extend([8, 0, 0, 0, 0, 0, 1, 0]);
        outer.extend([2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 8, 0]);
        [outer, ip, udp].concat()
    }

    #[test]
    fn a_wrong_checksum_is_seen() {
        let good = packet();
        assert!(matches!(judge(&good), Tried::Works(_)), "{:?}", judge(&good));
        let changed = |at: usize, to: u8| {
            let mut packet = good.clone();
            packet[at] = to;
            judge(&packet)
        };
        let told = |tried| match tried {
            Tried::Fails(why) => why,
            other => panic!("{other:?}"),
        };
        let last = good.len() - 1;
        assert!(told(changed(last, b'x')).contains("wrong checksum"));
        // What a link would get that was believed to complete it: the sum of the pseudo header alone.
        assert!(told(changed(last - 3, good[last - 3] ^ 0x40)).contains("wrong checksum"));
        assert!(told(changed(62, 1)).contains("not masqueraded"));
        assert!(told(judge(&good[..40])).contains("not the datagram"));
    }
}
