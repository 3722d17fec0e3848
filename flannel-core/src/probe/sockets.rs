//! The sockets of a prober: one for echoes and one for UDP in each family, for all peers.
//!
//! All of them ask for ICMP errors (`IP_RECVERR`), which the kernel then queues with what it quotes of the packet. What is
//! sent may not be fragmented, and the path MTUs that the kernel has learned don't count (`IP_PMTUDISC_PROBE`).

mod solicit;
mod sys;

use std::io::{self, IoSlice, IoSliceMut};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};

use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockProtocol, SockType,
    SockaddrStorage, bind, getsockname, recvmsg, sendmsg, socket,
};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

pub(super) use self::solicit::Question;
use super::packet::{self, Token};
use crate::addr::{Family, PerFamily};
use crate::netns::Netns;

/// Room for what waits for a neighbour's address to be resolved, as it does for seconds where a node is down.
const SEND_BUFFER: i32 = 4 << 20;
/// `ICMP_FILTER` of `linux/icmp.h`, on level `SOL_RAW`.
const ICMP_FILTER: i32 = 1;
/// `ICMPV6_FILTER` of `linux/icmpv6.h`.
const ICMPV6_FILTER: i32 = 1;

/// Something that arrived for a probe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Arrival {
    /// The probe's number.
    pub(super) number: u32,
    /// Who sent it.
    pub(super) from: Option<IpAddr>,
    /// What it is.
    pub(super) what: What,
}

/// What arrived.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum What {
    /// An echo reply.
    Reply,
    /// ICMP: the port is closed.
    PortClosed,
    /// ICMP: a host or network can't be reached.
    Unreachable,
    /// Another ICMP error: the hop limit is exceeded, a filter prohibits it, the packet is too long.
    Other,
}

/// The sockets of one family.
#[derive(Debug)]
pub(super) struct FamilySockets {
    family: Family,
    echo: Option<Echo>,
    udp: AsyncFd<OwnedFd>,
    /// Asks the kernel for the source address to a destination.
    route: UdpSocket,
}

#[derive(Debug)]
struct Echo {
    fd: AsyncFd<OwnedFd>,
    /// The id of echoes: that of a ping socket is given by the kernel.
    id: u16,
    /// Whether it is a raw socket, which for IPv4 receives IP headers, too.
    is_raw: bool,
}

/// What is sent, besides its content.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Route {
    /// The source address; `None` for the one that the kernel chooses.
    pub(super) source: Option<IpAddr>,
    /// The hop limit, if it is not the kernel's.
    pub(super) hops: Option<i32>,
}

/// Opens the sockets of these families in a namespace. Returns what can't be opened and why, for the status.
pub(super) fn open(
    netns: &Netns,
    families: impl Iterator<Item = Family>,
) -> (PerFamily<FamilySockets>, Vec<String>) {
    let (mut sockets, mut notes) = (PerFamily::default(), Vec::new());
    for family in families {
        match open_family(netns, family) {
            Ok((opened, note)) => {
                notes.extend(note);
                *sockets.get_mut(family) = Some(opened);
            }
            Err(error) => {
                notes.push(format!("{family}: nothing is probed: no socket can be opened: {error}"));
            }
        }
    }
    (sockets, notes)
}

fn open_family(netns: &Netns, family: Family) -> io::Result<(FamilySockets, Option<String>)> {
    let (echo, udp, route) = netns.run(|| {
        let udp = with_options(open_socket(family, SockType::Datagram, SockProtocol::Udp)?, family)?;
        let route = UdpSocket::bind(SocketAddr::new(family.unspecified(), 0))?;
        io::Result::Ok((open_echo(family), udp, route))
    })??;
    let (echo, note) = match echo {
        Ok((fd, id, is_raw)) => (Some(Echo { fd: sys::register(fd)?, id, is_raw }), None),
        Err(error) => {
            let note = format!(
                "{family}: ICMP echo can't be sent ({error}), so peers are probed by UDP and TCP alone: permit it by \
                 net.ipv4.ping_group_range or CAP_NET_RAW"
            );
            (None, Some(note))
        }
    };
    Ok((FamilySockets { family, echo, udp: sys::register(udp)?, route }, note))
}

