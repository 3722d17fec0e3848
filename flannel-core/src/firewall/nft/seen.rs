//! Reads our tables from the kernel, and recognises in them the rules that agents write.

use super::command::{declared, family_of, table_name};
use crate::addr::{Family, Subnet};
use crate::firewall::rules::{Chain, KUBE_MARK, Mark, Rule, Side, Verdict};
use crate::kernel::KernelError;
use crate::netlink::nftables::{
    Hook, META_MARK, NETWORK, NfTables, Part, RANDOM_FULLY, Ruling, SeenRule, Sense, What, mask,
    place_of_addresses,
};

/// A table of ours, as observed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct SeenTable {
    /// Those of our chains that are there.
    pub(super) chains: Vec<SeenChain>,
    /// Whether it has chains, sets, maps or other objects that we never create.
    pub(super) other: bool,
    /// Whether its chains are switched off.
    pub(super) is_dormant: bool,
}

/// A chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct SeenChain {
    /// Which one.
    pub(super) chain: Chain,
    /// Its hook, if it is a base chain.
    pub(super) hook: Option<Hook>,
    /// Its rules.
    pub(super) rules: Vec<SeenRule>,
}

/// A family's table; `None` if there is none.
pub(super) async fn read(kernel: &mut NfTables, family: Family) -> Result<Option<SeenTable>, KernelError> {
    let (of, table) = (family_of(family), table_name(family));
    let Some((objects, is_dormant)) = kernel.table(of, table).await? else { return Ok(None) };
    let mut chains = Vec::new();
    for chain in Chain::ALL {
        let name = declared(chain).name;
        if let Some(hook) = kernel.chain(of, table, name).await? {
            chains.push(SeenChain { chain, hook, rules: kernel.rules(of, table, name).await? });
        }
    }
    let other = objects as usize > chains.len();
    Ok(Some(SeenTable { chains, other, is_dormant }))
}

/// The rule, if it has only parts that ours have.
pub(super) fn rule(family: Family, seen: &SeenRule) -> Option<Rule> {
    let (verdict, conditions) = seen.parts.split_last()?;
    let verdict = match verdict {
        Part::Then(Ruling::Return) => Verdict::Return,
        Part::Then(Ruling::Accept) => Verdict::Accept,
        Part::Masquerade { flags: 0 } => Verdict::Masquerade { fully_random: false },
        Part::Masquerade { flags: RANDOM_FULLY } => Verdict::Masquerade { fully_random: true },
        _ => return None,
    };
    let mut rule = Rule { mark: None, src: None, dst: None, verdict };
    for condition in conditions {
        let Part::Is { what, mask, value, sense } = condition else { return None };
        // Nothing comes twice.
        let is_first = match what {
            What::Meta(META_MARK) => rule.mark.replace(mark(mask.as_deref(), value, *sense)?).is_none(),
            What::Payload { base: NETWORK, offset, len } => {
                let (src, dst, _) = place_of_addresses(family);
                let place = match *offset {
                    offset if offset == src => &mut rule.src,
                    offset if offset == dst => &mut rule.dst,
                    _ => return None,
                };
                let subnet = subnet_of(family, *len, mask.as_deref(), value)?;
                place.replace(Side { subnet, outside: *sense == Sense::Not }).is_none()
            }
            _ => false,
        };
        if !is_first {
            return None;
        }
    }
    Some(rule)
}

fn mark(mask: Option<&[u8]>, value: &[u8], sense: Sense) -> Option<Mark> {
    let bits = KUBE_MARK.to_ne_bytes();
    match (mask, sense) {
        (None, Sense::Is) if value == bits => Some(Mark::Exact),
        (Some(mask), Sense::Is) if mask == bits && value == bits => Some(Mark::Bit),
        _ => None,
    }
}

/// The subnet that the first `len` bytes of an address are compared with, under a mask if there is one.
pub(in crate::firewall) fn subnet_of(
    family: Family,
    len: u32,
    under: Option<&[u8]>,
    value: &[u8],
) -> Option<Subnet> {
    let all = usize::from(family.bits() / 8);
    let len = usize::try_from(len).ok().filter(|len| (1..=all).contains(len) && value.len() == *len)?;
    let prefix = match under {
        None => len as u8 * 8,
        Some(under) => (0..=len as u8 * 8).find(|prefix| mask(*prefix, len) == under)?,
    };
    let mut octets = value.to_vec();
    octets.resize(all, 0);
    let addr = match family {
        Family::V4 => <[u8; 4]>::try_from(octets).ok()?.into(),
        Family::V6 => <[u8; 16]>::try_from(octets).ok()?.into(),
    };
    Subnet::exact(addr, prefix)
}
