//! The values of flags, read as Go's `flag` package reads them. An error says what the value should be.

use std::ffi::OsStr;
use std::net::IpAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::builder::{PossibleValue, StringValueParser, TypedValueParser};
use clap::{Arg, Command};
use flannel_backend_udp::Layout;
use flannel_backend_vxlan::{NextHopObjects, TxChecksum};
use flannel_control::log::ModuleLevel;
use flannel_control::show::Form;
use flannel_core::addr::Subnet;
use flannel_core::error::Expected;
use flannel_core::firewall::gate::Mode;
use flannel_core::lease::UnusableAddress;
use flannel_core::probe::{ProbeInterval, ReadyPeers};
use flannel_core::secret::ServerUrl;

/// A value that is left out or empty. By this name it is one type for clap, which has a meaning of its own for `Option`.
pub(crate) type Maybe<T> = Option<T>;
/// Likewise for several in one value.
pub(crate) type Urls = Vec<ServerUrl>;
pub(crate) type VModules = Vec<ModuleLevel>;

type Checked<T> = Result<T, &'static str>;

/// Where leases are kept, unless it is the Kubernetes API.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Store {
    /// In etcd.
    Etcd,
    /// In this folder.
    Local(PathBuf),
}

/// The form of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LogFormat {
    /// Lines for people.
    Text,
    /// A JSON object a line.
    Json,
}

/// What can be installed by itself, as a pod's init containers do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    /// The plugin.
    Plugin,
    /// The conflist.
    Conf,
}

/// The form of the doctor's report.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ReportForm {
    /// Lines for people.
    Table,
    /// A JSON object.
    Json,
}

/// Go's `strconv.ParseBool`.
pub(super) fn boolean(text: &str) -> Checked<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err("true or false"),
    }
}

/// Go's `strconv.ParseInt` with base 0: prefixes `0x`, `0o`, `0b` and `0`, and underscores between digits.
pub(super) fn int(text: &str) -> Checked<i64> {
    parse_int(text).ok_or("a whole number")
}

fn parse_int(text: &str) -> Option<i64> {
    let (sign, digits) = (if text.starts_with('-') { "-" } else { "" }, text.strip_prefix(['+', '-']));
    let lower = digits.unwrap_or(text).to_ascii_lowercase();
    let (radix, digits) = match lower.as_bytes() {
        [b'0', b'x', ..] => (16, &lower[2..]),
        [b'0', b'o', ..] => (8, &lower[2..]),
        [b'0', b'b', ..] => (2, &lower[2..]),
        [b'0', _, ..] => (8, &lower[1..]),
        _ => (10, &lower[..]),
    };
    // After a prefix an underscore may stand before the first digit, too.
    let is_spaced =
        (radix == 10 && digits.starts_with('_')) || digits.ends_with('_') || digits.contains("__");
    if is_spaced || digits.starts_with(['+', '-']) {
        return None;
    }
    i64::from_str_radix(&format!("{sign}{}", digits.replace('_', "")), radix).ok()
}

pub(super) fn store(text: &str) -> Checked<Store> {
    match text.split_once(':') {
        None if text == "etcd" => Ok(Store::Etcd),
        Some(("local", dir)) if !dir.is_empty() => folder(dir).map(Store::Local),
        _ => Err("etcd or local:DIR"),
    }
}

/// A folder.
pub(super) fn folder(text: &str) -> Checked<PathBuf> {
    match text {
        "" => Err("a path"),
        _ if is_content(text) => Err(CONTENT),
        _ => Ok(text.into()),
    }
}

/// A file, which need not exist yet.
pub(super) fn file(text: &str) -> Checked<PathBuf> {
    let path = folder(text)?;
    // `file_name` of `a/.` is `a`.
    let is_folder = path.file_name().is_none() || text.ends_with(['/']) || text.ends_with("/.");
    if is_folder { Err("the path of a file, but that of a folder") } else { Ok(path) }
}

/// Likewise, if it is there.
pub(super) fn maybe_file(text: &str) -> Checked<Maybe<PathBuf>> {
    (!text.is_empty()).then(|| file(text)).transpose()
}

