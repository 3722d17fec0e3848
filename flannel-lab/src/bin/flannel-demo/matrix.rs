//! Pings from every pod to every other, and the table made of them.

use std::thread;
use std::time::Duration;

use flannel_lab::LabError;
use flannel_lab::ping::{PingOptions, PingReport, ping};

use crate::Fallible;
use crate::lab::{Lab, family_name};
use crate::table::{Align, median, table, time};

/// Echoes from a pod to another.
const COUNT: u64 = 10;
/// With more nodes than this the table wouldn't fit.
const LARGEST_TABLE: usize = 10;

/// One way between two pods.
#[derive(Debug, Clone)]
pub(crate) struct Cell {
    from: u8,
    to: u8,
    sent: u64,
    lost: u64,
    median: Option<Duration>,
    error: Option<String>,
}

impl Cell {
    fn new(from: u8, to: u8, report: PingReport) -> Self {
        let median = report.rtt.map(|rtt| rtt.median);
        Self { from, to, sent: report.sent, lost: report.lost, median, error: report.last_error }
    }

    fn show(&self) -> String {
        let percent = (self.lost * 100).div_ceil(self.sent.max(1));
        match self.median {
            Some(median) => format!("{percent}% {}", median.as_micros()),
            None => format!("{percent}%"),
        }
    }
}

/// All ways in one family.
#[derive(Debug)]
pub(crate) struct Matrix {
    v6: bool,
    packet: u32,
    cells: Vec<Cell>,
}

impl Matrix {
    /// Pings with packets of the full overlay MTU that must not be fragmented.
    ///
    /// In round `i` every pod pings the one `i` places after it, so that each sends and answers once.
    pub(crate) fn measure(lab: &Lab, v6: bool) -> Fallible<Self> {
        let numbers = lab.pods.keys().copied().collect::<Vec<_>>();
        let mut cells = Vec::new();
        for round in 1..numbers.len() {
            let pairs = numbers.iter().zip(numbers.iter().cycle().skip(round));
            let reports = thread::scope(|scope| {
                let pings = pairs.map(|(from, to)| scope.spawn(move || cell(lab, *from, *to, v6)));
                // All of them are to run before the first is waited for.
                #[expect(clippy::needless_collect)]
                let pings = pings.collect::<Vec<_>>();
                pings.into_iter().map(|ping| ping.join().expect("a ping doesn't panic")).collect::<Vec<_>>()
            });
            for report in reports {
                cells.push(report?);
            }
        }
        cells.sort_by_key(|cell| (cell.from, cell.to));
        let packet = lab.envs.values().map(|env| env.mtu).min().unwrap_or_default();
        Ok(Self { v6, packet, cells })
    }

    /// Whether every pod reached every other, without a loss.
    pub(crate) fn is_complete(&self) -> bool {
        self.cells.iter().all(|cell| cell.lost == 0 && cell.sent > 0)
    }

    /// What it is about, and how it went.
    pub(crate) fn headline(&self) -> String {
        let lost = self.cells.iter().map(|cell| cell.lost).sum::<u64>();
        let sent = self.cells.iter().map(|cell| cell.sent).sum::<u64>();
        let (family, packet) = (family_name(self.v6), self.packet);
        format!("{family}, {packet}-byte packets, not to be fragmented: {lost} of {sent} lost")
    }

    /// Loss and median RTT of every way, or a summary of many.
    pub(crate) fn show(&self) -> String {
        let mut numbers = self.cells.iter().map(|cell| cell.from).collect::<Vec<_>>();
        numbers.dedup();
        if numbers.len() > LARGEST_TABLE {
            return self.summary();
        }
        let names = numbers.iter().map(|number| format!("node{number}")).collect::<Vec<_>>();
        let header = std::iter::once(("from \\ to", Align::Left));
        let header = header.chain(names.iter().map(|name| (name.as_str(), Align::Right)));
        let rows = numbers.iter().map(|from| {
            let cells = numbers.iter().map(|to| {
                let cell = self.cells.iter().find(|cell| (cell.from, cell.to) == (*from, *to));
                cell.map_or_else(|| "-".to_owned(), Cell::show)
            });
            std::iter::once(format!("node{from}")).chain(cells).collect()
        });
        let text = table(&header.collect::<Vec<_>>(), &rows.collect::<Vec<_>>());
        let text = format!("{text}\n(loss, and median RTT in microseconds)");
        [text].into_iter().chain(self.problems()).collect::<Vec<_>>().join("\n")
    }

