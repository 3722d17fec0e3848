//! Encodes terms of rules as the kernel's expressions. Pure.

use super::attrs::Attrs;
use super::value::{Key, Sense, Term, Verdict};
use crate::addr::{Family, Subnet};

/// `NFTA_EXPR_NAME`, `NFTA_EXPR_DATA`, `NFTA_LIST_ELEM`.
const NAME: u16 = 1;
const DATA: u16 = 2;
const ELEM: u16 = 1;
/// The registers: of verdicts, and of four words each. Each word has a number, too.
const VERDICT: u32 = 0;
const REG: u32 = 1;
const REG_WORDS: u32 = 8;
/// `NFT_META_*`.
pub(crate) const META_PROTOCOL: u32 = 1;
pub(crate) const META_MARK: u32 = 3;
pub(crate) const META_NFPROTO: u32 = 15;
pub(crate) const META_L4PROTO: u32 = 16;
/// `NF_NAT_RANGE_PROTO_RANDOM_FULLY`.
pub(crate) const RANDOM_FULLY: u32 = 1 << 4;
/// `NFT_PAYLOAD_*_HEADER`.
pub(crate) const NETWORK: u32 = 1;
const TRANSPORT: u32 = 2;
/// `NFT_CMP_EQ`, `NFT_CMP_NEQ`.
const EQ: u32 = 0;
const NEQ: u32 = 1;
/// `NFT_FIB_RESULT_ADDRTYPE`, `NFTA_FIB_F_DADDR`, `RTN_UNICAST`.
const FIB_TYPE: u32 = 3;
const FIB_DADDR: u32 = 2;
const UNICAST: u32 = 1;
/// `NFT_DYNSET_OP_UPDATE`.
const UPDATE: u32 = 1;

/// `NFPROTO_IPV4` and `NFPROTO_IPV6`.
fn nfproto(family: Family) -> u8 {
    match family {
        Family::V4 => 2,
        Family::V6 => 10,
    }
}

/// `ETH_P_IP` and `ETH_P_IPV6`.
fn ethertype(family: Family) -> u16 {
    match family {
        Family::V4 => 0x0800,
        Family::V6 => 0x86dd,
    }
}

/// Where source and destination are in a header, and how long they are.
pub(crate) fn place_of_addresses(family: Family) -> (u32, u32, u32) {
    match family {
        Family::V4 => (12, 16, 4),
        Family::V6 => (8, 24, 16),
    }
}

/// Appends the expressions of a rule.
pub(super) fn rule(list: &mut Attrs, terms: &[Term]) {
    for term in terms {
        expressions(list, term);
    }
}

fn expressions(list: &mut Attrs, term: &Term) {
    match term {
        Term::Family(family) => {
            meta(list, META_NFPROTO);
            cmp(list, EQ, &[nfproto(*family)]);
        }
        Term::Carries(family) => {
            meta(list, META_PROTOCOL);
            cmp(list, EQ, &ethertype(*family).to_be_bytes());
        }
        Term::UdpPort(port) => {
            meta(list, META_L4PROTO);
            cmp(list, EQ, &[libc::IPPROTO_UDP as u8]);
            payload(list, TRANSPORT, (2, 2), REG);
            cmp(list, EQ, &port.to_be_bytes());
        }
        // After the UDP header of 8 bytes come flags and reserved bytes, then the VNI (RFC 7348 section 5).
        Term::Vni(vni) => {
            payload(list, TRANSPORT, (12, 3), REG);
            cmp(list, EQ, &vni.get().to_be_bytes()[1..]);
        }
        Term::Marked(bits) => {
            meta(list, META_MARK);
            bitwise(list, &bits.to_ne_bytes());
            cmp(list, EQ, &bits.to_ne_bytes());
        }
        Term::Src(subnet, sense) => prefix(list, *subnet, place_of_addresses(subnet.family()).0, *sense),
        Term::Dst(subnet, sense) => prefix(list, *subnet, place_of_addresses(subnet.family()).1, *sense),
        Term::SrcInSet(family, set) => {
            let (src, _, len) = place_of_addresses(*family);
            payload(list, NETWORK, (src, len), REG);
            expr(list, "lookup", |data| {
                data.u32(2, REG);
                data.string(1, set);
            });
        }
        Term::StaysHere => {
            expr(list, "fib", |data| {
                data.u32(3, FIB_DADDR);
                data.u32(2, FIB_TYPE);
                data.u32(1, REG);
            });
            cmp(list, NEQ, &UNICAST.to_ne_bytes());
        }
        Term::Count => expr(list, "counter", |_| {}),
        Term::Note(key, set) => note(list, *key, set),
        Term::Masquerade { fully_random } => expr(list, "masq", |data| {
            if *fully_random {
                data.u32(1, RANDOM_FULLY);
            }
        }),
        Term::Then(verdict) => then(list, verdict),
    }
}

