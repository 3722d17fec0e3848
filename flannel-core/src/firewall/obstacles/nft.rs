//! Understands chains of `nf_tables`. Pure.
//!
//! An unknown expression may match a packet or not, and may let it pass.

use std::collections::BTreeMap;

use super::chain::{Does, Rule, RuleName, Side, Test};
use super::packet::{LinkName, Truth};
use crate::addr::{Family, Subnet};
use crate::firewall::nft::seen::subnet_of;
use crate::netlink::nftables::{
    Element, Hook, HookKind, META_L4PROTO, META_MARK, META_NFPROTO, META_PROTOCOL, NETWORK, Part, Ruling,
    SeenRule, Sense, TableFamily, What, place_of_addresses,
};

/// `NF_INET_PRE_ROUTING`, `NF_INET_FORWARD`, `NF_INET_POST_ROUTING`.
const ON_THE_WAY: [u32; 3] = [0, 2, 4];
/// `NFT_META_IIF`, `NFT_META_OIF`, and the names of both.
const META_IIF: u32 = 4;
const META_OIF: u32 = 5;
const META_IIFNAME: u32 = 6;
const META_OIFNAME: u32 = 7;
/// `NFT_CT_STATE`, `NFT_CT_STATUS`.
const CT_STATE: u32 = 0;
const CT_STATUS: u32 = 2;
/// `NF_CT_STATE_BIT` of `IP_CT_ESTABLISHED` and `IP_CT_NEW`.
const ESTABLISHED: u32 = 2;
const NEW: u32 = 8;
/// `IPS_DST_NAT`.
const DST_NAT: u32 = 32;
/// `NFT_FIB_RESULT_ADDRTYPE`, `RTN_LOCAL`.
const FIB_TYPE: u32 = 3;
const LOCAL: u32 = 2;
/// `IFNAMSIZ`.
const NAME_LEN: usize = 16;
/// `IPPROTO_TCP`.
const TCP: u8 = 6;

/// A base chain that forwarded packets enter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Base {
    pub(super) family: TableFamily,
    pub(super) table: String,
    pub(super) chain: String,
    pub(super) drops: bool,
}

/// The families of tables whose chains forwarded packets enter.
pub(super) const FAMILIES: [TableFamily; 3] = [TableFamily::Ip, TableFamily::Ip6, TableFamily::Inet];

/// The base chain, if forwarded packets enter it and it may drop them.
pub(super) fn base(family: TableFamily, table: String, chain: String, hook: Option<&Hook>) -> Option<Base> {
    let hook = hook.filter(|hook| hook.kind == HookKind::Filter && ON_THE_WAY.contains(&hook.number))?;
    FAMILIES.contains(&family).then_some(Base { family, table, chain, drops: hook.drops })
}

/// What is known of the surroundings of rules.
#[derive(Debug, Default)]
pub(super) struct Context {
    /// The names of links.
    pub(super) links: BTreeMap<u32, String>,
    /// The elements of the sets and maps in rules; `None` for those that are not understood.
    pub(super) sets: BTreeMap<String, Vec<Option<Element>>>,
}

/// The sets and maps that are a part of a rule, and not a table's own, which may be large and change all the time.
pub(super) fn sets_in(rules: &[SeenRule]) -> impl Iterator<Item = &str> {
    let name = |part| match part {
        &Part::In { ref set, .. } | &Part::Map { map: ref set, .. } => Some(set.as_str()),
        _ => None,
    };
    rules.iter().flat_map(|rule| &rule.parts).filter_map(name).filter(|name| name.starts_with("__"))
}

/// The rules of a chain, and whether some were made by iptables and only its own programs can show them.
pub(super) fn rules(family: TableFamily, seen: &[SeenRule], context: &Context) -> (Vec<Rule>, bool) {
    let family = match family {
        TableFamily::Ip => Some(Family::V4),
        TableFamily::Ip6 => Some(Family::V6),
        _ => None,
    };
    let of_iptables = |part: &Part| matches!(part, Part::Xt { .. });
    let is_of_iptables = seen.iter().flat_map(|rule| &rule.parts).any(of_iptables);
    (seen.iter().flat_map(|rule| rule_of(family, rule, context)).collect(), is_of_iptables)
}

/// The chains that rules jump to.
pub(super) fn targets(rules: &[Rule]) -> impl Iterator<Item = &str> {
    rules.iter().filter_map(|rule| match &rule.does {
        Does::Jump(target) | Does::Goto(target) => Some(target.as_str()),
        _ => None,
    })
}

