//! sendmmsg and recvmmsg with the control messages of UDP segmentation offload.
//!
//! All arrays get their room once; those for sending are filled up to what a batch needed so far, so that a node that is idle or
//! has one peer doesn't hold memory for hundreds. The raw pointers in them are written anew before each call, from borrows that
//! last until it returns.
#![allow(unsafe_code)]

use std::io;
use std::mem::size_of;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::ops::Range;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr;

use socket2::SockAddr;

/// Room for the control messages of one message, aligned as `cmsghdr` wants it.
#[derive(Clone, Copy)]
#[repr(C, align(8))]
struct Control([u8; 64]);

const EMPTY_IOVEC: libc::iovec = libc::iovec { iov_base: ptr::null_mut(), iov_len: 0 };

fn empty_message() -> libc::mmsghdr {
    // SAFETY: mmsghdr is plain C data, for which all zeroes is a valid value.
    unsafe { std::mem::zeroed() }
}

/// A part of a datagram, in one of the two buffers that a batch has.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Piece {
    /// In the buffer of rebuilt headers, not in that of packets.
    pub(crate) is_header: bool,
    pub(crate) start: u32,
    pub(crate) len: u32,
}

/// A datagram, or a train of them.
#[derive(Debug, Clone)]
pub(crate) struct Message {
    pub(crate) to: SocketAddr,
    /// The pieces, among all of the batch.
    pub(crate) pieces: Range<u32>,
    /// Bytes of each datagram of a train but the last; zero for a single one.
    pub(crate) segment: u16,
    /// How many datagrams it is.
    pub(crate) datagrams: u16,
    /// How many bytes.
    pub(crate) bytes: u32,
}

/// The arrays for sending.
pub(crate) struct Outgoing {
    names: Vec<SockAddr>,
    iovecs: Vec<libc::iovec>,
    controls: Vec<Control>,
    messages: Vec<libc::mmsghdr>,
    most: Most,
    one_by_one: bool,
}

/// What a call takes at most.
#[derive(Debug, Clone, Copy)]
struct Most {
    messages: usize,
    pieces: usize,
}

impl Outgoing {
    /// Room for `messages` a call with `pieces` in all.
    pub(crate) fn new(messages: usize, pieces: usize, one_by_one: bool) -> Self {
        Self {
            names: Vec::with_capacity(messages),
            iovecs: Vec::with_capacity(pieces),
            controls: Vec::with_capacity(messages),
            messages: Vec::with_capacity(messages),
            most: Most { messages, pieces },
            one_by_one,
        }
    }

