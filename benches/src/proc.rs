//! What `/proc` knows of a process.

use std::fs;
use std::time::Duration;

use crate::Fallible;

/// What a process has used so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Activity {
    /// Processor time of all its threads, to the nanosecond (`schedstat`).
    pub cpu: Duration,
    /// How often one of them went to sleep: as often as it was woken.
    pub switches: u64,
}

/// What the threads of a process have used so far.
pub fn activity(pid: u32) -> Fallible<Activity> {
    let mut sum = Activity { cpu: Duration::ZERO, switches: 0 };
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        let task = task?.path();
        let files = ["schedstat", "status"].map(|file| fs::read_to_string(task.join(file)));
        // A thread may end in this moment; what it used counts no more.
        let [Ok(schedstat), Ok(status)] = files else { continue };
        let nanos = schedstat.split_whitespace().next().ok_or("an empty schedstat")?;
        sum.cpu += Duration::from_nanos(nanos.parse()?);
        sum.switches += field(&status, "voluntary_ctxt_switches:")?;
    }
    Ok(sum)
}

/// The most memory a process has had resident, in bytes (`VmHWM`).
pub fn peak_memory(pid: u32) -> Fallible<u64> {
    Ok(field(&fs::read_to_string(format!("/proc/{pid}/status"))?, "VmHWM:")? * 1024)
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
        while !activity(pid).is_ok_and(|activity| activity.switches > 0 && !activity.cpu.is_zero()) {
            std::thread::sleep(Duration::from_millis(1));
        }
        assert!(peak_memory(pid).unwrap() > 0);
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(activity(pid).is_err());
        assert!(field("Name:\tx\n", "VmHWM:").is_err());
    }
}