fn open_socket(family: Family, kind: SockType, protocol: SockProtocol) -> nix::Result<OwnedFd> {
    let domain = if family == Family::V4 { AddressFamily::Inet } else { AddressFamily::Inet6 };
    socket(domain, kind, SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK, protocol)
}

/// A ping socket, else a raw one: descriptor, id, and whether it is raw.
fn open_echo(family: Family) -> io::Result<(OwnedFd, u16, bool)> {
    let protocol = if family == Family::V4 { SockProtocol::Icmp } else { SockProtocol::IcmpV6 };
    if let Ok(fd) = open_socket(family, SockType::Datagram, protocol) {
        bind(fd.as_raw_fd(), &storage(SocketAddr::new(family.unspecified(), 0)))?;
        let bound: SockaddrStorage = getsockname(fd.as_raw_fd())?;
        let id = address(&bound).map_or(0, |addr| addr.port());
        return Ok((with_options(fd, family)?, id, false));
    }
    let fd = open_socket(family, SockType::Raw, protocol)?;
    match family {
        Family::V4 => sys::set(fd.as_fd(), libc::SOL_RAW, ICMP_FILTER, &(!1_u32).to_ne_bytes())?,
        Family::V6 => {
            // Bits of messages that are kept out; an echo reply is number 129.
            let mut filter = [u32::MAX; 8];
            filter[4] &= !2;
            let bytes: Vec<u8> = filter.iter().flat_map(|word| word.to_ne_bytes()).collect();
            sys::set(fd.as_fd(), libc::IPPROTO_ICMPV6, ICMPV6_FILTER, &bytes)?;
        }
    }
    Ok((with_options(fd, family)?, fastrand::u16(1..), true))
}

fn with_options(fd: OwnedFd, family: Family) -> io::Result<OwnedFd> {
    let set = |level, name, value| sys::set_int(fd.as_fd(), level, name, value);
    match family {
        Family::V4 => {
            set(libc::IPPROTO_IP, libc::IP_RECVERR, 1)?;
            set(libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_PROBE)?;
        }
        Family::V6 => {
            set(libc::IPPROTO_IPV6, libc::IPV6_RECVERR, 1)?;
            set(libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, libc::IPV6_PMTUDISC_PROBE)?;
        }
    }
    // The second one has a limit, but needs no capability.
    if set(libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, SEND_BUFFER).is_err() {
        set(libc::SOL_SOCKET, libc::SO_SNDBUF, SEND_BUFFER)?;
    }
    Ok(fd)
}

impl FamilySockets {
    /// Whether echoes can be sent.
    pub(super) fn has_echo(&self) -> bool {
        self.echo.is_some()
    }

    /// The id of this prober's echoes.
    pub(super) fn echo_id(&self) -> u16 {
        self.echo.as_ref().map_or(0, |echo| echo.id)
    }

    /// The source address that the kernel chooses to this destination.
    pub(super) fn source_to(&self, dst: IpAddr) -> io::Result<IpAddr> {
        self.route.connect(SocketAddr::new(dst, super::CLOSED_PORT))?;
        Ok(self.route.local_addr()?.ip())
    }

    /// Sends an echo of this size, in bytes with its IP header.
    pub(super) fn send_echo(&self, dst: IpAddr, route: Route, token: Token, size: u32) -> io::Result<()> {
        let Some(echo) = &self.echo else { return Err(io::ErrorKind::Unsupported.into()) };
        let packet = packet::echo(dst, echo.id, token, size);
        self.send(echo.fd.as_raw_fd(), SocketAddr::new(dst, 0), route, &packet, MsgFlags::empty())
    }

