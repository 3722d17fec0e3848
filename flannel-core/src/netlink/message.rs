//! The headers of netlink messages: packing messages into datagrams, and reading replies.
//!
//! Bodies are neli's types. Headers are read here, each message from its own slice, because neli's reader trusts the
//! lengths in them (it can panic) and drops the kernel's text in some replies.

use std::borrow::Cow;
use std::io::{self, Cursor};

use neli::consts::nl::{NlmF, Nlmsg};
use neli::consts::rtnl::{RtaType, Rtm};
use neli::nl::{NlPayload, NlmsghdrBuilder};
use neli::types::{Buffer, RtBuffer};
use neli::{FromBytesWithInput, Size, ToBytes};

use crate::kernel::KernelError;

/// Bytes of `struct nlmsghdr`.
const HEADER: usize = 16;
/// `NLMSGERR_ATTR_MSG`: the kernel's text.
const ATTR_MSG: u16 = 1;

/// A message that can't be decoded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct UnreadableMessage(pub(super) Cow<'static, str>);

impl From<&'static str> for UnreadableMessage {
    fn from(detail: &'static str) -> Self {
        Self(Cow::Borrowed(detail))
    }
}

impl std::fmt::Display for UnreadableMessage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// Messages to the kernel in one datagram.
#[derive(Debug, Default)]
pub(super) struct Datagram {
    bytes: Cursor<Vec<u8>>,
}

impl Datagram {
    /// Appends a message. Failures are answered in any case, success only with [`NlmF::ACK`].
    pub(super) fn push<P: Size + ToBytes>(&mut self, kind: Rtm, flags: NlmF, seq: u32, body: P) {
        NlmsghdrBuilder::default()
            .nl_type(kind)
            .nl_flags(flags | NlmF::REQUEST)
            .nl_seq(seq)
            .nl_payload(NlPayload::Payload(body))
            .build()
            .expect("all fields are set")
            .to_bytes(&mut self.bytes)
            .expect("writing to memory can't fail");
    }

    /// The bytes to send.
    pub(super) fn bytes(&self) -> &[u8] {
        self.bytes.get_ref()
    }
}

/// One message from the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Message<'a> {
    /// `nlmsg_type`.
    pub(super) kind: Rtm,
    /// `nlmsg_flags`.
    pub(super) flags: NlmF,
    /// `nlmsg_seq`: that of the request; 0 in most notifications.
    pub(super) seq: u32,
    /// `nlmsg_pid`: the port id of the socket that is answered.
    pub(super) port: u32,
    /// The bytes after the header.
    pub(super) body: &'a [u8],
}

/// The kernel's verdict on a request or the end of a dump.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Verdict {
    /// 0 or a positive errno.
    pub(super) errno: i32,
    /// The extended-ACK text, empty if there is none.
    pub(super) text: String,
}

impl Verdict {
    /// Why the request was refused, beyond its errno.
    pub(super) fn reason(self) -> String {
        match (self.errno, self.text.is_empty()) {
            (libc::EPERM, true) => "the process lacks CAP_NET_ADMIN".to_owned(),
            (libc::EPERM, false) => format!("{}; the process lacks CAP_NET_ADMIN", self.text),
            _ => self.text,
        }
    }

    /// The error of a request to do `what`.
    pub(super) fn refused(self, what: String) -> KernelError {
        KernelError::Refused { what, errno: io::Error::from_raw_os_error(self.errno), reason: self.reason() }
    }
}

/// Splits a datagram into its messages. If the rest can't be split, the last item is an error.
pub(super) fn split(mut datagram: &[u8]) -> impl Iterator<Item = Result<Message<'_>, UnreadableMessage>> {
    std::iter::from_fn(move || {
        if datagram.is_empty() {
            return None;
        }
        let next = first_message(datagram);
        datagram = next.as_ref().map_or(&[], |(_, rest)| *rest);
        Some(next.map(|(message, _)| message))
    })
}

