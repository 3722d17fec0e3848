//! The two things that no safe wrapper offers: a socket option and signal handlers.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, AsRawFd};

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