    /// Sends a datagram. If `software` is set the kernel computes its checksum, as it does for a datagram that is made
    /// of several parts; otherwise the device completes it, if it can.
    pub(super) fn send_udp(
        &self,
        dst: SocketAddr,
        route: Route,
        payload: &[u8],
        software: bool,
    ) -> io::Result<()> {
        let fd = self.udp.as_raw_fd();
        if !software || payload.len() < 2 {
            return self.send(fd, dst, route, payload, MsgFlags::empty());
        }
        let (first, second) = payload.split_at(payload.len() / 2);
        self.send(fd, dst, route, first, MsgFlags::from_bits_retain(libc::MSG_MORE))?;
        self.send(fd, dst, route, second, MsgFlags::empty())
    }

    fn send(
        &self,
        fd: RawFd,
        dst: SocketAddr,
        route: Route,
        bytes: &[u8],
        flags: MsgFlags,
    ) -> io::Result<()> {
        let (mut v4, mut v6) = (None, None);
        match route.source {
            Some(IpAddr::V4(source)) => {
                let ipi_spec_dst = libc::in_addr { s_addr: u32::from_ne_bytes(source.octets()) };
                let ipi_addr = libc::in_addr { s_addr: 0 };
                v4 = Some(libc::in_pktinfo { ipi_ifindex: 0, ipi_spec_dst, ipi_addr });
            }
            Some(IpAddr::V6(source)) => {
                let ipi6_addr = libc::in6_addr { s6_addr: source.octets() };
                v6 = Some(libc::in6_pktinfo { ipi6_addr, ipi6_ifindex: 0 });
            }
            None => {}
        }
        let mut control = Vec::new();
        control.extend(v4.as_ref().map(ControlMessage::Ipv4PacketInfo));
        control.extend(v6.as_ref().map(ControlMessage::Ipv6PacketInfo));
        control.extend(route.hops.as_ref().map(|hops| match self.family {
            Family::V4 => ControlMessage::Ipv4Ttl(hops),
            Family::V6 => ControlMessage::Ipv6HopLimit(hops),
        }));
        let dst = storage(dst);
        let try_once = || sendmsg(fd, &[IoSlice::new(bytes)], &control, flags, Some(&dst));
        // The first error may be that of an earlier packet, which the kernel reports at the next call.
        try_once().or_else(|_| try_once())?;
        Ok(())
    }

    /// Waits until something arrived.
    pub(super) async fn arrival(&self) {
        let interest = Interest::READABLE | Interest::ERROR;
        let echo = async {
            match &self.echo {
                Some(echo) => echo.fd.ready(interest).await,
                None => std::future::pending().await,
            }
        };
        // An error means that the runtime ends.
        tokio::select! {
            Ok(mut ready) = echo => ready.clear_ready(),
            Ok(mut ready) = self.udp.ready(interest) => ready.clear_ready(),
            else => std::future::pending().await,
        }
    }

    /// Reads all that has arrived.
    pub(super) fn drain(&self, secret: u64, buffer: &mut [u8], mut each: impl FnMut(Arrival)) {
        if let Some(echo) = &self.echo {
            let has_ip_header = echo.is_raw && self.family == Family::V4;
            let mut arrived = |packet: &[u8], from: Option<IpAddr>| {
                let payload = packet::reply_payload(packet, self.family == Family::V4, has_ip_header);
                if let Some(number) = payload.and_then(|payload| Token::number_in(payload, secret)) {
                    each(Arrival { number, from, what: What::Reply });
                }
            };
            while let Some((len, from)) = read(echo.fd.as_raw_fd(), buffer) {
                arrived(&buffer[..len], from);
            }
            errors(echo.fd.as_raw_fd(), buffer, |quoted, from, what| {
                let payload = packet::quoted_payload(quoted);
                if let Some(number) = payload.and_then(|payload| Token::number_in(payload, secret)) {
                    each(Arrival { number, from, what });
                }
            });
        }
        let udp = self.udp.as_raw_fd();
        // Nobody should send datagrams here; whoever does must not fill the buffer.
        while read(udp, buffer).is_some() {}
        errors(udp, buffer, |quoted, from, what| {
            if let Some(number) = Token::number_in(quoted, secret) {
                each(Arrival { number, from, what });
            }
        });
    }
}

