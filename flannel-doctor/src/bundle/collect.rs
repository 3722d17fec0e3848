//! Collects the files of a bundle from the host and the store.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::Duration;

use flannel_core::lease::LeaseAttrs;
use flannel_core::subnet::{ClockGap, NodeRecord, RightAnswer, ServerAnswer};
use futures::future::join_all;
use serde_json::Value;

use super::Entry;
use crate::facts::{Answers, Config, Facts};
use crate::finding::Skip;
use crate::host::Files;
use crate::redact::Redactor;

/// How long a program may take.
const PATIENCE: Duration = Duration::from_secs(15);
/// How much of the output of a program is kept, in bytes, and of a log.
const MAX_OUTPUT: usize = 8 << 20;
const MAX_LOG: u64 = 8 << 20;

/// What programs show: the name in the bundle, the program, its arguments.
const COMMANDS: [(&str, &str, &[&str]); 21] = [
    ("network/links.txt", "ip", &["-d", "-s", "link", "show"]),
    ("network/addresses.txt", "ip", &["address", "show"]),
    ("network/rules.txt", "ip", &["rule", "show"]),
    ("network/rules-v6.txt", "ip", &["-6", "rule", "show"]),
    ("network/routes.txt", "ip", &["route", "show", "table", "all"]),
    ("network/routes-v6.txt", "ip", &["-6", "route", "show", "table", "all"]),
    ("network/neighbours.txt", "ip", &["-s", "neighbour", "show"]),
    ("network/next-hops.txt", "ip", &["nexthop", "show"]),
    ("network/fdb.txt", "bridge", &["fdb", "show"]),
    ("network/bridge-links.txt", "bridge", &["-d", "link", "show"]),
    ("network/sockets.txt", "ss", &["-ulnp"]),
    ("firewall/nft.txt", "nft", &["list", "ruleset"]),
    ("firewall/iptables.txt", "iptables-save", &["-c"]),
    ("firewall/ip6tables.txt", "ip6tables-save", &["-c"]),
    ("firewall/iptables-legacy.txt", "iptables-legacy-save", &["-c"]),
    ("firewall/ip6tables-legacy.txt", "ip6tables-legacy-save", &["-c"]),
    ("versions/ip.txt", "ip", &["-V"]),
    ("versions/nft.txt", "nft", &["--version"]),
    ("versions/iptables.txt", "iptables", &["--version"]),
    ("versions/containerd.txt", "containerd", &["--version"]),
    ("versions/systemd.txt", "systemctl", &["--version"]),
];

/// Files of the kernel and the distribution.
const FILES: [(&str, &str); 5] = [
    ("kernel/version.txt", "/proc/version"),
    ("kernel/cmdline.txt", "/proc/cmdline"),
    ("kernel/modules.txt", "/proc/modules"),
    ("versions/os-release.txt", "/etc/os-release"),
    ("versions/machine.txt", "/proc/meminfo"),
];

/// Tables of the namespace below `/proc/net`.
const TABLES: [&str; 5] = ["snmp", "snmp6", "netstat", "stat/nf_conntrack", "softnet_stat"];

/// Folders and files of kernel parameters, below `/proc/sys`.
const SYSCTLS: [&str; 9] = [
    "net/ipv4/ip_forward",
    "net/ipv4/conf",
    "net/ipv4/neigh/default",
    "net/ipv4/nexthop_compat_mode",
    "net/ipv6/conf",
    "net/ipv6/neigh/default",
    "net/bridge",
    "net/netfilter",
    "net/core",
];

/// All that is not the doctor's own.
pub(super) async fn all(facts: &Facts, logs: &[PathBuf]) -> Vec<Entry> {
    let commands = join_all(COMMANDS.iter().map(|(name, program, args)| command(facts, name, program, args)));
    let (commands, files, logs, store) =
        tokio::join!(commands, files(facts), self::logs(facts, logs), store(facts));
    [files, store, commands, logs].concat()
}

