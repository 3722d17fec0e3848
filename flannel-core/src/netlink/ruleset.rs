//! Notifications of `nf_tables` about changed rules, which include those of iptables' nft variant.

use std::collections::BTreeSet;
use std::io::Cursor;

use neli::FromBytesWithInput;
use neli::consts::socket::NlFamily;
use neli::types::{Buffer, RtBuffer};
use tracing::{debug, warn};

use super::message::{Message, UnreadableMessage, attribute, split, string};
use super::socket::{RECEIVE_BUFFER, Socket, is_lost};
use crate::kernel::KernelError;
use crate::netns::Netns;

/// `NFNLGRP_NFTABLES` of `linux/netfilter/nfnetlink.h`.
pub(super) const GROUP: u32 = 7;
/// `NFNL_SUBSYS_NFTABLES`, the upper byte of a message's type.
pub(super) const SUBSYSTEM: u16 = 10;
/// `NFT_MSG_*`, the lower byte.
const NEW_CHAIN: u16 = 3;
const DEL_CHAIN: u16 = 5;
const NEW_GENERATION: u16 = 15;
/// Bytes of `struct nfgenmsg`, of which the first is the family.
const HEADER: usize = 4;
/// `NFTA_TABLE_NAME`. Chains, rules, sets and all other parts of a table use the same number.
const TABLE: u16 = 1;
/// `NFTA_CHAIN_HOOK`, which base chains have.
const CHAIN_HOOK: u16 = 4;
/// The pause after an error of the socket itself, which would occur again at once.
pub(super) const PAUSE: std::time::Duration = std::time::Duration::from_secs(1);

/// What changed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct RulesetChange {
    /// The tables: family (`NFPROTO_*` of `linux/netfilter.h`) and name.
    pub tables: BTreeSet<(u8, String)>,
    /// Whether a base chain or its policy changed.
    pub base_chains: bool,
    /// Whether notifications were lost, so that anything may have changed.
    pub unknown: bool,
}

/// Receives notifications of `nf_tables` in one network namespace.
pub struct RulesetEvents {
    socket: Socket,
}

impl std::fmt::Debug for RulesetEvents {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RulesetEvents").finish_non_exhaustive()
    }
}

impl RulesetEvents {
    /// Subscribes in a network namespace. No change after this call is missed.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime with I/O and time.
    pub fn open(netns: &Netns) -> Result<Self, KernelError> {
        let socket = netns.run(|| Socket::open_family(NlFamily::Netfilter, &[GROUP], RECEIVE_BUFFER))??;
        Ok(Self { socket })
    }

    /// Waits for changes and returns all that have arrived. Dropping the future loses none.
    pub async fn next(&mut self) -> RulesetChange {
        let mut change = RulesetChange::default();
        match self.socket.receive().await {
            Ok(datagram) => note_all(datagram, &mut change),
            Err(error) => {
                if !is_lost(&error) {
                    warn!(%error, "notifications of nf_tables can't be read");
                    tokio::time::sleep(PAUSE).await;
                }
                change.unknown = true;
            }
        }
        self.receive(change)
    }

    /// Returns the changes that have arrived already, if any.
    pub fn pending(&mut self) -> RulesetChange {
        self.receive(RulesetChange::default())
    }

    fn receive(&mut self, mut change: RulesetChange) -> RulesetChange {
        loop {
            match self.socket.try_receive() {
                Ok(Some(datagram)) => note_all(datagram, &mut change),
                Ok(None) => return change,
                Err(error) => {
                    change.unknown = true;
                    if !is_lost(&error) {
                        return change;
                    }
                }
            }
        }
    }
}

/// Adds the changes in a datagram. If it can't be decoded, anything may have changed.
fn note_all(datagram: &[u8], change: &mut RulesetChange) {
    for message in split(datagram) {
        if let Err(error) = message.and_then(|message| note(&message, change)) {
            debug!(%error, "unreadable notification of nf_tables");
            change.unknown = true;
        }
    }
}

fn note(message: &Message<'_>, change: &mut RulesetChange) -> Result<(), UnreadableMessage> {
    let kind = u16::from(message.kind);
    if kind >> 8 != SUBSYSTEM {
        return Ok(());
    }
    let Some(attributes) = attributes_of(message)? else { return Ok(()) };
    if let Some(name) = attribute(&attributes, TABLE) {
        change.tables.insert((message.body[0], string(name)));
    }
    if [NEW_CHAIN, DEL_CHAIN].contains(&(kind & 0xff)) && attribute(&attributes, CHAIN_HOOK).is_some() {
        change.base_chains = true;
    }
    Ok(())
}

/// The attributes of a notification; `None` for one about a new generation. The first byte of its body is the family.
fn attributes_of(message: &Message<'_>) -> Result<Option<RtBuffer<u16, Buffer>>, UnreadableMessage> {
    let kind = u16::from(message.kind) & 0xff;
    if (NEW_GENERATION..=NEW_GENERATION + 1).contains(&kind) {
        return Ok(None);
    }
    let (_, attributes) =
        message.body.split_at_checked(HEADER).ok_or("notification shorter than its header")?;
    RtBuffer::from_bytes_with_input(&mut Cursor::new(attributes), attributes.len())
        .map(Some)
        .map_err(|_| "notification with broken attributes".into())
}

/// What a notification is about.
pub(super) struct Named {
    /// `NFPROTO_*`.
    pub(super) family: u8,
    /// The table.
    pub(super) table: String,
    /// The attribute after its name: in notifications of elements the name of the set.
    pub(super) second: Option<String>,
}

/// What a notification is about; `None` for one of a new generation.
pub(super) fn named(message: &Message<'_>) -> Result<Option<Named>, UnreadableMessage> {
    let Some(attributes) = attributes_of(message)? else { return Ok(None) };
    let Some(table) = attribute(&attributes, TABLE).map(string) else { return Ok(None) };
    let second = attribute(&attributes, TABLE + 1).map(string);
    Ok(Some(Named { family: message.body[0], table, second }))
}
