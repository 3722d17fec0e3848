//! The values of flags. An error says what the value should be.

use std::net::IpAddr;
use std::path::PathBuf;
use std::str::FromStr;

use clap::builder::{StringValueParser, TypedValueParser};
use flannel_backend_udp::Layout;
use flannel_backend_vxlan::{NextHopObjects, TxChecksum};
use flannel_backend_wireguard::Implementation::{self, Auto, Kernel, Userspace};
use flannel_control::log::ModuleLevel;
use flannel_control::show::Form;
use flannel_core::addr::Subnet;
use flannel_core::error::Expected;
use flannel_core::firewall::gate::Mode;
use flannel_core::lease::UnusableAddress;
use flannel_core::probe::ReadyPeers;
use flannel_core::secret::ServerUrl;
use flannel_doctor::{CHECKS, ReportForm};
pub(crate) use flannel_flags::value::Maybe;
pub(super) use flannel_flags::value::{
    Checked, NumberOr, OneOf, address, file, file_name, folder, int, interval, maybe_file, minutes, port,
    seconds, variable,
};

/// Several in one value. By this name it is one type for clap, which has a meaning of its own for `Vec`.
pub(crate) type Urls = Vec<ServerUrl>;
pub(crate) type VModules = Vec<ModuleLevel>;

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

/// A parser of a library, whose error says what the text should be.
pub(super) fn by<T>(parse: fn(&str) -> Result<T, Expected>) -> impl Fn(&str) -> Checked<T> + Clone + use<T> {
    move |text| parse(text).map_err(|Expected(what)| what)
}

pub(super) fn store(text: &str) -> Checked<Store> {
    match text.split_once(':') {
        None if text == "etcd" => Ok(Store::Etcd),
        Some(("local", dir)) if !dir.is_empty() => folder(dir).map(Store::Local),
        _ => Err("etcd or local:DIR"),
    }
}

/// What it is, only a store that uses it can say.
pub(super) fn url() -> impl TypedValueParser<Value = Maybe<ServerUrl>> {
    StringValueParser::new().map(|text| (!text.is_empty()).then(|| text.into()))
}

/// An empty one would put the keys of this cluster beside those of all other programs, and to where Go flannel looks for
/// none.
pub(super) fn prefix(text: &str) -> Checked<String> {
    let is_prefix = !text.trim().is_empty() && folder(text).is_ok();
    if is_prefix { Ok(text.to_owned()) } else { Err("a prefix of keys, such as /coreos.com/network") }
}

/// The name of an interface, one of its other names, or an address. An empty one stands for the default route.
pub(super) fn iface(text: &str) -> Checked<String> {
    flannel_core::underlay::check_iface(text).map(|()| text.to_owned()).map_err(|Expected(what)| what)
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

pub(super) fn urls() -> impl TypedValueParser<Value = Urls> {
    StringValueParser::new().map(|text| text.split(',').map(Into::into).collect())
}

pub(super) fn subnet(text: &str) -> Checked<Subnet> {
    text.parse().map_err(|_| "a CIDR such as 192.0.2.0/24")
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

pub(super) const CHECK: OneOf<&'static str> = OneOf {
    words: &{
        let mut words = [("", ""); CHECKS.len()];
        let mut at = 0;
        while at < words.len() {
            words[at] = (CHECKS[at].name, CHECKS[at].name);
            at += 1;
        }
        words
    },
    expected: "the name of a check, which flanneld doctor --help lists",
};

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

pub(super) const WIREGUARD: OneOf<Implementation> = OneOf {
    words: &[("auto", Auto), ("kernel", Kernel), ("userspace", Userspace)],
    expected: "auto, kernel or userspace",
};

pub(super) const TX_CHECKSUM: OneOf<TxChecksum> = OneOf {
    words: &[("auto", TxChecksum::Auto), ("keep", TxChecksum::Keep), ("off", TxChecksum::Off)],
    expected: "auto, keep or off",
};

pub(super) fn ready_peers(text: &str) -> Checked<Maybe<ReadyPeers>> {
    (!text.is_empty()).then(|| text.parse()).transpose().map_err(|Expected(what)| what)
}

pub(super) const PART: OneOf<Maybe<Part>> = OneOf {
    words: &[("", None), ("plugin", Some(Part::Plugin)), ("conf", Some(Part::Conf))],
    expected: "plugin or conf",
};

/// A verbosity by a word or by its number.
pub(super) const LEVEL: NumberOr = NumberOr(OneOf {
    words: &[("info", 0), ("debug", 1), ("trace", 4)],
    expected: "info, debug, trace or a whole number",
});