async fn command(facts: &Facts, name: &str, program: &str, args: &[&str]) -> Entry {
    let origin = format!("`{program} {}`", args.join(" "));
    let ran = tokio::time::timeout(PATIENCE, facts.host.run(program, args)).await;
    let ran =
        ran.unwrap_or_else(|_| Err(Skip::new(format!("it did not end within {} s", PATIENCE.as_secs()))));
    let text = ran.and_then(|ran| ran.success(program)).map(|out| cut(out, MAX_OUTPUT));
    Entry { name: name.to_owned(), origin, text: text.map_err(|why| why.0) }
}

/// The beginning of a text, and how much is missing.
fn cut(mut text: String, most: usize) -> String {
    if text.len() > most {
        let left = text.len() - most;
        let end = (0..=most).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
        text.truncate(end);
        let _ = writeln!(text, "\n.. and {left} bytes more");
    }
    text
}

async fn files(facts: &Facts) -> Vec<Entry> {
    let places = facts.places.clone();
    let look = move |files: &Files| {
        let state = places.state();
        let own = [
            ("agent/subnet.env".to_owned(), places.subnet_file.clone()),
            ("agent/state.json".to_owned(), state),
        ];
        let cni = files
            .names(&places.cni_conf_dir)
            .into_iter()
            .map(|name| (format!("cni/{}", name.to_string_lossy()), places.cni_conf_dir.join(name)));
        let others = FILES.iter().map(|(name, path)| ((*name).to_owned(), PathBuf::from(path)));
        let entry = |(name, path): (String, PathBuf)| {
            let text = files.text(&path).map_err(|error| error.to_string());
            Entry { name, origin: path.display().to_string(), text }
        };
        let mut entries: Vec<Entry> = own.into_iter().chain(cni).chain(others).map(entry).collect();
        entries.extend(TABLES.iter().map(|table| Entry {
            name: format!("kernel/{}.txt", table.replace('/', "-")),
            origin: format!("the table {table} of /proc/net"),
            text: files.proc_net(table).map_err(|error| error.to_string()),
        }));
        entries.push(Entry {
            name: "kernel/sysctls.txt".to_owned(),
            origin: "/proc/sys".to_owned(),
            text: Ok(sysctls(files)),
        });
        entries.push(Entry {
            name: "agent/processes.txt".to_owned(),
            origin: "/proc".to_owned(),
            text: Ok(processes(files)),
        });
        entries
    };
    let collected = facts.host.look(look).await;
    let mut entries = collected.unwrap_or_else(|why| {
        vec![Entry { name: "files".to_owned(), origin: "this host".to_owned(), text: Err(why.0) }]
    });
    if let Some(status) = &facts.status {
        let text = serde_json::to_string_pretty(status).map_err(|error| error.to_string());
        entries.push(Entry {
            name: "agent/status.json".to_owned(),
            origin: "the running agent".to_owned(),
            text,
        });
    }
    entries
}

/// Kernel parameters as `sysctl` shows them; those that can't be read are left out.
fn sysctls(files: &Files) -> String {
    let mut open: Vec<PathBuf> = SYSCTLS.iter().rev().map(PathBuf::from).collect();
    let mut text = String::new();
    while let Some(name) = open.pop() {
        let path = Path::new("/proc/sys").join(&name);
        if files.metadata(&path).is_ok_and(|found| found.is_dir()) {
            open.extend(files.names(&path).into_iter().rev().map(|below| name.join(below)));
        } else if let Ok(value) = files.text(&path) {
            let _ = writeln!(text, "{} = {}", name.display(), value.trim_end());
        }
    }
    text
}

/// The command lines of agents, of flannel's and Kubernetes' programs: each a list of arguments, since an argument may have
/// spaces, and a password behind one.
fn processes(files: &Files) -> String {
    const PROGRAMS: [&str; 7] =
        ["flanneld", "kubelet", "kube-proxy", "containerd", "dockerd", "etcd", "NetworkManager"];
    let redactor = Redactor::new();
    let pids = files.names("/proc").into_iter().filter_map(|name| name.to_str()?.parse::<u32>().ok());
    let line = |pid: u32| {
        let command = files.text(format!("/proc/{pid}/cmdline")).ok()?;
        let program = command.split('\0').next()?.rsplit('/').next()?.to_owned();
        let words: Vec<&str> = command.split('\0').filter(|word| !word.is_empty()).collect();
        let mut words = Value::from(words);
        redactor.value(&mut words);
        PROGRAMS.contains(&program.as_str()).then(|| format!("{pid} {words}\n"))
    };
    pids.filter_map(line).collect()
}