const CONTENT: &str =
    "a path, but seems to be the content of a file; save that to a file, and give the path of this";

/// The longest path (`PATH_MAX` of the kernel's limits.h, with a zero at its end).
const LONGEST_PATH: usize = 4095;

/// Whether a value can only be what somebody read out of a file: a key, a certificate or a kubeconfig, as text or in
/// base64. Its like is not repeated anywhere, since there are secrets in such files.
pub(super) fn is_content(text: &str) -> bool {
    let begins = ["{", "-----BEGIN", "LS0tLS1CRUdJTi", "apiVersion:", "YXBpVmVyc2lvbj"];
    text.len() > LONGEST_PATH
        || text.contains(char::is_control)
        || begins.iter().any(|begin| text.trim_start().starts_with(begin))
}

/// What it is, only a store that uses it can say.
pub(super) fn url() -> impl TypedValueParser<Value = Maybe<ServerUrl>> {
    StringValueParser::new().map(|text| (!text.is_empty()).then(|| text.into()))
}

/// An empty one would put the keys of this cluster beside those of all other programs, and to where Go flannel looks for
/// none.
pub(super) fn prefix(text: &str) -> Checked<String> {
    let is_prefix = !text.trim().is_empty() && !is_content(text);
    if is_prefix { Ok(text.to_owned()) } else { Err("a prefix of keys, such as /coreos.com/network") }
}

/// The name of an interface, one of its other names, or an address. An empty one stands for the default route.
pub(super) fn iface(text: &str) -> Checked<String> {
    // As the kernel has it (`dev_valid_name`, and `ALTIFNAMSIZ` for the length).
    let is_bad = |it: char| it.is_whitespace() || it.is_control() || it == '/';
    let is_name = text.len() < 128 && !text.contains(is_bad) && !matches!(text, "." | "..");
    if is_name { Ok(text.to_owned()) } else { Err("the name of an interface or one IP address") }
}

/// A regular expression; an empty one stands for the default route.
pub(super) fn iface_regex(text: &str) -> Result<String, String> {
    let checked = flannel_core::underlay::check_regex(text);
    checked.map(|()| text.to_owned()).map_err(|error| format!("a regular expression: {error}"))
}

/// The address of a node, which its peers can send packets to.
pub(super) fn public_address<T>(text: &str, expected: &'static str) -> Result<Maybe<IpAddr>, String>
where
    T: FromStr + Into<IpAddr>,
{
    let Some(addr) = address::<T>(text, expected)? else { return Ok(None) };
    UnusableAddress::check(addr).map(Some).map_err(|why| format!("{expected} of this node: {why}"))
}

/// An address of this host to listen on, or none for all of them. As in Go, `localhost` is IPv4's.
pub(super) fn listen(text: &str) -> Checked<String> {
    // An IPv6 address can have an interface behind it.
    let addr = text.split_once('%').map_or(text, |(addr, zone)| if zone.is_empty() { text } else { addr });
    match addr.parse::<IpAddr>() {
        _ if text == "localhost" => Ok("127.0.0.1".to_owned()),
        _ if text.is_empty() => Ok(String::new()),
        Ok(ip) if !ip.is_multicast() && (addr == text || ip.is_ipv6()) => Ok(text.to_owned()),
        _ => Err("an IP address of this host, such as 127.0.0.1; leave it out to listen on all of them"),
    }
}

pub(super) fn file_name(text: &str) -> Checked<String> {
    let is_name = !text.is_empty() && !text.contains('/');
    if is_name { Ok(text.to_owned()) } else { Err("the name of a file, such as 10-flannel.conflist") }
}

pub(super) fn urls() -> impl TypedValueParser<Value = Urls> {
    StringValueParser::new().map(|text| text.split(',').map(Into::into).collect())
}

pub(super) fn address<T>(text: &str, expected: &'static str) -> Checked<Maybe<IpAddr>>
where
    T: FromStr + Into<IpAddr>,
{
    let address = (!text.is_empty()).then(|| text.parse::<T>().map(Into::into));
    address.transpose().map_err(|_| expected)
}

pub(super) fn subnet(text: &str) -> Checked<Subnet> {
    text.parse().map_err(|_| "a CIDR such as 192.0.2.0/24")
}

pub(super) fn minutes(text: &str) -> Checked<Duration> {
    let minutes = int(text).map(u64::try_from)?.ok().filter(|minutes| (1..=1439).contains(minutes));
    minutes.map(|minutes| Duration::from_secs(60 * minutes)).ok_or("from 1 to 1439 minutes")
}

pub(super) fn seconds(text: &str) -> Checked<Duration> {
    let seconds = int(text).map(u64::try_from)?.ok().filter(|seconds| (1..=86_400).contains(seconds));
    seconds.map(Duration::from_secs).ok_or("from 1 to 86400 seconds")
}

pub(super) fn port(text: &str) -> Checked<u16> {
    u16::try_from(int(text)?).map_err(|_| "a port, 0 to 65535")
}

/// One of some words. Completions and man pages list them.
#[derive(Clone)]
pub(super) struct OneOf<T: 'static> {
    words: &'static [(&'static str, T)],
    expected: &'static str,
}

