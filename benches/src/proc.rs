//! What `/proc` knows of a process.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::time::Duration;

use crate::Fallible;

/// What the threads of a process had used at some moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Activity {
    threads: BTreeMap<OsString, Used>,
}

/// What a thread has used, or a process in some time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Used {
    /// Processor time, to the nanosecond (`schedstat`).
    pub cpu: Duration,
    /// How often a thread went to sleep: as often as it was woken.
    pub switches: u64,
}

impl Activity {
    /// What has been used since an earlier moment. What a thread used that has ended meanwhile is not known.
    pub fn since(&self, earlier: &Self) -> Used {
        self.threads.iter().fold(Used::default(), |sum, (thread, now)| {
            let then = earlier.threads.get(thread).copied().unwrap_or_default();
            Used {
                cpu: sum.cpu + now.cpu.saturating_sub(then.cpu),
                switches: sum.switches + now.switches.saturating_sub(then.switches),
            }
        })
    }
}

/// What the threads of a process have used so far.
pub fn activity(pid: u32) -> Fallible<Activity> {
    let mut activity = Activity::default();
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        let task = task?;
        let files = ["schedstat", "status"].map(|file| fs::read_to_string(task.path().join(file)));
        // A thread may end in this moment; what it used counts no more.
        let [Ok(schedstat), Ok(status)] = files else { continue };
        let nanos = schedstat.split_whitespace().next().ok_or("an empty schedstat")?;
        let cpu = Duration::from_nanos(nanos.parse()?);
        let used = Used { cpu, switches: field(&status, "voluntary_ctxt_switches:")? };
        activity.threads.insert(task.file_name(), used);
    }
    Ok(activity)
}

/// The most memory a process has had resident, in bytes (`VmHWM`).
pub fn peak_memory(pid: u32) -> Fallible<u64> {
    Ok(field(&fs::read_to_string(format!("/proc/{pid}/status"))?, "VmHWM:")? * 1024)
}

/// Memory it has resident that is its own, in bytes: `RssAnon`. The rest are pages of files, the program's foremost, which the
/// kernel keeps once for all that use them and drops when others need the room.
pub fn own_memory(pid: u32) -> Fallible<u64> {
    Ok(field(&fs::read_to_string(format!("/proc/{pid}/status"))?, "RssAnon:")? * 1024)
}

fn field(status: &str, name: &str) -> Fallible<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    let value = line.and_then(|line| line.split_whitespace().next());
    Ok(value.ok_or_else(|| format!("no {name}"))?.parse()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_active() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let pid = child.id();
        // It goes to sleep at some time, having used some time.
        let used = |activity: Activity| activity.since(&Activity::default());
        while !activity(pid).map(used).is_ok_and(|used| used.switches > 0 && !used.cpu.is_zero()) {
            std::thread::sleep(Duration::from_millis(1));
        }
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(activity(pid).is_err());
        assert!(field("Name:\tx\n", "VmHWM:").is_err());
    }

    #[test]
    fn memory_of_a_process_is_counted() {
        // The kernel's counts may lag by some pages for each processor, so only much memory is compared.
        const HELD: usize = 64 << 20;
        let held = std::hint::black_box(vec![1_u8; HELD]);
        let me = std::process::id();
        for bytes in [own_memory(me).unwrap(), peak_memory(me).unwrap()] {
            assert!(bytes > HELD as u64 / 4 * 3, "{bytes} of {}", held.len());
        }
    }
}