/// A rule; several if it uses a verdict map.
fn rule_of(mut family: Option<Family>, seen: &SeenRule, context: &Context) -> Vec<Rule> {
    let name = RuleName::Handle(seen.handle);
    let (mut tests, mut marks) = (Vec::new(), false);
    for part in &seen.parts {
        let does = match part {
            Part::Map { what, map } => {
                let pairs = verdicts(family, *what, context.sets.get(map), context).into_iter();
                let rule = |(test, does)| {
                    let tests = tests.iter().cloned().chain([test]).collect();
                    Rule { tests, marks, does, name: name.clone() }
                };
                return pairs.map(rule).collect();
            }
            Part::Then(verdict) => does(verdict),
            Part::Masquerade { .. } => Does::Unknown,
            Part::Xt { is_target: true, name } if name == "REJECT" => Does::Cut,
            Part::Xt { is_target: true, name } if super::iptables::is_terminal(name) => Does::Unknown,
            Part::Other(name) if name == "reject" => Does::Cut,
            Part::Other(name)
                if ["queue", "fwd", "tproxy", "synproxy", "nat", "redir", "masq"]
                    .contains(&name.as_str()) =>
            {
                Does::Unknown
            }
            part => {
                marks |= matches!(part, Part::SetsMark);
                marks |= matches!(part, Part::Xt { is_target: true, name } if name.ends_with("MARK"));
                let new = conditions(family, part, context);
                // In tables of both families a rule asks for one before it asks for addresses.
                for test in &new {
                    if let Test::Family(of) = test {
                        family = Some(*of);
                    }
                }
                tests.extend(new);
                continue;
            }
        };
        if does != Does::Nothing {
            return vec![Rule { tests, marks, does, name }];
        }
    }
    vec![Rule { tests, marks, does: Does::Nothing, name }]
}

fn does(verdict: &Ruling) -> Does {
    match verdict {
        Ruling::Accept => Does::Accept,
        Ruling::Drop => Does::Cut,
        Ruling::Return => Does::Return,
        Ruling::Continue => Does::Nothing,
        Ruling::Jump(chain) => Does::Jump(chain.clone()),
        Ruling::Goto(chain) => Does::Goto(chain.clone()),
        Ruling::Other(_) => Does::Unknown,
    }
}

/// The conditions of a part; none if it is always true.
fn conditions(family: Option<Family>, part: &Part, context: &Context) -> Vec<Test> {
    let maybe = || vec![Test::Known(Truth::Maybe)];
    match part {
        Part::Is { what, mask, value, sense } => {
            let values = Values::Masked(mask.as_deref(), value);
            if let Some((src, dst)) =
                both_addresses(family, *what).filter(|_| mask.is_none() && *sense == Sense::Is)
            {
                let (first, second) = value.split_at(value.len() / 2);
                let test = |what, value| compare(family, what, &Values::Masked(None, value), *sense, context);
                let tests = [test(src, first), test(dst, second)];
                return tests.into_iter().collect::<Option<_>>().unwrap_or_else(maybe);
            }
            compare(family, *what, &values, *sense, context).map_or_else(maybe, |test| vec![test])
        }
        Part::In { what, set, sense } => {
            let elements = context
                .sets
                .get(set)
                .and_then(|set| set.iter().map(Option::as_ref).collect::<Option<Vec<_>>>());
            let test = elements
                .and_then(|elements| compare(family, *what, &Values::Among(&elements), *sense, context));
            test.map_or_else(maybe, |test| vec![test])
        }
        Part::Xt { is_target: true, .. } | Part::Effect | Part::SetsMark => Vec::new(),
        Part::Xt { name, .. } if name == "comment" => Vec::new(),
        _ => maybe(),
    }
}

/// Source and destination, if both are compared at once, as `nft` does with whole addresses.
fn both_addresses(family: Option<Family>, what: What) -> Option<(What, What)> {
    let What::Payload { base: NETWORK, offset, len } = what else { return None };
    let (src, dst, one) = place_of_addresses(family?);
    let side = |offset| What::Payload { base: NETWORK, offset, len: one };
    ((offset, len) == (src, 2 * one)).then_some((side(src), side(dst)))
}

