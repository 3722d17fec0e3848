//! What no safe wrapper has: socket options, packet sockets, and the registration with tokio's reactor.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Sets an option whose value is an `int`.
pub(super) fn set_int(fd: BorrowedFd<'_>, level: i32, name: i32, value: i32) -> io::Result<()> {
    set(fd, level, name, &value.to_ne_bytes())
}

/// Registers a socket with tokio's reactor, for packets and for queued errors.
pub(super) fn register(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` always names the same descriptor and closes it only when it is dropped; `AsyncFd` owns it and
    // gives out no more than shared references here.
    Ok(unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE | Interest::ERROR) }?)
}

/// Sets an option to these bytes.
pub(super) fn set(fd: BorrowedFd<'_>, level: i32, name: i32, value: &[u8]) -> io::Result<()> {
    let len = libc::socklen_t::try_from(value.len()).expect("options are short");
    // SAFETY: the descriptor is borrowed and so open for the whole call; the kernel reads `len` bytes at the pointer,
    // which is the length of the slice.
    let result = unsafe { libc::setsockopt(fd.as_raw_fd(), level, name, value.as_ptr().cast(), len) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// A socket for packets of links without their link-layer headers (`packet(7)`), which receives nothing until it is bound.
pub(super) fn packet_socket() -> io::Result<OwnedFd> {
    let kind = libc::SOCK_DGRAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: it takes no pointers.
    let fd = unsafe { libc::socket(libc::AF_PACKET, kind, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor was just opened, and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Binds a packet socket to a link and a protocol, and returns the link's MAC.
pub(super) fn bind_to_link(fd: BorrowedFd<'_>, link: u32, protocol: u16) -> io::Result<[u8; 6]> {
    let mut addr = link_address(link, protocol, [0; 6]);
    let mut len = LINK_ADDRESS;
    // SAFETY: the descriptor is borrowed and so open; the kernel reads `len` bytes, the size of the address.
    let result = unsafe { libc::bind(fd.as_raw_fd(), (&raw const addr).cast(), len) };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel writes at most `len` bytes, the size of the address, which is any bytes.
    let result = unsafe { libc::getsockname(fd.as_raw_fd(), (&raw mut addr).cast(), &raw mut len) };
    match addr.sll_addr {
        _ if result != 0 => Err(io::Error::last_os_error()),
        [mac @ .., _, _] if addr.sll_halen == 6 => Ok(mac),
        _ => Err(io::ErrorKind::Unsupported.into()),
    }
}

/// Sends a packet to all nodes on a link.
pub(super) fn broadcast(fd: BorrowedFd<'_>, link: u32, protocol: u16, packet: &[u8]) -> io::Result<()> {
    let addr = link_address(link, protocol, [0xff; 6]);
    // SAFETY: the descriptor is borrowed and so open; the kernel reads the packet by its length and the address by its size.
    let sent = unsafe {
        libc::sendto(
            fd.as_raw_fd(),
            packet.as_ptr().cast(),
            packet.len(),
            0,
            (&raw const addr).cast(),
            LINK_ADDRESS,
        )
    };
    if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

const LINK_ADDRESS: libc::socklen_t = size_of::<libc::sockaddr_ll>() as libc::socklen_t;

fn link_address(link: u32, protocol: u16, mac: [u8; 6]) -> libc::sockaddr_ll {
    let mut sll_addr = [0; 8];
    sll_addr[..mac.len()].copy_from_slice(&mac);
    libc::sockaddr_ll {
        sll_family: libc::AF_PACKET as u16,
        sll_protocol: protocol.to_be(),
        sll_ifindex: i32::try_from(link).unwrap_or(0),
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 6,
        sll_addr,
    }
}
