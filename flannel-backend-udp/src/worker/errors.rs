//! ICMP errors on their way out.

use std::io::IoSlice;

use super::Io;
use crate::counters::Tally;
use crate::forward::Lookup;
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

impl ErrorSender {
    pub(crate) fn new() -> Self {
        Self { bucket: TokenBucket::new(RATE, BURST), buffer: [0; MAX_ERROR] }
    }

    /// Reports `error` about `packet` to its source, if there may be a report.
    pub(crate) fn send(
        &mut self,
        error: IcmpError,
        packet: &[u8],
        ip: &IpHeader,
        lookup: &Lookup<'_>,
        io: &Io,
        now_ms: u64,
        tally: &mut Tally,
    ) {
        let Some(from) = lookup.error_source(ip.family()) else { return };
        let Some(len) = build(error, packet, ip, from, &mut self.buffer) else { return };
        if !self.bucket.take(now_ms) {
            tally.errors_withheld += 1;
            return;
        }
        let answer = &self.buffer[..len];
        let sent = match io.errors.get(ip.family()) {
            Some(socket) => socket.send(answer, ip.source),
            // Only where the interface takes packets from its own addresses (`accept_local`).
            None => {
                let vnet = [0; VnetHeader::LEN];
                io.tun.write(&[IoSlice::new(&vnet[..io.tun.prefix()]), IoSlice::new(answer)])
            }
        };
        if sent.is_ok() {
            tally.errors_sent += 1;
        }
    }
}