fn first_message(datagram: &[u8]) -> Result<(Message<'_>, &[u8]), UnreadableMessage> {
    let len = u32_at(datagram, 0).ok_or("datagram shorter than a header")? as usize;
    let message = datagram.get(..len).filter(|message| message.len() >= HEADER);
    let message = message.ok_or("message length does not fit its datagram")?;
    let rest = datagram.get(len.next_multiple_of(4)..).unwrap_or(&[]);
    let field = |at| u32_at(message, at).expect("the header is there");
    let [kind, flags] = halves(field(4));
    let (kind, flags) = (Rtm::from(kind), NlmF::from_bits_retain(flags));
    Ok((Message { kind, flags, seq: field(8), port: field(12), body: &message[HEADER..] }, rest))
}

impl Message<'_> {
    /// The verdict, if this is an ACK, an error or the end of a dump.
    pub(super) fn verdict(&self) -> Result<Option<Verdict>, UnreadableMessage> {
        let kind = u16::from(self.kind);
        let (is_error, is_done) = (kind == u16::from(Nlmsg::Error), kind == u16::from(Nlmsg::Done));
        if !is_error && !is_done {
            return Ok(None);
        }
        // Old kernels send a DONE without an errno.
        let errno = match u32_at(self.body, 0) {
            Some(number) => number.cast_signed().checked_neg().ok_or("errno out of range")?,
            None if is_done => 0,
            None => return Err("error without a number".into()),
        };
        let texts = match (self.flags.contains(NlmF::ACK_TLVS), is_done) {
            (false, _) => &[],
            (true, true) => self.body.get(4..).unwrap_or(&[]),
            (true, false) => after_echo(self.body, self.flags.contains(NlmF::CAPPED)),
        };
        Ok(Some(Verdict { errno, text: text(texts) }))
    }

    /// Reads the body as one of neli's types.
    pub(super) fn body_as<T: FromBytesWithInput<Input = usize>>(&self) -> Result<T, UnreadableMessage> {
        T::from_bytes_with_input(&mut Cursor::new(self.body), self.body.len())
            .map_err(|error| UnreadableMessage(Cow::Owned(error.to_string())))
    }
}

/// The attributes after the request that an error message echoes: the whole request, or only its header if `capped`.
fn after_echo(body: &[u8], capped: bool) -> &[u8] {
    let echoed = if capped { Some(HEADER) } else { u32_at(body, 4).map(|len| len as usize) };
    echoed.and_then(|len| body.get(4..)?.get(len.checked_next_multiple_of(4)?..)).unwrap_or(&[])
}

fn text(attributes: &[u8]) -> String {
    let parsed =
        RtBuffer::<u16, Buffer>::from_bytes_with_input(&mut Cursor::new(attributes), attributes.len());
    let Ok(parsed) = parsed else { return String::new() };
    attribute(&parsed, ATTR_MSG).map(string).unwrap_or_default()
}

/// The attributes of a message: type without flag bits, and payload.
pub(super) fn attributes<T: RtaType>(attributes: &RtBuffer<T, Buffer>) -> impl Iterator<Item = (u16, &[u8])> {
    // NLA_F_NESTED and NLA_F_NET_BYTEORDER are the two upper bits.
    attributes.iter().map(|attr| ((*attr.rta_type()).into() & 0x3fff, attr.rta_payload().as_ref()))
}

/// The payload of one attribute.
pub(super) fn attribute<T: RtaType>(within: &RtBuffer<T, Buffer>, number: u16) -> Option<&[u8]> {
    attributes(within).find(|(kind, _)| *kind == number).map(|(_, payload)| payload)
}

/// Text that ends at the first NUL.
pub(super) fn string(payload: &[u8]) -> String {
    String::from_utf8_lossy(payload.split(|byte| *byte == 0).next().unwrap_or(&[])).into_owned()
}

/// A `u32` in host order.
pub(super) fn number(payload: &[u8]) -> Result<u32, UnreadableMessage> {
    payload.try_into().map(u32::from_ne_bytes).map_err(|_| "attribute is no 32-bit number".into())
}

/// A `u32` in host order at an offset.
pub(super) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at.checked_add(4)?)?.try_into().ok().map(u32::from_ne_bytes)
}

/// A `u16` in host order at an offset.
pub(super) fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..at.checked_add(2)?)?.try_into().ok().map(u16::from_ne_bytes)
}

/// The two `u16` that share a word, in the order they lie in memory.
fn halves(word: u32) -> [u16; 2] {
    let [a, b, c, d] = word.to_ne_bytes();
    [u16::from_ne_bytes([a, b]), u16::from_ne_bytes([c, d])]
}
