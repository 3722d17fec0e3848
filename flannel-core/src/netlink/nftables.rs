//! Tables of our own in `nf_tables`: rules, sets and their elements, changed in transactions and read back.
//!
//! A transaction is one datagram: `NFNL_MSG_BATCH_BEGIN`, the messages, `NFNL_MSG_BATCH_END`. The kernel carries out
//! all of it or nothing. It answers every message that fails, and success only where it is asked to, on the last
//! message before the end. A failure of the whole transaction (no permission, no `nf_tables`, no memory) is the answer
//! to the first message.
//!
//! Only what this crate needs is here: [`value`] has the values, [`expr`] and [`encode`] turn them into messages,
//! [`decode`] reads dumps, [`events`] receives notifications about changes of others, and [`counters`] is for figures.

mod attrs;
mod counters;
mod decode;
mod encode;
mod events;
mod expr;
mod fields;
mod parts;
#[cfg(any(test, feature = "testing"))]
mod recorded;
mod value;

use std::collections::BTreeMap;
use std::net::IpAddr;

use neli::consts::nl::NlmF;
use neli::consts::socket::NlFamily;
use tokio::time::Instant;

use super::message::{Message, UnreadableMessage, Verdict, split};
use super::socket::{DEADLINE, RECEIVE_BUFFER, Socket, failed};
use crate::kernel::KernelError;

pub(crate) use counters::rule_counters;
pub(crate) use events::{TableChange, TableEvents};
pub(crate) use expr::{
    META_L4PROTO, META_MARK, META_NFPROTO, META_PROTOCOL, NETWORK, RANDOM_FULLY, mask, place_of_addresses,
};
#[cfg(any(test, feature = "testing"))]
pub(crate) use recorded::{Recorded, recorded, written};
pub(crate) use value::{
    Chain, Change, Counted, Edit, Element, Hook, HookKind, Key, Part, Seen, SeenRule, Sense, Set, Table,
    TableFamily, Term, Verdict as Ruling, What,
};

/// How many times a dump that changes interrupt is tried.
const TRIES: usize = 10;
/// The number of elements in one transaction, which has to fit into the socket's send buffer, and into 64 KiB of one
/// attribute.
const ELEMENTS: usize = 1000;

/// Reads and changes tables in one network namespace.
pub(crate) struct NfTables {
    socket: Socket,
    next: u32,
}

impl NfTables {
    /// Opens the socket in the network namespace of the calling thread.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime with I/O and time.
    pub(crate) fn open() -> Result<Self, KernelError> {
        let socket = Socket::open_family(NlFamily::Netfilter, &[], RECEIVE_BUFFER)?;
        socket.ask_for_texts();
        Ok(Self { socket, next: 1 })
    }

    /// The socket's port id (`nl_pid`), which notifications of our own changes carry.
    pub(crate) fn port(&self) -> u32 {
        self.socket.port()
    }

