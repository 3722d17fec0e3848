//! What the process uses, by the names that Prometheus' client libraries have for it. A program with several agents has it once.

use std::fs;
use std::time::{Duration, SystemTime};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;

use crate::catalogue::process as all;
use crate::output::{Output, Written};

/// Metrics of the process: a collector for a registry of `prometheus_client`. What `/proc` does not say is left out.
#[derive(Debug, Clone, Copy, Default)]
#[non_exhaustive]
pub struct ProcessMetrics;

impl Collector for ProcessMetrics {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> Written {
        let out = &mut Output(encoder);
        let read = |file: &str| fs::read_to_string(format!("/proc/{file}")).unwrap_or_default();
        if let Some(stat) = Stat::parse(&read("self/stat")) {
            out.seconds(&all::CPU, stat.cpu)?;
            out.value(&all::RESIDENT, stat.resident_pages * rustix::param::page_size() as u64)?;
            out.value(&all::VIRTUAL, stat.virtual_bytes)?;
            let start = boot_time(&read("stat")).map(|boot| boot + stat.start);
            let start = start.and_then(|start| start.duration_since(SystemTime::UNIX_EPOCH).ok());
            out.values(&all::START, start.map(|start| ([], start.as_secs_f64())))?;
        }
        // The folder itself is open while it is read.
        let open = fs::read_dir("/proc/self/fd").map(|list| list.count().saturating_sub(1) as u64);
        out.values(&all::OPEN_FDS, open.ok().map(|open| ([], open)))?;
        out.values(&all::MAX_FDS, descriptor_limit(&read("self/limits")).map(|limit| ([], limit)))
    }
}

/// What `/proc/<pid>/stat` says (proc(5)).
#[derive(Debug, PartialEq)]
struct Stat {
    /// Processor time in user and kernel mode.
    cpu: Duration,
    /// When the process started, since boot.
    start: Duration,
    virtual_bytes: u64,
    resident_pages: u64,
}

impl Stat {
    fn parse(text: &str) -> Option<Self> {
        // The name of the program is in parentheses and may have any characters. The field after it is the third.
        let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
        let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
        let ticks = |count: u64| {
            Duration::from_secs_f64(count as f64 / rustix::param::clock_ticks_per_second() as f64)
        };
        Some(Self {
            cpu: ticks(field(14)? + field(15)?),
            start: ticks(field(22)?),
            virtual_bytes: field(23)?,
            resident_pages: field(24)?,
        })
    }
}

/// When the host was booted, from `/proc/stat`.
fn boot_time(stat: &str) -> Option<SystemTime> {
    let seconds = stat.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()?;
    SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds))
}

/// The soft limit of open files, from `/proc/<pid>/limits`; `None` if there is none.
fn descriptor_limit(limits: &str) -> Option<u64> {
    limits
        .lines()
        .find_map(|line| line.strip_prefix("Max open files"))?
        .split_whitespace()
        .next()?
        .parse()
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_numbers_are_read_by_their_places() {
        let ticks = rustix::param::clock_ticks_per_second();
        let text = format!(
            "7 (a b) c) S 1 7 7 0 -1 4194560 99 0 0 0 {} {} 3 4 20 0 3 0 {} 12345678 200 18446744073709551615\n",
            2 * ticks,
            ticks,
            5 * ticks
        );
        let seconds = Duration::from_secs;
        let want =
            Stat { cpu: seconds(3), start: seconds(5), virtual_bytes: 12_345_678, resident_pages: 200 };
        assert_eq!(Stat::parse(&text), Some(want));
        assert_eq!(Stat::parse("7 (x) S 1"), None);
        assert_eq!(boot_time("cpu 1\nbtime 100\n"), Some(SystemTime::UNIX_EPOCH + seconds(100)));
        let limits = "Limit                     Soft Limit           Hard Limit\n\
                      Max open files            1024                 4096                 files\n";
        assert_eq!(descriptor_limit(limits), Some(1024));
        assert_eq!(descriptor_limit("Max open files            unlimited            unlimited"), None);
    }
}
