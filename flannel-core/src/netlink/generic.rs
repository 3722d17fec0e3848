//! Generic netlink (`linux/genetlink.h`): requests to a family that the kernel or a module registers under a name, such
//! as `wireguard`. What is in the messages only the family's user knows; this module sends and receives their attributes
//! as bytes.
//!
//! The kernel answers a request before the system call that sends it returns, and goes on with a dump in the call that
//! reads it. So the calls here take as long as the kernel works, and wait for nobody.

use std::io;
use std::time::Duration;

use neli::consts::nl::NlmF;
use neli::consts::rtnl::Rtm;
use neli::consts::socket::{Msg, NlFamily};
use neli::socket::NlSocket;
use neli::types::Buffer;
use neli::utils::Groups;
use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::time::{TimeVal, TimeValLike as _};

use super::message::{Datagram, Message, UnreadableMessage, split, string, u16_at};
use super::socket::{DATAGRAM, DEADLINE, RECEIVE_BUFFER, failed, read};
use super::sys;
use crate::kernel::KernelError;
use crate::netns::Netns;

/// `GENL_ID_CTRL`: the family that knows all others.
const CONTROLLER: u16 = 0x10;
/// `CTRL_CMD_GETFAMILY`.
const GET_FAMILY: u8 = 3;
/// `CTRL_ATTR_FAMILY_ID` and `CTRL_ATTR_FAMILY_NAME`.
const FAMILY_ID: u16 = 1;
const FAMILY_NAME: u16 = 2;
/// Bytes of `struct genlmsghdr`: command, version, two reserved ones.
const HEADER: usize = 4;
/// How many times a dump that changes interrupt is tried.
const TRIES: usize = 10;

/// A connection to one family of generic netlink, in the network namespace in which it was opened.
pub struct Generic {
    socket: NlSocket,
    port: u32,
    family: u16,
    version: u8,
    next: u32,
    datagram: Vec<u8>,
}

impl std::fmt::Debug for Generic {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Generic").field("family", &self.family).finish_non_exhaustive()
    }
}

impl Generic {
    /// Opens a socket in a network namespace and asks for the number of the family with this name, of which version
    /// `version` is spoken. The kernel loads the module of a family that it does not know yet, if there is one and the
    /// process may. An error with `ENOENT` says that there is no such family.
    pub fn open(netns: &Netns, family: &str, version: u8) -> Result<Self, KernelError> {
        let mut generic = netns.run(|| Self::connect(version))??;
        let mut name = family.as_bytes().to_vec();
        name.push(0);
        let mut attrs = AttrWriter::default();
        attrs.put(FAMILY_NAME, &name);
        let what = format!("find the netlink family {family}");
        let found = generic.exchange(&what, (CONTROLLER, 2), GET_FAMILY, NlmF::ACK, attrs.bytes())?;
        let id = found.iter().flat_map(|body| attrs_of(body)).find(|(number, _)| *number == FAMILY_ID);
        let id = id.and_then(|(_, value)| u16_at(value, 0));
        generic.family =
            id.ok_or_else(|| unreadable(&UnreadableMessage::from("a family without a number")))?;
        Ok(generic)
    }

    fn connect(version: u8) -> Result<Self, KernelError> {
        let socket = NlSocket::connect(NlFamily::Generic, None, Groups::empty())
            .map_err(|source| KernelError::Socket { what: "open", source })?;
        let set_up = |source| KernelError::Socket { what: "set up", source };
        let port = socket.pid().map_err(set_up)?;
        // Old kernels send no text.
        _ = socket.enable_ext_ack(true);
        setsockopt(&sys::borrow(&socket), sockopt::RcvBufForce, &RECEIVE_BUFFER)
            .or_else(|_| setsockopt(&sys::borrow(&socket), sockopt::RcvBuf, &RECEIVE_BUFFER))
            .map_err(|errno| set_up(errno.into()))?;
        setsockopt(&sys::borrow(&socket), sockopt::ReceiveTimeout, &TimeVal::milliseconds(millis(DEADLINE)))
            .map_err(|errno| set_up(errno.into()))?;
        Ok(Self { socket, port, family: 0, version, next: 1, datagram: vec![0; DATAGRAM] })
    }

    /// Sends a command that changes something, and waits for the kernel's acknowledgement. `what` is a verb phrase for
    /// errors.
    pub fn request(&mut self, what: &str, command: u8, attrs: &[u8]) -> Result<(), KernelError> {
        self.exchange(what, (self.family, self.version), command, NlmF::ACK, attrs).map(drop)
    }

    /// Sends a command that lists something, and returns the attributes of each message of the answer. A list that
    /// changed meanwhile is read again. `what` is a verb phrase for errors.
    pub fn dump(&mut self, what: &str, command: u8, attrs: &[u8]) -> Result<Vec<Vec<u8>>, KernelError> {
        for _ in 0..TRIES {
            let family = (self.family, self.version);
            match self.exchange(what, family, command, NlmF::DUMP, attrs) {
                Err(error) if error.errno() == Some(libc::EINTR) => {}
                answer => return answer,
            }
        }
        Err(KernelError::Lost { what: what.to_owned() })
    }

