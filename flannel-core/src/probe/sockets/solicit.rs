//! Asks the link which node has an address: by ARP (RFC 826), or by a neighbour solicitation (RFC 4861).
//!
//! A node that runs answers that even if its filters drop all else, so this tells a dead node from one that is mute. The
//! kernel asks by itself, too, but takes an address that was confirmed lately as confirmed for up to a minute.

use std::io::{self, IoSlice};
use std::net::{IpAddr, Ipv6Addr, SocketAddrV6};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn6, bind, sendmsg, socket,
};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::runtime::Handle;

use super::{ICMPV6_FILTER, read, sys};
use crate::addr::LinkIndex;

/// The type of a neighbour advertisement.
const ADVERTISEMENT: u8 = 136;

/// A question that waits for its answer.
#[derive(Debug)]
pub(in crate::probe) struct Question {
    /// Is there until the question is dropped.
    fd: Option<AsyncFd<OwnedFd>>,
    asked: IpAddr,
}

impl Question {
    /// Asks on a link of this thread's network namespace. `source` is this node's own address there. It needs
    /// `CAP_NET_RAW`, and a link with MACs.
    pub(in crate::probe) fn ask(link: LinkIndex, source: IpAddr, asked: IpAddr) -> io::Result<Self> {
        let fd = match (source, asked) {
            (IpAddr::V4(source), IpAddr::V4(asked)) => {
                let fd = sys::packet_socket()?;
                let mac = sys::bind_to_link(fd.as_fd(), link.0, libc::ETH_P_ARP as u16)?;
                let request = arp_request(mac, source.octets(), asked.octets());
                sys::broadcast(fd.as_fd(), link.0, libc::ETH_P_ARP as u16, &request)?;
                fd
            }
            (IpAddr::V6(source), IpAddr::V6(asked)) => {
                // Bound to no protocol it receives nothing.
                let fd = sys::packet_socket()?;
                let mac = sys::bind_to_link(fd.as_fd(), link.0, 0);
                close(fd);
                solicit_v6(link, mac?, source, asked)?
            }
            _ => return Err(io::ErrorKind::InvalidInput.into()),
        };
        Ok(Self { fd: Some(sys::register(fd)?), asked })
    }

    /// Waits until a node says that it has the address.
    pub(in crate::probe) async fn answered(self) {
        let mut buffer = [0; 128];
        let fd = self.fd.as_ref().expect("it is there until the end");
        // An error means that the runtime ends.
        while let Ok(mut ready) = fd.ready(Interest::READABLE | Interest::ERROR).await {
            ready.clear_ready();
            while let Some((len, _)) = read(fd.as_raw_fd(), &mut buffer) {
                if has_address(&buffer[..len], self.asked) {
                    return;
                }
            }
        }
        std::future::pending::<()>().await;
    }
}

impl Drop for Question {
    fn drop(&mut self) {
        if let Some(fd) = self.fd.take() {
            close(fd.into_inner());
        }
    }
}

/// Closes a packet socket where waiting holds up nobody: the kernel does not return until no packet can be on its way to it
/// (`packet_release` in `net/packet/af_packet.c`), which takes some 15 ms.
fn close(fd: OwnedFd) {
    if let Ok(runtime) = Handle::try_current() {
        drop(runtime.spawn_blocking(move || drop(fd)));
    }
}

fn arp_request(mac: [u8; 6], source: [u8; 4], asked: [u8; 4]) -> [u8; 28] {
    let mut packet = [0; 28];
    // Ethernet, IPv4, their lengths, and that it is a request.
    packet[..8].copy_from_slice(&[0, 1, 8, 0, 6, 4, 0, 1]);
    packet[8..14].copy_from_slice(&mac);
    packet[14..18].copy_from_slice(&source);
    packet[24..].copy_from_slice(&asked);
    packet
}

/// A solicitation with the MAC of its sender, as the kernel's own have it. The kernel puts the checksum in.
fn solicitation(mac: [u8; 6], asked: Ipv6Addr) -> [u8; 32] {
    let mut packet = [0; 32];
    packet[0] = 135;
    packet[8..24].copy_from_slice(&asked.octets());
    packet[24..26].copy_from_slice(&[1, 1]);
    packet[26..].copy_from_slice(&mac);
    packet
}

/// The group in which a node with this address listens for solicitations (RFC 4291 section 2.7.1).
fn group_of(asked: Ipv6Addr) -> Ipv6Addr {
    let octets = asked.octets();
    let mut group = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, 0, 0, 0];
    group[13..].copy_from_slice(&octets[13..]);
    group.into()
}

fn solicit_v6(link: LinkIndex, mac: [u8; 6], source: Ipv6Addr, asked: Ipv6Addr) -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd = socket(AddressFamily::Inet6, SockType::Raw, flags, SockProtocol::IcmpV6)?;
    let mut filter = [u32::MAX; 8];
    filter[usize::from(ADVERTISEMENT / 32)] &= !(1 << (ADVERTISEMENT % 32));
    let filter: Vec<u8> = filter.iter().flat_map(|word| word.to_ne_bytes()).collect();
    sys::set(fd.as_fd(), libc::IPPROTO_ICMPV6, ICMPV6_FILTER, &filter)?;
    // Neighbours ignore what may have come through a router.
    sys::set_int(fd.as_fd(), libc::IPPROTO_IPV6, libc::IPV6_MULTICAST_HOPS, 255)?;
    let scope = link.0;
    bind(fd.as_raw_fd(), &SockaddrIn6::from(SocketAddrV6::new(source, 0, 0, scope)))?;
    let group = SockaddrIn6::from(SocketAddrV6::new(group_of(asked), 0, 0, scope));
    sendmsg(
        fd.as_raw_fd(),
        &[IoSlice::new(&solicitation(mac, asked))],
        &[],
        MsgFlags::empty(),
        Some(&group),
    )?;
    Ok(fd)
}

/// Whether the sender of an ARP packet or of an advertisement has this address.
fn has_address(packet: &[u8], asked: IpAddr) -> bool {
    match asked {
        IpAddr::V4(asked) => packet.len() >= 28 && packet[14..18] == asked.octets(),
        IpAddr::V6(asked) => {
            packet.len() >= 24 && packet[0] == ADVERTISEMENT && packet[8..24] == asked.octets()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_group_has_the_last_three_bytes() {
        let group = group_of("fd00:77::12:3456".parse().unwrap());
        assert_eq!(group, "ff02::1:ff12:3456".parse::<Ipv6Addr>().unwrap());
    }

    #[test]
    fn only_who_has_the_address_answers_and_cut_packets_are_none() {
        let asked = [192, 0, 2, 2];
        let request = arp_request([2; 6], [192, 0, 2, 1], asked);
        assert!(!has_address(&request, asked.into()), "it asks itself");
        assert!(has_address(&arp_request([2; 6], asked, [192, 0, 2, 1]), asked.into()));
        let v6: Ipv6Addr = "fd00::2".parse().unwrap();
        let mut advertisement = solicitation([2; 6], v6);
        assert!(!has_address(&advertisement, v6.into()), "a question");
        advertisement[0] = ADVERTISEMENT;
        assert!(has_address(&advertisement, v6.into()));
        for len in 0..24 {
            assert!(!has_address(&request[..len], [0; 4].into()));
            assert!(!has_address(&advertisement[..len], v6.into()));
        }
    }
}
