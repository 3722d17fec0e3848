//! The system calls that no safe wrapper offers.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd};

use flannel_core::addr::Family;

/// Attaches the descriptor of `/dev/net/tun` to a new TUN of the calling thread's namespace, whose packets have nothing in
/// front of them.
pub(super) fn attach_tun(file: &File, name: &str) -> io::Result<()> {
    // SAFETY: ifreq is plain C data, for which all zeroes is a valid value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, byte) in request.ifr_name.iter_mut().zip(name.bytes().take(libc::IFNAMSIZ - 1)) {
        *to = byte.cast_signed() as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_TUN | libc::IFF_NO_PI) as libc::c_short;
    // SAFETY: the descriptor is open, and TUNSETIFF reads and writes one ifreq, which this is.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Lets no packet of a socket be fragmented, whatever the kernel knows of the path (`IP_PMTUDISC_PROBE`).
pub(super) fn forbid_fragments(socket: impl AsFd, family: Family) -> io::Result<()> {
    let (level, option, value) = match family {
        Family::V4 => (libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_PROBE),
        Family::V6 => (libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, libc::IPV6_PMTUDISC_PROBE),
    };
    let length = size_of::<libc::c_int>() as libc::socklen_t;
    let descriptor = socket.as_fd().as_raw_fd();
    // SAFETY: the descriptor is open, and the option reads one int, which `value` is for the whole call.
    let result = unsafe { libc::setsockopt(descriptor, level, option, (&raw const value).cast(), length) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