async fn logs(facts: &Facts, logs: &[PathBuf]) -> Vec<Entry> {
    let mut entries = Vec::new();
    for (number, log) in logs.iter().enumerate() {
        let path = log.clone();
        let text = facts.host.look(move |files| end_of(&files.path(path))).await;
        let text = text.map_err(|why| why.0).and_then(|text| text.map_err(|error| error.to_string()));
        let name = log.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
        entries.push(Entry {
            name: format!("logs/{number}-{name}"),
            origin: log.display().to_string(),
            text,
        });
    }
    entries
}

/// The end of a file. Logs may be pipes, which would never end.
fn end_of(path: &Path) -> io::Result<String> {
    use std::os::unix::fs::OpenOptionsExt as _;

    let mut file = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    let found = file.metadata()?;
    if !found.is_file() {
        return Err(io::Error::other("it is no regular file"));
    }
    file.seek(SeekFrom::Start(found.len().saturating_sub(MAX_LOG)))?;
    let mut bytes = Vec::new();
    file.take(MAX_LOG).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

async fn store(facts: &Facts) -> Vec<Entry> {
    let entry = |name: &str, text: Result<String, String>| Entry {
        name: name.to_owned(),
        origin: "the store".to_owned(),
        text,
    };
    let answers = match facts.answers().await {
        Ok(answers) => answers,
        Err(why) => return vec![entry("store", Err(why.0))],
    };
    let config = match &answers.config {
        Config::Read(config) => Ok(config.to_json()),
        Config::Bad(why) | Config::Unread(why) | Config::Unusable(why) | Config::Denied(why) => {
            Err(why.clone())
        }
    };
    let leases = answers.leases.as_ref().map_err(Clone::clone).map(|listing| {
        let good = listing
            .leases
            .iter()
            .map(|lease| format!("{} {} (created {})\n", lease.key, lease.attrs.to_json(), lease.created));
        let bad = listing.unreadable.iter().map(|record| format!("unreadable: {record}\n"));
        good.chain(bad).collect::<String>()
    });
    let about = about(answers).collect::<String>();
    vec![
        entry("store/config.json", config),
        entry("store/leases.txt", leases),
        entry("store/about.txt", Ok(about)),
    ]
}

/// What the store said of itself, this node and its rights, a line each.
fn about(answers: &Answers) -> impl Iterator<Item = String> {
    let Answers { place, examination, .. } = answers;
    let servers = examination.servers.iter().map(|server| match &server.answer {
        Ok(ServerAnswer { version, took, clock, .. }) => {
            let clock = match clock {
                None => "it does not tell the time".to_owned(),
                Some(gap) if gap.size().is_zero() => "its clock agrees with this host's".to_owned(),
                Some(ClockGap::Ahead(by)) => format!("its clock is {by:?} ahead of this host's"),
                Some(ClockGap::Behind(by)) => format!("its clock is {by:?} behind this host's"),
            };
            let took = took.as_secs_f64() * 1e3;
            format!("server {}: version {version}, answers in {took:.1} ms, {clock}\n", server.name)
        }
        Err(why) => format!("server {}: {why}\n", server.name),
    });
    let rights = examination.rights.iter().map(|right| match &right.answer {
        RightAnswer::Allowed => format!("{}: allowed\n", right.what),
        RightAnswer::Denied(why) => format!("{}: denied {why}\n", right.what),
        RightAnswer::Unknown(why) => format!("{}: unknown: {why}\n", right.what),
    });
    let node = match &examination.node {
        NodeRecord::None => None,
        NodeRecord::Unread(why) => Some(format!("node: {why}\n")),
        NodeRecord::Read(node) => {
            let published = node.published.as_ref().map_or_else(|| "nothing".to_owned(), LeaseAttrs::to_json);
            Some(format!("node {}: subnets {}, publishes {published}\n", node.name, node.subnets.join(", ")))
        }
    };
    [format!("place: {place}\n")].into_iter().chain(servers).chain(rights).chain(node)
}
