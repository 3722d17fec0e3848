//! Encodes values as messages of `nf_tables`. Pure.

use std::net::IpAddr;

use neli::consts::nl::NlmF;
use neli::consts::rtnl::Rtm;
use neli::types::Buffer;

use super::super::message::Datagram;
use super::attrs::Attrs;
use super::expr;
use super::value::{Change, Edit, Hook, HookKind, Key, Set, Table, TableFamily, comment};
use crate::addr::Family;

/// `NFNL_SUBSYS_NFTABLES`, the upper byte of a message's type.
const SUBSYSTEM: u16 = 10;
/// `NFNL_MSG_BATCH_BEGIN`, `NFNL_MSG_BATCH_END`.
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
/// `NFNL_BATCH_GENID`.
const BATCH_GENERATION: u16 = 1;
/// `NFT_MSG_*`.
pub(super) const NEW_TABLE: u16 = 0;
pub(super) const GET_TABLE: u16 = 1;
const DEL_TABLE: u16 = 2;
pub(super) const NEW_CHAIN: u16 = 3;
pub(super) const GET_CHAIN: u16 = 4;
const DEL_CHAIN: u16 = 5;
pub(super) const NEW_RULE: u16 = 6;
pub(super) const GET_RULE: u16 = 7;
const DEL_RULE: u16 = 8;
pub(super) const NEW_SET: u16 = 9;
pub(super) const GET_SET: u16 = 10;
pub(super) const NEW_ELEMENTS: u16 = 12;
pub(super) const GET_ELEMENTS: u16 = 13;
pub(super) const DEL_ELEMENTS: u16 = 14;
pub(super) const NEW_GENERATION: u16 = 15;
pub(super) const GET_GENERATION: u16 = 16;
/// `NFT_TABLE_F_DORMANT`.
pub(super) const TABLE_DORMANT: u32 = 1;
/// `NFT_SET_TIMEOUT` and `NFT_SET_EVAL`: elements that expire, and that packets add.
pub(super) const SET_DYNAMIC: u32 = 0x10 | 0x20;
/// `nft`'s numbers of the types of elements.
const TYPE_IPV4: u32 = 7;
const TYPE_IPV6: u32 = 8;
/// Bits of one of them in the type of a concatenation.
const TYPE_BITS: u32 = 6;
/// `NLM_F_APPEND`.
const APPEND: NlmF = NlmF::from_bits_retain(0x800);

impl TableFamily {
    /// `NFPROTO_*` of `linux/netfilter.h`.
    pub(crate) fn number(self) -> u8 {
        match self {
            Self::Inet => 1,
            Self::Ip => 2,
            Self::Netdev => 5,
            Self::Ip6 => 10,
        }
    }
}

impl HookKind {
    /// The name of the chain's type.
    fn name(self) -> &'static str {
        match self {
            Self::Nat => "nat",
            Self::Filter | Self::Other => "filter",
        }
    }

    pub(super) fn of(name: &str) -> Self {
        match name {
            "nat" => Self::Nat,
            "filter" => Self::Filter,
            _ => Self::Other,
        }
    }
}

/// How many messages a transaction has, without its frame.
pub(super) fn messages(changes: &[Change<'_>]) -> u32 {
    let of = |change: &Change<'_>| match change {
        Change::Create(table) => 1 + table.sets.len() + table.chains.len() + rules(table),
        Change::Rules(table) => table.chains.len() + rules(table),
        Change::Delete(..)
        | Change::Declare(..)
        | Change::Edit { .. }
        | Change::AddElements { .. }
        | Change::DeleteElements { .. } => 1,
    };
    changes.iter().map(of).sum::<usize>() as u32
}

fn rules(table: &Table) -> usize {
    table.chains.iter().map(|chain| chain.rules.len()).sum()
}

