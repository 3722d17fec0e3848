//! Flags as typed and checked options.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::time::Duration;

use flannel_backend_udp::{Layout, UdpOptions};
use flannel_backend_vxlan::NextHopObjects;
use flannel_core::addr::{PerFamily, Subnet};
use flannel_core::agent::{FirewallOptions, Forward, state_file_of};
use flannel_core::firewall::gate::{GateOptions, Mode};
use flannel_core::secret::{Secret, ServerUrl};

use super::args::{Given, parse_bool, parse_int};
use super::flags::{Flag, Kind, find};
use super::{CliError, Origin, shown};
use crate::docker_opts::DockerOptions;
use crate::install_cni::{InstallOptions, Part};
use crate::registry::BackendOptions;

/// Where leases are kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum StoreChoice {
    /// In etcd.
    Etcd,
    /// In a folder.
    Local(LocalFlags),
    /// With the Kubernetes API.
    Kube(KubeFlags),
}

/// The flags about the store in a folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LocalFlags {
    /// The folder.
    pub(crate) dir: PathBuf,
    /// Whether it may be one that others can write to.
    pub(crate) allow_shared: bool,
}

/// The flags about Kubernetes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct KubeFlags {
    /// URL of the API server, not yet checked.
    pub(crate) api_url: Option<ServerUrl>,
    /// Credentials and, without a URL, the server.
    pub(crate) kubeconfig: Option<PathBuf>,
    /// What the names of annotations begin with, not yet checked.
    pub(crate) annotation_prefix: String,
    /// The network config.
    pub(crate) net_config: PathBuf,
    /// Whether to set the condition `NetworkUnavailable` of the node.
    pub(crate) set_condition: bool,
}

/// The `--etcd-*` flags.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct EtcdFlags {
    /// URLs, not yet checked.
    pub(crate) endpoints: Vec<ServerUrl>,
    /// The prefix of all keys.
    pub(crate) prefix: String,
    /// The client's certificate and its key.
    pub(crate) identity: Option<(PathBuf, PathBuf)>,
    /// The CA certificates.
    pub(crate) ca_file: Option<PathBuf>,
    /// User name and password.
    pub(crate) user: Option<(String, Secret)>,
}

/// The form of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LogFormat {
    /// Lines for people.
    Text,
    /// A JSON object a line.
    Json,
}

/// One element of `--vmodule`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct VModule {
    /// A glob for a crate, a module, or a whole path.
    pub(crate) pattern: String,
    /// The verbosity.
    pub(crate) verbosity: i64,
}

/// Everything that can be said on the command line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Options {
    /// Where leases are kept.
    pub(crate) store: StoreChoice,
    /// How etcd is reached.
    pub(crate) etcd: EtcdFlags,
    /// Interfaces by name or address, in order.
    pub(crate) ifaces: Vec<String>,
    /// Interfaces by regular expression, tried after them.
    pub(crate) iface_regexes: Vec<String>,
    /// The interface that leads here, tried last.
    pub(crate) can_reach: Option<IpAddr>,
    /// Addresses to publish instead of the interface's.
    pub(crate) public_ips: PerFamily<IpAddr>,
    /// Where the subnet file goes.
    pub(crate) subnet_file: PathBuf,
    /// Where the state file goes.
    pub(crate) state_file: PathBuf,
    /// What the backends are to do on this node.
    pub(crate) backends: BackendOptions,
    /// Whether to keep blackhole routes for this node's own subnets.
    pub(crate) blackholes: bool,
    /// What firewall rules there are to be.
    pub(crate) rules: FirewallOptions,
    /// How long before its end the lease is renewed.
    pub(crate) renew_margin: Duration,
    /// Address and port of the health server; `None` for none.
    pub(crate) health: Option<(String, u16)>,
    /// The form of the log.
    pub(crate) log_format: LogFormat,
    /// The general verbosity of the log.
    pub(crate) verbosity: i64,
    /// Verbosities by module.
    pub(crate) vmodule: Vec<VModule>,
    /// The flags that differ from their defaults, with secrets hidden, for the log.
    pub(crate) shown: Vec<(&'static str, String)>,
}

