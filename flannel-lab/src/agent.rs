//! A long-running process of the lab: a node's agent, a store, or any other.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use crate::netns::Netns;
use crate::wait::wait_for;
use crate::{LabError, exec, sandbox};

/// How much of its log an agent shows when something went wrong.
const LAST_LINES: usize = 60;
/// How long [`Agent::terminate`] waits.
const TERMINATION: Duration = Duration::from_secs(10);

/// What to start, and where.
#[derive(Debug, Clone)]
pub struct AgentBuilder {
    name: String,
    program: PathBuf,
    args: Vec<OsString>,
    env: Vec<(OsString, OsString)>,
    netns: Option<Netns>,
}

impl AgentBuilder {
    /// A program and the name it goes by in the lab.
    pub fn new(name: &str, program: impl AsRef<Path>) -> Self {
        let program = program.as_ref().to_owned();
        Self { name: name.to_owned(), program, args: Vec::new(), env: Vec::new(), netns: None }
    }

    /// Adds an argument.
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.args.push(arg.as_ref().to_owned());
        self
    }

    /// Adds arguments.
    pub fn args<S: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        self.args.extend(args.into_iter().map(|arg| arg.as_ref().to_owned()));
        self
    }

    /// Sets an environment variable, besides those inherited.
    pub fn env(mut self, key: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.env.push((key.as_ref().to_owned(), value.as_ref().to_owned()));
        self
    }

    /// The namespace to run in; ours unless told.
    pub fn netns(mut self, netns: &Netns) -> Self {
        self.netns = Some(netns.clone());
        self
    }

    /// Starts it. Whether it is of any use yet is for the `wait_` methods to say.
    pub fn start(&self) -> Result<Agent, LabError> {
        let program = exec::find(&self.program)?;
        let dir = sandbox::state_dir(&self.name)?;
        let log = dir.path().join("log");
        let what = || LabError::io(format!("the log file {}", log.display()));
        let file = File::create(&log).map_err(what())?;
        let mut command = match &self.netns {
            Some(netns) => netns.command(program),
            None => Command::new(program),
        };
        command
            .args(&self.args)
            .envs(self.env.iter().map(|(key, value)| (key, value)))
            .stdin(Stdio::null())
            .stdout(file.try_clone().map_err(what())?)
            .stderr(file)
            // Ctrl-C is for the program that holds the terminal; it ends its agents as it likes.
            .process_group(0);
        let line = exec::describe(&command);
        let child = command.spawn().map_err(|source| LabError::Spawn { command: line, source })?;
        let pid = child.id();
        Ok(Agent { name: self.name.clone(), pid, child: Mutex::new(child), log, _dir: dir })
    }
}

/// A running process. Killed when dropped; if that happens in a panic, the end of its log is shown.
#[derive(Debug)]
pub struct Agent {
    name: String,
    pid: u32,
    child: Mutex<Child>,
    log: PathBuf,
    _dir: TempDir,
}

impl Agent {
    /// Its name in the lab.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its process id, as seen from here.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// The file that its output goes to, stdout and stderr together.
    pub fn log_path(&self) -> &Path {
        &self.log
    }

