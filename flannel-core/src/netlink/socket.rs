//! A netlink socket for tokio.

use std::io;
use std::time::Duration;

use neli::consts::socket::{Msg, NlFamily};
use neli::socket::NlSocket;
use neli::utils::Groups;
use nix::sys::socket::{setsockopt, sockopt};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::Instant;

use super::sys;
use crate::kernel::KernelError;

/// The receive buffer of a socket, in bytes. The default (about 200 KiB) has space for the answers to 256 failed
/// messages, or for 256 notifications.
pub(super) const RECEIVE_BUFFER: usize = 8 << 20;

/// The largest datagram that is read. The kernel builds none larger than 32 KiB.
pub(super) const DATAGRAM: usize = 64 << 10;

/// How long an answer may take. The kernel answers before the request's `send` returns, so an answer that is not there
/// soon was lost.
pub(super) const DEADLINE: Duration = Duration::from_secs(5);

/// A netlink socket in the namespace of the thread that opened it.
pub(super) struct Socket {
    fd: AsyncFd<NlSocket>,
    port: u32,
    datagram: Vec<u8>,
}

impl Socket {
    /// Opens a socket for links, addresses and routes that is joined to `groups` (numbers of `RTNLGRP_*`).
    pub(super) fn open(groups: &[u32], receive_buffer: usize) -> Result<Self, KernelError> {
        Self::open_family(NlFamily::Route, groups, receive_buffer)
    }

    /// Opens a socket of another netlink family; `groups` are numbers of that family.
    pub(super) fn open_family(
        family: NlFamily,
        groups: &[u32],
        receive_buffer: usize,
    ) -> Result<Self, KernelError> {
        let socket = NlSocket::connect(family, None, Groups::new_groups(groups))
            .map_err(|source| KernelError::Socket { what: "open", source })?;
        let set_up = |source| KernelError::Socket { what: "set up", source };
        socket.nonblock().map_err(set_up)?;
        let port = socket.pid().map_err(set_up)?;
        let fd = sys::register(socket).map_err(set_up)?;
        // The first option needs CAP_NET_ADMIN in the initial user namespace, the second is limited by rmem_max.
        setsockopt(&fd, sockopt::RcvBufForce, &receive_buffer)
            .or_else(|_| setsockopt(&fd, sockopt::RcvBuf, &receive_buffer))
            .map_err(|errno| set_up(errno.into()))?;
        Ok(Self { fd, port, datagram: vec![0; DATAGRAM] })
    }

    /// The socket's port id (`nl_pid`), which answers to it carry.
    pub(super) fn port(&self) -> u32 {
        self.port
    }

    /// Asks for extended-ACK texts. Kernels without them send only the errno.
    pub(super) fn ask_for_texts(&self) {
        _ = self.fd.get_ref().enable_ext_ack(true);
    }

    /// Asks the kernel for strict checking, by which it applies the filters of dump requests. Returns whether it will.
    pub(super) fn be_strict(&self, strict: bool) -> bool {
        self.fd.get_ref().enable_strict_checking(strict).is_ok() && strict
    }

    /// Leaves out messages of these types that a socket with this port id caused. A kernel that can't do that sends them.
    pub(super) fn leave_out(&self, port: u32, kinds: &[u16]) {
        _ = sys::leave_out(self.fd.get_ref(), port, kinds);
    }

    /// Sends a datagram. On return the kernel has processed all of it.
    pub(super) async fn send(&self, datagram: &[u8]) -> io::Result<()> {
        self.fd.async_io(Interest::WRITABLE, |socket| socket.send(datagram, Msg::empty())).await.map(drop)
    }

    /// Waits for a datagram. Dropping the future loses none.
    pub(super) async fn receive(&mut self) -> io::Result<&[u8]> {
        let Self { fd, datagram, .. } = self;
        let len = match read(fd.get_ref(), datagram) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                fd.async_io(Interest::READABLE, |socket| read(socket, datagram)).await?
            }
            ready => ready?,
        };
        Ok(&self.datagram[..len])
    }

    /// Waits for a datagram until a deadline; [`io::ErrorKind::TimedOut`] past it.
    pub(super) async fn receive_until(&mut self, deadline: Instant) -> io::Result<&[u8]> {
        tokio::time::timeout_at(deadline, self.receive()).await?
    }

    /// Returns a datagram if one has arrived.
    pub(super) fn try_receive(&mut self) -> io::Result<Option<&[u8]>> {
        match read(self.fd.get_ref(), &mut self.datagram) {
            Ok(len) => Ok(Some(&self.datagram[..len])),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// Reads one datagram. One that is too long for the buffer is an error ([`is_lost`]).
pub(super) fn read(socket: &NlSocket, datagram: &mut [u8]) -> io::Result<usize> {
    loop {
        match socket.recv(&mut *datagram, Msg::TRUNC) {
            // With MSG_TRUNC the length is the datagram's, however much of it was copied.
            Ok((len, _)) if len > datagram.len() => return Err(nix::Error::EMSGSIZE.into()),
            Ok((len, _)) => return Ok(len),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// Whether an error means that messages were lost, and not that the socket is unusable.
pub(super) fn is_lost(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::TimedOut
        || matches!(error.raw_os_error(), Some(libc::ENOBUFS | libc::EMSGSIZE))
}

/// The error of a request that could not be sent or whose answer could not be received.
pub(super) fn failed(error: io::Error, doing: &'static str, what: &str) -> KernelError {
    if is_lost(&error) {
        KernelError::Lost { what: what.to_owned() }
    } else {
        KernelError::Socket { what: doing, source: error }
    }
}