impl Options {
    /// Checks what was given and fills in the defaults.
    pub(crate) fn from_given(given: &[Given]) -> Result<Self, CliError> {
        given.iter().try_for_each(check_support)?;
        let values = Values(given);
        let margin = values.int("subnet-lease-renew-margin");
        if !(1..=1439).contains(&margin) {
            return Err(values.bad("subnet-lease-renew-margin", "from 1 to 1439 minutes"));
        }
        let udp_layout = match values.text("udp-threads") {
            "auto" => Layout::Adaptive,
            "1" => Layout::OneThread,
            "2" => Layout::TwoThreads,
            _ => return Err(values.bad("udp-threads", "auto, 1 or 2")),
        };
        let resync = values.int("iptables-resync");
        let resync = u64::try_from(resync).ok().filter(|seconds| (1..=86_400).contains(seconds));
        let resync = resync.ok_or_else(|| values.bad("iptables-resync", "from 1 to 86400 seconds"))?;
        let port = values.int("healthz-port").max(0);
        let port = u16::try_from(port).map_err(|_| values.bad("healthz-port", "a port, 0 to 65535"))?;
        let subnet_file = values.path("subnet-file").ok_or_else(|| values.bad("subnet-file", "a path"))?;
        Ok(Self {
            store: values.store()?,
            etcd: values.etcd()?,
            ifaces: values.list("iface"),
            iface_regexes: values.list("iface-regex"),
            can_reach: values.address::<IpAddr>("iface-can-reach", "an IP address")?,
            public_ips: PerFamily {
                v4: values.address::<Ipv4Addr>("public-ip", "an IPv4 address")?,
                v6: values.address::<Ipv6Addr>("public-ipv6", "an IPv6 address")?,
            },
            state_file: values.path("state-file").unwrap_or_else(|| state_file_of(&subnet_file)),
            subnet_file,
            backends: BackendOptions {
                udp: UdpOptions::default().layout(udp_layout).allow_from(values.subnets("udp-allow-from")?),
                gate: GateOptions::new(match values.text("strict-underlay") {
                    "off" => Mode::Off,
                    "observe" => Mode::Observe,
                    "enforce" => Mode::Enforce,
                    _ => return Err(values.bad("strict-underlay", "off, observe or enforce")),
                })
                .allow_from(values.subnets("vxlan-allow-from")?),
                next_hop_objects: match values.text("nexthop-objects") {
                    "auto" => NextHopObjects::Auto,
                    "off" => NextHopObjects::Off,
                    _ => return Err(values.bad("nexthop-objects", "auto or off")),
                },
            },
            blackholes: values.boolean("ip-blackhole-route"),
            rules: FirewallOptions::default()
                .with_masquerade(values.boolean("ip-masq"))
                .with_random_ports(!values.boolean("ip-masq-fully-random-disable"))
                .with_forward(match values.last("iptables-forward-rules") {
                    _ if !values.boolean("iptables-forward-rules") => Forward::Off,
                    Some(_) => Forward::Required,
                    None => Forward::WherePossible,
                })
                .with_resync(Duration::from_secs(resync)),
            renew_margin: Duration::from_secs(margin.unsigned_abs() * 60),
            health: (port > 0).then(|| (values.text("healthz-ip").to_owned(), port)),
            log_format: match values.text("log-format") {
                "text" => LogFormat::Text,
                "json" => LogFormat::Json,
                _ => return Err(values.bad("log-format", "text or json")),
            },
            verbosity: values.int("v"),
            vmodule: values.vmodule()?,
            shown: values.shown(),
        })
    }
}

/// What `flanneld cleanup` is to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CleanupOptions {
    /// Whether to say only what would be done.
    pub(crate) dry_run: bool,
    /// Whether to remove the own lease from the store, too.
    pub(crate) lease: bool,
    /// What the agent was started with, as far as it matters.
    pub(crate) agent: Options,
}

impl CleanupOptions {
    /// Checks what was given and fills in the defaults.
    pub(crate) fn from_given(given: &[Given]) -> Result<Self, CliError> {
        let values = Values(given);
        let (dry_run, lease) = (values.is_set("dry-run"), values.is_set("lease"));
        Ok(Self { dry_run, lease, agent: Options::from_given(given)? })
    }
}