    /// Sends one message and collects the answers up to the verdict. `EINTR` stands for a dump that was interrupted.
    fn exchange(
        &mut self,
        what: &str,
        (family, version): (u16, u8),
        command: u8,
        flags: NlmF,
        attrs: &[u8],
    ) -> Result<Vec<Vec<u8>>, KernelError> {
        let seq = self.next;
        self.next = self.next.checked_add(1).unwrap_or(1);
        let mut body = vec![command, version, 0, 0];
        body.extend_from_slice(attrs);
        let mut request = Datagram::default();
        request.push(Rtm::from(family), flags, seq, Buffer::from(body));
        self.socket.send(request.bytes(), Msg::empty()).map_err(|error| failed(error, "send", what))?;
        let (mut list, mut interrupted) = (Vec::new(), false);
        loop {
            let len = read(&self.socket, &mut self.datagram).map_err(|error| match error.kind() {
                // The deadline is over.
                io::ErrorKind::WouldBlock => KernelError::Lost { what: what.to_owned() },
                _ => failed(error, "receive", what),
            })?;
            for message in split(&self.datagram[..len]) {
                let message: Message<'_> = message.map_err(|error| unreadable(&error))?;
                if message.seq != seq || message.port != self.port {
                    continue;
                }
                interrupted |= message.flags.contains(NlmF::DUMP_INTR);
                match message.verdict().map_err(|error| unreadable(&error))? {
                    Some(verdict) if verdict.errno != 0 => return Err(verdict.refused(what.to_owned())),
                    Some(_) if interrupted => {
                        let errno = io::Error::from_raw_os_error(libc::EINTR);
                        return Err(KernelError::Refused {
                            what: what.to_owned(),
                            reason: String::new(),
                            errno,
                        });
                    }
                    Some(_) => return Ok(list),
                    None => list.extend(message.body.get(HEADER..).map(<[u8]>::to_vec)),
                }
            }
        }
    }
}

fn millis(time: Duration) -> i64 {
    time.as_millis().try_into().unwrap_or(i64::MAX)
}

fn unreadable(error: &UnreadableMessage) -> KernelError {
    KernelError::Unreadable { what: "an answer of generic netlink", detail: error.to_string() }
}

/// Writes attributes (`struct nlattr`): length, number, payload, padding to four bytes.
#[derive(Debug, Clone, Default)]
pub struct AttrWriter(Vec<u8>);

impl AttrWriter {
    /// Appends an attribute.
    ///
    /// # Panics
    ///
    /// If the payload has more than 65,531 bytes, which no attribute can have.
    pub fn put(&mut self, number: u16, payload: &[u8]) {
        let len = u16::try_from(payload.len() + 4).expect("an attribute has at most 65,535 bytes");
        self.0.extend_from_slice(&len.to_ne_bytes());
        self.0.extend_from_slice(&number.to_ne_bytes());
        self.0.extend_from_slice(payload);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }

    /// Appends an attribute that has others in it (`NLA_F_NESTED`).
    pub fn nest(&mut self, number: u16, fill: impl FnOnce(&mut Self)) {
        let mut inner = Self::default();
        fill(&mut inner);
        self.put(number | 0x8000, &inner.0);
    }

    /// Appends all attributes of another writer, which is empty afterwards.
    pub fn append(&mut self, other: &mut Self) {
        self.0.append(&mut other.0);
    }

    /// How many bytes there are so far.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is no attribute yet.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}

/// The attributes in these bytes: numbers without flag bits, and payloads. What follows an attribute whose length does
/// not fit is left out.
pub fn attrs_of(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let (len, number) = (usize::from(u16_at(bytes, 0)?), u16_at(bytes, 2)?);
        let payload = bytes.get(4..len)?;
        bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or(&[]);
        Some((number & 0x3fff, payload))
    })
}

/// The text of an attribute, which ends at the first NUL.
pub fn text_of(payload: &[u8]) -> String {
    string(payload)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_read_as_they_were_written() {
        let mut attrs = AttrWriter::default();
        attrs.put(1, &[1, 2, 3]);
        attrs.nest(2, |inner| inner.put(3, b"text\0"));
        assert_eq!((attrs.len(), attrs.is_empty()), (8 + 4 + 12, false));
        let read: Vec<_> = attrs_of(attrs.bytes()).collect();
        assert_eq!(read[0], (1, &[1, 2, 3][..]));
        let (number, inner) = read[1];
        assert_eq!(number, 2);
        assert_eq!(
            attrs_of(inner).map(|(number, text)| (number, text_of(text))).collect::<Vec<_>>(),
            [(3, "text".to_owned())]
        );
        for cut in 0..attrs.len() {
            assert!(attrs_of(&attrs.bytes()[..cut]).count() < 2);
        }
        assert_eq!(attrs_of(&[3, 0, 1, 0, 9, 9, 9, 9]).count(), 0, "shorter than its header");
    }

    #[test]
    fn the_controller_knows_itself_and_not_what_there_is_not() {
        let netns = Netns::current().unwrap();
        let controller = Generic::open(&netns, "nlctrl", 2).unwrap();
        assert_eq!(controller.family, CONTROLLER);
        let error = Generic::open(&netns, "flannel-none", 1).unwrap_err();
        assert_eq!(error.errno(), Some(libc::ENOENT), "{error}");
        assert!(error.to_string().contains("find the netlink family flannel-none"), "{error}");
    }

    #[test]
    fn a_dump_has_all_families() {
        let mut controller = Generic::open(&Netns::current().unwrap(), "nlctrl", 2).unwrap();
        let families = controller.dump("list the families", GET_FAMILY, &[]).unwrap();
        let name = |body: &Vec<u8>| {
            attrs_of(body).find(|(number, _)| *number == FAMILY_NAME).map(|(_, name)| text_of(name))
        };
        assert!(families.iter().filter_map(name).any(|name| name == "nlctrl"));
    }
}
