//! The processes that are agents, flannel's in Rust or in Go, by what `/proc` says.

use std::path::PathBuf;

use flannel_core::agent::state_file_of;

use crate::host::Files;

/// The names of the program of both, without what Go's container image adds.
const PROGRAM: &str = "flanneld";
/// Where an agent writes its subnets unless it is told.
const SUBNET_FILE: &str = "/run/flannel/subnet.env";

/// A running agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct AgentProcess {
    pub(crate) pid: u32,
    /// The subnet file that its command line or environment names.
    pub(crate) subnet_file: PathBuf,
    /// Its state file.
    pub(crate) state_file: PathBuf,
    /// Whether it is known to be in this network namespace: of processes of other users only root may know it.
    pub(crate) is_here: bool,
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
        // Nobody but root and its own user may read the environment.
        let environment = files.text(format!("{folder}/environ")).unwrap_or_default();
        let (subnet_file, state_file) = agent_of(&command, &environment)?;
        // Relative paths begin at the agent's own working directory.
        let working = files.target(format!("{folder}/cwd")).unwrap_or_else(|| "/".into());
        let (subnet_file, state_file) = (working.join(subnet_file), working.join(state_file));
        let there = files.target(format!("{folder}/ns/net"));
        // A namespace that can't be read may be this one.
        let is_elsewhere = here.is_some() && there.is_some() && here != there;
        let is_here = here.is_none() || here == there;
        let status = files.text(format!("{folder}/status")).unwrap_or_default();
        let parent: u32 = field(&status, "PPid").and_then(|pid| pid.parse().ok()).unwrap_or_default();
        let capabilities = capabilities(&status);
        let agent = AgentProcess { pid, subnet_file, state_file, is_here, capabilities };
        (!is_elsewhere).then_some((agent, parent))
    });
    let candidates: Vec<_> = candidates.collect();
    let is_parent = |pid| candidates.iter().any(|(_, parent)| *parent == pid);
    candidates.iter().filter(|(agent, _)| !is_parent(agent.pid)).map(|(agent, _)| agent.clone()).collect()
}

/// The subnet file and the state file of the agent with this command line and environment; `None` if it is none.
/// `flanneld` with a word behind it is a command, not an agent.
fn agent_of(command: &str, environment: &str) -> Option<(PathBuf, PathBuf)> {
    let mut words = command.split('\0');
    let program = words.next()?.rsplit('/').next()?;
    let words: Vec<_> = words.filter(|word| !word.is_empty()).collect();
    let is_agent = program == PROGRAM && words.first().is_none_or(|first| first.starts_with('-'));
    let after = |index: usize| words.get(index + 1).copied();
    let given = |flag: &str| {
        let is_it = |word: &str| word.starts_with('-') && word.trim_start_matches('-') == flag;
        words.iter().enumerate().find_map(|(index, word)| match word.split_once('=') {
            Some((name, value)) => is_it(name).then_some(value),
            None => is_it(word).then(|| after(index)).flatten(),
        })
    };
    let variable = |name: &str| {
        let value = environment.split('\0').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='));
        value.filter(|value| !value.is_empty())
    };
    let subnet_file: PathBuf =
        given("subnet-file").or_else(|| variable("FLANNELD_SUBNET_FILE")).unwrap_or(SUBNET_FILE).into();
    let state_file = given("state-file").or_else(|| variable("FLANNELD_STATE_FILE")).map(PathBuf::from);
    let state_file = state_file.unwrap_or_else(|| state_file_of(&subnet_file));
    is_agent.then_some((subnet_file, state_file))
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
        let none = "PATH=/bin\0FLANNELD_SUBNET_FILE=\0";
        let both = "FLANNELD_SUBNET_FILE=/e\0FLANNELD_STATE_FILE=/s\0";
        for (command, environment, want) in [
            ("/usr/bin/flanneld\0", none, Some((SUBNET_FILE, "/run/flannel/subnet.env.state"))),
            ("/usr/bin/flanneld\0", both, Some(("/e", "/s"))),
            ("flanneld\0-v=1\0--subnet-file\0/a/b\0", both, Some(("/a/b", "/s"))),
            ("/opt/bin/flanneld\0-subnet-file=/c\0-ip-masq\0", none, Some(("/c", "/c.state"))),
            ("flanneld\0--subnet-file=/c\0--state-file=/d\0", both, Some(("/c", "/d"))),
            ("flanneld\0doctor\0--subnet-file=/c\0", none, None),
            ("/usr/bin/vi\0flanneld\0", none, None),
            ("", none, None),
        ] {
            let want = want.map(|(subnet, state)| (PathBuf::from(subnet), PathBuf::from(state)));
            assert_eq!(agent_of(command, environment), want, "{command:?}");
        }
        let status = "Name:\tflanneld\nPPid:\t7\nCapEff:\t0000000000003000\n";
        assert_eq!((field(status, "PPid"), capabilities(status)), (Some("7"), Some(0x3000)));
    }
}
