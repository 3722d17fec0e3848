//! Makes reports of the counters: lines for the status, and sometimes a line for the log. Pure; the time is an
//! argument.

use std::collections::HashMap;
use std::fmt::Write;
use std::net::IpAddr;
use std::time::Duration;

use tokio::time::Instant;

use super::table::MOST_STRANGERS;
use super::{Mode, Tunnels};
use crate::netlink::nftables::Counted;

/// How many sources are named at once.
const NAMED: usize = 5;
/// The shortest time between two log lines, and the longest after which a source that continues is named again.
const QUIET: Duration = Duration::from_secs(60);
const AGAIN: Duration = Duration::from_secs(3600);

/// The origin of packets that do not belong here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Origin {
    /// A host on the underlay that is not a node.
    Stranger(IpAddr),
    /// Packets out of the overlay, from the first address to the second, which is not on this node.
    Stray(IpAddr, IpAddr),
}

/// What was counted in the last ten minutes.
#[derive(Debug, Default)]
pub(super) struct Sightings {
    told: HashMap<Origin, Instant>,
    quiet_until: Option<Instant>,
}

/// A report.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Report {
    /// For the status: the content of the counters.
    pub(super) lines: Vec<String>,
    /// For the log: what is new; `None` if nothing is, or if the last line is too recent.
    pub(super) news: Option<String>,
}

impl Sightings {
    /// Processes a reading of the counters.
    pub(super) fn read(
        &mut self,
        strangers: &[Counted],
        strays: &[Counted],
        tunnels: &Tunnels,
        mode: Mode,
        now: Instant,
    ) -> Report {
        let fate = if mode == Mode::Enforce { "dropped" } else { "let in, since the mode is observe" };
        let mut origins: Vec<(Origin, u64)> =
            strangers.iter().map(|it| (Origin::Stranger(it.addr), it.packets)).collect();
        origins.sort_by_key(|(_, packets)| std::cmp::Reverse(*packets));
        let mut report = Report::default();
        let line = |origin: Origin, packets: u64| text(origin, packets, tunnels, fate);
        report.lines.extend(origins.iter().take(NAMED).map(|(origin, packets)| line(*origin, *packets)));
        report.lines.extend(more(origins.len(), "sources without a lease"));
        let mut leaving: Vec<(Origin, u64)> =
            strays.iter().filter_map(|it| Some((Origin::Stray(it.addr, it.other?), it.packets))).collect();
        leaving.sort_by_key(|(_, packets)| std::cmp::Reverse(*packets));
        report.lines.extend(leaving.iter().take(NAMED).map(|(origin, packets)| line(*origin, *packets)));
        report.lines.extend(more(leaving.len(), "pairs of addresses"));
        origins.append(&mut leaving);
        report.news = self.news(&origins, line, now);
        report
    }

    fn news(
        &mut self,
        origins: &[(Origin, u64)],
        line: impl Fn(Origin, u64) -> String,
        now: Instant,
    ) -> Option<String> {
        self.told.retain(|_, told| now < *told + AGAIN);
        if self.quiet_until.is_some_and(|until| now < until) {
            return None;
        }
        let new: Vec<_> = origins.iter().filter(|(origin, _)| !self.told.contains_key(origin)).collect();
        let (origin, packets) = new.first()?;
        let others = new.len() - 1;
        let mut news = line(*origin, *packets);
        if others > 0 {
            _ = write!(news, "; {others} more are new, which the status names");
        }
        self.told.extend(new.iter().map(|(origin, _)| (*origin, now)));
        self.quiet_until = Some(now + QUIET);
        Some(news)
    }
}