/// What a property is compared with.
enum Values<'a> {
    /// One value, under a mask if there is one.
    Masked(Option<&'a [u8]>, &'a [u8]),
    /// The elements of a set.
    Among(&'a [&'a Element]),
}

impl Values<'_> {
    /// All values, if there is neither a mask nor an interval.
    fn plain(&self) -> Option<Vec<&[u8]>> {
        match self {
            Self::Masked(None, value) => Some(vec![value]),
            Self::Masked(Some(_), _) => None,
            Self::Among(elements) => {
                let plain = |element: &&&Element| !element.is_end && !element.key.is_empty();
                elements
                    .iter()
                    .all(|it| plain(&it))
                    .then(|| elements.iter().map(|it| it.key.as_slice()).collect())
            }
        }
    }

    /// One number in the host's order, under its mask.
    fn number(&self) -> Option<(u32, u32)> {
        match self {
            Self::Masked(mask, value) => {
                Some((mask.map_or(Some(u32::MAX), host_number)?, host_number(value)?))
            }
            Self::Among(_) => match self.plain()?.as_slice() {
                [one] => Some((u32::MAX, host_number(one)?)),
                _ => None,
            },
        }
    }

    /// Subnets of a family, of which the first `len` bytes are compared.
    fn subnets(&self, family: Family, len: u32) -> Option<Vec<Subnet>> {
        match self {
            Self::Masked(mask, value) => Some(vec![subnet_of(family, len, *mask, value)?]),
            Self::Among(elements) => intervals(family, elements),
        }
    }
}

/// The pairs of a verdict map. Those of a table's own map are unknown.
fn verdicts(
    family: Option<Family>,
    what: What,
    map: Option<&Vec<Option<Element>>>,
    context: &Context,
) -> Vec<(Test, Does)> {
    let maybe = || Test::Known(Truth::Maybe);
    let Some(map) = map else { return vec![(maybe(), Does::Unknown)] };
    let is_plain = map.iter().flatten().all(|element| !element.is_end);
    let pair = |element: &Option<Element>| {
        let Some(element) = element else { return Some((maybe(), Does::Unknown)) };
        if element.is_end {
            return None;
        }
        let does = element.verdict.as_ref().map_or(Does::Unknown, does);
        // What the element for all others matches depends on those, as does where an interval ends.
        let alone = [element];
        let test = (is_plain && !element.key.is_empty())
            .then(|| compare(family, what, &Values::Among(&alone), Sense::Is, context));
        Some((test.flatten().unwrap_or_else(maybe), does))
    };
    map.iter().filter_map(pair).collect()
}

/// The condition that a property is one of these values, or is not; `None` if that is not understood.
fn compare(
    family: Option<Family>,
    what: What,
    values: &Values<'_>,
    sense: Sense,
    context: &Context,
) -> Option<Test> {
    let inverted = sense == Sense::Not;
    match what {
        What::Payload { base: NETWORK, offset, len } => {
            let family = family?;
            let (src, dst, _) = place_of_addresses(family);
            let side = match offset {
                offset if offset == src => Side::Source,
                offset if offset == dst => Side::Destination,
                // The protocol's place in the header.
                offset => {
                    let protocol = if family == Family::V4 { 9 } else { 6 };
                    return ((offset, len) == (protocol, 1)).then(|| protocols(values, inverted)).flatten();
                }
            };
            Some(Test::Address { side, among: values.subnets(family, len)?, inverted })
        }
        What::Meta(META_L4PROTO) => protocols(values, inverted),
        What::Meta(META_NFPROTO) => is_family(values, [&[2], &[10]], inverted),
        What::Meta(META_PROTOCOL) => is_family(values, [&[0x08, 0x00], &[0x86, 0xdd]], inverted),
        What::Meta(META_MARK) => {
            let (mask, value) = values.number()?;
            Some(Test::Mark { mask, value, inverted })
        }
        What::Meta(key @ (META_IIF | META_OIF | META_IIFNAME | META_OIFNAME)) => {
            let side = if [META_IIF, META_IIFNAME].contains(&key) { Side::Source } else { Side::Destination };
            let is_name = [META_IIFNAME, META_OIFNAME].contains(&key);
            let mut among = Vec::new();
            for value in values.plain()? {
                if is_name {
                    among.push(link_name(value)?);
                } else {
                    // A link that is gone has no packets.
                    among.extend(context.links.get(&host_number(value)?).cloned().map(LinkName::Exact));
                }
            }
            Some(Test::Link { side, among, inverted })
        }
        What::Ct(CT_STATE) => states(values, inverted),
        // Traffic between pods, and to the world, is not subject to DNAT.
        What::Ct(CT_STATUS) => {
            let (mask, value) = values.number()?;
            (mask == DST_NAT).then(|| Test::Known(Truth::from((value == 0) != inverted)))
        }
        // Pods' addresses are not local to this namespace.
        What::Fib { result: FIB_TYPE, .. } => {
            (values.number()? == (u32::MAX, LOCAL)).then(|| Test::Known(Truth::from(inverted)))
        }
        _ => None,
    }
}

