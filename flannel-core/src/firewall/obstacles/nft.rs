//! Reads chains from the output of `nft -j list chain`. Pure.
//!
//! An unknown expression may match a packet or not, and may let it pass.

use serde::Deserialize;
use serde_json::Value;

use super::chain::{Does, Rule, RuleName, Side, Test};
use super::packet::{LinkName, Truth};
use crate::addr::{Family, Subnet};
use crate::firewall::nft::listing::{entries, text};

/// A base chain that forwarded packets enter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Base {
    pub(super) family: String,
    pub(super) table: String,
    pub(super) chain: String,
    pub(super) drops: bool,
}

/// The output of `nft -j list chains`. There may be tens of thousands of chains, so only what matters is kept.
#[derive(Deserialize)]
struct Listing<'a> {
    #[serde(borrow)]
    nftables: Vec<Entry<'a>>,
}

#[derive(Deserialize)]
struct Entry<'a> {
    #[serde(borrow)]
    chain: Option<SeenChain<'a>>,
}

#[derive(Deserialize)]
struct SeenChain<'a> {
    family: &'a str,
    #[serde(borrow)]
    table: std::borrow::Cow<'a, str>,
    #[serde(borrow)]
    name: std::borrow::Cow<'a, str>,
    #[serde(rename = "type")]
    kind: Option<&'a str>,
    hook: Option<&'a str>,
    policy: Option<&'a str>,
}

/// The base chains that forwarded packets enter, from the output of `nft -j list chains`.
pub(super) fn bases(json: &str) -> Result<Vec<Base>, String> {
    if json.trim().is_empty() {
        return Ok(Vec::new());
    }
    let listing: Listing<'_> = serde_json::from_str(json).map_err(|error| error.to_string())?;
    let chains = listing.nftables.into_iter().filter_map(|entry| entry.chain);
    let on_the_way = |chain: &SeenChain<'_>| {
        ["ip", "ip6", "inet"].contains(&chain.family)
            && chain.kind == Some("filter")
            && matches!(chain.hook, Some("prerouting" | "forward" | "postrouting"))
    };
    let bases = chains.filter(on_the_way).map(|chain| Base {
        family: chain.family.to_owned(),
        table: chain.table.into_owned(),
        chain: chain.name.into_owned(),
        drops: chain.policy == Some("drop"),
    });
    Ok(bases.collect())
}

/// The rules of a chain, and whether some were made by iptables and only its own programs can show them.
pub(super) fn rules(json: &str) -> Result<(Vec<Rule>, bool), String> {
    let (mut rules, mut is_of_iptables) = (Vec::new(), false);
    for rule in entries(json)?.iter().filter_map(|entry| entry.get("rule")) {
        let handle = rule.get("handle").and_then(Value::as_u64).ok_or("a rule without a handle")?;
        let expressions = rule.get("expr").and_then(Value::as_array).ok_or("a rule without expressions")?;
        is_of_iptables |= expressions.iter().any(|expression| expression.get("xt").is_some());
        rules.extend(rule_of(handle, expressions));
    }
    Ok((rules, is_of_iptables))
}

/// The chains that rules jump to.
pub(super) fn targets(rules: &[Rule]) -> impl Iterator<Item = &str> {
    rules.iter().filter_map(|rule| match &rule.does {
        Does::Jump(target) | Does::Goto(target) => Some(target.as_str()),
        _ => None,
    })
}

/// A rule; several if it uses a verdict map.
fn rule_of(handle: u64, expressions: &[Value]) -> Vec<Rule> {
    let rule = |tests: &[Test], marks, does| Rule {
        tests: tests.to_vec(),
        marks,
        does,
        name: RuleName::Handle(handle),
    };
    let (mut tests, mut marks) = (Vec::new(), false);
    for expression in expressions {
        let Some((kind, detail)) = expression.as_object().and_then(|it| it.iter().next()) else { continue };
        if kind == "vmap" {
            let pairs = verdicts(detail);
            return pairs
                .map(|(test, does)| rule(&[tests.as_slice(), &[test]].concat(), marks, does))
                .collect();
        }
        if let Some(does) = does(kind, detail) {
            return vec![rule(&tests, marks, does)];
        }
        marks |= kind == "mangle" && names_mark(detail)
            || kind == "xt" && text(detail, "name").is_some_and(|name| name.ends_with("MARK"));
        tests.extend(test(kind, detail));
    }
    vec![rule(&tests, marks, Does::Nothing)]
}

