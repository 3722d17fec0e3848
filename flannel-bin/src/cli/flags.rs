//! The one table of flags: it drives parsing, environment, usage and `docs/flags.md`.

/// What a flag's value is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Any text. The last one given counts.
    Text,
    /// Any text, as often as wanted.
    List,
    /// A number as Go reads it: `10`, `0x0a`, `1_000`.
    Int,
    /// True or false. On the command line the value needs a `=`; alone the flag means true.
    Bool,
}

/// What of a flag's value may be shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shown {
    /// The value, though never the user info of an URL that may be in it.
    Value,
    /// URLs, separated by commas, without user info.
    Urls,
    /// Nothing.
    Nothing,
}

/// A flag.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Flag {
    /// Its name, without dashes.
    pub(crate) name: &'static str,
    /// What its value is.
    pub(crate) kind: Kind,
    /// What it is when it is not given; empty for none.
    pub(crate) default: &'static str,
    /// What stands for the value in the usage text.
    pub(crate) value: &'static str,
    /// What it does.
    pub(crate) help: &'static str,
    /// What of its value may be shown.
    pub(crate) shown: Shown,
    /// What this version can't do: the flag is refused if it asks for that.
    pub(crate) missing: Option<&'static str>,
    /// Whether an environment variable sets it, too.
    has_variable: bool,
}

impl Flag {
    pub(super) const fn new(
        name: &'static str,
        kind: Kind,
        default: &'static str,
        value: &'static str,
        help: &'static str,
    ) -> Self {
        Self { name, kind, default, value, help, shown: Shown::Value, missing: None, has_variable: true }
    }

    const fn secret(mut self) -> Self {
        self.shown = Shown::Nothing;
        self
    }

    const fn urls(mut self) -> Self {
        self.shown = Shown::Urls;
        self
    }

    /// Whether the value may hold a password.
    pub(crate) fn is_delicate(&self) -> bool {
        self.shown != Shown::Value
    }

    pub(super) const fn without_variable(mut self) -> Self {
        self.has_variable = false;
        self
    }

    const fn missing(mut self, what: &'static str) -> Self {
        self.missing = Some(what);
        self
    }

    /// The environment variable that sets the flag where the command line does not.
    pub(crate) fn variable(&self) -> Option<String> {
        self.has_variable.then(|| format!("FLANNELD_{}", self.name.to_ascii_uppercase().replace('-', "_")))
    }
}

/// Finds a flag by name.
pub(crate) fn find(name: &str) -> Option<&'static Flag> {
    FLAGS.iter().find(|flag| flag.name == name)
}

