//! Ethtool features, and many small datagrams in one call.
#![allow(unsafe_code)]

use std::io;
use std::mem::{size_of, zeroed};
use std::net::UdpSocket;
use std::os::fd::AsRawFd;

const SIOCETHTOOL: libc::Ioctl = 0x8946;
const ETHTOOL_GSTRINGS: u32 = 0x1b;
const ETHTOOL_SFEATURES: u32 = 0x3b;
const ETH_SS_FEATURES: u32 = 4;
const STRINGS: usize = 128;
const STRING: usize = 32;
const BLOCKS: usize = STRINGS / 32;

#[repr(C)]
struct Strings {
    command: u32,
    set: u32,
    len: u32,
    data: [[u8; STRING]; STRINGS],
}

#[repr(C)]
struct Features {
    command: u32,
    size: u32,
    /// Which are valid, and which are wanted.
    blocks: [[u32; 2]; BLOCKS],
}

/// Switches features of a link on or off, by their names in `ethtool -k`.
pub fn set_features(link: &str, wanted: &[(&str, bool)]) -> io::Result<()> {
    if wanted.is_empty() {
        return Ok(());
    }
    let mut strings =
        Strings { command: ETHTOOL_GSTRINGS, set: ETH_SS_FEATURES, len: 0, data: [[0; STRING]; STRINGS] };
    ethtool(link, (&raw mut strings).cast())?;
    let mut features = Features { command: ETHTOOL_SFEATURES, size: 0, blocks: [[0; 2]; BLOCKS] };
    features.size = strings.len.div_ceil(32);
    for (name, on) in wanted {
        let place = strings.data.iter().position(|data| {
            let len = data.iter().position(|byte| *byte == 0).unwrap_or(STRING);
            &data[..len] == name.as_bytes()
        });
        let place = place.ok_or_else(|| io::Error::other(format!("no feature {name}")))?;
        features.blocks[place / 32][0] |= 1 << (place % 32);
        features.blocks[place / 32][1] |= u32::from(*on) << (place % 32);
    }
    ethtool(link, (&raw mut features).cast())
}

fn ethtool(link: &str, data: *mut libc::c_char) -> io::Result<()> {
    let socket = UdpSocket::bind("127.0.0.1:0")?;
    // SAFETY: ifreq is plain C data, for which all zeroes is a valid value.
    let mut request: libc::ifreq = unsafe { zeroed() };
    for (to, byte) in request.ifr_name.iter_mut().zip(link.bytes()) {
        *to = byte.cast_signed() as libc::c_char;
    }
    request.ifr_ifru.ifru_data = data;
    // SAFETY: the descriptor is open, and `data` points to a structure of the command's layout, with room
    // for more strings and features than kernels have.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), SIOCETHTOOL, &raw mut request) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Sends the same datagram several times; returns how many went.
pub fn send_many(socket: &UdpSocket, data: &[u8], count: usize) -> u64 {
    let mut part = libc::iovec { iov_base: data.as_ptr().cast_mut().cast(), iov_len: data.len() };
    // SAFETY: mmsghdr is plain C data, for which all zeroes is a valid value.
    let mut messages: [libc::mmsghdr; 16] = unsafe { zeroed() };
    for message in &mut messages {
        message.msg_hdr.msg_iov = &raw mut part;
        message.msg_hdr.msg_iovlen = 1;
    }
    // SAFETY: the headers point to one live iovec over live bytes, which the call only reads.
    let sent = unsafe { libc::sendmmsg(socket.as_raw_fd(), messages.as_mut_ptr(), count.min(16) as u32, 0) };
    u64::try_from(sent).unwrap_or(0)
}

/// Waits for datagrams and returns how many came.
pub fn receive_many(socket: &UdpSocket) -> u64 {
    let mut data = [[0_u8; 128]; 64];
    // SAFETY: mmsghdr and iovec are plain C data, for which all zeroes is a valid value.
    let (mut messages, mut parts): ([libc::mmsghdr; 64], [libc::iovec; 64]) = unsafe { zeroed() };
    for ((message, part), data) in messages.iter_mut().zip(&mut parts).zip(&mut data) {
        *part = libc::iovec { iov_base: data.as_mut_ptr().cast(), iov_len: size_of::<[u8; 128]>() };
        message.msg_hdr.msg_iov = part;
        message.msg_hdr.msg_iovlen = 1;
    }
    let flags = libc::MSG_WAITFORONE as _;
    // SAFETY: the headers point to live iovecs over live buffers of the given lengths.
    let count =
        unsafe { libc::recvmmsg(socket.as_raw_fd(), messages.as_mut_ptr(), 64, flags, std::ptr::null_mut()) };
    u64::try_from(count).unwrap_or(0)
}