fn names_mark(detail: &Value) -> bool {
    detail.get("key").and_then(|key| key.get("meta")).and_then(|meta| text(meta, "key")) == Some("mark")
}

/// What an expression does with the packet; `None` if the next expression follows.
fn does(kind: &str, detail: &Value) -> Option<Does> {
    let target = || text(detail, "target").map(str::to_owned);
    Some(match kind {
        "accept" => Does::Accept,
        "drop" | "reject" => Does::Cut,
        "return" => Does::Return,
        "continue" => Does::Nothing,
        "jump" => target().map_or(Does::Unknown, Does::Jump),
        "goto" => target().map_or(Does::Unknown, Does::Goto),
        "queue" | "fwd" | "tproxy" | "synproxy" | "snat" | "dnat" | "redirect" | "masquerade" => {
            Does::Unknown
        }
        "xt" => match (text(detail, "type")?, text(detail, "name")?) {
            ("target", "REJECT") => Does::Cut,
            ("target", name) if super::iptables::is_terminal(name) => Does::Unknown,
            _ => return None,
        },
        _ => return None,
    })
}

/// The condition of an expression; `None` if it is always true.
fn test(kind: &str, detail: &Value) -> Option<Test> {
    match kind {
        "match" => Some(matched(detail)),
        "xt" if text(detail, "type") == Some("target") || text(detail, "name") == Some("comment") => None,
        "counter" | "log" | "mangle" | "notrack" | "flow" | "dup" | "comment" | "ct helper"
        | "ct timeout" | "ct expectation" | "secmark" => None,
        _ => Some(Test::Known(Truth::Maybe)),
    }
}

/// The pairs of a verdict map.
fn verdicts(detail: &Value) -> impl Iterator<Item = (Test, Does)> + '_ {
    let pairs = detail.get("data").and_then(|data| data.get("set")).and_then(Value::as_array);
    let key = detail.get("key");
    // The elements of a named map are not in the listing.
    let unknown = pairs.is_none().then_some((Test::Known(Truth::Maybe), Does::Unknown));
    let pairs = pairs.into_iter().flatten().map(move |pair| {
        let verdict = pair.get(1).and_then(Value::as_object).and_then(|verdict| verdict.iter().next());
        let does = verdict.and_then(|(kind, detail)| does(kind, detail)).unwrap_or(Does::Unknown);
        // What the catch-all element matches depends on the other elements.
        let element = pair.get(0).filter(|element| element.as_str() != Some("*"));
        let test = key.zip(element).and_then(|(key, element)| compare(key, "==", element));
        (test.unwrap_or(Test::Known(Truth::Maybe)), does)
    });
    pairs.chain(unknown)
}

fn matched(detail: &Value) -> Test {
    let parts = detail.get("left").zip(text(detail, "op")).zip(detail.get("right"));
    let test = parts.and_then(|((left, op), right)| compare(left, op, right));
    test.unwrap_or(Test::Known(Truth::Maybe))
}

/// The condition that `left` is one of `right`, or is not.
fn compare(left: &Value, op: &str, right: &Value) -> Option<Test> {
    let inverted = match op {
        "==" | "in" => false,
        "!=" => true,
        _ => return None,
    };
    let values = values(right);
    if let Some(payload) = left.get("payload") {
        return payload_test(
            text(payload, "protocol")?,
            text(payload, "field")?,
            inverted,
            values.as_deref(),
        );
    }
    if let Some(meta) = left.get("meta") {
        return meta_test(text(meta, "key")?, inverted, &values?);
    }
    if let Some([meta, mask]) = left.get("&").and_then(Value::as_array).map(Vec::as_slice) {
        let is_mark = text(meta.get("meta")?, "key")? == "mark";
        let [value] = values?[..] else { return None };
        return is_mark.then_some(Test::Mark { mask: number(mask)?, value: number(value)?, inverted });
    }
    if let Some(ct) = left.get("ct") {
        return ct_test(text(ct, "key")?, inverted, &values?);
    }
    let fib = left.get("fib")?;
    // Pods' addresses are not local to this namespace.
    let is_local = text(fib, "result")? == "type" && values?[..] == [&Value::from("local")];
    is_local.then_some(Test::Known(Truth::from(inverted)))
}

