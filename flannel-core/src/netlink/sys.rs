//! The unsafe calls of this module.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use neli::socket::NlSocket;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use tokio::io::unix::AsyncFd;

/// `ETHTOOL_GTXCSUM` and `ETHTOOL_STXCSUM` of `linux/ethtool.h`.
const GET_TX_CHECKSUM: u32 = 0x16;
const SET_TX_CHECKSUM: u32 = 0x17;
/// `SIOCETHTOOL` of `linux/sockios.h`.
const SIOCETHTOOL: libc::Ioctl = 0x8946;

/// Where `nlmsg_type` and `nlmsg_pid` are in `struct nlmsghdr` of `linux/netlink.h`.
const NLMSG_TYPE: u32 = 4;
const NLMSG_PID: u32 = 12;

/// `struct ethtool_value`.
#[repr(C)]
struct EthtoolValue {
    cmd: u32,
    data: u32,
}

/// The descriptor of a socket.
pub(super) fn borrow(socket: &NlSocket) -> BorrowedFd<'_> {
    // SAFETY: an `NlSocket` owns its descriptor and closes it only when it is dropped, which the borrow outlives not.
    unsafe { BorrowedFd::borrow_raw(socket.as_raw_fd()) }
}

/// Registers a socket with tokio's reactor.
pub(super) fn register(socket: NlSocket) -> io::Result<AsyncFd<NlSocket>> {
    // SAFETY: an `NlSocket` owns its descriptor, always names the same one and closes it only when it is
    // dropped; `AsyncFd` owns the `NlSocket` and gives out no more than shared references here.
    Ok(unsafe { AsyncFd::register(socket) }?)
}

/// Lets the kernel leave out messages of these types with this port id, instead of queueing them for the socket.
pub(super) fn leave_out(socket: &NlSocket, port: u32, kinds: &[u16]) -> io::Result<()> {
    let mut code = own_messages(port, kinds);
    let program = libc::sock_fprog { len: code.len() as u16, filter: code.as_mut_ptr() };
    let size = size_of::<libc::sock_fprog>() as libc::socklen_t;
    let (level, option) = (libc::SOL_SOCKET, libc::SO_ATTACH_FILTER);
    // SAFETY: the descriptor is open for the whole call. The program has as many instructions as it says, and the kernel copies
    // them before it returns.
    let result =
        unsafe { libc::setsockopt(socket.as_raw_fd(), level, option, (&raw const program).cast(), size) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// A filter in classic BPF (`linux/filter.h`) that drops messages of these types with this port id. It loads numbers in network byte
/// order, and headers of netlink have the machine's.
fn own_messages(port: u32, kinds: &[u16]) -> Vec<libc::sock_filter> {
    let step = |code: u32, k, jt, jf| libc::sock_filter { code: code as u16, jt, jf, k };
    let load = |size, offset| step(libc::BPF_LD | size | libc::BPF_ABS, offset, 0, 0);
    let equals = |k, jt, jf| step(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, k, jt, jf);
    let end = |bytes| step(libc::BPF_RET | libc::BPF_K, bytes, 0, 0);
    let count = kinds.len() as u8;
    let mut code =
        vec![load(libc::BPF_W, NLMSG_PID), equals(port.to_be(), 0, count + 1), load(libc::BPF_H, NLMSG_TYPE)];
    let kind = |(i, kind): (u8, &u16)| equals(u32::from(kind.to_be()), count - i, 0);
    code.extend((0..count).zip(kinds).map(kind));
    code.extend([end(u32::MAX), end(0)]);
    code
}

/// Reads whether a link completes checksums, or sets it, in the network namespace of the calling thread.
pub(super) fn tx_checksum(link: &str, set: Option<bool>) -> io::Result<bool> {
    // Any socket will do; it is never used for a packet.
    let socket = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    let cmd = if set.is_some() { SET_TX_CHECKSUM } else { GET_TX_CHECKSUM };
    let mut value = EthtoolValue { cmd, data: set.map_or(0, u32::from) };
    let mut name = [0; libc::IFNAMSIZ];
    let bytes = link.as_bytes();
    // The last byte stays zero.
    let place = name[..libc::IFNAMSIZ - 1].get_mut(..bytes.len()).ok_or(io::ErrorKind::InvalidInput)?;
    place.iter_mut().zip(bytes).for_each(|(to, from)| *to = libc::c_char::from_ne_bytes([*from]));
    let data = (&raw mut value).cast();
    let ifr_ifru = libc::__c_anonymous_ifr_ifru { ifru_data: data };
    let mut request = libc::ifreq { ifr_name: name, ifr_ifru };
    // SAFETY: the descriptor is open for the whole call. The request is a whole `ifreq` whose name ends with a zero, and
    // its data points to a whole `ethtool_value`, as this ioctl wants it; both live until it returns.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), SIOCETHTOOL, &raw mut request) };
    if result == 0 { Ok(value.data != 0) } else { Err(io::Error::last_os_error()) }
}
