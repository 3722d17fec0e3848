//! The ioctls of /dev/net/tun, which no safe wrapper offers.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

/// An empty interface request with a name; names that don't fit were refused before.
fn request(name: &str) -> libc::ifreq {
    // SAFETY: ifreq is plain C data, for which all zeroes is a valid value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, byte) in request.ifr_name.iter_mut().zip(name.bytes().take(libc::IFNAMSIZ - 1)) {
        *to = byte.cast_signed() as libc::c_char;
    }
    request
}

fn parts(request: &libc::ifreq) -> (String, i32) {
    let name =
        request.ifr_name.iter().take_while(|byte| **byte != 0).map(|byte| char::from(byte.to_ne_bytes()[0]));
    // SAFETY: the kernel filled in the flags, and any bits are a valid short.
    let flags = unsafe { request.ifr_ifru.ifru_flags };
    (name.collect(), i32::from(flags.cast_unsigned()))
}

/// Attaches the descriptor to a TUN, making it if need be. Returns the name the kernel chose.
pub(super) fn attach(file: &File, name: &str, flags: i32) -> io::Result<String> {
    let mut request = request(name);
    request.ifr_ifru.ifru_flags = flags as libc::c_short;
    // SAFETY: the descriptor is open, and TUNSETIFF reads and writes one ifreq, which this is.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(parts(&request).0) }
}

/// The name and flags of the TUN that the descriptor is attached to.
pub(super) fn attached(file: &File) -> io::Result<(String, i32)> {
    let mut request = request("");
    // SAFETY: the descriptor is open, and TUNGETIFF writes one ifreq, which this is.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNGETIFF, &raw mut request) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(parts(&request)) }
}

/// Which flags this kernel's TUNs know.
pub(super) fn features(file: &File) -> io::Result<i32> {
    let mut features: libc::c_uint = 0;
    // SAFETY: the descriptor is open, and TUNGETFEATURES writes one unsigned int, which this is.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNGETFEATURES, &raw mut features) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(features.cast_signed()) }
}

/// Says which offloads the reader of this TUN understands.
pub(super) fn set_offload(file: &File, offload: u32) -> io::Result<()> {
    // SAFETY: the descriptor is open, and TUNSETOFFLOAD takes its argument by value.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETOFFLOAD, libc::c_ulong::from(offload)) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
