//! The flags: parsing, `--help` and `docs/flags.md` are made from these types.
//!
//! A doc comment on a field is what an operator reads of the flag.
// Operators read them as plain text.
#![allow(clippy::doc_markdown)]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::str::FromStr as _;
use std::time::Duration;

use clap::{Args, CommandFactory as _, Parser, Subcommand};
use flannel_backend_udp::Layout;
use flannel_backend_vxlan::{NextHopObjects, TxChecksum};
use flannel_backend_wireguard::Implementation;
use flannel_control::http::listen_address;
use flannel_control::log::ModuleLevel;
use flannel_control::show::Form;
use flannel_core::addr::Subnet;
use flannel_core::firewall::gate::Mode;
use flannel_core::probe::{ProbeInterval, ReadyPeers};
use flannel_core::secret::{Secret, ServerUrl};
use flannel_doctor::Check;
use flannel_flags::{Program, Words, as_in_go};

use super::value::{self, LogFormat, Maybe, Part, Store, Urls, VModules};

/// The whole command line.
#[derive(Debug, Parser)]
#[command(
    name = "flanneld",
    about = "flanneld: the agent of a container overlay network",
    override_usage = "flanneld [flags]\n       flanneld COMMAND [flags]",
    after_help = SYNTAX,
    disable_help_subcommand = true,
    args_override_self = true,
    next_line_help = true,
    term_width = 80
)]
pub(super) struct CommandLine {
    #[command(subcommand)]
    pub(super) task: Option<Task>,
    #[command(flatten)]
    pub(super) agent: Options,
    /// print the version to stderr and exit
    #[arg(long)]
    pub(super) version: bool,
}

// What flags are about: the headings of `--help`, in this order, and of the man pages.
const STORE: &str = "Store";
const ETCD: &str = "Store in etcd";
const KUBERNETES: &str = "Store in the Kubernetes API";
const FILES: &str = "Files";
const UNDERLAY: &str = "Underlay";
const LOG: &str = "Log";
const BACKEND: &str = "Backends";
const PROBES: &str = "Probes";
const FIREWALL: &str = "Firewall and routes";
const HEALTH: &str = "Health server";

const SYNTAX: &str = "Flags take one dash or two, and their value after \"=\" or a space; true and false only after \"=\".\n\
     A flag of the agent that is not given is read from FLANNELD_ and its name in capitals, such as\n\
     FLANNELD_ETCD_PREFIX.";

/// What flanneld can do besides being the agent. The flags that only one of these has are read from no variable: a
/// host's environment is the agent's.
#[derive(Debug, Subcommand)]
pub(crate) enum Task {
    /// remove what the agent left on this host
    ///
    /// Removes devices, routes, firewall rules and files of the agent from this host, once it has stopped, and prints
    /// each as a command that would do the same. What nothing proves to be the agent's stays. Give the flags that the
    /// agent was started with, if they are among these.
    #[command(after_help = SYNTAX)]
    Cleanup(Box<CleanupOptions>),
    /// show what the agent of this host knows: itself, and each peer
    ///
    /// Asks the agent that runs on this host, by the socket beside its subnet file. The exit status is 0 if pods can be
    /// started, 1 if not, 2 if no agent answers, and 3 if something else keeps it from telling, such as a wrong flag.
    #[command(after_help = SYNTAX)]
    Status(StatusOptions),
    /// show what happened to the agent of this host
    ///
    /// Asks the agent that runs on this host, by the socket beside its subnet file. The exit status is 2 if no agent
    /// answers, or the one that is followed ends, and 3 for other failures.
    #[command(after_help = SYNTAX)]
    Events(EventsOptions),
    /// examine this host, and say what keeps pods from reaching each other
    ///
    /// Checks kernel, firewall, tunnel, MTU, CNI, files, other programs of this host and the store, and says for each what
    /// was seen and the fix in one line. It changes nothing, and needs neither a running agent nor a store. Give the flags
    /// that the agent was started with, if they are among these. The exit status is 0 up to a note, 3 for a warning and 4
    /// for a failure.
    #[command(after_help = Check::list(SYNTAX), override_usage = "flanneld doctor [CHECK..] [flags]")]
    Doctor(Box<DoctorOptions>),
    /// show or set how much the agent of this host logs
    ///
    /// Asks the agent that runs on this host, by the socket beside its subnet file, and prints what it logs. What is set
    /// lasts until the agent ends. The exit status is 2 if no agent answers.
    #[command(after_help = SYNTAX, override_usage = "flanneld log-level [LEVEL] [flags]")]
    LogLevel(LogLevelOptions),
    /// change this node's WireGuard key
    ///
    /// Tells the agent that runs on this host, by the socket beside its subnet file, and prints what it does; flanneld status
    /// shows how far it is. The exit status is 2 if no agent answers, and 3 if the agent can't.
    #[command(after_help = SYNTAX)]
    RotateKey(RotateKeyOptions),
    /// install the CNI plugin and its conflist for container runtimes
    ///
    /// Copies the plugin flannel and a conflist to where container runtimes look, each in one step. What was there
    /// before is kept beside it, and comes back with --undo.
    InstallCni(InstallOptions),
    /// open what an agent of root left in /run to root's group
    ///
    /// For an agent that runs as a user in root's group, as in Kubernetes: gives the group access to /run/flannel with all in it
    /// and to /run/xtables.lock, or to the paths that are given. What belongs to others than root stays as it is.
    #[command(override_usage = "flanneld open-run [PATH..]")]
    OpenRun(OpenRunOptions),
    /// write options of the Docker daemon, as mk-docker-opts.sh does
    ///
    /// Reads the subnet file and writes variables for the Docker daemon, with the options and the output of
    /// mk-docker-opts.sh, and those for IPv6. Variables that begin with DOCKER_OPT_ join in.
    DockerOpts(DockerOptions),
}

