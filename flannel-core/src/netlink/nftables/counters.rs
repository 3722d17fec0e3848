//! Reads the counters of rules at once and without a runtime, for those who are asked for figures.
//!
//! The kernel writes the first part of a dump before the request's `send` returns, and each further part while the one
//! before it is received, so no call waits. It takes no lock of `nf_tables` for that: transactions of others delay nothing.

use std::io;

use neli::consts::socket::{Msg, NlFamily};
use neli::socket::NlSocket;
use neli::utils::Groups;

use super::super::message::split;
use super::super::socket::{DATAGRAM, failed, read};
use super::value::TableFamily;
use super::{decode, encode, unreadable};
use crate::kernel::KernelError;

/// What it does, as a verb phrase for errors.
const WHAT: &str = "read counters of rules";

/// The packets that each rule with a counter has counted, with the name of its chain, of a table in the network namespace of
/// the calling thread. It is empty if there is no such table. Somebody's transaction meanwhile may leave rules out.
pub(crate) fn rule_counters(family: TableFamily, table: &str) -> Result<Vec<(String, u64)>, KernelError> {
    let opened = NlSocket::connect(NlFamily::Netfilter, None, Groups::empty());
    let socket = opened.map_err(|source| KernelError::Socket { what: "open", source })?;
    socket.nonblock().map_err(|source| KernelError::Socket { what: "set up", source })?;
    let request = encode::dump(family, encode::GET_RULE, Some((table, None)), 1);
    socket.send(request.bytes(), Msg::empty()).map_err(|error| failed(error, "send", WHAT))?;
    let (mut datagram, mut counted) = (vec![0; DATAGRAM], Vec::new());
    loop {
        let len = match read(&socket, &mut datagram) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                return Err(KernelError::Lost { what: WHAT.to_owned() });
            }
            received => received.map_err(|error| failed(error, "receive", WHAT))?,
        };
        for message in split(&datagram[..len]) {
            let message = message.map_err(unreadable)?;
            match message.verdict().map_err(unreadable)? {
                Some(verdict) if matches!(verdict.errno, 0 | libc::ENOENT) => return Ok(counted),
                Some(verdict) => return Err(verdict.refused(WHAT.to_owned())),
                None => {
                    let rule = decode::counted_rule(&message).map_err(unreadable)?;
                    counted.extend(rule.filter(|(of, _)| of == table).map(|(_, counted)| counted));
                }
            }
        }
    }
}
