//! Puts the expressions of a rule together: what one of them loads into a register, a later one compares. Pure.

use std::collections::BTreeMap;
use std::ops::Bound::{Excluded, Unbounded};

use super::super::message::{UnreadableMessage, attribute, attributes, string};
use super::expr::META_MARK;
use super::fields::{Attributes, nested, number_of, parse, text};
use super::value::{Part, Sense, Verdict, What};

/// Bytes of a register.
const WORD: u32 = 4;
/// `NFT_CMP_EQ`, `NFT_CMP_NEQ`.
const EQ: u32 = 0;
const NEQ: u32 = 1;
/// `NFT_OBJECT_*` that neither ask nor decide: counters, and what is attached to a connection. Others are limits.
const EFFECTS: [u32; 5] = [1, 3, 7, 8, 9];

/// What a register has.
#[derive(Clone)]
struct Loaded {
    what: What,
    mask: Option<Vec<u8>>,
}

/// The registers by their first byte.
#[derive(Default)]
struct Registers(BTreeMap<u32, Loaded>);

/// Where a register begins: `NFT_REG_1` to `NFT_REG_4` have 16 bytes each, `NFT_REG32_00` and those after it 4 bytes of
/// the same.
fn place(register: u32) -> u32 {
    if register < 8 { register.saturating_sub(1) * 4 * WORD } else { (register - 8).saturating_mul(WORD) }
}

impl Registers {
    fn load(&mut self, register: u32, what: What, mask: Option<Vec<u8>>) {
        self.0.insert(place(register), Loaded { what, mask });
    }

    fn at(&self, register: u32) -> Loaded {
        self.0.get(&place(register)).cloned().unwrap_or(Loaded { what: What::Unknown, mask: None })
    }

    /// The property that a set is asked for. Several side by side are none.
    fn key(&self, register: u32) -> What {
        let at = self.at(register);
        let is_alone = self.0.range((Excluded(place(register)), Unbounded)).next().is_none();
        if is_alone && at.mask.is_none() { at.what } else { What::Unknown }
    }
}

/// The parts of a rule, from its list of expressions.
pub(super) fn parts(list: &Attributes) -> Result<Vec<Part>, UnreadableMessage> {
    let (mut registers, mut parts) = (Registers::default(), Vec::new());
    for (_, payload) in attributes(list) {
        let expression = parse(payload)?;
        let name = text(&expression, 1)?;
        let data = nested(&expression, 2)?;
        let part = match &data {
            Some(data) => part(&name, data, &mut registers)?,
            None => Some(Part::Other(name)),
        };
        parts.extend(part);
    }
    Ok(parts)
}

/// One expression; `None` if it only loads something.
fn part(name: &str, data: &Attributes, registers: &mut Registers) -> Result<Option<Part>, UnreadableMessage> {
    let field = |kind| number_of(data, kind);
    let has = |kind| attribute(data, kind).is_some();
    let bytes = |kind| {
        Ok::<_, UnreadableMessage>(nested(data, kind)?.and_then(|it| attribute(&it, 1).map(<[u8]>::to_vec)))
    };
    let sense = |inverted| if inverted { Sense::Not } else { Sense::Is };
    Ok(Some(match name {
        "meta" if has(1) => {
            registers.load(field(1)?, What::Meta(field(2)?), None);
            return Ok(None);
        }
        "meta" => {
            if field(2)? == META_MARK {
                Part::SetsMark
            } else {
                Part::Effect
            }
        }
        "ct" if has(1) => {
            // Of one direction of the connection.
            let what = if has(3) { What::Unknown } else { What::Ct(field(2)?) };
            registers.load(field(1)?, what, None);
            return Ok(None);
        }
        "payload" if has(1) => {
            let what = What::Payload { base: field(2)?, offset: field(3)?, len: field(4)? };
            registers.load(field(1)?, what, None);
            return Ok(None);
        }
        "fib" => {
            registers.load(field(1)?, What::Fib { result: field(2)?, flags: field(3)? }, None);
            return Ok(None);
        }
        "bitwise" => {
            let (from, mask, xor) = (registers.at(field(1)?), bytes(4)?, bytes(5)?);
            let masks = field(6)? == 0
                && xor.unwrap_or_default().iter().all(|byte| *byte == 0)
                && from.mask.is_none();
            let (what, mask) =
                if masks && mask.is_some() { (from.what, mask) } else { (What::Unknown, None) };
            registers.load(field(2)?, what, mask);
            return Ok(None);
        }
        // Data for address translation and for marks.
        "immediate" if field(1)? != 0 => {
            registers.load(field(1)?, What::Unknown, None);
            return Ok(None);
        }
        "immediate" => match nested(data, 2)?.map(|it| nested(&it, 2)).transpose()?.flatten() {
            Some(verdict) => Part::Then(verdict_of(&verdict)?),
            None => Part::Other(name.to_owned()),
        },
        "cmp" => {
            let (Loaded { what, mask }, op) = (registers.at(field(1)?), field(2)?);
            match bytes(3)?.filter(|_| [EQ, NEQ].contains(&op)) {
                Some(value) => Part::Is { what, mask, value, sense: sense(op == NEQ) },
                None => Part::Other(name.to_owned()),
            }
        }
        "lookup" => {
            let (what, set, to) = (registers.key(field(2)?), text(data, 1)?, attribute(data, 3));
            match to {
                Some(_) if field(3)? == 0 => Part::Map { what, map: set },
                // A map of values.
                Some(_) => {
                    registers.load(field(3)?, What::Unknown, None);
                    Part::Other(name.to_owned())
                }
                None => Part::In { what, set, sense: sense(field(5)? & 1 != 0) },
            }
        }
        "masq" if !has(2) => Part::Masquerade { flags: field(1)? },
        "match" | "target" => {
            Part::Xt { is_target: name == "target", name: attribute(data, 1).map(string).unwrap_or_default() }
        }
        // Writing a mark of the connection, or bytes of the packet.
        "ct" | "payload" | "counter" | "log" | "notrack" | "last" | "dup" | "flow_offload" => Part::Effect,
        "objref" if EFFECTS.contains(&field(1)?) => Part::Effect,
        name => {
            // It may have loaded something into any register.
            registers.0.clear();
            Part::Other(name.to_owned())
        }
    }))
}

/// `NFTA_VERDICT_*`.
pub(super) fn verdict_of(verdict: &Attributes) -> Result<Verdict, UnreadableMessage> {
    Ok(Verdict::of(number_of(verdict, 1)?.cast_signed(), attribute(verdict, 2).map(string)))
}
