//! The one system call of the benches that has no safe wrapper.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

/// `struct ifreq` of `linux/if.h` as `TUNSETIFF` reads it: name and flags, the rest of the union unused.
#[repr(C)]
struct IfReq {
    name: [u8; libc::IFNAMSIZ],
    flags: libc::c_short,
    rest: [u8; 22],
}

mod ioctl {
    #![allow(missing_docs, unreachable_pub)]
    nix::ioctl_write_ptr_bad!(tun_set_iff, libc::TUNSETIFF, super::IfReq);
}

/// Turns an open `/dev/net/tun` into a TUN device without any offload.
pub fn make_tun(file: &File, name: &str) -> io::Result<()> {
    let mut request = IfReq { name: [0; libc::IFNAMSIZ], flags: 0, rest: [0; 22] };
    let room = libc::IFNAMSIZ - 1;
    if name.len() > room {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "the name of the TUN is too long"));
    }
    request.name[..name.len()].copy_from_slice(name.as_bytes());
    request.flags = (libc::IFF_TUN | libc::IFF_NO_PI) as libc::c_short;
    // SAFETY: the descriptor is open for the call, and `request` is a whole `ifreq` that the kernel only reads
    // and writes back within its size.
    unsafe { ioctl::tun_set_iff(file.as_raw_fd(), &raw const request) }?;
    Ok(())
}
