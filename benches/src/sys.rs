//! The system calls of the benches that have no safe wrapper.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::process::Child;
use std::time::Duration;

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

/// What a process that ended has used, with the children that it waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChildUsage {
    /// Whether it ended with 0.
    pub success: bool,
    /// Processor time of it and its children.
    pub cpu: Duration,
}

/// Waits for a child and says what it used. `Child::wait` then has nothing left to wait for.
pub fn wait_usage(child: &Child) -> io::Result<ChildUsage> {
    let pid = child.id().cast_signed();
    let mut status = 0;
    let mut usage = std::mem::MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: both pointers are to values of ours that the kernel writes in full, and `pid` is our own child.
    let waited = unsafe { libc::wait4(pid, &raw mut status, 0, usage.as_mut_ptr()) };
    if waited != pid {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: wait4 succeeded and filled it; zeroes were a valid value before.
    let usage = unsafe { usage.assume_init() };
    let time = |time: libc::timeval| {
        Duration::from_micros(time.tv_sec.unsigned_abs() * 1_000_000 + time.tv_usec.unsigned_abs())
    };
    Ok(ChildUsage {
        success: libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 0,
        cpu: time(usage.ru_utime) + time(usage.ru_stime),
    })
}
