//! The one table of commands besides the agent itself: it drives parsing, usage and `docs/flags.md`.

use super::flags::{FLAGS, Flag, Kind};

/// What a command does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Task {
    /// Removes what the agent left on this host.
    Cleanup,
}

/// A command.
#[derive(Debug)]
pub(crate) struct Subcommand {
    /// What it does.
    pub(crate) task: Task,
    /// The first argument.
    pub(crate) name: &'static str,
    /// What it does, in a line.
    pub(crate) summary: &'static str,
    /// What an operator should know before, in lines.
    pub(crate) about: &'static str,
    /// The flags that it has alone. They have no variables: a host's environment is the agent's.
    own: &'static [Flag],
    /// The flags of the agent that it takes, by name.
    shared: &'static [&'static str],
}

impl Subcommand {
    /// All its flags: its own, then the agent's in their order.
    pub(crate) fn flags(&self) -> Vec<&'static Flag> {
        let shared = FLAGS.iter().filter(|flag| self.shared.contains(&flag.name));
        self.own.iter().chain(shared).collect()
    }
}

/// Finds a command by name.
pub(crate) fn find(name: &str) -> Option<&'static Subcommand> {
    SUBCOMMANDS.iter().find(|subcommand| subcommand.name == name)
}

/// All commands.
pub(crate) const SUBCOMMANDS: &[Subcommand] = &[Subcommand {
    task: Task::Cleanup,
    name: "cleanup",
    summary: "remove what the agent left on this host",
    about: "Removes devices, routes, firewall rules and files of the agent from this host, once it has stopped, and\n\
            prints each as a command that would do the same. What nothing proves to be the agent's stays. Give the\n\
            flags that the agent was started with, if they are among these.\n",
    own: &[
        Flag::new("dry-run", Kind::Bool, "false", "", "print the commands, and do nothing")
            .without_variable(),
        Flag::new("lease", Kind::Bool, "false", "", "remove this node's lease from the store, too")
            .without_variable(),
    ],
    shared: &[
        "store",
        "etcd-endpoints",
        "etcd-prefix",
        "etcd-keyfile",
        "etcd-certfile",
        "etcd-cafile",
        "etcd-username",
        "etcd-password",
        "subnet-file",
        "state-file",
        "public-ip",
        "public-ipv6",
        "log-format",
        "v",
        "vmodule",
    ],
}];
