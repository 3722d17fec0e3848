//! The one table of commands besides the agent itself: it drives parsing, usage and `docs/flags.md`.

use super::flags::{FLAGS, Flag, Kind};

/// What a command does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Task {
    /// Removes what the agent left on this host.
    Cleanup,
    /// Installs the CNI plugin.
    InstallCni,
    /// Writes options for Docker.
    DockerOpts,
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
pub(crate) const SUBCOMMANDS: &[Subcommand] = &[CLEANUP, INSTALL_CNI, DOCKER_OPTS];

const CLEANUP: Subcommand = Subcommand {
    task: Task::Cleanup,
    name: "cleanup",
    summary: "remove what the agent left on this host",
    about: "Removes devices, routes, firewall rules and files of the agent from this host, once it has stopped, and\n\
            prints each as a command that would do the same. What nothing proves to be the agent's stays. Give the\n\
            flags that the agent was started with, if they are among these.\n",
    own: &[
        own("dry-run", Kind::Bool, "false", "", "print the commands, and do nothing"),
        own("lease", Kind::Bool, "false", "", "remove this node's lease from the store, too"),
    ],
    shared: &[
        "store",
        "local-store-allow-shared",
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
        "kube-subnet-mgr",
        "kube-api-url",
        "kube-annotation-prefix",
        "kubeconfig-file",
        "net-config-path",
        "log-format",
        "v",
        "vmodule",
    ],
};

const INSTALL_CNI: Subcommand = Subcommand {
    task: Task::InstallCni,
    name: "install-cni",
    summary: "install the CNI plugin and its conflist for container runtimes",
    about: "Copies the plugin `flannel` and a conflist to where container runtimes look, each in one step. What was\n\
            there before is kept beside it, and comes back with --undo.\n",
    own: &[
        own("plugin", Kind::Text, "", "FILE", "plugin to copy; the file flannel beside flanneld by default"),
        own("plugin-dir", Kind::Text, "/opt/cni/bin", "DIR", "where runtimes look for plugins"),
        own("conf", Kind::Text, "", "FILE", "conflist to copy; flannel and portmap by default"),
        own("conf-dir", Kind::Text, "/etc/cni/net.d", "DIR", "where runtimes look for configs"),
        own("conf-name", Kind::Text, "10-flannel.conflist", "NAME", "name of the conflist there"),
        own("only", Kind::Text, "", "plugin|conf", "leave the other alone; both by default"),
        own(
            "undo",
            Kind::Bool,
            "false",
            "",
            "take away what was installed, and put back what was there before",
        ),
    ],
    shared: &[],
};

const DOCKER_OPTS: Subcommand = Subcommand {
    task: Task::DockerOpts,
    name: "docker-opts",
    summary: "write options of the Docker daemon, as mk-docker-opts.sh does",
    about: "Reads the subnet file and writes variables for the Docker daemon, with the options and the output of\n\
            mk-docker-opts.sh, and those for IPv6. Variables that begin with DOCKER_OPT_ join in.\n",
    own: &[
        own("f", Kind::Text, "/run/flannel/subnet.env", "FILE", "the subnet file"),
        own("d", Kind::Text, "/run/docker_opts.env", "FILE", "the file to write"),
        own(
            "i",
            Kind::Bool,
            "false",
            "",
            "write each option as a variable, such as DOCKER_OPT_MTU; both without -i and -c",
        ),
        own("c", Kind::Bool, "false", "", "write all options in one variable"),
        own("k", Kind::Text, "DOCKER_OPTS", "NAME", "the name of that variable"),
        own("m", Kind::Bool, "false", "", "leave out --ip-masq, for old versions of Docker"),
    ],
    shared: &[],
};

/// A flag that only one command has.
const fn own(
    name: &'static str,
    kind: Kind,
    default: &'static str,
    value: &'static str,
    help: &'static str,
) -> Flag {
    Flag::new(name, kind, default, value, help).without_variable()
}