fn text(origin: Origin, packets: u64, tunnels: &Tunnels, fate: &str) -> String {
    let Tunnels { vni, port, .. } = tunnels;
    match origin {
        Origin::Stranger(addr) => format!(
            "{addr} has no lease and sent {packets} VXLAN packets (UDP port {port}, VNI {vni}) in the last minutes, \
             {fate}; if it is a node, let it publish the address that its packets leave by (--public-ip there), or \
             accept them here (--vxlan-allow-from={addr}/{})",
            if addr.is_ipv4() { 32 } else { 128 }
        ),
        Origin::Stray(src, dst) => format!(
            "{packets} packets from {src} for {dst} came out of the overlay in the last minutes, which is not in this \
             node's subnet, {fate}; a node forwards only to its own pods, so a route of another node leads here"
        ),
    }
}

/// A line for the sources that are not named.
fn more(count: usize, what: &str) -> Option<String> {
    let full = if count >= MOST_STRANGERS as usize { " or more" } else { "" };
    (count > NAMED).then(|| format!("and {} {what}{full}, in the same way", count - NAMED))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addr::{PerFamily, Vni};

    fn tunnels() -> Tunnels {
        Tunnels {
            vni: Vni::new(1).unwrap(),
            port: 8472,
            devices: PerFamily { v4: Some("flannel.1".to_owned()), v6: None },
            links: PerFamily::default(),
            subnets: PerFamily { v4: Some("10.1.7.0/24".parse().unwrap()), v6: None },
        }
    }

    fn from(addr: &str, packets: u64) -> Counted {
        Counted { addr: addr.parse().unwrap(), other: None, packets }
    }

    #[test]
    fn strangers_are_named_with_number_and_remedy() {
        let (mut sightings, now) = (Sightings::default(), Instant::now());
        let report = sightings.read(&[from("192.0.2.99", 12)], &[], &tunnels(), Mode::Observe, now);
        let line = "192.0.2.99 has no lease and sent 12 VXLAN packets (UDP port 8472, VNI 1) in the last minutes, let \
                    in, since the mode is observe; if it is a node, let it publish the address that its packets leave \
                    by (--public-ip there), or accept them here (--vxlan-allow-from=192.0.2.99/32)";
        assert_eq!(report.lines, [line]);
        assert_eq!(report.news.as_deref(), Some(line));
    }

    #[test]
    fn what_others_make_many_is_bounded_in_status_and_log() {
        let (mut sightings, now) = (Sightings::default(), Instant::now());
        let many: Vec<Counted> =
            (0..1024_u32).map(|n| from(&format!("198.18.{}.{}", n / 256, n % 256), u64::from(n))).collect();
        let mut read = |strangers: &[Counted], at: u64| {
            let at = now + Duration::from_secs(at);
            sightings.read(strangers, &[], &tunnels(), Mode::Enforce, at)
        };
        let report = read(&many, 0);
        assert_eq!(report.lines.len(), NAMED + 1);
        assert!(
            report.lines[0].starts_with("198.18.3.255 has no lease and sent 1023 "),
            "{:?}",
            report.lines
        );
        assert_eq!(report.lines[NAMED], "and 1019 sources without a lease or more, in the same way");
        assert!(report.news.unwrap().ends_with("; 1023 more are new, which the status names"));
        // A new one within the minute waits; those that were told are not told again within the hour.
        let one_more = [many.as_slice(), &[from("192.0.2.1", 1)]].concat();
        assert_eq!(read(&one_more, 30).news, None);
        assert!(read(&one_more, 61).news.unwrap().starts_with("192.0.2.1 "));
        assert_eq!(read(&one_more, 3599).news, None);
        assert!(read(&one_more, 3600).news.is_some());
    }

    #[test]
    fn strays_are_named_with_both_ends() {
        let (mut sightings, now) = (Sightings::default(), Instant::now());
        let stray = Counted { other: Some("169.254.169.254".parse().unwrap()), ..from("10.1.9.2", 3) };
        let report = sightings.read(&[], &[stray], &tunnels(), Mode::Enforce, now);
        assert!(
            report.lines[0]
                .starts_with("3 packets from 10.1.9.2 for 169.254.169.254 came out of the overlay"),
            "{report:?}"
        );
        assert!(report.lines[0].contains(", dropped; "), "{report:?}");
    }
}