impl<T: Clone + Send + Sync> TypedValueParser for OneOf<T> {
    type Value = T;

    fn parse_ref(&self, command: &Command, arg: Option<&Arg>, value: &OsStr) -> Result<T, clap::Error> {
        let Self { words, expected } = *self;
        let find = move |text: String| {
            let found = words.iter().find(|(word, _)| *word == text);
            found.map(|(_, value)| value.clone()).ok_or(expected)
        };
        StringValueParser::new().try_map(find).parse_ref(command, arg, value)
    }

    fn possible_values(&self) -> Option<Box<dyn Iterator<Item = PossibleValue> + '_>> {
        let words = self.words.iter().map(|(word, _)| *word).filter(|word| !word.is_empty());
        Some(Box::new(words.map(PossibleValue::new)))
    }
}

pub(super) const LOG_FORMAT: OneOf<LogFormat> =
    OneOf { words: &[("text", LogFormat::Text), ("json", LogFormat::Json)], expected: "text or json" };

pub(super) const STATUS_FORM: OneOf<Form> = OneOf {
    words: &[("table", Form::Table), ("wide", Form::Wide), ("json", Form::Json)],
    expected: "table, wide or json",
};

/// Of events, which have one form of text.
pub(super) const EVENT_FORM: OneOf<Form> =
    OneOf { words: &[("text", Form::Wide), ("json", Form::Json)], expected: "text or json" };

pub(super) const REPORT_FORM: OneOf<ReportForm> =
    OneOf { words: &[("table", ReportForm::Table), ("json", ReportForm::Json)], expected: "table or json" };

/// The name of a check of the doctor. Completions and man pages list them.
#[derive(Clone)]
pub(super) struct CheckName;

impl TypedValueParser for CheckName {
    type Value = &'static str;

    fn parse_ref(
        &self,
        command: &Command,
        arg: Option<&Arg>,
        value: &OsStr,
    ) -> Result<&'static str, clap::Error> {
        let find = |text: String| {
            let check = flannel_doctor::Check::named(&text);
            check.map(|check| check.name).ok_or("the name of a check, which flanneld doctor --help lists")
        };
        StringValueParser::new().try_map(find).parse_ref(command, arg, value)
    }

    fn possible_values(&self) -> Option<Box<dyn Iterator<Item = PossibleValue> + '_>> {
        Some(Box::new(flannel_doctor::CHECKS.iter().map(|check| PossibleValue::new(check.name))))
    }
}

pub(super) const NEXT_HOP_OBJECTS: OneOf<NextHopObjects> =
    OneOf { words: &[("auto", NextHopObjects::Auto), ("off", NextHopObjects::Off)], expected: "auto or off" };

pub(super) const MODE: OneOf<Mode> = OneOf {
    words: &[("off", Mode::Off), ("observe", Mode::Observe), ("enforce", Mode::Enforce)],
    expected: "off, observe or enforce",
};

pub(super) const LAYOUT: OneOf<Layout> = OneOf {
    words: &[("auto", Layout::Adaptive), ("1", Layout::OneThread), ("2", Layout::TwoThreads)],
    expected: "auto, 1 or 2",
};

