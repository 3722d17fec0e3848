//! The UDP socket on the underlay, one for each address family.

pub(crate) mod sys;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd};

use flannel_core::addr::Family;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

/// Bytes of each socket buffer: 64 trains and more. With the usual 208 KiB, two fill it.
pub(crate) const BUFFER: usize = 8 << 20;

/// What to use of the kernel. All, unless something is to be tested or worked around.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct SocketOptions {
    /// Send trains of datagrams in one call (`UDP_SEGMENT`, Linux 4.18).
    pub gso: bool,
    /// Receive trains of datagrams (`UDP_GRO`, Linux 5.0).
    pub gro: bool,
    /// Send and receive several messages in one call.
    pub batch: bool,
    /// Bytes to ask for in either direction.
    pub buffer: usize,
}

impl Default for SocketOptions {
    fn default() -> Self {
        Self { gso: true, gro: true, batch: true, buffer: BUFFER }
    }
}

impl SocketOptions {
    /// The same, with or without trains that are sent in one call.
    #[must_use]
    pub fn gso(self, gso: bool) -> Self {
        Self { gso, ..self }
    }

    /// The same, with or without trains that are received in one piece.
    #[must_use]
    pub fn gro(self, gro: bool) -> Self {
        Self { gro, ..self }
    }

    /// The same, with or without several messages in one call.
    #[must_use]
    pub fn batch(self, batch: bool) -> Self {
        Self { batch, ..self }
    }

    /// The same, with other socket buffers, in bytes.
    #[must_use]
    pub fn buffer(self, buffer: usize) -> Self {
        Self { buffer, ..self }
    }
}

/// A bound UDP socket.
#[derive(Debug)]
pub struct UnderlaySocket {
    socket: Socket,
    local: SocketAddr,
    gso: bool,
    gro: bool,
    batch: bool,
    send_buffer: usize,
    receive_buffer: usize,
}

/// Why the socket can't be bound.
#[derive(Debug, thiserror::Error)]
#[error("a UDP socket on {local}")]
#[non_exhaustive]
pub struct SocketError {
    /// The address to bind.
    pub local: SocketAddr,
    /// Why not.
    #[source]
    pub source: io::Error,
}

impl UnderlaySocket {
    /// Binds a socket in the calling thread's namespace, without the options that the kernel lacks.
    pub fn bind(local: SocketAddr, options: SocketOptions) -> Result<Self, SocketError> {
        Self::try_bind(local, options).map_err(|source| SocketError { local, source })
    }

    fn try_bind(local: SocketAddr, options: SocketOptions) -> io::Result<Self> {
        let socket = Socket::new(Domain::for_address(local), Type::DGRAM.nonblocking(), Some(Protocol::UDP))?;
        if local.is_ipv6() {
            socket.set_only_v6(true)?;
        }
        // The sizes are set before the socket is bound, so that they count from the first datagram.
        let receive = i32::try_from(options.buffer).unwrap_or(i32::MAX);
        if sys::force_buffer(socket.as_fd(), libc::SO_RCVBUFFORCE, receive).is_err() {
            socket.set_recv_buffer_size(options.buffer)?;
        }
        if sys::force_buffer(socket.as_fd(), libc::SO_SNDBUFFORCE, receive).is_err() {
            socket.set_send_buffer_size(options.buffer)?;
        }
        // Zero switches nothing on; it only asks whether the kernel knows the option.
        let gso = options.gso && sys::set_udp_option(socket.as_fd(), libc::UDP_SEGMENT, 0).is_ok();
        let gro = options.gro && sys::set_udp_option(socket.as_fd(), libc::UDP_GRO, 1).is_ok();
        socket.bind(&SockAddr::from(local))?;
        let local = socket.local_addr()?.as_socket().unwrap_or(local);
        // The kernel reports twice the requested size, which includes its own overhead.
        let (send_buffer, receive_buffer) = (socket.send_buffer_size()? / 2, socket.recv_buffer_size()? / 2);
        Ok(Self { socket, local, gso, gro, batch: options.batch, send_buffer, receive_buffer })
    }

    /// The address that it is bound to.
    pub fn local(&self) -> SocketAddr {
        self.local
    }

    /// Whether trains are sent in one call.
    pub fn gso(&self) -> bool {
        self.gso
    }

    /// Whether trains are received in one piece.
    pub fn gro(&self) -> bool {
        self.gro
    }

    /// Whether several messages go in one call.
    pub fn batch(&self) -> bool {
        self.batch
    }

    /// Sends one datagram, from any thread, without waiting.
    pub fn send_to(&self, datagram: &[u8], to: SocketAddr) -> io::Result<()> {
        self.socket.send_to(datagram, &SockAddr::from(to)).map(drop)
    }

    /// Bytes of the send and the receive buffer.
    pub fn buffers(&self) -> (usize, usize) {
        (self.send_buffer, self.receive_buffer)
    }
}

impl AsFd for UnderlaySocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// A raw socket that sends our ICMP errors.
///
/// They can't be written to the TUN: the kernel drops packets that arrive from its own addresses. Sent by a raw socket,
/// they take the path of the kernel's own errors.
#[derive(Debug)]
pub struct ErrorSocket(Socket);

impl ErrorSocket {
    /// Opens it in the calling thread's namespace. It needs `CAP_NET_RAW`.
    pub fn open(family: Family) -> io::Result<Self> {
        let domain = if family == Family::V4 { Domain::IPV4 } else { Domain::IPV6 };
        let raw = Protocol::from(libc::IPPROTO_RAW);
        Socket::new(domain, Type::RAW.nonblocking(), Some(raw)).map(Self)
    }

    /// Sends a packet with its own IP header.
    pub(crate) fn send(&self, packet: &[u8], to: IpAddr) -> io::Result<()> {
        self.0.send_to(packet, &SockAddr::from(SocketAddr::new(to, 0))).map(drop)
    }
}