    fn summary(&self) -> String {
        let medians = self.cells.iter().filter_map(|cell| cell.median).collect::<Vec<_>>();
        let [min, max] = [medians.iter().min(), medians.iter().max()];
        let [min, max] = [min, max].map(|rtt| time(rtt.copied().unwrap_or_default()));
        let text = format!(
            "{} ways between pods; median RTT of a way: {min} to {max}, mostly {}",
            self.cells.len(),
            time(median(&medians)),
        );
        [text].into_iter().chain(self.problems()).collect::<Vec<_>>().join("\n")
    }

    fn problems(&self) -> impl Iterator<Item = String> {
        self.cells.iter().filter(|cell| cell.lost > 0).take(10).map(|cell| {
            let Cell { from, to, sent, lost, error, .. } = cell;
            let error = error.as_deref().map_or_else(String::new, |error| format!(" ({error})"));
            format!("node{from} to node{to}: {lost} of {sent} lost{error}")
        })
    }
}

fn cell(lab: &Lab, from: u8, to: u8, v6: bool) -> Result<Cell, LabError> {
    let dst = lab.pod_address(to, v6);
    let dst = dst.ok_or_else(|| LabError::Invalid(format!("the pod of node{to} has no address")))?;
    let options = PingOptions {
        count: COUNT,
        interval: Duration::from_millis(5),
        payload_size: payload(lab.envs[&from].mtu, v6),
        dont_fragment: true,
        ..PingOptions::default()
    };
    Ok(Cell::new(from, to, ping(lab.pods[&from].netns(), dst, options)?))
}

/// The echo payload that fills a packet of `mtu` bytes: the rest are the IP and the ICMP header.
fn payload(mtu: u32, v6: bool) -> usize {
    let headers = if v6 { 40 + 8 } else { 20 + 8 };
    usize::try_from(mtu.saturating_sub(headers)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matrix(nodes: u8, lost: u64) -> Matrix {
        let pairs = (1..=nodes).flat_map(|from| (1..=nodes).map(move |to| (from, to)));
        let cells = pairs.filter(|(from, to)| from != to).map(|(from, to)| {
            let median = Some(Duration::from_micros(85)).filter(|_| lost < COUNT);
            Cell { from, to, sent: COUNT, lost, median, error: Some("no route".into()) }
        });
        Matrix { v6: false, packet: 1450, cells: cells.collect() }
    }

    #[test]
    fn ten_nodes_fit_on_a_hundred_columns() {
        let text = matrix(10, 0).show();
        assert_eq!(text.lines().count(), 12);
        assert!(text.lines().all(|line| line.chars().count() <= 92), "{text}");
        assert!(text.contains("0% 85"), "{text}");
        assert!(matrix(10, 0).is_complete());
    }

    #[test]
    fn more_nodes_are_summed_up() {
        let text = matrix(11, 0).show();
        assert_eq!(text, "110 ways between pods; median RTT of a way: 85 µs to 85 µs, mostly 85 µs");
    }

    #[test]
    fn losses_are_named() {
        let matrix = matrix(2, 10);
        assert!(!matrix.is_complete());
        let text = matrix.show();
        assert!(text.contains("100%") && text.contains("node1 to node2: 10 of 10 lost (no route)"), "{text}");
        assert!(matrix.headline().ends_with("20 of 20 lost"));
    }

    #[test]
    fn a_payload_fills_its_packet() {
        assert_eq!((payload(1450, false), payload(1430, true), payload(0, true)), (1422, 1382, 0));
    }
}