/// The condition that the protocol is one of these. A protocol that is unknown here is not TCP.
fn protocols(values: &Values<'_>, inverted: bool) -> Option<Test> {
    let is_tcp = values.plain()?.iter().any(|value| **value == [TCP]);
    Some(Test::is_tcp(is_tcp != inverted))
}

/// The condition that the packet is of a family, by the values that stand for IPv4 and IPv6.
fn is_family(values: &Values<'_>, numbers: [&[u8]; 2], inverted: bool) -> Option<Test> {
    let [value] = values.plain()?[..] else { return None };
    let place = numbers.iter().position(|number| *number == value)?;
    Some(Test::Family(if (place == 0) == inverted { Family::V6 } else { Family::V4 }))
}

/// The condition on the state of the connection: one of a set, or bits under a mask of which some are set or none.
fn states(values: &Values<'_>, inverted: bool) -> Option<Test> {
    let (new, established, inverted) = match values {
        Values::Masked(Some(mask), value) => {
            let mask = host_number(mask).filter(|_| host_number(value) == Some(0))?;
            (mask & NEW != 0, mask & ESTABLISHED != 0, !inverted)
        }
        values => {
            let states = values.plain()?.into_iter().map(host_number).collect::<Option<Vec<_>>>()?;
            (states.contains(&NEW), states.contains(&ESTABLISHED), inverted)
        }
    };
    Some(Test::State { new, established, inverted })
}

/// A name in a register of 16 bytes, or the beginning of names.
fn link_name(value: &[u8]) -> Option<LinkName> {
    let end = value.iter().position(|byte| *byte == 0);
    let name = String::from_utf8(value[..end.unwrap_or(value.len())].to_vec()).ok()?;
    Some(if end.is_none() && value.len() < NAME_LEN { LinkName::Prefix(name) } else { LinkName::Exact(name) })
}

fn host_number(bytes: &[u8]) -> Option<u32> {
    bytes.try_into().ok().map(u32::from_ne_bytes)
}

/// Subnets out of the elements of a set: addresses, or intervals of which each is a subnet.
fn intervals(family: Family, elements: &[&Element]) -> Option<Vec<Subnet>> {
    let number = |element: &&Element| match family {
        Family::V4 => Some(u128::from(u32::from_be_bytes(element.key.as_slice().try_into().ok()?))),
        Family::V6 => Some(u128::from_be_bytes(element.key.as_slice().try_into().ok()?)),
    };
    let mut places: Vec<_> =
        elements.iter().map(|element| Some((number(element)?, !element.is_end))).collect::<Option<_>>()?;
    places.sort_unstable();
    let has_ends = places.iter().any(|(_, begins)| !begins);
    let most = if family == Family::V4 { u128::from(u32::MAX) } else { u128::MAX };
    let (mut subnets, mut places) = (Vec::new(), places.into_iter().peekable());
    while let Some((first, begins)) = places.next() {
        if !begins {
            continue;
        }
        let last = match places.peek() {
            _ if !has_ends => first,
            Some((next, _)) => next.checked_sub(1)?,
            None => most,
        };
        // As many addresses as a subnet has, beginning where one does.
        let len = (last - first)
            .checked_add(1)
            .map_or(u128::from(family.bits()), |count| u128::from(count.ilog2()));
        let prefix = family.bits() - u8::try_from(len).ok()?;
        let base = match family {
            Family::V4 => std::net::IpAddr::from(u32::try_from(first).ok()?.to_be_bytes()),
            Family::V6 => std::net::IpAddr::from(first.to_be_bytes()),
        };
        let subnet = Subnet::exact(base, prefix)?;
        subnets.push(subnet);
        let size = if len == 128 { u128::MAX } else { (1_u128 << len) - 1 };
        if size != last - first {
            return None;
        }
    }
    Some(subnets)
}
