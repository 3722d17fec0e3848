//! The processes that are agents, flannel's in Rust or in Go, by what `/proc` says.

use std::path::PathBuf;

use crate::host::Files;

/// The names of the program of both, without what Go's container image adds.
const PROGRAM: &str = "flanneld";
/// Where an agent writes its subnets unless it is told.
const SUBNET_FILE: &str = "/run/flannel/subnet.env";

/// A running agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct AgentProcess {
    pub(crate) pid: u32,
    /// The subnet file that its command line names.
    pub(crate) subnet_file: PathBuf,
    /// Its effective capabilities, if they can be read.
    pub(crate) capabilities: Option<u64>,
}

/// Finds the agents of this thread's network namespace. An agent that is two processes (PID 1 of a container and its
/// child) counts once.
pub(crate) fn find(files: &Files) -> Vec<AgentProcess> {
    let here = files.target("/proc/thread-self/ns/net");
    let names = files.names("/proc");
    let pids = names.iter().filter_map(|name| name.to_str()?.parse::<u32>().ok());
    let candidates = pids.filter_map(|pid| {
        let folder = format!("/proc/{pid}");
        let command = files.text(format!("{folder}/cmdline")).ok()?;
        let subnet_file = agent_of(&command)?;
        let there = files.target(format!("{folder}/ns/net"));
        // A namespace that can't be read may be this one.
        let is_here = here.is_none() || there.is_none() || here == there;
        let status = files.text(format!("{folder}/status")).unwrap_or_default();
        let parent: u32 = field(&status, "PPid").and_then(|pid| pid.parse().ok()).unwrap_or_default();
        is_here.then_some((AgentProcess { pid, subnet_file, capabilities: capabilities(&status) }, parent))
    });
    let candidates: Vec<_> = candidates.collect();
    let is_parent = |pid| candidates.iter().any(|(_, parent)| *parent == pid);
    candidates.iter().filter(|(agent, _)| !is_parent(agent.pid)).map(|(agent, _)| agent.clone()).collect()
}

/// The subnet file of the agent with this command line; `None` if it is none. `flanneld` with a word behind it is a
/// command, not an agent.
fn agent_of(command: &str) -> Option<PathBuf> {
    let mut words = command.split('\0');
    let program = words.next()?.rsplit('/').next()?;
    let words: Vec<_> = words.filter(|word| !word.is_empty()).collect();
    let is_agent = program == PROGRAM && words.first().is_none_or(|first| first.starts_with('-'));
    let flag = |word: &str| word.trim_start_matches('-') == "subnet-file";
    let after = |index: usize| words.get(index + 1).copied();
    let file = words.iter().enumerate().find_map(|(index, word)| match word.split_once('=') {
        Some((name, value)) => flag(name).then_some(value),
        None => flag(word).then(|| after(index)).flatten(),
    });
    is_agent.then(|| file.unwrap_or(SUBNET_FILE).into())
}

/// A field of `/proc/PID/status`.
fn field<'a>(status: &'a str, name: &str) -> Option<&'a str> {
    status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim)
}

/// The effective capabilities in `/proc/PID/status`.
pub(crate) fn capabilities(status: &str) -> Option<u64> {
    u64::from_str_radix(field(status, "CapEff")?, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn command_lines_of_agents() {
        for (command, want) in [
            ("/usr/bin/flanneld\0", Some(SUBNET_FILE)),
            ("flanneld\0-v=1\0--subnet-file\0/a/b\0", Some("/a/b")),
            ("/opt/bin/flanneld\0-subnet-file=/c\0-ip-masq\0", Some("/c")),
            ("flanneld\0doctor\0--subnet-file=/c\0", None),
            ("/usr/bin/vi\0flanneld\0", None),
            ("", None),
        ] {
            assert_eq!(agent_of(command), want.map(PathBuf::from), "{command:?}");
        }
        let status = "Name:\tflanneld\nPPid:\t7\nCapEff:\t0000000000003000\n";
        assert_eq!((field(status, "PPid"), capabilities(status)), (Some("7"), Some(0x3000)));
    }
}
