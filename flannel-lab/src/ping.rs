//! ICMP echo of our own, in a namespace: for zero-loss claims and for measuring repairs.
//!
//! [`ping`] sends a few and waits for them; a [`Pinger`] sends for as long as it lives and then
//! tells every [`Outage`]. Replies are told apart by a random cookie and a 64-bit number in the
//! payload, so a long run doesn't wrap around as the 16-bit sequence of ICMP does.

mod echo;
mod journal;
mod packet;
mod pinger;
mod system;

use std::net::IpAddr;
use std::time::Duration;

use self::echo::Echo;
use self::journal::Journal;
pub use self::journal::{Outage, PingReport, Rtt};
pub use self::pinger::Pinger;
pub use self::system::{SystemPing, system_ping};
use crate::LabError;
use crate::netns::Netns;

/// How to ping.
#[derive(Debug, Clone)]
pub struct PingOptions {
    /// How many echoes [`ping`] sends; a [`Pinger`] doesn't count.
    pub count: u64,
    /// From one echo to the next.
    pub interval: Duration,
    /// How long to wait for replies after the last echo.
    pub timeout: Duration,
    /// An answer that takes longer than this comes too late, and its echo counts as lost: what was queued somewhere would hide an
    /// outage. Any answer will do unless told.
    pub latest: Option<Duration>,
    /// Bytes after the ICMP header, as `ping -s` counts them; at least 16.
    pub payload_size: usize,
    /// Forbids fragments, as `ping -M do`: what doesn't fit isn't sent, or is lost on the way.
    pub dont_fragment: bool,
    /// The source address, where it matters.
    pub source: Option<IpAddr>,
}

impl Default for PingOptions {
    /// Five small echoes, 10 ms apart, with a second for the last reply.
    fn default() -> Self {
        Self {
            count: 5,
            interval: Duration::from_millis(10),
            timeout: Duration::from_secs(1),
            latest: None,
            payload_size: 56,
            dont_fragment: false,
            source: None,
        }
    }
}

/// Pings from a namespace and waits for the replies, or for the time-out after the last echo.
///
/// That nothing comes back is no error but a loss in the report.
pub fn ping(netns: &Netns, dst: IpAddr, options: PingOptions) -> Result<PingReport, LabError> {
    let count = options.count;
    let pinger = Pinger::start_counted(netns, dst, options, count)?;
    Ok(pinger.finish())
}

/// Whether one echo out of a few comes back: a probe for
/// [`eventually`](crate::wait::eventually).
pub fn reaches(netns: &Netns, dst: IpAddr) -> Result<bool, LabError> {
    let timeout = Duration::from_millis(300);
    let options = PingOptions { count: 2, timeout, ..PingOptions::default() };
    Ok(ping(netns, dst, options)?.received > 0)
}
