//! Traffic counters of devices and datapaths. Counters change with each packet, so the status does not contain their
//! values but a handle that reads them when the caller asks.

use std::fmt;
use std::sync::Arc;

use serde::{Serialize, Serializer};

use crate::netns::Netns;

/// The counters of one device or datapath, since it was created.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct TrafficCounters {
    /// The device's name, or the backend's for a datapath outside of the kernel.
    pub of: String,
    /// Traffic that it sent to other nodes.
    pub sent: Traffic,
    /// Traffic that it received from other nodes.
    pub received: Traffic,
    /// The packets that it dropped, by reason, without reasons that never came up.
    pub dropped: Vec<Dropped>,
}

impl TrafficCounters {
    /// The counters of a device or datapath with this name, without dropped packets.
    pub fn new(of: impl Into<String>, sent: Traffic, received: Traffic) -> Self {
        Self { of: of.into(), sent, received, dropped: Vec::new() }
    }

    /// Adds packets that were dropped for one reason.
    #[must_use]
    pub fn dropped(mut self, reason: &'static str, packets: u64) -> Self {
        if packets > 0 {
            self.dropped.push(Dropped { reason, packets });
        }
        self
    }
}

/// The traffic in one direction.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Traffic {
    /// Packets.
    pub packets: u64,
    /// Their bytes, without what the tunnel puts around them.
    pub bytes: u64,
}

impl Traffic {
    /// A number of packets, and the number of bytes in all of them.
    pub const fn new(packets: u64, bytes: u64) -> Self {
        Self { packets, bytes }
    }
}

/// Packets that were dropped for one reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Dropped {
    /// The reason, in lower case with underscores. Those of the kernel are `receive_errors`, `receive_dropped`,
    /// `send_errors` and `send_dropped` (`/proc/net/dev`).
    pub reason: &'static str,
    /// How many packets.
    pub packets: u64,
}

type Read = dyn Fn() -> Vec<TrafficCounters> + Send + Sync;

/// A handle that reads counters. A clone reads the same counters. When a device is deleted, its counters are left out;
/// those of a datapath that stopped keep their last values.
#[derive(Clone, Default)]
pub struct Counters(Vec<Arc<Read>>);

impl Counters {
    /// A handle that calls this function. The function must not block for longer than a read of a file in `/proc` takes.
    pub fn new(read: impl Fn() -> Vec<TrafficCounters> + Send + Sync + 'static) -> Self {
        Self(vec![Arc::new(read)])
    }

    /// A handle that reads the kernel's counters of these devices in a network namespace (`/proc/net/dev`). A device that
    /// does not exist is left out.
    pub fn of_devices(netns: Netns, names: Vec<String>) -> Self {
        Self::new(move || netns.proc_net("dev").map_or_else(|_| Vec::new(), |text| parse(&text, &names)))
    }

    /// A handle that reads the counters of both.
    #[must_use]
    pub fn and(mut self, further: Self) -> Self {
        self.0.extend(further.0);
        self
    }

    /// Reads the present values. Counting goes on during the read, so the values are not of one exact moment.
    pub fn read(&self) -> Vec<TrafficCounters> {
        self.0.iter().flat_map(|read| read()).collect()
    }
}

/// Two handles are equal if they read the same counters, whatever the values are.
impl PartialEq for Counters {
    fn eq(&self, other: &Self) -> bool {
        let same = |(one, other): (&Arc<Read>, &Arc<Read>)| Arc::ptr_eq(one, other);
        self.0.len() == other.0.len() && self.0.iter().zip(&other.0).all(same)
    }
}

impl Eq for Counters {}

impl fmt::Debug for Counters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Counters").field(&self.0.len()).finish()
    }
}

impl Serialize for Counters {
    /// Serialises the present values.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.read().serialize(serializer)
    }
}

/// Reads the lines of `/proc/net/dev` of these devices: sixteen numbers each, eight of each direction, of which the
/// first four are bytes, packets, errors and drops.
fn parse(text: &str, names: &[String]) -> Vec<TrafficCounters> {
    let of_line = |line: &str| {
        let (name, numbers) = line.split_once(':')?;
        let name = names.iter().find(|it| *it == name.trim())?;
        let numbers: Vec<u64> = numbers.split_whitespace().map_while(|number| number.parse().ok()).collect();
        let (received, sent) = (numbers.get(..4)?, numbers.get(8..12)?);
        let traffic = |numbers: &[u64]| Traffic { packets: numbers[1], bytes: numbers[0] };
        let counters = TrafficCounters::new(name, traffic(sent), traffic(received))
            .dropped("receive_errors", received[2])
            .dropped("receive_dropped", received[3])
            .dropped("send_errors", sent[2])
            .dropped("send_dropped", sent[3]);
        Some(counters)
    };
    text.lines().filter_map(of_line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEV: &str = "Inter-|   Receive                                                |  Transmit\n \
        face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed\n    \
        lo:     100       1    0    0    0     0          0         0      100       1    0    0    0     0       0          0\n\
        flannel.1: 2000      20    1    2    0     0          0         0     3000      30    3    4    0     0       0          0\n\
        broken: 1 2\n";

    #[test]
    fn the_kernels_numbers_are_found_by_name() {
        let names = ["flannel.1", "gone", "broken"].map(str::to_owned);
        let want = TrafficCounters::new("flannel.1", Traffic::new(30, 3000), Traffic::new(20, 2000))
            .dropped("receive_errors", 1)
            .dropped("receive_dropped", 2)
            .dropped("send_errors", 3)
            .dropped("send_dropped", 4);
        assert_eq!(parse(DEV, &names), [want]);
    }

    #[test]
    fn the_text_form_has_the_values_of_the_moment_and_equality_has_none() {
        use std::sync::atomic::{AtomicU64, Ordering};

        let sent = Arc::new(AtomicU64::new(1));
        let counted = Arc::clone(&sent);
        let counters = Counters::new(move || {
            let sent = Traffic::new(counted.load(Ordering::Relaxed), 0);
            vec![
                TrafficCounters::new("udp", sent, Traffic::default())
                    .dropped("no_route", 7)
                    .dropped("group", 0),
            ]
        });
        let both =
            counters.clone().and(Counters::of_devices(Netns::current().unwrap(), vec!["lo".to_owned()]));
        let text = |counters: &Counters| serde_json::to_string(counters).unwrap();
        let before = text(&counters);
        assert_eq!(
            before,
            r#"[{"of":"udp","sent":{"packets":1,"bytes":0},"received":{"packets":0,"bytes":0},"dropped":[{"reason":"no_route","packets":7}]}]"#
        );
        sent.store(2, Ordering::Relaxed);
        assert_ne!(text(&counters), before);
        assert_eq!(counters, counters.clone());
        assert_ne!(counters, both);
        let of: Vec<_> = both.read().into_iter().map(|counters| counters.of).collect();
        assert_eq!(of, ["udp", "lo"]);
    }
}
