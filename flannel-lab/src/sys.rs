//! The one socket option that no safe wrapper here offers.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, AsRawFd};

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