fn expr(list: &mut Attrs, name: &str, data: impl FnOnce(&mut Attrs)) {
    list.nest(ELEM, |expr| {
        expr.string(NAME, name);
        expr.nest(DATA, data);
    });
}

fn meta(list: &mut Attrs, key: u32) {
    expr(list, "meta", |data| {
        data.u32(2, key);
        data.u32(1, REG);
    });
}

fn cmp(list: &mut Attrs, op: u32, value: &[u8]) {
    expr(list, "cmp", |data| {
        data.u32(1, REG);
        data.u32(2, op);
        data.nest(3, |it| it.put(1, value));
    });
}

fn payload(list: &mut Attrs, base: u32, (offset, len): (u32, u32), register: u32) {
    expr(list, "payload", |data| {
        data.u32(1, register);
        data.u32(2, base);
        data.u32(3, offset);
        data.u32(4, len);
    });
}

/// An earlier term must have checked the packet's family.
fn prefix(list: &mut Attrs, subnet: Subnet, offset: u32, sense: Sense) {
    let (_, _, len) = place_of_addresses(subnet.family());
    let octets = |addr| match addr {
        std::net::IpAddr::V4(addr) => addr.octets().to_vec(),
        std::net::IpAddr::V6(addr) => addr.octets().to_vec(),
    };
    let op = if sense == Sense::Not { NEQ } else { EQ };
    let octets = octets(subnet.base());
    // Of a prefix of whole bytes these are loaded, as `nft` does: nothing has to be masked.
    if subnet.prefix() > 0 && subnet.prefix().is_multiple_of(8) {
        let len = u32::from(subnet.prefix() / 8);
        payload(list, NETWORK, (offset, len), REG);
        return cmp(list, op, &octets[..len as usize]);
    }
    payload(list, NETWORK, (offset, len), REG);
    bitwise(list, &mask(subnet.prefix(), len as usize));
    cmp(list, op, &octets);
}

/// The mask of a prefix in an address of so many bytes.
pub(crate) fn mask(prefix: u8, len: usize) -> Vec<u8> {
    (0..len as u8).map(|byte| (0xff00_u16 >> prefix.saturating_sub(byte * 8).min(8)) as u8).collect()
}

fn bitwise(list: &mut Attrs, mask: &[u8]) {
    expr(list, "bitwise", |data| {
        data.u32(1, REG);
        data.u32(2, REG);
        data.u32(3, mask.len() as u32);
        data.nest(4, |it| it.put(1, mask));
        data.nest(5, |it| it.put(1, &vec![0; mask.len()]));
    });
}

fn note(list: &mut Attrs, key: Key, set: &str) {
    let (Key::Addr(family) | Key::Pair(family)) = key;
    let (src, dst, len) = place_of_addresses(family);
    payload(list, NETWORK, (src, len), REG_WORDS);
    if matches!(key, Key::Pair(_)) {
        payload(list, NETWORK, (dst, len), REG_WORDS + len / 4);
    }
    expr(list, "dynset", |data| {
        data.u32(4, REG_WORDS);
        data.u32(3, UPDATE);
        data.string(1, set);
        data.nest(7, |it| {
            it.string(NAME, "counter");
            it.nest(DATA, |_| {});
        });
    });
}

fn then(list: &mut Attrs, verdict: &Verdict) {
    expr(list, "immediate", |data| {
        data.u32(1, VERDICT);
        data.nest(2, |it| {
            it.nest(2, |it| {
                it.u32(1, verdict.code().cast_unsigned());
                if let Verdict::Jump(chain) | Verdict::Goto(chain) = verdict {
                    it.string(2, chain);
                }
            });
        });
    });
}

impl Verdict {
    /// `NF_*` and `NFT_*` of `linux/netfilter.h` and `nf_tables.h`.
    fn code(&self) -> i32 {
        match self {
            Self::Drop => 0,
            Self::Accept => 1,
            Self::Continue => -1,
            Self::Jump(_) => -3,
            Self::Goto(_) => -4,
            Self::Return => -5,
            Self::Other(code) => *code,
        }
    }

    /// The verdict with a code, and the chain where it has one.
    pub(super) fn of(code: i32, chain: Option<String>) -> Self {
        match (code, chain) {
            (0, _) => Self::Drop,
            (1, _) => Self::Accept,
            (-1, _) => Self::Continue,
            (-3, Some(chain)) => Self::Jump(chain),
            (-4, Some(chain)) => Self::Goto(chain),
            (-5, _) => Self::Return,
            (code, _) => Self::Other(code),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks_are_those_of_the_prefix() {
        for (prefix, wanted) in [
            (24, vec![255, 255, 255, 0]),
            (20, vec![255, 255, 240, 0]),
            (32, vec![255, 255, 255, 255]),
            (0, vec![0, 0, 0, 0]),
            (61, vec![255, 255, 255, 255, 255, 255, 255, 248, 0, 0, 0, 0, 0, 0, 0, 0]),
        ] {
            assert_eq!(mask(prefix, wanted.len()), wanted, "/{prefix}");
        }
    }
}