/// The flags that the agent and `cleanup` share: whose state it is, where it is, and how to tell about it.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub(crate) struct Common {
    /// where leases are kept: "etcd", or "local:DIR" for a folder that all agents of the cluster share (several on one host, say)
    #[arg(long, help_heading = STORE, value_name = "STORE", default_value = "etcd", value_parser = value::store)]
    pub(crate) store: Store,
    /// use the folder of --store=local:DIR though others than root and this user can write there, who can redirect the
    /// traffic of all pods
    #[arg(long, help_heading = STORE)]
    pub(crate) local_store_allow_shared: bool,
    /// comma-separated etcd endpoints
    #[arg(long, help_heading = ETCD, value_name = "URLS", default_value = "http://127.0.0.1:4001,http://127.0.0.1:2379",
        value_parser = value::urls())]
    pub(crate) etcd_endpoints: Urls,
    /// prefix of all keys in etcd
    #[arg(long, help_heading = ETCD, value_name = "PREFIX", default_value = "/coreos.com/network", value_parser = value::prefix)]
    pub(crate) etcd_prefix: String,
    /// private key of the TLS client certificate for etcd
    #[arg(long, help_heading = ETCD, value_name = "FILE", value_parser = value::maybe_file)]
    pub(crate) etcd_keyfile: Maybe<PathBuf>,
    /// TLS client certificate for etcd
    #[arg(long, help_heading = ETCD, value_name = "FILE", value_parser = value::maybe_file)]
    pub(crate) etcd_certfile: Maybe<PathBuf>,
    /// CA certificates that etcd's certificate is checked against; works without a client certificate, too
    #[arg(long, help_heading = ETCD, value_name = "FILE", value_parser = value::maybe_file)]
    pub(crate) etcd_cafile: Maybe<PathBuf>,
    /// user name for etcd
    #[arg(long, help_heading = ETCD, value_name = "NAME")]
    pub(crate) etcd_username: String,
    /// password for etcd; better given by its variable, since command lines are public on a host
    #[arg(long, help_heading = ETCD, value_name = "PASSWORD")]
    pub(crate) etcd_password: Secret,
    /// take subnets from the Kubernetes API instead of etcd; the node is NODE_NAME, else that of the pod POD_NAMESPACE/POD_NAME
    #[arg(long, help_heading = KUBERNETES)]
    pub(crate) kube_subnet_mgr: bool,
    /// URL of the Kubernetes API server, in place of the kubeconfig's; alone for a server that asks for no credentials
    #[arg(long, help_heading = KUBERNETES, value_name = "URL", value_parser = value::url())]
    pub(crate) kube_api_url: Maybe<ServerUrl>,
    /// prefix of the annotations on Kubernetes nodes
    #[arg(long, help_heading = KUBERNETES, value_name = "PREFIX", default_value = "flannel.alpha.coreos.com")]
    pub(crate) kube_annotation_prefix: String,
    /// kubeconfig to reach the Kubernetes API with; without it and a URL the service account of the pod is used
    #[arg(long, help_heading = KUBERNETES, value_name = "FILE", value_parser = value::maybe_file)]
    pub(crate) kubeconfig_file: Maybe<PathBuf>,
    /// network config file with --kube-subnet-mgr, followed while the agent runs
    #[arg(long, help_heading = KUBERNETES, value_name = "FILE", default_value = "/etc/kube-flannel/net-conf.json", value_parser = value::maybe_file)]
    pub(crate) net_config_path: Maybe<PathBuf>,
    /// file to write this node's subnets and MTU to
    #[arg(long, help_heading = FILES, value_name = "FILE", default_value = "/run/flannel/subnet.env", value_parser = value::file)]
    pub(crate) subnet_file: PathBuf,
    /// file to remember config and leases in, best on a disk, so that a boot needs no store; by default the subnet file's
    /// name with .state behind it
    #[arg(long, help_heading = FILES, value_name = "FILE", value_parser = value::maybe_file)]
    pub(crate) state_file: Maybe<PathBuf>,
    /// IPv4 address published to other nodes
    #[arg(long, help_heading = UNDERLAY, value_name = "IPv4", value_parser = |text: &str| value::public_address::<Ipv4Addr>(text, "an IPv4 address"))]
    pub(crate) public_ip: Maybe<IpAddr>,
    /// IPv6 address published to other nodes
    #[arg(long, help_heading = UNDERLAY, value_name = "IPv6", value_parser = |text: &str| value::public_address::<Ipv6Addr>(text, "an IPv6 address"))]
    pub(crate) public_ipv6: Maybe<IpAddr>,
    /// form of the log on stderr
    #[arg(long, help_heading = LOG, value_name = "text|json", default_value = "text", value_parser = value::LOG_FORMAT)]
    pub(crate) log_format: LogFormat,
    /// verbosity of the log: 0 info, 1 to 3 debug, 4 and more trace
    #[arg(long = "v", help_heading = LOG, value_name = "N", default_value = "0", value_parser = value::int)]
    pub(crate) verbosity: i64,
    /// verbosity by module: a pattern (* and ?) names a crate, a module or a whole path such as flannel_core::netlink
    #[arg(long, help_heading = LOG, value_name = "PATTERN=N,..", value_parser = value::by(ModuleLevel::list))]
    pub(crate) vmodule: VModules,
}

