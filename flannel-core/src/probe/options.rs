//! What is set of probes.

use std::str::FromStr;
use std::time::Duration;

use crate::error::Expected;

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

impl FromStr for ProbeInterval {
    type Err = Expected;

    /// Reads `auto`, `off`, or a time from a second to a day with its units, as Go's `time.ParseDuration` reads them, in
    /// whole numbers: `1m30s`.
    fn from_str(text: &str) -> Result<Self, Expected> {
        match text {
            "auto" => Ok(Self::Auto),
            "off" => Ok(Self::Off),
            time => duration(time).map(Self::Every).ok_or(Expected("auto, off, or a time from 1s to 24h")),
        }
    }
}

impl FromStr for ReadyPeers {
    type Err = Expected;

    /// Reads a share from 1 % and a time from a second to a day, such as `80%,60s`.
    fn from_str(text: &str) -> Result<Self, Expected> {
        let parse = || {
            let (percent, time) = text.split_once("%,")?;
            let percent = percent.parse().ok().filter(|percent| (1..=100).contains(percent))?;
            Some(Self::new(percent, duration(time)?))
        };
        parse().ok_or(Expected("a share and a time from 1s to 24h, such as 80%,60s"))
    }
}

/// A time with its units from a second to a day.
fn duration(text: &str) -> Option<Duration> {
    let (mut rest, mut sum) = (text, Duration::ZERO);
    while !rest.is_empty() {
        let digits = rest.find(|it: char| !it.is_ascii_digit())?;
        let number: u32 = rest[..digits].parse().ok()?;
        let unit = &rest[digits..];
        let end = unit.find(|it: char| it.is_ascii_digit()).unwrap_or(unit.len());
        let unit = match &unit[..end] {
            "ms" => Duration::from_millis(1),
            "s" => Duration::from_secs(1),
            "m" => Duration::from_mins(1),
            "h" => Duration::from_hours(1),
            _ => return None,
        };
        sum = sum.checked_add(unit.checked_mul(number)?)?;
        rest = &rest[digits + end..];
    }
    (Duration::from_secs(1)..=Duration::from_hours(24)).contains(&sum).then_some(sum)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals_and_shares_are_read_as_flags_have_them() {
        for (text, seconds) in [("30s", 30), ("1m30s", 90), ("24h", 86_400), ("1000ms", 1)] {
            assert_eq!(text.parse(), Ok(ProbeInterval::Every(Duration::from_secs(seconds))));
        }
        assert_eq!(("auto".parse(), "off".parse()), (Ok(ProbeInterval::Auto), Ok(ProbeInterval::Off)));
        for wrong in ["", "on", "30", "999ms", "25h", "s", "-1s", "1s1", "99999999999h"] {
            assert!(wrong.parse::<ProbeInterval>().is_err(), "{wrong}");
        }
        assert_eq!("80%,1m".parse(), Ok(ReadyPeers::new(80, Duration::from_secs(60))));
        for wrong in ["", "80", "80%", "0%,60s", "101%,60s", "80%,0s", "80,60s", "%,60s"] {
            assert!(wrong.parse::<ReadyPeers>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_share_of_peers_is_rounded_up() {
        let share = |percent, known| ReadyPeers::new(percent, Duration::from_secs(1)).needed(known);
        assert_eq!((share(50, 3), share(100, 3), share(0, 3), share(1, 3)), (2, 3, 0, 1));
        assert_eq!((share(250, 3), share(50, 0)), (3, 0));
    }
}
