//! What is set of probes.

use std::time::Duration;

/// What is set of an agent's probes. By default an agent of the library sends none; `flanneld` does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct ProbeOptions {
    /// How often each peer is probed.
    pub interval: ProbeInterval,
    /// Whether readiness waits for answers of peers. It needs probes.
    pub ready: Option<ReadyPeers>,
}

impl ProbeOptions {
    /// Probes at this interval, without a part in readiness.
    pub fn new(interval: ProbeInterval) -> Self {
        Self { interval, ready: None }
    }

    /// Sets whether readiness waits for answers of peers.
    pub fn ready(self, ready: Option<ReadyPeers>) -> Self {
        Self { ready, ..self }
    }
}

/// How often each peer is probed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum ProbeInterval {
    /// Never.
    #[default]
    Off,
    /// Once a second in a small cluster, more slowly in a large one: all peers together get twenty visits a second at
    /// most, so each of a thousand gets one in 50 seconds. Peers on a link of this node get fewer if there are many, since
    /// each takes an entry in the kernel's table of neighbours: within a minute no more than an eighth of
    /// `net.ipv4.neigh.default.gc_thresh3` (128 by default; IPv6 likewise).
    Auto,
    /// This often, but not more often than with [`Self::Auto`].
    Every(Duration),
}

/// Holds readiness back until peers answer.
///
/// It counts the peers that the store's first list has. Once enough of them have answered through the overlay, or the
/// time is over, it never holds readiness back again: probes alone don't make a node flap.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct ReadyPeers {
    /// How many of a hundred peers must answer: 0 to 100.
    pub percent: u8,
    /// How long to wait for them. A cluster that starts cold has no peer that answers, so the wait must have an end.
    pub timeout: Duration,
}

impl ReadyPeers {
    /// Waits for so many percent of the peers (more than 100 are 100), but no longer than `timeout`.
    pub fn new(percent: u8, timeout: Duration) -> Self {
        Self { percent: percent.min(100), timeout }
    }

    /// How many of `known` peers must answer, rounded up.
    pub fn needed(self, known: usize) -> usize {
        (known * usize::from(self.percent)).div_ceil(100)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_of_peers_is_rounded_up() {
        let share = |percent, known| ReadyPeers::new(percent, Duration::from_secs(1)).needed(known);
        assert_eq!((share(50, 3), share(100, 3), share(0, 3), share(1, 3)), (2, 3, 0, 1));
        assert_eq!((share(250, 3), share(50, 0)), (3, 0));
    }
}