/// All flags, in the order of the documents.
pub(crate) const FLAGS: &[Flag] = &[
    Flag::new(
        "store",
        Kind::Text,
        "etcd",
        "STORE",
        "where leases are kept: \"etcd\", or \"local:DIR\" for a folder that all agents of the cluster share (several on one host, say)",
    ),
    Flag::new(
        "local-store-allow-shared",
        Kind::Bool,
        "false",
        "",
        "use the folder of --store=local:DIR though others than root and this user can write there, who can redirect the traffic of all pods",
    ),
    Flag::new(
        "etcd-endpoints",
        Kind::Text,
        "http://127.0.0.1:4001,http://127.0.0.1:2379",
        "URLS",
        "comma-separated etcd endpoints",
    )
    .urls(),
    Flag::new("etcd-prefix", Kind::Text, "/coreos.com/network", "PREFIX", "prefix of all keys in etcd"),
    Flag::new("etcd-keyfile", Kind::Text, "", "FILE", "private key of the TLS client certificate for etcd"),
    Flag::new("etcd-certfile", Kind::Text, "", "FILE", "TLS client certificate for etcd"),
    Flag::new(
        "etcd-cafile",
        Kind::Text,
        "",
        "FILE",
        "CA certificates that etcd's certificate is checked against; works without a client certificate, too",
    ),
    Flag::new("etcd-username", Kind::Text, "", "NAME", "user name for etcd"),
    Flag::new(
        "etcd-password",
        Kind::Text,
        "",
        "PASSWORD",
        "password for etcd; better given by its variable, since command lines are public on a host",
    )
    .secret(),
    Flag::new(
        "iface",
        Kind::List,
        "",
        "NAME|IP",
        "interface, by name or address, for traffic between nodes; can be repeated, the first that fits is taken",
    ),
    Flag::new(
        "iface-regex",
        Kind::List,
        "",
        "REGEX",
        "regular expression for that interface's address, else its name; can be repeated, tried after every --iface",
    ),
    Flag::new(
        "iface-can-reach",
        Kind::Text,
        "",
        "IP",
        "take the interface that the kernel would use to reach this address; tried after --iface and --iface-regex",
    ),
    Flag::new(
        "subnet-file",
        Kind::Text,
        "/run/flannel/subnet.env",
        "FILE",
        "file to write this node's subnets and MTU to",
    ),
    Flag::new(
        "state-file",
        Kind::Text,
        "",
        "FILE",
        "file to remember config and leases in, best on a disk, so that a boot needs no store; <subnet-file>.state by default",
    ),
    Flag::new("public-ip", Kind::Text, "", "IPv4", "IPv4 address published to other nodes"),
    Flag::new("public-ipv6", Kind::Text, "", "IPv6", "IPv6 address published to other nodes"),
    Flag::new(
        "nexthop-objects",
        Kind::Text,
        "auto",
        "auto|off",
        "whether vxlan's routes go through next-hop objects where the kernel has them; off for plain routes, as Go writes them",
    ),
    Flag::new(
        "strict-underlay",
        Kind::Text,
        "observe",
        "off|observe|enforce",
        "what vxlan does with packets from underlay addresses that no lease publishes, and with packets out of the overlay for other than this node: off, observe (count and name), enforce (drop, too)",
    ),
    Flag::new(
        "vxlan-allow-from",
        Kind::List,
        "",
        "CIDR",
        "with the vxlan backend, underlay addresses besides the published ones that --strict-underlay lets in; can be repeated",
    ),
    Flag::new(
        "udp-threads",
        Kind::Text,
        "auto",
        "auto|1|2",
        "threads of the udp backend: 1 for both directions, 2 for one each, auto for a second one under load only",
    ),
    Flag::new(
        "udp-allow-from",
        Kind::List,
        "",
        "CIDR",
        "with the udp backend, underlay addresses besides the published ones from which datagrams are accepted; can be repeated",
    ),
    Flag::new(
        "subnet-lease-renew-margin",
        Kind::Int,
        "60",
        "MINUTES",
        "how long before its end the lease is renewed, 1 to 1439 minutes",
    ),
    Flag::new("ip-masq", Kind::Bool, "false", "", "masquerade traffic that leaves the overlay network"),
    Flag::new(
        "ip-masq-fully-random-disable",
        Kind::Bool,
        "false",
        "",
        "do not randomise source ports fully when masquerading",
    ),
    Flag::new(
        "kube-subnet-mgr",
        Kind::Bool,
        "false",
        "",
        "take subnets from the Kubernetes API instead of etcd; the node is NODE_NAME, else that of the pod POD_NAMESPACE/POD_NAME",
    ),
    Flag::new(
        "kube-api-url",
        Kind::Text,
        "",
        "URL",
        "URL of the Kubernetes API server, in place of the kubeconfig's; alone for a server that asks for no credentials",
    )
    .urls(),
    Flag::new(
        "kube-annotation-prefix",
        Kind::Text,
        "flannel.alpha.coreos.com",
        "PREFIX",
        "prefix of the annotations on Kubernetes nodes",
    ),
    Flag::new(
        "kubeconfig-file",
        Kind::Text,
        "",
        "FILE",
        "kubeconfig to reach the Kubernetes API with; without it and a URL the service account of the pod is used",
    ),
    // As upstream.
    Flag::new("version", Kind::Bool, "false", "", "print the version to stderr and exit").without_variable(),
    Flag::new("healthz-ip", Kind::Text, "0.0.0.0", "IP", "address that the health server listens on"),
    Flag::new(
        "healthz-port",
        Kind::Int,
        "0",
        "PORT",
        "port of the health server (/healthz and /readyz); 0 for none",
    ),
    Flag::new("iptables-resync", Kind::Int, "5", "SECONDS", "seconds between checks of the iptables rules"),
    Flag::new(
        "iptables-forward-rules",
        Kind::Bool,
        "true",
        "",
        "accept forwarded traffic of the overlay network, by iptables or nftables",
    ),
    Flag::new(
        "ip-blackhole-route",
        Kind::Bool,
        "false",
        "",
        "keep a blackhole route for each of this node's subnets, so that packets to addresses that no pod has end here",
    ),
    Flag::new(
        "net-config-path",
        Kind::Text,
        "/etc/kube-flannel/net-conf.json",
        "FILE",
        "network config file with --kube-subnet-mgr, followed while the agent runs",
    ),
    Flag::new(
        "set-node-network-unavailable",
        Kind::Bool,
        "true",
        "",
        "keep the NetworkUnavailable condition of the Kubernetes node false once the network is up",
    ),
    Flag::new("log-format", Kind::Text, "text", "text|json", "form of the log on stderr"),
    Flag::new("v", Kind::Int, "0", "N", "verbosity of the log: 0 info, 1 to 3 debug, 4 and more trace"),
    Flag::new(
        "vmodule",
        Kind::Text,
        "",
        "PATTERN=N,..",
        "verbosity by module: a pattern (* and ?) names a crate, a module or a whole path such as flannel_core::netlink",
    ),
    Flag::new("log_backtrace_at", Kind::Text, "", "FILE:LINE", "log a stack trace at this line")
        .missing("stack traces in the log"),
];