/// A transaction as a datagram with messages numbered from `first`, and the number of the last message before its end,
/// which is acknowledged. The kernel refuses it if the rules are of another generation.
pub(super) fn transaction(changes: &[Change<'_>], generation: Option<u32>, first: u32) -> (Datagram, u32) {
    let last = first + messages(changes);
    let mut writer = Writer { datagram: Datagram::default(), family: TableFamily::Inet, seq: first, last };
    writer.frame(BATCH_BEGIN, generation);
    for change in changes {
        writer.change(change);
    }
    writer.frame(BATCH_END, None);
    (writer.datagram, last)
}

struct Writer {
    datagram: Datagram,
    /// The family of the table.
    family: TableFamily,
    seq: u32,
    last: u32,
}

impl Writer {
    fn frame(&mut self, kind: u16, generation: Option<u32>) {
        let mut body = Attrs::after(header(0, SUBSYSTEM));
        if let Some(generation) = generation {
            body.u32(BATCH_GENERATION, generation);
        }
        self.datagram.push(Rtm::from(kind), NlmF::empty(), self.seq, Buffer::from(body.into_bytes()));
        self.seq += 1;
    }

    fn message(&mut self, kind: u16, flags: NlmF, fill: impl FnOnce(&mut Attrs)) {
        let flags = if self.seq == self.last { flags | NlmF::ACK } else { flags };
        self.datagram.push(message_type(kind), flags, self.seq, body(self.family, fill));
        self.seq += 1;
    }

    fn change(&mut self, change: &Change<'_>) {
        self.family = match change {
            Change::Create(table) | Change::Rules(table) => table.family,
            Change::Delete(family, _) | Change::Declare(family, ..) | Change::Edit { family, .. } => *family,
            Change::AddElements { .. } | Change::DeleteElements { .. } => TableFamily::Inet,
        };
        match change {
            Change::Create(table) => self.create(table),
            Change::Delete(_, name) => self.message(DEL_TABLE, NlmF::empty(), |it| it.string(1, name)),
            Change::Rules(table) => {
                for chain in &table.chains {
                    self.message(DEL_RULE, NlmF::empty(), |it| {
                        it.string(1, &table.name);
                        it.string(2, &chain.name);
                    });
                }
                self.rules(table);
            }
            Change::Declare(_, table, comment) => self.message(NEW_TABLE, NlmF::CREATE, |it| {
                it.string(1, table);
                // Its chains are not switched off.
                it.u32(2, 0);
                it.put(6, &user_data(comment));
            }),
            Change::Edit { table, chain, edit, .. } => self.edit(table, chain, edit),
            Change::AddElements { table, set, addrs } => {
                self.message(NEW_ELEMENTS, NlmF::CREATE, |it| elements(it, table, set, addrs));
            }
            Change::DeleteElements { table, set, addrs } => {
                self.message(DEL_ELEMENTS, NlmF::empty(), |it| elements(it, table, set, addrs));
            }
        }
    }

    fn create(&mut self, table: &Table) {
        self.message(NEW_TABLE, NlmF::CREATE, |it| {
            it.string(1, &table.name);
            it.u32(2, 0);
        });
        for (number, set) in (1..).zip(&table.sets) {
            self.message(NEW_SET, NlmF::CREATE, |it| new_set(it, &table.name, set, number));
        }
        for chain in &table.chains {
            self.message(NEW_CHAIN, NlmF::CREATE, |it| {
                new_chain(it, &table.name, &chain.name, chain.hook.as_ref());
            });
        }
        self.rules(table);
    }

    fn edit(&mut self, table: &str, chain: &str, edit: &Edit<'_>) {
        let name = |it: &mut Attrs| {
            it.string(1, table);
            it.string(2, chain);
        };
        match edit {
            Edit::Declare(hook, comment) => self.message(NEW_CHAIN, NlmF::CREATE, |it| {
                new_chain(it, table, chain, Some(hook));
                it.put(12, &user_data(comment));
            }),
            Edit::Flush => self.message(DEL_RULE, NlmF::empty(), name),
            Edit::Delete => self.message(DEL_CHAIN, NlmF::empty(), |it| {
                it.string(1, table);
                it.string(3, chain);
            }),
            Edit::Rule(before, terms) => {
                let place = if before.is_none() { APPEND } else { NlmF::empty() };
                self.message(NEW_RULE, NlmF::CREATE | place, |it| {
                    name(it);
                    it.nest(4, |list| expr::rule(list, terms));
                    if let Some(handle) = before {
                        it.put(6, &handle.to_be_bytes());
                    }
                });
            }
            Edit::DeleteRule(handle) => self.message(DEL_RULE, NlmF::empty(), |it| {
                name(it);
                it.put(3, &handle.to_be_bytes());
            }),
        }
    }

    fn rules(&mut self, table: &Table) {
        for chain in &table.chains {
            for rule in &chain.rules {
                self.message(NEW_RULE, NlmF::CREATE | APPEND, |it| {
                    it.string(1, &table.name);
                    it.string(2, &chain.name);
                    it.nest(4, |list| expr::rule(list, rule));
                    it.put(7, &user_data(&comment(rule)));
                });
            }
        }
    }
}

/// A comment as `nft` keeps it: type 0, length, text with its NUL.
fn user_data(comment: &str) -> Vec<u8> {
    let text: Vec<u8> = comment.bytes().take(MOST_COMMENT).chain([0]).collect();
    [&[0, text.len() as u8], text.as_slice()].concat()
}

/// The longest comment that `nft` shows.
pub(super) const MOST_COMMENT: usize = 127;

fn new_chain(it: &mut Attrs, table: &str, chain: &str, hook: Option<&Hook>) {
    it.string(1, table);
    it.string(3, chain);
    let Some(hook) = hook else { return };
    it.nest(4, |it| {
        it.u32(1, hook.number);
        it.u32(2, hook.priority.cast_unsigned());
        if let Some(link) = &hook.link {
            it.string(3, link);
        }
    });
    // NF_DROP and NF_ACCEPT.
    it.u32(5, u32::from(!hook.drops));
    it.string(7, hook.kind.name());
}

fn new_set(it: &mut Attrs, table: &str, set: &Set, number: u32) {
    let (kind, len) = key_type(set.key);
    it.string(1, table);
    it.string(2, &set.name);
    it.u32(3, if set.dynamic.is_some() { SET_DYNAMIC } else { 0 });
    it.u32(4, kind);
    it.u32(5, len);
    it.u32(10, number);
    if let Some((size, timeout)) = set.dynamic {
        it.nest(9, |it| it.u32(1, size));
        it.put(11, &timeout.to_be_bytes());
    }
    // `nft` needs this to show elements: they are in network order.
    it.put(13, &[&[0, 4], 2_u32.to_ne_bytes().as_slice()].concat());
}

/// `nft`'s number of the type of elements, and their length in bytes.
pub(super) fn key_type(key: Key) -> (u32, u32) {
    let of = |family| match family {
        Family::V4 => (TYPE_IPV4, 4),
        Family::V6 => (TYPE_IPV6, 16),
    };
    match key {
        Key::Addr(family) => of(family),
        Key::Pair(family) => {
            let (kind, len) = of(family);
            (kind << TYPE_BITS | kind, 2 * len)
        }
    }
}

fn elements(it: &mut Attrs, table: &str, set: &str, addrs: &[IpAddr]) {
    it.string(1, table);
    it.string(2, set);
    it.nest(3, |list| {
        for addr in addrs {
            list.nest(1, |element| {
                element.nest(1, |key| match addr {
                    IpAddr::V4(addr) => key.put(1, &addr.octets()),
                    IpAddr::V6(addr) => key.put(1, &addr.octets()),
                });
            });
        }
    });
}

/// The request for one table, or for one chain of it.
pub(super) fn get(family: TableFamily, kind: u16, of: Option<(&str, Option<&str>)>, seq: u32) -> Datagram {
    let mut datagram = Datagram::default();
    let body = body(family, |it| {
        if let Some((table, chain)) = of {
            it.string(1, table);
            if let Some(chain) = chain {
                it.string(3, chain);
            }
        }
    });
    datagram.push(message_type(kind), NlmF::empty(), seq, body);
    datagram
}

/// The request for a dump, limited to one table and one set or chain if given.
pub(super) fn dump(family: TableFamily, kind: u16, of: Option<(&str, Option<&str>)>, seq: u32) -> Datagram {
    let mut datagram = Datagram::default();
    let body = body(family, |it| {
        if let Some((table, set)) = of {
            it.string(1, table);
            if let Some(set) = set {
                it.string(2, set);
            }
        }
    });
    datagram.push(message_type(kind), NlmF::DUMP, seq, body);
    datagram
}

fn message_type(kind: u16) -> Rtm {
    Rtm::from(SUBSYSTEM << 8 | kind)
}

fn body(family: TableFamily, fill: impl FnOnce(&mut Attrs)) -> Buffer {
    let mut attrs = Attrs::after(header(family.number(), 0));
    fill(&mut attrs);
    Buffer::from(attrs.into_bytes())
}

/// `struct nfgenmsg`: family, version 0, and a number in network order.
fn header(family: u8, resource: u16) -> Vec<u8> {
    let [high, low] = resource.to_be_bytes();
    vec![family, 0, high, low]
}