/// The flags of the agent.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub(crate) struct Options {
    #[command(flatten)]
    pub(crate) common: Common,
    /// interface, by name or address, for traffic between nodes; can be repeated, the first that fits is taken
    #[arg(long, help_heading = UNDERLAY, value_name = "NAME|IP", value_parser = value::iface)]
    pub(crate) iface: Vec<String>,
    /// regular expression for that interface's address, else its name; can be repeated, tried after every --iface
    #[arg(long, help_heading = UNDERLAY, value_name = "REGEX", value_parser = value::iface_regex)]
    pub(crate) iface_regex: Vec<String>,
    /// take the interface that the kernel would use to reach this address; tried after --iface and --iface-regex
    #[arg(long, help_heading = UNDERLAY, value_name = "IP", value_parser = |text: &str| value::address::<IpAddr>(text, "an IP address"))]
    pub(crate) iface_can_reach: Maybe<IpAddr>,
    /// whether vxlan's routes go through next-hop objects where the kernel has them; off for plain routes, as Go writes them
    #[arg(long, help_heading = BACKEND, value_name = "auto|off", default_value = "auto", value_parser = value::NEXT_HOP_OBJECTS)]
    pub(crate) nexthop_objects: NextHopObjects,
    /// what vxlan does with packets from underlay addresses that no lease publishes, and with packets out of the overlay
    /// for other than this node: off, observe (count and name), enforce (drop, too)
    #[arg(long, help_heading = BACKEND, value_name = "off|observe|enforce", default_value = "observe", value_parser = value::MODE)]
    pub(crate) strict_underlay: Mode,
    /// with the vxlan backend, underlay addresses besides the published ones that --strict-underlay lets in; can be repeated
    #[arg(long, help_heading = BACKEND, value_name = "CIDR", value_parser = value::subnet)]
    pub(crate) vxlan_allow_from: Vec<Subnet>,
    /// threads of udp, and of each device of WireGuard in user space: 1 for both directions, 2 for one each, auto for a second
    /// one under load only
    #[arg(long, help_heading = BACKEND, value_name = "auto|1|2", default_value = "auto", value_parser = value::LAYOUT)]
    pub(crate) udp_threads: Layout,
    /// who encrypts for the wireguard backend: the kernel, this process (userspace), or auto for the kernel where it can
    #[arg(long, help_heading = BACKEND, value_name = "auto|kernel|userspace", default_value = "auto", value_parser = value::WIREGUARD)]
    pub(crate) wireguard: Implementation,
    /// change this node's WireGuard key after this time, such as 30d, without losing packets between nodes of ours; 0 for never
    #[arg(long, help_heading = BACKEND, value_name = "INTERVAL", default_value = "0", value_parser = value::interval)]
    pub(crate) wireguard_rotate: Maybe<Duration>,
    /// with the wireguard backend, this node is behind a NAT, and keeps its sessions open; where a public node sees it, it finds
    /// that out by itself
    #[arg(long, help_heading = BACKEND)]
    pub(crate) behind_nat: bool,
    /// with the wireguard backend, forward packets between nodes behind NATs that can't reach each other, which this node can
    /// read then
    #[arg(long, help_heading = BACKEND)]
    pub(crate) relay: bool,
    /// with the udp backend, underlay addresses besides the published ones from which datagrams are accepted; can be repeated
    #[arg(long, help_heading = BACKEND, value_name = "CIDR", value_parser = value::subnet)]
    pub(crate) udp_allow_from: Vec<Subnet>,
    /// whether vxlan's devices complete the checksums of pods' packets: keep (as they are), auto (no longer once probes have
    /// proven that they do it wrongly), off (the kernel always does)
    #[arg(long, help_heading = BACKEND, value_name = "auto|keep|off", default_value = "keep", value_parser = value::TX_CHECKSUM)]
    pub(crate) vxlan_tx_checksum: TxChecksum,
    /// how often each peer is probed, through the overlay and on the underlay: auto (once a second in a small cluster, more
    /// slowly in a large one), off, or a time such as 30s
    #[arg(long, help_heading = PROBES, value_name = "auto|off|INTERVAL", default_value = "auto", value_parser = value::by(ProbeInterval::from_str))]
    pub(crate) probe: ProbeInterval,
    /// not ready before this share of the peers known at the start answers through the overlay, or the time is over, such as
    /// 80%,60s
    #[arg(long, help_heading = PROBES, value_name = "P%,TIMEOUT", value_parser = value::ready_peers)]
    pub(crate) ready_peers: Maybe<ReadyPeers>,
    /// how long before its end the lease is renewed, 1 to 1439 minutes
    #[arg(long, help_heading = STORE, value_name = "MINUTES", default_value = "60", value_parser = value::minutes)]
    pub(crate) subnet_lease_renew_margin: Duration,
    /// masquerade traffic that leaves the overlay network
    #[arg(long, help_heading = FIREWALL)]
    pub(crate) ip_masq: bool,
    /// do not randomise source ports fully when masquerading
    #[arg(long, help_heading = FIREWALL)]
    pub(crate) ip_masq_fully_random_disable: bool,
    /// seconds between checks of the iptables rules
    #[arg(long, help_heading = FIREWALL, value_name = "SECONDS", default_value = "5", value_parser = value::seconds)]
    pub(crate) iptables_resync: Duration,
    /// accept forwarded traffic of the overlay network, by iptables or nftables
    #[arg(long, help_heading = FIREWALL, default_value = "true")]
    pub(crate) iptables_forward_rules: bool,
    /// keep a blackhole route for each of this node's subnets, so that packets to addresses that no pod has end here
    #[arg(long, help_heading = FIREWALL)]
    pub(crate) ip_blackhole_route: bool,
    /// keep the NetworkUnavailable condition of the Kubernetes node false once the network is up
    #[arg(long, help_heading = KUBERNETES, default_value = "true")]
    pub(crate) set_node_network_unavailable: bool,
    /// address that the health server listens on
    #[arg(long, help_heading = HEALTH, value_name = "IP", default_value = "0.0.0.0", value_parser = value::by(listen_address))]
    pub(crate) healthz_ip: String,
    /// port of the health server (/healthz, /readyz and /metrics); 0 for none
    #[arg(long, help_heading = HEALTH, value_name = "PORT", default_value = "0", value_parser = value::port)]
    pub(crate) healthz_port: u16,
    /// metrics for each peer, too, with its subnets and addresses, which everybody who can reach the health server may read
    #[arg(long, help_heading = HEALTH)]
    pub(crate) metrics_per_peer: bool,
    /// log a stack trace at this line (not supported by this version)
    #[arg(long = "log_backtrace_at", help_heading = LOG, value_name = "FILE:LINE")]
    pub(super) log_backtrace_at: String,
    /// Whether forward rules were asked for: without them on the host the agent then can't start.
    #[arg(skip)]
    pub(crate) requires_forward_rules: bool,
    /// The flags that differ from their defaults, with secrets hidden, for the log.
    #[arg(skip)]
    pub(crate) shown: String,
}

