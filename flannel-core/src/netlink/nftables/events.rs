//! Notifications about changes that others make in tables of one name.

use neli::consts::socket::NlFamily;
use tracing::{debug, warn};

use super::super::message::{Message, UnreadableMessage, split};
use super::super::ruleset::{GROUP, PAUSE, SUBSYSTEM, named};
use super::super::socket::{RECEIVE_BUFFER, Socket, is_lost};
use super::decode::family;
use super::encode::{DEL_ELEMENTS, NEW_ELEMENTS};
use crate::kernel::KernelError;

/// What others changed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct TableChange {
    /// Chains, rules, sets, or the table as a whole.
    pub(crate) structure: bool,
    /// Elements of one of the sets that are watched.
    pub(crate) elements: bool,
}

/// Receives notifications about the tables of one name.
pub(crate) struct TableEvents {
    socket: Socket,
}

impl TableEvents {
    /// Subscribes in the network namespace of the calling thread. No change after this call is missed.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime with I/O and time.
    pub(crate) fn open() -> Result<Self, KernelError> {
        Ok(Self { socket: Socket::open_family(NlFamily::Netfilter, &[GROUP], RECEIVE_BUFFER)? })
    }

    /// Waits until somebody other than the socket `port` changes a `table` of one of our families, or elements of one
    /// of `sets` in it. Dropping the future loses one datagram at most.
    pub(crate) async fn next(&mut self, table: &str, sets: &[&str], port: u32) -> TableChange {
        loop {
            let mut change = TableChange::default();
            match self.socket.receive().await {
                Ok(datagram) => {
                    for message in split(datagram) {
                        let noted = message.and_then(|it| note(&it, table, sets, port, &mut change));
                        if let Err(error) = noted {
                            debug!(%error, "unreadable notification of nf_tables");
                            change = TableChange { structure: true, elements: true };
                        }
                    }
                }
                Err(error) => {
                    if !is_lost(&error) {
                        warn!(%error, "notifications of nf_tables can't be read");
                        tokio::time::sleep(PAUSE).await;
                    }
                    change = TableChange { structure: true, elements: true };
                }
            }
            if change != TableChange::default() {
                return change;
            }
        }
    }
}

fn note(
    message: &Message<'_>,
    table: &str,
    sets: &[&str],
    port: u32,
    change: &mut TableChange,
) -> Result<(), UnreadableMessage> {
    if message.port == port || u16::from(message.kind) >> 8 != SUBSYSTEM {
        return Ok(());
    }
    let Some(about) = named(message)?.filter(|it| family(it.family).is_some() && it.table == table) else {
        return Ok(());
    };
    if [NEW_ELEMENTS, DEL_ELEMENTS].contains(&(u16::from(message.kind) & 0xff)) {
        change.elements |= about.second.is_some_and(|set| sets.contains(&set.as_str()));
    } else {
        change.structure = true;
    }
    Ok(())
}