impl InstallOptions {
    /// Checks what was given and fills in the defaults.
    pub(crate) fn from_given(given: &[Given], flags: &[&'static Flag]) -> Result<Self, CliError> {
        let value = |name| value_of(given, flags, name);
        let path = |name| Some(value(name)).filter(|path| !path.is_empty()).map(PathBuf::from);
        let needed = |name: &'static str| path(name).ok_or(CliError::NeedsValue(name));
        let conf_name = value("conf-name");
        if conf_name.is_empty() || conf_name.contains('/') {
            let expected = "the name of a file, such as 10-flannel.conflist".to_owned();
            return Err(CliError::BadValue { origin: Origin::Flag("conf-name"), value: conf_name, expected });
        }
        Ok(Self {
            plugin: path("plugin"),
            plugin_dir: needed("plugin-dir")?,
            conf: path("conf"),
            conf_dir: needed("conf-dir")?,
            conf_name,
            only: match value("only").as_str() {
                "" => None,
                "plugin" => Some(Part::Plugin),
                "conf" => Some(Part::Conf),
                other => {
                    let (origin, value) = (Origin::Flag("only"), other.to_owned());
                    return Err(CliError::BadValue { origin, value, expected: "plugin or conf".to_owned() });
                }
            },
            undo: parse_bool(&value("undo")) == Some(true),
        })
    }
}

impl DockerOptions {
    /// Checks what was given and fills in the defaults.
    pub(crate) fn from_given(given: &[Given], flags: &[&'static Flag]) -> Result<Self, CliError> {
        let value = |name| value_of(given, flags, name);
        let is_set = |name| parse_bool(&value(name)) == Some(true);
        let key = value("k");
        let is_letter = |it: char| it.is_ascii_alphanumeric() || it == '_';
        if !key.chars().all(is_letter)
            || !key.starts_with(|first: char| is_letter(first) && !first.is_ascii_digit())
        {
            let expected = "the name of a variable".to_owned();
            return Err(CliError::BadValue { origin: Origin::Flag("k"), value: key, expected });
        }
        let neither = !is_set("i") && !is_set("c");
        Ok(Self {
            subnet_file: value("f").into(),
            output: value("d").into(),
            individual: is_set("i") || neither,
            combined: is_set("c") || neither,
            key,
            without_ip_masq: is_set("m"),
        })
    }
}

/// The value of a flag: the last one given, else the default.
fn value_of(given: &[Given], flags: &[&'static Flag], name: &str) -> String {
    let last = given.iter().rfind(|given| given.flag.name == name).map(|given| given.value.clone());
    let default = || flags.iter().find(|flag| flag.name == name).map_or("", |flag| flag.default).to_owned();
    last.unwrap_or_else(default)
}

/// Refuses what this version can't do. A flag that asks for what is done anyway is no error.
fn check_support(given: &Given) -> Result<(), CliError> {
    let Some(what) = given.flag.missing else { return Ok(()) };
    let harmless = match (given.flag.name, given.flag.kind) {
        (_, Kind::Bool) => parse_bool(&given.value) == parse_bool(given.flag.default),
        (_, Kind::Int) => parse_int(&given.value) == parse_int(given.flag.default),
        (_, Kind::Text | Kind::List) => given.value == given.flag.default,
    };
    if harmless { Ok(()) } else { Err(CliError::NotSupported { origin: given.origin.clone(), what }) }
}

/// The values of flags: the last one given, else the default.
struct Values<'a>(&'a [Given]);

impl Values<'_> {
    fn last(&self, name: &str) -> Option<&Given> {
        self.0.iter().rfind(|given| given.flag.name == name)
    }

    fn text(&self, name: &str) -> &str {
        let default = || find(name).map_or("", |flag| flag.default);
        self.last(name).map_or_else(default, |given| &given.value)
    }

    fn int(&self, name: &str) -> i64 {
        parse_int(self.text(name)).expect("numbers were checked when they were read")
    }

    fn boolean(&self, name: &str) -> bool {
        parse_bool(self.text(name)).expect("booleans were checked when they were read")
    }

    /// A flag that is false unless it was given.
    fn is_set(&self, name: &str) -> bool {
        self.last(name).is_some_and(|given| parse_bool(&given.value) == Some(true))
    }

    fn path(&self, name: &str) -> Option<PathBuf> {
        Some(self.text(name)).filter(|path| !path.is_empty()).map(PathBuf::from)
    }