/// The flags of `flanneld cleanup`.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub(crate) struct CleanupOptions {
    /// print the commands, and do nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// remove this node's lease from the store, too
    #[arg(long)]
    pub(crate) lease: bool,
    #[command(flatten)]
    pub(crate) common: Common,
}

/// The flags of `flanneld status`.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub(crate) struct StatusOptions {
    /// the subnet file of the agent, beside which its socket is
    #[arg(long, value_name = "FILE", default_value = "/run/flannel/subnet.env", value_parser = value::file)]
    pub(crate) subnet_file: PathBuf,
    /// form of the answer: a table that fits the terminal, one with all columns, or the agent's JSON
    #[arg(long, value_name = "table|wide|json", default_value = "table", value_parser = value::STATUS_FORM)]
    pub(crate) output: Form,
    /// show the status again whenever it changes: in place on a terminal, where the next agent is awaited when this one ends,
    /// else one after the other
    #[arg(long)]
    pub(crate) watch: bool,
    /// one peer in detail, with the commands that show its kernel objects: a subnet, an address of a pod or a node, or a
    /// node's name
    #[arg(long, value_name = "SUBNET|IP|NAME")]
    pub(crate) peer: String,
    /// what differs between desired and observed state, as commands that can be pasted; the exit status is 1 if anything
    /// does, or could not be compared
    #[arg(long)]
    pub(crate) diff: bool,
}