    /// Everything it wrote so far, stdout and stderr together.
    pub fn log(&self) -> String {
        let bytes = fs::read(&self.log).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// The end of its log.
    pub fn last_lines(&self) -> String {
        let log = self.log();
        let lines = log.lines().collect::<Vec<_>>();
        lines[lines.len().saturating_sub(LAST_LINES)..].join("\n")
    }

    /// How it ended, `None` while it runs. A paused process runs.
    pub fn exit_status(&self) -> Option<ExitStatus> {
        self.child().try_wait().ok().flatten()
    }

    /// Whether it still runs.
    pub fn is_running(&self) -> bool {
        self.exit_status().is_none()
    }

    /// Waits until the file is there, such as `subnet.env`. Fails at once if the process ends.
    pub fn wait_until_ready(&self, file: &Path, deadline: Duration) -> Result<(), LabError> {
        let what = format!("{} to write {}", self.name, file.display());
        self.wait_while_running(deadline, &what, || file.exists())
    }

    /// Waits until the log has the text in it. Fails at once if the process ends without.
    pub fn wait_for_log(&self, text: &str, deadline: Duration) -> Result<(), LabError> {
        let what = format!("{} to log {text:?}", self.name);
        self.wait_while_running(deadline, &what, || self.log().contains(text))
    }

    /// Waits until the condition holds. Fails at once if the process ends without.
    pub fn wait_while_running(
        &self,
        deadline: Duration,
        what: &str,
        mut is_so: impl FnMut() -> bool,
    ) -> Result<(), LabError> {
        let waited = wait_for(deadline, what, || {
            // In this order: what it did just before its end counts.
            let ended = self.exit_status();
            if is_so() { Ok(Ok(())) } else { ended.map(Err).ok_or_else(|| self.last_lines()) }
        });
        let ended = |status| LabError::Ended { name: self.name.clone(), status, log: self.last_lines() };
        waited?.map_err(ended)
    }

    /// Asks it to end (SIGTERM) and waits for that, 10 s at most.
    pub fn terminate(&self) -> Result<ExitStatus, LabError> {
        self.signal(Signal::SIGTERM)?;
        self.wait(TERMINATION)
    }

    /// Ends it at once (SIGKILL), paused or not, and waits for that.
    pub fn kill(&self) -> Result<ExitStatus, LabError> {
        let what = || LabError::io(format!("killing {}", self.name));
        let mut child = self.child();
        child.kill().map_err(what())?;
        child.wait().map_err(what())
    }

    /// Waits for it to end by itself.
    pub fn wait(&self, deadline: Duration) -> Result<ExitStatus, LabError> {
        let what = format!("{} to end", self.name);
        wait_for(deadline, &what, || self.exit_status().ok_or_else(|| self.last_lines()))
    }

    /// Stops it where it is (SIGSTOP): its sockets stay open and nobody answers.
    ///
    /// Waits until every thread stands still; one that is at work takes a moment to.
    pub fn pause(&self) -> Result<(), LabError> {
        self.signal(Signal::SIGSTOP)?;
        let what = format!("all threads of {} to stop", self.name);
        wait_for(TERMINATION, &what, || self.is_paused())
    }

    fn is_paused(&self) -> bool {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.pid));
        let mut tasks = tasks.into_iter().flatten().flatten();
        tasks.all(|task| {
            let stat = fs::read_to_string(task.path().join("stat")).unwrap_or_default();
            stat.rsplit_once(") ").is_none_or(|(_, fields)| fields.starts_with('T'))
        })
    }

    /// Lets it go on after a pause.
    pub fn resume(&self) -> Result<(), LabError> {
        self.signal(Signal::SIGCONT)
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) -> Result<(), LabError> {
        let what = format!("sending {signal} to {}", self.name);
        // Under the lock nobody can reap it, so the pid can't mean another process meanwhile.
        let mut child = self.child();
        if let Ok(Some(status)) = child.try_wait() {
            drop(child);
            let log = self.last_lines();
            return Err(LabError::Ended { name: self.name.clone(), status, log });
        }
        let pid = i32::try_from(self.pid).expect("a pid fits");
        kill(Pid::from_raw(pid), signal).map_err(LabError::io(what))
    }

    /// Processor time it has used, in user and kernel mode; to 10 ms.
    pub fn cpu_time(&self) -> Result<Duration, LabError> {
        let stat = self.proc_file("stat")?;
        cpu_time(&stat).ok_or_else(|| LabError::unexpected("/proc/<pid>/stat", stat))
    }

    /// Memory it has resident, in bytes.
    pub fn rss(&self) -> Result<u64, LabError> {
        let status = self.proc_file("status")?;
        memory(&status, "VmRSS:").ok_or_else(|| LabError::unexpected("VmRSS in /proc/<pid>/status", status))
    }

    /// The most memory that it had resident so far, in bytes.
    pub fn peak_rss(&self) -> Result<u64, LabError> {
        let status = self.proc_file("status")?;
        memory(&status, "VmHWM:").ok_or_else(|| LabError::unexpected("VmHWM in /proc/<pid>/status", status))
    }

    /// How many descriptors it has open.
    pub fn descriptors(&self) -> Result<usize, LabError> {
        let path = format!("/proc/{}/fd", self.pid);
        let list = fs::read_dir(&path).map_err(LabError::io(format!("{path} of {}", self.name)))?;
        Ok(list.count())
    }

    fn proc_file(&self, file: &str) -> Result<String, LabError> {
        let path = format!("/proc/{}/{file}", self.pid);
        fs::read_to_string(&path).map_err(LabError::io(format!("{path} of {}", self.name)))
    }

    fn child(&self) -> MutexGuard<'_, Child> {
        self.child.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        if thread::panicking() {
            let status = self.exit_status().map_or("running".to_owned(), |status| status.to_string());
            eprintln!("--- {} ({status}), the end of its log:\n{}", self.name, self.last_lines());
        }
        let _ = self.kill();
    }
}

/// utime and stime are fields 14 and 15 of `stat`, in ticks of 10 ms (proc(5)): `USER_HZ` is 100.
/// The name, field 2, is in parentheses and may hold anything.
fn cpu_time(stat: &str) -> Option<Duration> {
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_whitespace().skip(11);
    let mut ticks = || fields.next()?.parse::<u64>().ok();
    Some(Duration::from_millis((ticks()? + ticks()?) * 10))
}

fn memory(status: &str, field: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(field))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proc_files_are_read() {
        let stat = "7 (a) b) S 1 7 7 0 -1 4194560 100 0 0 0 12 30 0 0 20 0 1 0 100 1 1";
        assert_eq!(cpu_time(stat), Some(Duration::from_millis(420)));
        assert_eq!(memory("VmHWM:\t  20 kB\nVmRSS:\t  16 kB\n", "VmRSS:"), Some(16384));
        assert_eq!(memory("VmHWM:\t  20 kB\n", "VmRSS:"), None);
    }

    #[test]
    fn a_process_is_started_watched_and_ended() {
        let script = "echo up; trap 'echo bye; exit 4' TERM; while :; do sleep 0.01; done";
        let agent = AgentBuilder::new("sh", "sh").args(["-c", script]).start().unwrap();
        agent.wait_for_log("up", Duration::from_secs(5)).unwrap();
        assert!(agent.is_running() && agent.rss().unwrap() > 0 && agent.descriptors().unwrap() >= 3);
        agent.cpu_time().unwrap();
        assert_eq!(agent.terminate().unwrap().code(), Some(4));
        assert!(!agent.is_running() && agent.log().contains("bye"));
        assert!(matches!(agent.pause(), Err(LabError::Ended { .. })));
    }

    #[test]
    fn an_early_end_is_an_error_with_the_log() {
        let agent = AgentBuilder::new("sh", "sh").args(["-c", "echo oh no; exit 1"]).start().unwrap();
        let ready = agent.wait_until_ready(Path::new("/no/such"), Duration::from_secs(5));
        assert!(ready.unwrap_err().to_string().contains("oh no"));
    }
}
