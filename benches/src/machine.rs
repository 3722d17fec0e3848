//! The share of the processor that others use, from `/proc/stat`.

use std::fs;
use std::time::{Duration, Instant};

/// A stretch of time on this machine.
#[derive(Debug)]
pub struct Watch {
    start: Instant,
    busy: Duration,
    softirq: Duration,
}

/// What a stretch of time cost.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Usage {
    /// How long it took.
    pub elapsed: Duration,
    /// Processor time that was used on all cores.
    pub busy: Duration,
    /// The part of it in soft interrupts, which belongs to no process.
    pub softirq: Duration,
}

impl Watch {
    /// Starts to watch.
    pub fn start() -> Self {
        let (busy, softirq) = cpu();
        Self { start: Instant::now(), busy, softirq }
    }

    /// What was used since.
    pub fn stop(self) -> Usage {
        let (busy, softirq) = cpu();
        Usage {
            elapsed: self.start.elapsed(),
            busy: busy.saturating_sub(self.busy),
            softirq: softirq.saturating_sub(self.softirq),
        }
    }
}

impl Usage {
    /// The share of all cores, 0 to 1, that neither `ours` (processor time of our own processes) nor soft
    /// interrupts account for.
    pub fn foreign(&self, ours: Duration) -> f64 {
        let cores = std::thread::available_parallelism().map_or(1.0, |cores| cores.get() as f64);
        let foreign = self.busy.saturating_sub(ours + self.softirq);
        foreign.as_secs_f64() / (self.elapsed.as_secs_f64() * cores)
    }
}

/// Busy time and soft interrupt time of all cores since the boot (proc(5), `/proc/stat`, ticks of 10 ms).
fn cpu() -> (Duration, Duration) {
    let stat = fs::read_to_string("/proc/stat").unwrap_or_default();
    let fields: Vec<u64> = (stat.lines().next().unwrap_or_default().split_whitespace().skip(1))
        .filter_map(|field| field.parse().ok())
        .collect();
    let tick = |at: usize| Duration::from_millis(fields.get(at).copied().unwrap_or(0) * 10);
    // user, nice, system, idle, iowait, irq, softirq
    (tick(0) + tick(1) + tick(2) + tick(5) + tick(6), tick(6))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_shows() {
        let watch = Watch::start();
        let start = Instant::now();
        while start.elapsed() < Duration::from_millis(100) {
            std::hint::spin_loop();
        }
        let usage = watch.stop();
        assert!(usage.busy >= Duration::from_millis(50), "{usage:?}");
        assert!(usage.foreign(usage.busy) < 1e-9);
    }
}