/// The flags of `flanneld events`.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub(crate) struct EventsOptions {
    /// the subnet file of the agent, beside which its socket is
    #[arg(long, value_name = "FILE", default_value = "/run/flannel/subnet.env", value_parser = value::file)]
    pub(crate) subnet_file: PathBuf,
    /// form of the events: a line of text or a JSON object each
    #[arg(long, value_name = "text|json", default_value = "text", value_parser = value::EVENT_FORM)]
    pub(crate) output: Form,
    /// go on with what happens from now on
    #[arg(long)]
    pub(crate) follow: bool,
}

/// The flags of `flanneld doctor`.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub(crate) struct DoctorOptions {
    /// form of the report
    #[arg(long, value_name = "table|json", default_value = "table", value_parser = value::REPORT_FORM)]
    pub(crate) output: flannel_doctor::ReportForm,
    /// do only this check, or these, separated by commas; can be repeated, and given as words before all flags
    #[arg(long, value_name = "NAME,..", value_delimiter = ',', value_parser = value::CHECK)]
    pub(crate) check: Vec<&'static str>,
    /// also write what a bug report needs into this file, without secrets: the report, files of the agent, leases, what ip,
    /// bridge, nft and iptables-save show
    #[arg(long, value_name = "FILE.tar.gz", value_parser = value::maybe_file)]
    pub(crate) bundle: Maybe<PathBuf>,
    /// log file whose end goes into the bundle; can be repeated
    #[arg(long, value_name = "FILE", value_parser = value::file)]
    pub(crate) log: Vec<PathBuf>,
    /// folder that has the host's files, for a container where that is not its own root
    #[arg(long, value_name = "DIR", default_value = "/", value_parser = value::folder)]
    pub(crate) root: PathBuf,
    /// where runtimes look for CNI configs
    #[arg(long, value_name = "DIR", default_value = "/etc/cni/net.d", value_parser = value::folder)]
    pub(crate) conf_dir: PathBuf,
    /// where runtimes look for CNI plugins
    #[arg(long, value_name = "DIR", default_value = "/opt/cni/bin", value_parser = value::folder)]
    pub(crate) plugin_dir: PathBuf,
    #[command(flatten)]
    pub(crate) common: Common,
    /// Whether a flag or variable says where the store is.
    #[arg(skip)]
    pub(crate) names_store: bool,
    /// Whether one names etcd's servers; without, those are tried that etcd has had by default.
    #[arg(skip)]
    pub(crate) names_servers: bool,
    /// The flags that differ from their defaults, with secrets hidden, for the bundle.
    #[arg(skip)]
    pub(crate) shown: String,
}

