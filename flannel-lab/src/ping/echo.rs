//! The raw socket behind a ping.

use std::io::{self, Read};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::time::TimeSpec;
use socket2::{Domain, Protocol, Socket, Type};

use super::PingOptions;
use super::packet::Label;
use crate::netns::Netns;
use crate::{LabError, sys};

/// Enough for what arrives while the pinger waits for the processor.
const RECEIVE_BUFFER: usize = 1 << 20;

/// Sends echoes to one destination and takes in the replies.
#[derive(Debug)]
pub(super) struct Echo {
    socket: Socket,
    /// Not connected: that would fail while there is no route, and routes may come and go.
    dst: SocketAddr,
    label: Label,
    payload: usize,
    buffer: Vec<u8>,
}

impl Echo {
    pub(super) fn open(
        netns: &Netns,
        dst: IpAddr,
        options: &PingOptions,
    ) -> Result<Self, LabError> {
        let what = format!("a raw socket in {} to {dst}", netns.name());
        let socket = netns
            .enter(|| socket(dst, options))?
            .map_err(LabError::io(what))?;
        let label = Label {
            v6: dst.is_ipv6(),
            cookie: cookie(),
        };
        let buffer = vec![0; options.payload_size + 512];
        let dst = SocketAddr::new(dst, 0);
        Ok(Self {
            socket,
            dst,
            label,
            payload: options.payload_size,
            buffer,
        })
    }

    pub(super) fn send(&self, number: u64) -> io::Result<()> {
        let packet = self.label.encode(number, self.payload);
        self.socket.send_to(&packet, &self.dst.into()).map(drop)
    }

    /// The number of the next reply that is already there; `None` if there is none.
    pub(super) fn receive(&mut self) -> io::Result<Option<u64>> {
        loop {
            match (&self.socket).read(&mut self.buffer) {
                Ok(length) => {
                    if let Some(number) = self.label.decode(&self.buffer[..length]) {
                        return Ok(Some(number));
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(error) => return Err(error),
            }
        }
    }

    /// Waits until there is something to receive, or the time is over.
    pub(super) fn wait(&self, time: Duration) {
        let mut fds = [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
        // A signal or an error of the socket ends the wait early, which does no harm.
        let _ = ppoll(&mut fds, Some(TimeSpec::from_duration(time)), None);
    }
}

fn socket(dst: IpAddr, options: &PingOptions) -> io::Result<Socket> {
    let (domain, protocol) = match dst {
        IpAddr::V4(_) => (Domain::IPV4, Protocol::ICMPV4),
        IpAddr::V6(_) => (Domain::IPV6, Protocol::ICMPV6),
    };
    let socket = Socket::new(domain, Type::RAW, Some(protocol))?;
    sys::set_dont_fragment(&socket, dst.is_ipv6(), options.dont_fragment)?;
    socket.set_nonblocking(true)?;
    socket.set_recv_buffer_size(RECEIVE_BUFFER)?;
    if let Some(source) = options.source {
        socket.bind(&SocketAddr::new(source, 0).into())?;
    }
    Ok(socket)
}

/// A number that no other pinger has, in this process or another.
fn cookie() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let since_epoch = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let now = since_epoch.unwrap_or_default().as_nanos() as u64;
    // A multiplier of many bits, so that pingers of one moment differ in all of theirs.
    (now ^ u64::from(std::process::id()) << 40).wrapping_add(
        NEXT.fetch_add(1, Ordering::Relaxed)
            .wrapping_mul(0x9e37_79b9_7f4a_7c15),
    )
}