    /// Sends the first messages, as many as there is room for, and returns how many the kernel took.
    pub(crate) fn send(
        &mut self,
        fd: BorrowedFd<'_>,
        batch: &[Message],
        pieces: &[Piece],
        headers: &[u8],
        packets: &[u8],
    ) -> io::Result<usize> {
        let most = if self.one_by_one { 1 } else { self.most.messages };
        let batch = &batch[..batch.len().min(most)];
        let needed: usize = batch.iter().map(|message| message.pieces.len()).sum();
        // Before the loop, since it takes pointers into them.
        grow(&mut self.iovecs, needed.min(self.most.pieces), EMPTY_IOVEC);
        grow(&mut self.controls, batch.len(), Control([0; 64]));
        grow(&mut self.messages, batch.len(), empty_message());
        self.names.clear();
        self.names.extend(batch.iter().map(|message| SockAddr::from(message.to)));
        let (mut count, mut used) = (0, 0);
        for message in batch {
            let parts = &pieces[message.pieces.start as usize..message.pieces.end as usize];
            let Some(iovecs) = self.iovecs.get_mut(used..used + parts.len()) else { break };
            for (iovec, piece) in iovecs.iter_mut().zip(parts) {
                let buffer = if piece.is_header { headers } else { packets };
                let bytes = &buffer[piece.start as usize..(piece.start + piece.len) as usize];
                *iovec = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
            }
            used += parts.len();
            let control = &mut self.controls[count];
            let name = &self.names[count];
            let header = &mut self.messages[count].msg_hdr;
            *header = empty_message().msg_hdr;
            header.msg_name = name.as_ptr().cast_mut().cast();
            header.msg_namelen = name.len();
            header.msg_iov = iovecs.as_mut_ptr();
            header.msg_iovlen = iovecs.len() as _;
            if message.segment > 0 {
                put_segment(header, control, message.segment);
            }
            count += 1;
        }
        if count == 0 {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let fd = fd.as_raw_fd();
        let sent = if self.one_by_one {
            // SAFETY: the header's pointers are to live arrays of the lengths given, which the call only reads.
            let sent = unsafe { libc::sendmsg(fd, &raw const self.messages[0].msg_hdr, libc::MSG_DONTWAIT) };
            sent.min(1) as libc::c_int
        } else {
            // SAFETY: `count` headers were filled in just now, with pointers to live arrays of the lengths
            // given; the call reads those and writes `msg_len` of each header.
            unsafe { libc::sendmmsg(fd, self.messages.as_mut_ptr(), count as _, libc::MSG_DONTWAIT as _) }
        };
        if let Ok(sent) = usize::try_from(sent) {
            return Ok(if self.one_by_one { 1 } else { sent });
        }
        or_one_by_one(&mut self.one_by_one)
    }
}

/// Makes `array` at least `len` long.
fn grow<T: Clone>(array: &mut Vec<T>, len: usize, value: T) {
    if array.len() < len {
        array.resize(len, value);
    }
}

/// The last call's error; or nothing done, if from now on the calls for single messages are used.
fn or_one_by_one(one_by_one: &mut bool) -> io::Result<usize> {
    let error = io::Error::last_os_error();
    if error.raw_os_error() != Some(libc::ENOSYS) || *one_by_one {
        return Err(error);
    }
    *one_by_one = true;
    Ok(0)
}

/// Adds the control message that says how long each datagram of a train is.
fn put_segment(header: &mut libc::msghdr, control: &mut Control, segment: u16) {
    header.msg_control = control.0.as_mut_ptr().cast();
    // SAFETY: CMSG_SPACE only computes.
    header.msg_controllen = unsafe { libc::CMSG_SPACE(size_of::<u16>() as u32) } as _;
    // SAFETY: the control buffer is aligned and has 64 bytes, more than a cmsghdr and a u16 take, so that
    // CMSG_FIRSTHDR is inside and its data, written unaligned, too.
    unsafe {
        let cmsg = libc::CMSG_FIRSTHDR(header);
        (*cmsg).cmsg_level = libc::SOL_UDP;
        (*cmsg).cmsg_type = libc::UDP_SEGMENT;
        (*cmsg).cmsg_len = libc::CMSG_LEN(size_of::<u16>() as u32) as _;
        ptr::write_unaligned(libc::CMSG_DATA(cmsg).cast::<u16>(), segment);
    }
}

/// What arrived in one slot.
#[derive(Debug, Clone)]
pub(crate) struct Datagram {
    /// Where in the buffer.
    pub(crate) range: Range<usize>,
    /// The underlay address and port it came from; `None` if it isn't IP.
    pub(crate) source: Option<SocketAddr>,
    /// Bytes of each datagram but the last, if it is a train; otherwise its length.
    pub(crate) segment: usize,
    /// There was more than the slot could take.
    pub(crate) truncated: bool,
}

/// The arrays and the buffer for receiving.
pub(crate) struct Incoming {
    buffer: Vec<u8>,
    names: Vec<libc::sockaddr_storage>,
    iovecs: Vec<libc::iovec>,
    controls: Vec<Control>,
    messages: Vec<libc::mmsghdr>,
    one_by_one: bool,
}

impl Incoming {
    /// Bytes of a slot: the longest train.
    pub(crate) const SLOT: usize = 65536;

    pub(crate) fn new(slots: usize, one_by_one: bool) -> Self {
        // SAFETY: sockaddr_storage is plain C data, for which all zeroes is a valid value.
        let name: libc::sockaddr_storage = unsafe { std::mem::zeroed() };
        Self {
            buffer: vec![0; slots * Self::SLOT],
            names: vec![name; slots],
            iovecs: vec![EMPTY_IOVEC; slots],
            controls: vec![Control([0; 64]); slots],
            messages: vec![empty_message(); slots],
            one_by_one,
        }
    }

    pub(crate) fn buffer(&self) -> &[u8] {
        &self.buffer
    }

    pub(crate) fn buffer_mut(&mut self) -> &mut [u8] {
        &mut self.buffer
    }

    /// Takes what is there, in up to `slots` slots, and returns how many were filled.
    pub(crate) fn receive(&mut self, fd: BorrowedFd<'_>, slots: usize) -> io::Result<usize> {
        let slots = slots.min(self.messages.len());
        let chunks = self.buffer.chunks_exact_mut(Self::SLOT).take(slots);
        for (index, chunk) in chunks.enumerate() {
            self.iovecs[index] = libc::iovec { iov_base: chunk.as_mut_ptr().cast(), iov_len: chunk.len() };
            let header = &mut self.messages[index].msg_hdr;
            header.msg_name = (&raw mut self.names[index]).cast();
            header.msg_namelen = size_of::<libc::sockaddr_storage>() as _;
            header.msg_iov = &raw mut self.iovecs[index];
            header.msg_iovlen = 1;
            header.msg_control = self.controls[index].0.as_mut_ptr().cast();
            header.msg_controllen = size_of::<Control>() as _;
            header.msg_flags = 0;
        }
        let fd = fd.as_raw_fd();
        if self.one_by_one {
            // SAFETY: the header's pointers are to live arrays of the lengths given, for the call to write.
            let len = unsafe { libc::recvmsg(fd, &raw mut self.messages[0].msg_hdr, libc::MSG_DONTWAIT) };
            self.messages[0].msg_len = u32::try_from(len).map_err(|_| io::Error::last_os_error())?;
            return Ok(1);
        }
        // SAFETY: `slots` headers were filled in just now, with pointers to live arrays of the lengths given,
        // for the call to write; there is no time-out.
        let count = unsafe {
            libc::recvmmsg(
                fd,
                self.messages.as_mut_ptr(),
                slots as _,
                libc::MSG_DONTWAIT as _,
                ptr::null_mut(),
            )
        };
        if let Ok(count) = usize::try_from(count) {
            return Ok(count);
        }
        or_one_by_one(&mut self.one_by_one)
    }