/// The flags of `flanneld log-level`.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub(crate) struct LogLevelOptions {
    /// verbosity to set: info, debug, trace, or a number as of the agent's --v; as the first word it needs no --level before it
    #[arg(long, value_name = "info|debug|trace|N", value_parser = value::LEVEL)]
    pub(crate) level: Maybe<i64>,
    /// verbosity by module to set, as of the agent's --vmodule; empty for that of no module
    #[arg(long, value_name = "PATTERN=N,..", value_parser = value::by(ModuleLevel::list))]
    pub(crate) modules: VModules,
    /// the subnet file of the agent, beside which its socket is
    #[arg(long, value_name = "FILE", default_value = "/run/flannel/subnet.env", value_parser = value::file)]
    pub(crate) subnet_file: PathBuf,
    /// Whether verbosity by module was given, which may be none.
    #[arg(skip)]
    pub(crate) sets_modules: bool,
}

/// The flags of `flanneld rotate-key`.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub(crate) struct RotateKeyOptions {
    /// the subnet file of the agent, beside which its socket is
    #[arg(long, value_name = "FILE", default_value = "/run/flannel/subnet.env", value_parser = value::file)]
    pub(crate) subnet_file: PathBuf,
}

/// The flags of `flanneld install-cni`.
#[derive(Debug, Args)]
pub(crate) struct InstallOptions {
    /// plugin to copy; the file flannel beside flanneld by default
    #[arg(long, value_name = "FILE", value_parser = value::maybe_file)]
    pub(crate) plugin: Maybe<PathBuf>,
    /// where runtimes look for plugins
    #[arg(long, value_name = "DIR", default_value = "/opt/cni/bin", value_parser = value::folder)]
    pub(crate) plugin_dir: PathBuf,
    /// conflist to copy; flannel and portmap by default
    #[arg(long, value_name = "FILE", value_parser = value::maybe_file)]
    pub(crate) conf: Maybe<PathBuf>,
    /// where runtimes look for configs
    #[arg(long, value_name = "DIR", default_value = "/etc/cni/net.d", value_parser = value::folder)]
    pub(crate) conf_dir: PathBuf,
    /// name of the conflist there
    #[arg(long, value_name = "NAME", default_value = "10-flannel.conflist", value_parser = value::file_name)]
    pub(crate) conf_name: String,
    /// leave the other alone; both by default
    #[arg(long, value_name = "plugin|conf", value_parser = value::PART)]
    pub(crate) only: Maybe<Part>,
    /// take away what was installed, and put back what was there before
    #[arg(long)]
    pub(crate) undo: bool,
}

/// The flags of `flanneld open-run`.
#[derive(Debug, Args)]
pub(crate) struct OpenRunOptions {
    /// open this file, or this folder with all in it, in place of the usual ones; can be repeated, and given as words before all
    /// flags
    #[arg(long, value_name = "PATH", value_parser = value::file)]
    pub(crate) path: Vec<PathBuf>,
}

/// The flags of `flanneld docker-opts`, letters as `getopts` of a shell takes them.
#[derive(Debug, PartialEq, Eq, Args)]
pub(crate) struct DockerOptions {
    /// the subnet file
    #[arg(short, long, value_name = "FILE", default_value = "/run/flannel/subnet.env", value_parser = value::file)]
    pub(crate) f: PathBuf,
    /// the file to write
    #[arg(short, long, value_name = "FILE", default_value = "/run/docker_opts.env", value_parser = value::file)]
    pub(crate) d: PathBuf,
    /// write each option as a variable, such as DOCKER_OPT_MTU; both without -i and -c
    #[arg(short, long)]
    pub(crate) i: bool,
    /// write all options in one variable
    #[arg(short, long)]
    pub(crate) c: bool,
    /// the name of that variable
    #[arg(short, long, value_name = "NAME", default_value = "DOCKER_OPTS", value_parser = value::variable)]
    pub(crate) k: String,
    /// leave out --ip-masq, for old versions of Docker
    #[arg(short, long)]
    pub(crate) m: bool,
}

/// All of it, with what clap does not know of it.
pub(super) fn program() -> Program {
    Program::new(as_in_go(CommandLine::command()))
        .variables("FLANNELD_")
        // What subnet.env has.
        .mistaken_prefix("FLANNEL_")
        .passwords(&["etcd-password"])
        .users(&["etcd-username"])
        .urls(&["etcd-endpoints", "kube-api-url"])
        .words("doctor", Words::Leading("check"))
        .words("log-level", Words::First("level"))
        .words("open-run", Words::Leading("path"))
        .words("docker-opts", Words::Letters)
}