/// Reads one packet; `None` if there is none.
fn read(fd: RawFd, buffer: &mut [u8]) -> Option<(usize, Option<IpAddr>)> {
    loop {
        let mut parts = [IoSliceMut::new(buffer)];
        match recvmsg::<SockaddrStorage>(fd, &mut parts, None, MsgFlags::MSG_DONTWAIT) {
            Ok(message) => {
                let from = message.address.as_ref().and_then(address).map(|addr| addr.ip());
                return Some((message.bytes, from));
            }
            Err(nix::Error::EAGAIN) => return None,
            // An error of an earlier packet, which the queue of errors has, too.
            Err(nix::Error::ECONNREFUSED | nix::Error::EHOSTUNREACH | nix::Error::ENETUNREACH) => {}
            Err(nix::Error::EMSGSIZE | nix::Error::EPROTO | nix::Error::EACCES | nix::Error::EINTR) => {}
            Err(_) => return None,
        }
    }
}

/// Reads all errors: what is quoted of our packet behind the header of its IP, who says it, and what.
fn errors(fd: RawFd, buffer: &mut [u8], mut each: impl FnMut(&[u8], Option<IpAddr>, What)) {
    let mut space = nix::cmsg_space!(libc::sock_extended_err, libc::sockaddr_in6);
    let flags = MsgFlags::MSG_ERRQUEUE | MsgFlags::MSG_DONTWAIT;
    loop {
        let mut parts = [IoSliceMut::new(buffer)];
        let Ok(message) = recvmsg::<SockaddrStorage>(fd, &mut parts, Some(&mut space), flags) else { return };
        let (len, mut told) = (message.bytes, None);
        for control in message.cmsgs().into_iter().flatten() {
            match control {
                ControlMessageOwned::Ipv4RecvErr(error, by) => {
                    let by = by.map(|by| IpAddr::from(by.sin_addr.s_addr.to_ne_bytes()));
                    told = Some((by, what_v4(&error)));
                }
                ControlMessageOwned::Ipv6RecvErr(error, by) => {
                    let by = by.map(|by| IpAddr::from(by.sin6_addr.s6_addr));
                    told = Some((by, what_v6(&error)));
                }
                _ => {}
            }
        }
        if let Some((by, Some(what))) = told {
            each(&buffer[..len], by, what);
        }
    }
}

/// What an ICMP error says (RFC 792); `None` if this node's kernel made it up.
fn what_v4(error: &libc::sock_extended_err) -> Option<What> {
    let is_icmp = error.ee_origin == libc::SO_EE_ORIGIN_ICMP;
    is_icmp.then_some(match (error.ee_type, error.ee_code) {
        (3, 3) => What::PortClosed,
        (3, 0 | 1 | 5 | 6 | 7 | 8 | 11 | 12) => What::Unreachable,
        _ => What::Other,
    })
}

/// The same for IPv6 (RFC 4443).
fn what_v6(error: &libc::sock_extended_err) -> Option<What> {
    let is_icmp = error.ee_origin == libc::SO_EE_ORIGIN_ICMP6;
    is_icmp.then_some(match (error.ee_type, error.ee_code) {
        (1, 4) => What::PortClosed,
        (1, 0 | 2 | 3) => What::Unreachable,
        _ => What::Other,
    })
}

fn storage(addr: SocketAddr) -> SockaddrStorage {
    addr.into()
}

fn address(storage: &SockaddrStorage) -> Option<SocketAddr> {
    let v4 = storage.as_sockaddr_in().map(|addr| SocketAddr::new(addr.ip().into(), addr.port()));
    v4.or_else(|| storage.as_sockaddr_in6().map(|addr| SocketAddr::new(addr.ip().into(), addr.port())))
}
