//! One ICMP echo, small or of a certain size that must not be fragmented.

use std::io::{self, Read as _};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use flannel_core::addr::Family;
use flannel_core::probe::EchoRequest;
use socket2::{Domain, Protocol, Socket, Type};

use super::sys;

/// The bytes of a small request with its IP header, as `ping` has it for IPv4.
const SMALL: u32 = 84;

/// What became of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Echo {
    /// The answer came after this time.
    Answered(Duration),
    /// No answer came in time.
    Silent,
    /// The kernel of this host, or a router, has no way for it, or none for this size.
    Refused(io::ErrorKind),
}

impl Echo {
    pub(crate) fn is_answer(self) -> bool {
        matches!(self, Self::Answered(_))
    }
}

/// Sends a request from the calling thread's namespace and waits for its answer. `size` is that of the whole IP packet,
/// which then must not be fragmented. An error says that this process can't send such requests.
pub(crate) fn echo(to: IpAddr, size: Option<u32>, patience: Duration) -> io::Result<Echo> {
    let family = Family::of(to);
    let (domain, protocol) = match family {
        Family::V4 => (Domain::IPV4, Protocol::ICMPV4),
        Family::V6 => (Domain::IPV6, Protocol::ICMPV6),
    };
    // Without CAP_NET_RAW, net.ipv4.ping_group_range may still allow the other kind.
    let socket = Socket::new(domain, Type::RAW, Some(protocol))
        .or_else(|_| Socket::new(domain, Type::DGRAM, Some(protocol)))?;
    if size.is_some() {
        sys::forbid_fragments(&socket, family)?;
    }
    let request = EchoRequest::new(to, size.unwrap_or(SMALL));
    let start = Instant::now();
    if let Err(error) = socket.send_to(request.bytes(), &SocketAddr::new(to, 0).into()) {
        return match error.raw_os_error() {
            Some(libc::EPERM | libc::EACCES) => Err(error),
            _ => Ok(Echo::Refused(error.kind())),
        };
    }
    let mut buffer = vec![0; request.bytes().len() + 128];
    loop {
        let Some(left) = patience.checked_sub(start.elapsed()).filter(|left| !left.is_zero()) else {
            return Ok(Echo::Silent);
        };
        socket.set_read_timeout(Some(left))?;
        match (&socket).read(&mut buffer) {
            Ok(length) if request.is_answered_by(&buffer[..length]) => {
                return Ok(Echo::Answered(start.elapsed()));
            }
            Ok(_) => {}
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {}
            Err(error) => return Ok(Echo::Refused(error.kind())),
        }
    }
}