/// The values of a comparison: one value, or all of a set. `None` for a named set.
fn values(right: &Value) -> Option<Vec<&Value>> {
    match right {
        Value::String(name) if name.starts_with('@') => None,
        Value::Array(values) => Some(values.iter().collect()),
        Value::Object(kind) => match kind.get("set") {
            Some(Value::Array(values)) => {
                // An element may carry a comment or a counter.
                let plain = |value: &'_ Value| value.get("elem").is_none();
                values.iter().all(plain).then(|| values.iter().collect())
            }
            Some(_) => None,
            None => Some(vec![right]),
        },
        _ => Some(vec![right]),
    }
}

fn payload_test(protocol: &str, field: &str, inverted: bool, values: Option<&[&Value]>) -> Option<Test> {
    let family = match protocol {
        "ip" => Some(Family::V4),
        "ip6" => Some(Family::V6),
        _ => None,
    };
    let side = match field {
        "saddr" => Some(Side::Source),
        "daddr" => Some(Side::Destination),
        _ => None,
    };
    match (family, side) {
        (Some(family), Some(side)) => {
            let among = values?.iter().map(|value| subnet(family, value)).collect::<Option<_>>()?;
            Some(Test::Address { side, among, inverted })
        }
        (Some(_), None) if ["protocol", "nexthdr"].contains(&field) => protocols(inverted, values?),
        (Some(_), None) => None,
        (None, _)
            if ["udp", "udplite", "icmp", "icmpv6", "sctp", "dccp", "esp", "ah"].contains(&protocol) =>
        {
            Some(Test::is_tcp(false))
        }
        (None, _) => None,
    }
}

/// The condition that the protocol is one of these. A protocol that is unknown here is not TCP.
fn protocols(inverted: bool, values: &[&Value]) -> Option<Test> {
    let plain = values.iter().all(|value| value.is_string() || value.is_u64());
    let is_tcp = values.iter().any(|value| value.as_str() == Some("tcp") || value.as_u64() == Some(6));
    plain.then_some(Test::is_tcp(is_tcp != inverted))
}

fn meta_test(key: &str, inverted: bool, values: &[&Value]) -> Option<Test> {
    match key {
        "iifname" | "oifname" | "iif" | "oif" => {
            let side = if key.starts_with('i') { Side::Source } else { Side::Destination };
            let names = values.iter().map(|value| Some(LinkName::parse(value.as_str()?, '*')));
            Some(Test::Link { side, among: names.collect::<Option<_>>()?, inverted })
        }
        "l4proto" => protocols(inverted, values),
        "mark" => {
            let [value] = values else { return None };
            Some(Test::Mark { mask: u32::MAX, value: number(value)?, inverted })
        }
        "nfproto" | "protocol" => {
            let [value] = values else { return None };
            let is_v4 = match value.as_str()? {
                "ipv4" | "ip" => true,
                "ipv6" | "ip6" => false,
                _ => return None,
            };
            Some(Test::Family(if is_v4 == inverted { Family::V6 } else { Family::V4 }))
        }
        _ => None,
    }
}

fn ct_test(key: &str, inverted: bool, values: &[&Value]) -> Option<Test> {
    let has = |name: &str| values.iter().any(|value| value.as_str() == Some(name));
    match key {
        "state" if values.iter().all(|value| value.is_string()) => {
            Some(Test::State { new: has("new"), established: has("established"), inverted })
        }
        // Traffic between pods, and to the world, is not subject to DNAT.
        "status" if values.len() == 1 && has("dnat") => Some(Test::Known(Truth::from(inverted))),
        _ => None,
    }
}

fn number(value: &Value) -> Option<u32> {
    value.as_u64()?.try_into().ok()
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