    /// Carries out all changes or none. `what` is a verb phrase for errors.
    pub(crate) async fn transact(&mut self, what: &str, changes: &[Change<'_>]) -> Result<(), KernelError> {
        self.transact_on(None, what, changes).await
    }

    /// The same, if the rule set is still of this generation; otherwise it fails with `ERESTART`.
    pub(crate) async fn transact_on(
        &mut self,
        generation: Option<u32>,
        what: &str,
        changes: &[Change<'_>],
    ) -> Result<(), KernelError> {
        if changes.is_empty() {
            return Ok(());
        }
        let first = self.numbers(encode::messages(changes) + 2);
        let (datagram, last) = encode::transaction(changes, generation, first);
        self.socket.send(datagram.bytes()).await.map_err(|error| failed(error, "send", what))?;
        let (deadline, port) = (Instant::now() + DEADLINE, self.socket.port());
        let mut failure: Option<Verdict> = None;
        loop {
            let replies = self.socket.receive_until(deadline).await;
            for reply in split(replies.map_err(|error| failed(error, "receive", what))?) {
                let reply = reply.map_err(unreadable)?;
                if reply.port != port || !(first..=last).contains(&reply.seq) {
                    continue;
                }
                let Some(verdict) = reply.verdict().map_err(unreadable)? else { continue };
                let ends = reply.seq == last || reply.seq == first && verdict.errno != 0;
                if verdict.errno != 0 && failure.is_none() {
                    failure = Some(verdict);
                }
                if ends {
                    return failure.map_or(Ok(()), |failure| Err(failure.refused(what.to_owned())));
                }
            }
        }
    }

    /// Adds and removes elements of the sets for addresses, in as many transactions as necessary.
    pub(crate) async fn change_elements(
        &mut self,
        table: &str,
        set: &str,
        add: &[IpAddr],
        delete: &[IpAddr],
    ) -> Result<(), KernelError> {
        for part in add.chunks(ELEMENTS) {
            let change = Change::AddElements { table, set, addrs: part };
            self.transact("add elements to a set of nf_tables", &[change]).await?;
        }
        for part in delete.chunks(ELEMENTS) {
            let change = Change::DeleteElements { table, set, addrs: part };
            self.transact("remove elements from a set of nf_tables", &[change]).await?;
        }
        Ok(())
    }

    /// The number of the present rule set, which is another one after each transaction.
    pub(crate) async fn generation(&mut self) -> Result<u32, KernelError> {
        let what = "read the generation of rules";
        let of = (TableFamily::Inet, encode::GET_GENERATION);
        let generation = self.get(what, of, None, decode::generation).await?;
        generation.ok_or_else(|| KernelError::Lost { what: what.to_owned() })
    }

    /// How many chains, sets and other objects a table has, and whether its chains are switched off; `None` if there is
    /// no such table.
    pub(crate) async fn table(
        &mut self,
        family: TableFamily,
        table: &str,
    ) -> Result<Option<(u32, bool)>, KernelError> {
        let of = (family, encode::GET_TABLE);
        let seen = self.get("read a table", of, Some((table, None)), decode::table).await?;
        Ok(seen.map(|(_, (flags, objects))| (objects, flags & encode::TABLE_DORMANT != 0)))
    }

    /// The hook of a chain, `None` if it is no base chain; `None` if there is no such chain.
    pub(crate) async fn chain(
        &mut self,
        family: TableFamily,
        table: &str,
        chain: &str,
    ) -> Result<Option<Option<Hook>>, KernelError> {
        let of = (family, encode::GET_CHAIN);
        let seen = self.get("read a chain", of, Some((table, Some(chain))), decode::chain).await?;
        Ok(seen.map(|(_, (_, hook))| hook))
    }

    /// All chains of a family, with their tables and hooks.
    pub(crate) async fn chains(
        &mut self,
        family: TableFamily,
    ) -> Result<Vec<(String, (String, Option<Hook>))>, KernelError> {
        self.dump("read chains", family, encode::GET_CHAIN, None, decode::chain).await
    }

    /// The rules of a chain in their order; empty if there is no such chain.
    pub(crate) async fn rules(
        &mut self,
        family: TableFamily,
        table: &str,
        chain: &str,
    ) -> Result<Vec<SeenRule>, KernelError> {
        let of = Some((table, Some(chain)));
        let rules = self.dump("read rules", family, encode::GET_RULE, of, decode::rule_parts).await?;
        let here = rules.into_iter().filter(|(of, (within, _))| of == table && within == chain);
        Ok(here.map(|(_, (_, rule))| rule).collect())
    }

    /// The elements of any set or map, `None` for those that can't be expressed; empty if there is no such set.
    pub(crate) async fn any_elements(
        &mut self,
        family: TableFamily,
        table: &str,
        set: &str,
    ) -> Result<Vec<Option<Element>>, KernelError> {
        self.set_elements(family, table, set, decode::any_elements).await
    }

    /// The names of all tables of a family.
    pub(crate) async fn names(&mut self, family: TableFamily) -> Result<Vec<String>, KernelError> {
        let tables = self.dump("read tables", family, encode::GET_TABLE, None, decode::table).await?;
        Ok(tables.into_iter().map(|(name, _)| name).collect())
    }

    /// Reads a table without the elements of its sets; `None` if there is no such table.
    pub(crate) async fn read(
        &mut self,
        family: TableFamily,
        table: &str,
    ) -> Result<Option<Seen>, KernelError> {
        let tables = self.dump("read tables", family, encode::GET_TABLE, None, decode::table).await?;
        let Some((flags, _)) = tables.into_iter().find(|(name, _)| name == table).map(|(_, it)| it) else {
            return Ok(None);
        };
        let mut seen = Seen { is_dormant: flags & encode::TABLE_DORMANT != 0, ..Seen::default() };
        let chains = self.dump("read chains", family, encode::GET_CHAIN, None, decode::chain).await?;
        seen.chains.extend(chains.into_iter().filter(|(of, _)| of == table).map(|(_, chain)| chain));
        let sets = self.dump("read sets", family, encode::GET_SET, Some((table, None)), decode::set).await?;
        seen.sets.extend(sets.into_iter().filter(|(of, _)| of == table).map(|(_, set)| set));
        let rules =
            self.dump("read rules", family, encode::GET_RULE, Some((table, None)), decode::rule).await?;
        let mut by_chain: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for (_, chain, comment) in rules.into_iter().filter(|(of, ..)| of == table) {
            by_chain.entry(chain).or_default().push(comment);
        }
        seen.rules = by_chain;
        Ok(Some(seen))
    }

    /// The elements of a set with their counters; empty if there is no such set.
    pub(crate) async fn elements(
        &mut self,
        family: TableFamily,
        table: &str,
        set: &str,
    ) -> Result<Vec<Counted>, KernelError> {
        self.set_elements(family, table, set, decode::elements).await
    }

    async fn set_elements<T>(
        &mut self,
        family: TableFamily,
        table: &str,
        set: &str,
        decode: impl Fn(&Message<'_>) -> Result<Option<Vec<T>>, UnreadableMessage>,
    ) -> Result<Vec<T>, KernelError> {
        let of = Some((table, Some(set)));
        let lists = self.dump("read a set", family, encode::GET_ELEMENTS, of, decode).await;
        match lists {
            Err(error) if error.errno() == Some(libc::ENOENT) => Ok(Vec::new()),
            lists => Ok(lists?.into_iter().flatten().collect()),
        }
    }

    /// Asks for one thing; `None` if it is not there.
    async fn get<T>(
        &mut self,
        what: &'static str,
        (family, kind): (TableFamily, u16),
        of: Option<(&str, Option<&str>)>,
        decode: impl Fn(&Message<'_>) -> Result<Option<T>, UnreadableMessage>,
    ) -> Result<Option<T>, KernelError> {
        let seq = self.numbers(1);
        let datagram = encode::get(family, kind, of, seq);
        self.socket.send(datagram.bytes()).await.map_err(|error| failed(error, "send", what))?;
        let (deadline, port) = (Instant::now() + DEADLINE, self.socket.port());
        loop {
            let messages = self.socket.receive_until(deadline).await;
            for message in split(messages.map_err(|error| failed(error, "receive", what))?) {
                let message = message.map_err(unreadable)?;
                if message.seq != seq || message.port != port {
                    continue;
                }
                return match message.verdict().map_err(unreadable)? {
                    Some(Verdict { errno: libc::ENOENT, .. }) => Ok(None),
                    Some(verdict) => Err(verdict.refused(what.to_owned())),
                    None => decode(&message).map_err(unreadable),
                };
            }
        }
    }

    async fn dump<T>(
        &mut self,
        what: &'static str,
        family: TableFamily,
        kind: u16,
        of: Option<(&str, Option<&str>)>,
        decode: impl Fn(&Message<'_>) -> Result<Option<T>, UnreadableMessage>,
    ) -> Result<Vec<T>, KernelError> {
        for _ in 0..TRIES {
            let seq = self.numbers(1);
            let datagram = encode::dump(family, kind, of, seq);
            self.socket.send(datagram.bytes()).await.map_err(|error| failed(error, "send", what))?;
            let (deadline, port) = (Instant::now() + DEADLINE, self.socket.port());
            let (mut list, mut interrupted, mut end) = (Vec::new(), false, None);
            while end.is_none() {
                let messages = self.socket.receive_until(deadline).await;
                for message in split(messages.map_err(|error| failed(error, "receive", what))?) {
                    let message = message.map_err(unreadable)?;
                    if message.seq != seq || message.port != port {
                        continue;
                    }
                    interrupted |= message.flags.contains(NlmF::DUMP_INTR);
                    match message.verdict().map_err(unreadable)? {
                        Some(verdict) => end = Some(verdict),
                        None => list.extend(decode(&message).map_err(unreadable)?),
                    }
                }
            }
            match end {
                Some(Verdict { errno: 0, .. }) | None if !interrupted => return Ok(list),
                // Somebody committed a transaction meanwhile, so the dump is repeated.
                Some(Verdict { errno: 0 | libc::EINTR, .. }) | None => {}
                Some(verdict) => return Err(verdict.refused(what.to_owned())),
            }
        }
        Err(KernelError::Lost { what: what.to_owned() })
    }

    /// Takes `count` consecutive numbers, none of them 0, and returns the first.
    fn numbers(&mut self, count: u32) -> u32 {
        let first = if self.next.checked_add(count).is_some() { self.next } else { 1 };
        self.next = first + count;
        first
    }
}

/// All decoders, whatever the kind, for fuzzing.
#[cfg(any(test, feature = "testing"))]
pub(super) fn every_way(message: &Message<'_>) {
    _ = decode::table(message);
    _ = decode::generation(message);
    _ = decode::rule_parts(message);
    _ = decode::any_elements(message);
    _ = decode::chain(message);
    _ = decode::rule(message);
    _ = decode::counted_rule(message);
    _ = decode::set(message);
    _ = decode::elements(message);
    _ = super::ruleset::named(message);
}

fn unreadable(UnreadableMessage(detail): UnreadableMessage) -> KernelError {
    KernelError::Unreadable { what: "an answer of nf_tables", detail: detail.into_owned() }
}
