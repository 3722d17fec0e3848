//! Who used the CPUs meanwhile.

use std::time::Instant;

use nix::sys::resource::{UsageWho, getrusage};

/// A moment's readings.
pub struct Cpu {
    at: Instant,
    /// Seconds of this process and of children that have been waited for.
    own: f64,
    /// Seconds in interrupts, and in everything but idling.
    interrupts: f64,
    busy: f64,
}

impl Cpu {
    pub fn now() -> Self {
        let seconds = |who| {
            let usage = getrusage(who).expect("it is there");
            let time = |value: nix::sys::time::TimeVal| value.tv_sec() as f64 + value.tv_usec() as f64 / 1e6;
            time(usage.user_time()) + time(usage.system_time())
        };
        let text = std::fs::read_to_string("/proc/stat").expect("it is there");
        let line = text.lines().next().unwrap_or_default();
        let fields: Vec<f64> = line
            .split_whitespace()
            .skip(1)
            .filter_map(|field| field.parse::<f64>().ok())
            .map(|t| t / 100.0)
            .collect();
        let interrupts = fields[5] + fields[6];
        Self {
            at: Instant::now(),
            own: seconds(UsageWho::RUSAGE_SELF) + seconds(UsageWho::RUSAGE_CHILDREN),
            interrupts,
            busy: fields[0] + fields[1] + fields[2] + interrupts,
        }
    }

    /// Our CPU seconds, interrupts included, and others' share of all CPUs.
    pub fn since(&self) -> (f64, f64) {
        let now = Self::now();
        let own = now.own - self.own + now.interrupts - self.interrupts;
        let cpus = std::thread::available_parallelism().map_or(1.0, |count| count.get() as f64);
        let all = (now.at - self.at).as_secs_f64() * cpus;
        (own, ((now.busy - self.busy - own) / all).max(0.0))
    }
}
