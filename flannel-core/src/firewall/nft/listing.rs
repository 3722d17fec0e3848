//! Reads our tables from the output of `nft -j list`. Pure.
//!
//! The format differs slightly between versions, so it is read leniently; a rule that can't be read is not ours.

use serde_json::Value;

use super::super::rules::{KUBE_MARK, Mark, Rule, Side, Verdict};
use crate::addr::{Family, Subnet};

/// A table of ours, as observed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct SeenTable {
    /// Its chains.
    pub(super) chains: Vec<SeenChain>,
    /// Whether it has sets, maps or other objects that we never create.
    pub(super) other: bool,
}

/// A chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct SeenChain {
    /// Its name.
    pub(super) name: String,
    /// Its hook, if it is a base chain.
    pub(super) base: Option<Base>,
    /// Its rules.
    pub(super) rules: Vec<SeenRule>,
}

/// The hook of a base chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::firewall) struct Base {
    /// `nat` or `filter`.
    pub(in crate::firewall) kind: String,
    /// The hook's name, such as `forward`.
    pub(in crate::firewall) hook: String,
    /// Its priority among the chains of the hook; the smallest comes first.
    pub(in crate::firewall) priority: i64,
    /// `accept` or `drop`.
    pub(in crate::firewall) policy: String,
}

/// A rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct SeenRule {
    /// Its handle.
    pub(super) handle: u64,
    /// The rule, if it has the form of a rule of ours.
    pub(super) rule: Option<Rule>,
}

/// Reads a table from a listing.
pub(super) fn table(family: Family, json: &str) -> Result<SeenTable, String> {
    let mut table = SeenTable::default();
    for entry in entries(json)? {
        let Some((kind, value)) = entry.as_object().and_then(|entry| entry.iter().next()) else { continue };
        match kind.as_str() {
            "metainfo" | "table" => {}
            "chain" => {
                let name = text(value, "name").ok_or("a chain without a name")?.to_owned();
                table.chains.push(SeenChain { name, base: base(value), rules: Vec::new() });
            }
            "rule" => {
                let name = text(value, "chain").ok_or("a rule without a chain")?;
                let handle = value.get("handle").and_then(Value::as_u64).ok_or("a rule without a handle")?;
                let chain = table.chains.iter_mut().find(|chain| chain.name == name);
                let chain = chain.ok_or("a rule of an unknown chain")?;
                chain.rules.push(SeenRule { handle, rule: rule(family, value) });
            }
            _ => table.other = true,
        }
    }
    Ok(table)
}

/// The objects in a listing.
pub(in crate::firewall) fn entries(json: &str) -> Result<Vec<Value>, String> {
    // An empty ruleset is printed as nothing by some versions.
    if json.trim().is_empty() {
        return Ok(Vec::new());
    }
    let mut whole: Value = serde_json::from_str(json).map_err(|error| error.to_string())?;
    match whole.get_mut("nftables").map(Value::take) {
        Some(Value::Array(entries)) => Ok(entries),
        _ => Err("no list \"nftables\" in it".to_owned()),
    }
}

/// A member that is text.
pub(in crate::firewall) fn text<'a>(value: &'a Value, key: &str) -> Option<&'a str> {
    value.get(key)?.as_str()
}

/// The hook of a chain; `None` if it is not a base chain.
pub(in crate::firewall) fn base(chain: &Value) -> Option<Base> {
    Some(Base {
        kind: text(chain, "type")?.to_owned(),
        hook: text(chain, "hook")?.to_owned(),
        priority: chain.get("prio")?.as_i64()?,
        policy: text(chain, "policy").unwrap_or("accept").to_owned(),
    })
}

/// The rule, if it has only expressions that ours have.
fn rule(family: Family, value: &Value) -> Option<Rule> {
    let (mut mark, mut src, mut dst, mut verdict) = (None, None, None, None);
    for expression in value.get("expr")?.as_array()? {
        let (kind, detail) = expression.as_object()?.iter().next()?;
        // Nothing follows a verdict, and nothing comes twice.
        let first = match (kind.as_str(), &verdict) {
            ("match", None) => matched(family, detail, &mut mark, &mut src, &mut dst),
            ("return", None) => verdict.replace(Verdict::Return).is_none(),
            ("accept", None) => verdict.replace(Verdict::Accept).is_none(),
            ("masquerade", None) => {
                verdict.replace(Verdict::Masquerade { fully_random: fully_random(detail)? }).is_none()
            }
            _ => false,
        };
        if !first {
            return None;
        }
    }
    Some(Rule { mark, src, dst, verdict: verdict? })
}

/// Adds one condition; false if ours never have it.
fn matched(
    family: Family,
    detail: &Value,
    mark: &mut Option<Mark>,
    src: &mut Option<Side>,
    dst: &mut Option<Side>,
) -> bool {
    let taken = || {
        let (left, right) = (detail.get("left")?, detail.get("right")?);
        let outside = match text(detail, "op")? {
            "==" | "in" => false,
            "!=" => true,
            _ => return None,
        };
        if let Some(payload) = left.get("payload") {
            let protocol = match family {
                Family::V4 => "ip",
                Family::V6 => "ip6",
            };
            let side = Some(Side { subnet: subnet(family, right)?, outside });
            let place = match (text(payload, "protocol")? == protocol, text(payload, "field")?) {
                (true, "saddr") => src,
                (true, "daddr") => dst,
                _ => return None,
            };
            return (place.is_none()).then(|| *place = side);
        }
        let value = right.as_u64()? == u64::from(KUBE_MARK) && !outside && mark.is_none();
        let seen = match left.get("&").and_then(Value::as_array).map(Vec::as_slice) {
            Some([meta, bits]) if is_mark(meta) && bits.as_u64() == Some(KUBE_MARK.into()) => Mark::Bit,
            None if is_mark(left) => Mark::Exact,
            _ => return None,
        };
        value.then(|| *mark = Some(seen))
    };
    taken().is_some()
}

fn is_mark(value: &Value) -> bool {
    value.get("meta").and_then(|meta| text(meta, "key")) == Some("mark")
}

/// A subnet: `{"prefix": {"addr", "len"}}`, or an address alone.
fn subnet(family: Family, value: &Value) -> Option<Subnet> {
    let (addr, len) = match value.get("prefix") {
        Some(prefix) => (text(prefix, "addr")?, prefix.get("len")?.as_u64()?),
        None => (value.as_str()?, u64::from(family.bits())),
    };
    let subnet = Subnet::exact(addr.parse().ok()?, len.try_into().ok()?)?;
    (subnet.family() == family).then_some(subnet)
}

/// The flags of a masquerade: none, one as text, or a list.
fn fully_random(detail: &Value) -> Option<bool> {
    let is = |flag: &Value| flag.as_str() == Some("fully-random");
    match detail {
        Value::Null => Some(false),
        Value::Object(keys) => match (keys.get("flags"), keys.len()) {
            (Some(Value::Array(flags)), 1) if flags.len() == 1 => flags.iter().all(is).then_some(true),
            (Some(flag), 1) => is(flag).then_some(true),
            (None, 0) => Some(false),
            _ => None,
        },
        _ => None,
    }
}