pub(super) const TX_CHECKSUM: OneOf<TxChecksum> = OneOf {
    words: &[("auto", TxChecksum::Auto), ("keep", TxChecksum::Keep), ("off", TxChecksum::Off)],
    expected: "auto, keep or off",
};

/// A time with its units, as Go's `time.ParseDuration` reads them, in whole numbers: `1m30s`.
fn duration(text: &str) -> Option<Duration> {
    let (mut rest, mut sum) = (text, Duration::ZERO);
    while !rest.is_empty() {
        let digits = rest.find(|it: char| !it.is_ascii_digit())?;
        let number: u32 = rest[..digits].parse().ok()?;
        let unit = &rest[digits..];
        let end = unit.find(|it: char| it.is_ascii_digit()).unwrap_or(unit.len());
        let unit = match &unit[..end] {
            "ms" => Duration::from_millis(1),
            "s" => Duration::from_secs(1),
            "m" => Duration::from_mins(1),
            "h" => Duration::from_hours(1),
            _ => return None,
        };
        sum = sum.checked_add(unit.checked_mul(number)?)?;
        rest = &rest[digits + end..];
    }
    Some(sum).filter(|_| !text.is_empty())
}

/// The longest time that a flag takes.
const DAY: Duration = Duration::from_hours(24);

pub(super) fn probe(text: &str) -> Checked<ProbeInterval> {
    match text {
        "auto" => Ok(ProbeInterval::Auto),
        "off" => Ok(ProbeInterval::Off),
        time => {
            let time = duration(time).filter(|time| (Duration::from_secs(1)..=DAY).contains(time));
            time.map(ProbeInterval::Every).ok_or("auto, off, or a time from 1s to 24h")
        }
    }
}

pub(super) fn ready_peers(text: &str) -> Checked<Maybe<ReadyPeers>> {
    if text.is_empty() {
        return Ok(None);
    }
    let parse = || {
        let (percent, time) = text.split_once("%,")?;
        let percent = percent.parse().ok().filter(|percent| (1..=100).contains(percent))?;
        let time = duration(time).filter(|time| (Duration::from_secs(1)..=DAY).contains(time))?;
        Some(ReadyPeers::new(percent, time))
    };
    parse().map(Some).ok_or("a share and a time from 1s to 24h, such as 80%,60s")
}

pub(super) const PART: OneOf<Maybe<Part>> = OneOf {
    words: &[("", None), ("plugin", Some(Part::Plugin)), ("conf", Some(Part::Conf))],
    expected: "plugin or conf",
};

/// A verbosity by a word, of which shells know, or by its number.
#[derive(Clone)]
pub(super) struct LevelParser;

pub(super) const LEVEL: LevelParser = LevelParser;

/// The words for a verbosity.
const LEVELS: OneOf<i64> = OneOf {
    words: &[("info", 0), ("debug", 1), ("trace", 4)],
    expected: "info, debug, trace or a whole number",
};

impl TypedValueParser for LevelParser {
    type Value = Maybe<i64>;

    fn parse_ref(
        &self,
        command: &Command,
        arg: Option<&Arg>,
        value: &OsStr,
    ) -> Result<Self::Value, clap::Error> {
        let number = value.to_str().and_then(parse_int);
        if value.is_empty() || number.is_some() {
            return Ok(number);
        }
        LEVELS.parse_ref(command, arg, value).map(Some)
    }

    fn possible_values(&self) -> Option<Box<dyn Iterator<Item = PossibleValue> + '_>> {
        LEVELS.possible_values()
    }
}

pub(super) fn vmodule(text: &str) -> Checked<VModules> {
    ModuleLevel::list(text).map_err(|Expected(what)| what)
}

pub(super) fn variable(text: &str) -> Checked<String> {
    let is_word = text.chars().all(|it| it.is_ascii_alphanumeric() || it == '_');
    let is_name = is_word && !text.is_empty() && !text.starts_with(|first: char| first.is_ascii_digit());
    if is_name { Ok(text.to_owned()) } else { Err("the name of a variable") }
}
