//! Sends ICMP errors.

use std::io::IoSlice;
use std::net::IpAddr;

use super::Io;
use crate::packet::IpHeader;
use crate::packet::bucket::TokenBucket;
use crate::packet::icmp::{IcmpError, MAX_ERROR, build};
use crate::vnet::VnetHeader;

/// Errors a second, and in one go: what Linux allowed itself for long (`net.ipv4.icmp_msgs_per_sec`).
const RATE: u32 = 1000;
const BURST: u32 = 50;

/// Sends errors, but not too many.
pub(crate) struct ErrorSender {
    bucket: TokenBucket,
    buffer: [u8; MAX_ERROR],
}

/// The result of sending an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Report {
    Sent,
    /// It was withheld by the rate limit.
    Withheld,
    /// There must not be one, or it couldn't be sent.
    None,
}

impl ErrorSender {
    pub(crate) fn new() -> Self {
        Self { bucket: TokenBucket::new(RATE, BURST), buffer: [0; MAX_ERROR] }
    }

    /// Reports `error` about `packet` to its source, from the address `from`, if there may be a report.
    pub(crate) fn send(
        &mut self,
        error: IcmpError,
        packet: &[u8],
        ip: &IpHeader,
        from: Option<IpAddr>,
        io: &Io,
        now_ms: u64,
    ) -> Report {
        let len = from.and_then(|from| build(error, packet, ip, from, &mut self.buffer));
        let Some(len) = len else { return Report::None };
        if !self.bucket.take(now_ms) {
            return Report::Withheld;
        }
        let answer = &self.buffer[..len];
        let sent = if let Some(socket) = io.errors.get(ip.family()) {
            socket.send(answer, ip.source)
        } else {
            // Only arrives where the interface takes packets from its own addresses (`accept_local`).
            let vnet = [0; VnetHeader::LEN];
            io.tun.write(&[IoSlice::new(&vnet[..io.tun.prefix()]), IoSlice::new(answer)])
        };
        if sent.is_ok() { Report::Sent } else { Report::None }
    }
}
