//! The values of flags, read as Go's `flag` package reads them. An error says what the value should be.

use std::net::IpAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::builder::{StringValueParser, TypedValueParser};
use flannel_backend_udp::Layout;
use flannel_backend_vxlan::NextHopObjects;
use flannel_core::addr::Subnet;
use flannel_core::firewall::gate::Mode;
use flannel_core::secret::ServerUrl;

/// A value that is left out or empty. By this name it is one type for clap, which has a meaning of its own for `Option`.
pub(crate) type Maybe<T> = Option<T>;
/// Likewise for several in one value.
pub(crate) type Urls = Vec<ServerUrl>;
pub(crate) type VModules = Vec<VModule>;

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

/// One element of `--vmodule`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct VModule {
    /// A glob for a crate, a module, or a whole path.
    pub(crate) pattern: String,
    /// The verbosity.
    pub(crate) verbosity: i64,
}

/// What can be installed by itself, as a pod's init containers do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    /// The plugin.
    Plugin,
    /// The conflist.
    Conf,
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
        Some(("local", dir)) if !dir.is_empty() => Ok(Store::Local(dir.into())),
        _ => Err("etcd or local:DIR"),
    }
}

pub(super) fn path(text: &str) -> Checked<PathBuf> {
    if text.is_empty() { Err("a path") } else { Ok(text.into()) }
}

/// Something of which nothing is known but whether it is there.
pub(super) fn maybe<T>() -> impl TypedValueParser<Value = Maybe<T>>
where
    T: From<String> + Clone + Send + Sync + 'static,
{
    StringValueParser::new().map(|text| (!text.is_empty()).then(|| text.into()))
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

/// One below 0 is as good as 0, as in Go.
pub(super) fn port(text: &str) -> Checked<u16> {
    u16::try_from(int(text)?.max(0)).map_err(|_| "a port, 0 to 65535")
}

pub(super) fn log_format(text: &str) -> Checked<LogFormat> {
    one_of(text, [("text", LogFormat::Text), ("json", LogFormat::Json)], "text or json")
}

pub(super) fn next_hop_objects(text: &str) -> Checked<NextHopObjects> {
    one_of(text, [("auto", NextHopObjects::Auto), ("off", NextHopObjects::Off)], "auto or off")
}

pub(super) fn mode(text: &str) -> Checked<Mode> {
    let modes = [("off", Mode::Off), ("observe", Mode::Observe), ("enforce", Mode::Enforce)];
    one_of(text, modes, "off, observe or enforce")
}

pub(super) fn layout(text: &str) -> Checked<Layout> {
    let layouts = [("auto", Layout::Adaptive), ("1", Layout::OneThread), ("2", Layout::TwoThreads)];
    one_of(text, layouts, "auto, 1 or 2")
}

pub(super) fn part(text: &str) -> Checked<Maybe<Part>> {
    one_of(text, [("", None), ("plugin", Some(Part::Plugin)), ("conf", Some(Part::Conf))], "plugin or conf")
}

fn one_of<T, const N: usize>(text: &str, words: [(&str, T); N], expected: &'static str) -> Checked<T> {
    words.into_iter().find_map(|(word, value)| (word == text).then_some(value)).ok_or(expected)
}

pub(super) fn vmodule(text: &str) -> Checked<VModules> {
    let parse = |item: &str| {
        let (pattern, verbosity) = item.split_once('=')?;
        let verbosity = verbosity.parse().ok().filter(|_| !pattern.is_empty())?;
        Some(VModule { pattern: pattern.to_owned(), verbosity })
    };
    let items = text.split(',').filter(|item| !item.is_empty()).map(parse).collect::<Option<_>>();
    items.ok_or("a comma-separated list of pattern=N")
}

pub(super) fn variable(text: &str) -> Checked<String> {
    let is_word = text.chars().all(|it| it.is_ascii_alphanumeric() || it == '_');
    let is_name = is_word && !text.is_empty() && !text.starts_with(|first: char| first.is_ascii_digit());
    if is_name { Ok(text.to_owned()) } else { Err("the name of a variable") }
}