    fn list(&self, name: &str) -> Vec<String> {
        let all = self.0.iter().filter(|given| given.flag.name == name);
        all.map(|given| given.value.clone()).collect()
    }

    fn subnets(&self, name: &'static str) -> Result<Vec<Subnet>, CliError> {
        let given = self.0.iter().filter(|given| given.flag.name == name);
        let parse = |given: &Given| {
            given.value.parse().map_err(|_| CliError::BadValue {
                origin: given.origin.clone(),
                value: given.value.clone(),
                expected: "a CIDR such as 192.0.2.0/24".to_owned(),
            })
        };
        given.map(parse).collect()
    }

    fn address<T: std::str::FromStr + Into<IpAddr>>(
        &self,
        name: &'static str,
        expected: &str,
    ) -> Result<Option<IpAddr>, CliError> {
        let text = self.text(name);
        if text.is_empty() {
            return Ok(None);
        }
        text.parse::<T>().map(|addr| Some(addr.into())).map_err(|_| self.bad(name, expected))
    }

    fn store(&self) -> Result<StoreChoice, CliError> {
        if self.boolean("kube-subnet-mgr") {
            if self.text("store") != "etcd" {
                let conflict = "--kube-subnet-mgr and --store name two stores; leave out one of them";
                return Err(CliError::Conflict(conflict.to_owned()));
            }
            let net_config =
                self.path("net-config-path").ok_or_else(|| self.bad("net-config-path", "a path"))?;
            return Ok(StoreChoice::Kube(KubeFlags {
                api_url: Some(self.text("kube-api-url")).filter(|url| !url.is_empty()).map(Into::into),
                kubeconfig: self.path("kubeconfig-file"),
                annotation_prefix: self.text("kube-annotation-prefix").to_owned(),
                net_config,
                set_condition: self.boolean("set-node-network-unavailable"),
            }));
        }
        match self.text("store").split_once(':') {
            None if self.text("store") == "etcd" => Ok(StoreChoice::Etcd),
            Some(("local", dir)) if !dir.is_empty() => Ok(StoreChoice::Local(LocalFlags {
                dir: dir.into(),
                allow_shared: self.boolean("local-store-allow-shared"),
            })),
            _ => Err(self.bad("store", "etcd or local:DIR")),
        }
    }

    fn etcd(&self) -> Result<EtcdFlags, CliError> {
        let pair = |first: &str, second: &str| {
            let conflict = || CliError::Conflict(format!("--{first} and --{second} need each other"));
            match (self.path(first), self.path(second)) {
                (Some(first), Some(second)) => Ok(Some((first, second))),
                (None, None) => Ok(None),
                _ => Err(conflict()),
            }
        };
        let user = self.text("etcd-username");
        Ok(EtcdFlags {
            endpoints: self.text("etcd-endpoints").split(',').map(Into::into).collect(),
            prefix: self.text("etcd-prefix").to_owned(),
            identity: pair("etcd-certfile", "etcd-keyfile")?,
            ca_file: self.path("etcd-cafile"),
            user: (!user.is_empty()).then(|| (user.to_owned(), self.text("etcd-password").into())),
        })
    }

    fn vmodule(&self) -> Result<Vec<VModule>, CliError> {
        let parse = |item: &str| {
            let (pattern, verbosity) = item.split_once('=')?;
            let verbosity = verbosity.parse().ok().filter(|_| !pattern.is_empty())?;
            Some(VModule { pattern: pattern.to_owned(), verbosity })
        };
        let items = self.text("vmodule").split(',').filter(|item| !item.is_empty());
        let items: Option<_> = items.map(parse).collect();
        items.ok_or_else(|| self.bad("vmodule", "a comma-separated list of pattern=N"))
    }

    fn shown(&self) -> Vec<(&'static str, String)> {
        let differs = |given: &&Given| given.flag.kind == Kind::List || given.value != given.flag.default;
        let shown = |given: &Given| (given.flag.name, shown::value(given.flag, &given.value));
        self.0.iter().filter(differs).map(shown).collect()
    }

    fn bad(&self, name: &'static str, expected: &str) -> CliError {
        let origin = self.last(name).map_or(Origin::Flag(name), |given| given.origin.clone());
        let value = find(name).map_or_else(String::new, |flag| shown::value(flag, self.text(name)));
        CliError::BadValue { origin, value, expected: expected.to_owned() }
    }
}
