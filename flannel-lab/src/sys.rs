//! What no safe wrapper offers: a socket option, signal handlers, and packet sockets with offload headers.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

/// Makes the process end at these signals with the shell's code for that, 128 and the signal.
///
/// For the first process of a pid namespace, to which the kernel denies the usual default action.
/// Signals that are ignored stay so.
pub(crate) fn exit_on(signals: &[Signal]) -> nix::Result<()> {
    extern "C" fn exit(signal: libc::c_int) {
        // SAFETY: `_exit` may be called from a signal handler (signal-safety(7)).
        unsafe { libc::_exit(128 + signal) }
    }
    let action = SigAction::new(SigHandler::Handler(exit), SaFlags::empty(), SigSet::empty());
    for signal in signals {
        // SAFETY: the handler only calls a function that handlers may call, and touches no data.
        let old = unsafe { sigaction(*signal, &action) }?;
        if matches!(old.handler(), SigHandler::SigIgn) {
            // SAFETY: this restores the earlier action, which is no handler.
            unsafe { sigaction(*signal, &old) }?;
        }
    }
    Ok(())
}

/// Whether the kernel may fragment what a raw socket sends: `IP_MTU_DISCOVER` and
/// `IPV6_MTU_DISCOVER`, as `ping -M do` and `ping -M dont` set them.
pub(crate) fn set_dont_fragment(socket: &impl AsFd, v6: bool, dont: bool) -> io::Result<()> {
    let (level, name, value) = match (v6, dont) {
        (false, true) => (libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_DO),
        (false, false) => (libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_DONT),
        (true, true) => (libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, libc::IP_PMTUDISC_DO),
        (true, false) => (libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, libc::IP_PMTUDISC_DONT),
    };
    let size = libc::socklen_t::try_from(size_of_val(&value)).expect("an int's size fits");
    // SAFETY: the descriptor is borrowed and so open for the whole call; the kernel reads `size`
    // bytes at the pointer, which is the size of the int it points to.
    let result = unsafe {
        libc::setsockopt(socket.as_fd().as_raw_fd(), level, name, std::ptr::from_ref(&value).cast(), size)
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// A packet socket on a link of the calling thread's namespace, which receives what arrives there with the offload header
/// of virtio (`PACKET_VNET_HDR`), and sends what is written to it likewise.
pub(crate) fn packet_socket(link: u32) -> io::Result<OwnedFd> {
    // All protocols, in network order.
    const ALL: u16 = (libc::ETH_P_ALL as u16).to_be();
    // SAFETY: the call takes no pointers.
    let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new, and nobody else owns it.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    for option in [libc::PACKET_VNET_HDR, libc::PACKET_IGNORE_OUTGOING] {
        let on: libc::c_int = 1;
        let size = libc::socklen_t::try_from(size_of_val(&on)).expect("an int's size fits");
        // SAFETY: the descriptor is open for the whole call; the kernel reads `size` bytes at the pointer, which is the size
        // of the int it points to.
        let set = unsafe { libc::setsockopt(fd, libc::SOL_PACKET, option, (&raw const on).cast(), size) };
        if set != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    let addr = libc::sockaddr_ll {
        sll_family: libc::AF_PACKET as u16,
        sll_protocol: ALL,
        sll_ifindex: link.cast_signed(),
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    };
    let size = libc::socklen_t::try_from(size_of_val(&addr)).expect("an address's size fits");
    // SAFETY: the descriptor is open for the whole call; the kernel reads `size` bytes at the pointer, which is the size of
    // the address it points to.
    let bound = unsafe { libc::bind(fd, (&raw const addr).cast(), size) };
    if bound == 0 { Ok(socket) } else { Err(io::Error::last_os_error()) }
}