    /// What the last [`receive`](Self::receive) put into a slot that it filled.
    pub(crate) fn datagram(&self, slot: usize) -> Datagram {
        let message = &self.messages[slot];
        let start = slot * Self::SLOT;
        let len = (message.msg_len as usize).min(Self::SLOT);
        let segment = self.segment(slot).filter(|segment| *segment > 0).unwrap_or(len);
        Datagram {
            range: start..start + len,
            source: source(&self.names[slot]),
            segment,
            truncated: message.msg_hdr.msg_flags & (libc::MSG_TRUNC | libc::MSG_CTRUNC) != 0,
        }
    }

    /// The length of the datagrams in a train; `None` for a single one.
    fn segment(&self, slot: usize) -> Option<usize> {
        let control = &self.controls[slot].0;
        let header = &self.messages[slot].msg_hdr;
        let mut copy = empty_message().msg_hdr;
        copy.msg_control = control.as_ptr().cast_mut().cast();
        copy.msg_controllen = header.msg_controllen.min(size_of::<Control>() as _);
        // SAFETY: the control buffer is aligned and `msg_controllen` bytes of it were written by the
        // kernel, which keeps each cmsghdr and its data inside; the macros don't leave it.
        unsafe {
            let mut cmsg = libc::CMSG_FIRSTHDR(&raw const copy);
            while !cmsg.is_null() {
                if (*cmsg).cmsg_level == libc::SOL_UDP && (*cmsg).cmsg_type == libc::UDP_GRO {
                    let size = ptr::read_unaligned(libc::CMSG_DATA(cmsg).cast::<libc::c_int>());
                    return usize::try_from(size).ok();
                }
                cmsg = libc::CMSG_NXTHDR(&raw const copy, cmsg);
            }
        }
        None
    }
}

fn source(name: &libc::sockaddr_storage) -> Option<SocketAddr> {
    let name = ptr::from_ref(name);
    // SAFETY: the storage is larger than either address and aligned for it, and all bits are valid in both.
    match i32::from(unsafe { (*name).ss_family }) {
        libc::AF_INET => {
            let name = unsafe { &*name.cast::<libc::sockaddr_in>() };
            let addr = Ipv4Addr::from(name.sin_addr.s_addr.to_ne_bytes());
            Some((addr, u16::from_be(name.sin_port)).into())
        }
        libc::AF_INET6 => {
            let name = unsafe { &*name.cast::<libc::sockaddr_in6>() };
            let (addr, port) = (Ipv6Addr::from(name.sin6_addr.s6_addr), u16::from_be(name.sin6_port));
            // The scope is needed to answer a link-local address.
            Some(SocketAddrV6::new(addr, port, 0, name.sin6_scope_id).into())
        }
        _ => None,
    }
}

/// Sets an int option of UDP.
pub(super) fn set_udp_option(fd: BorrowedFd<'_>, option: libc::c_int, value: libc::c_int) -> io::Result<()> {
    // SAFETY: the descriptor is open for the whole call, and the kernel reads one int, which is there.
    let result = unsafe {
        let len = size_of::<libc::c_int>() as libc::socklen_t;
        libc::setsockopt(fd.as_raw_fd(), libc::SOL_UDP, option, (&raw const value).cast(), len)
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Sets a socket buffer's size beyond the limit for ordinary users; for that it takes `CAP_NET_ADMIN`.
pub(super) fn force_buffer(fd: BorrowedFd<'_>, option: libc::c_int, bytes: libc::c_int) -> io::Result<()> {
    // SAFETY: the descriptor is open for the whole call, and the kernel reads one int, which is there.
    let result = unsafe {
        let len = size_of::<libc::c_int>() as libc::socklen_t;
        libc::setsockopt(fd.as_raw_fd(), libc::SOL_SOCKET, option, (&raw const bytes).cast(), len)
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
