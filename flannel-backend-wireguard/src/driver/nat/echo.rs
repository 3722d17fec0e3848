//! Asks peers through their tunnels whether they are there (ICMP echoes), and how long the answer takes. The kernel notes when
//! each packet came, so answers are read when the driver looks the next time.

use std::collections::{BTreeMap, VecDeque};
use std::io::{self, IoSliceMut};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::time::{Duration, SystemTime};

use flannel_core::addr::{Family, PerFamily};
use flannel_core::netns::Netns;
use nix::sys::socket::{
    AddressFamily, ControlMessageOwned, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrStorage, recvmsg,
    sendto, setsockopt, socket, sockopt,
};
use nix::sys::time::TimeSpec;

use crate::key::PublicKey;

/// Room for what comes between two looks: a raw socket receives the answers to others on the host, too.
const RECEIVE_BUFFER: usize = 4 << 20;
/// Round-trip times that are remembered of a peer. The least of them counts: others were held up on the way.
const REMEMBERED: usize = 8;
/// The bytes that a question or an answer adds to what a tunnel counts (padding to 16, 32 of WireGuard): 36 bytes of IPv4, 56 of
/// IPv6.
const COUNTED: PerFamily<u64> = PerFamily { v4: Some(80), v6: Some(96) };

/// A peer on the device at a place.
pub(super) type Asked = (usize, PublicKey);

/// What is known of the answers of a peer.
#[derive(Debug, Default)]
struct Answers {
    /// How many questions were asked since the last answer, but for the last one.
    misses: u32,
    is_waiting: bool,
    times: VecDeque<Duration>,
    /// What questions and answers added to the tunnel's counts since that was asked last.
    counted: (u64, u64),
}

/// The questions and what is known of the answers.
pub(super) struct Echoes {
    sockets: PerFamily<OwnedFd>,
    id: u16,
    next: u16,
    waiting: BTreeMap<u16, (Asked, SystemTime)>,
    known: BTreeMap<Asked, Answers>,
    /// Why nobody can be asked.
    pub(super) problem: Option<String>,
}

impl Default for Echoes {
    fn default() -> Self {
        Self {
            sockets: PerFamily::default(),
            id: fastrand::u16(..),
            next: 0,
            waiting: BTreeMap::new(),
            known: BTreeMap::new(),
            problem: None,
        }
    }
}

impl Echoes {
    /// Asks a peer at this address of its device.
    pub(super) fn ask(&mut self, netns: &Netns, asked: Asked, at: IpAddr) {
        let family = Family::of(at);
        if let Err(error) = self.send(netns, asked, at) {
            self.problem = Some(format!("no ICMP socket for {family}: {error}; it needs CAP_NET_RAW"));
            return;
        }
        self.problem = None;
        let answers = self.known.entry(asked).or_default();
        answers.misses += u32::from(std::mem::replace(&mut answers.is_waiting, true));
        answers.counted.0 += COUNTED.get(family).copied().unwrap_or_default();
    }

    /// An error is one of the socket. What the kernel can't send now is a question without an answer.
    fn send(&mut self, netns: &Netns, asked: Asked, at: IpAddr) -> io::Result<()> {
        let family = Family::of(at);
        if self.sockets.get(family).is_none() {
            let opened = netns.run(|| open(family)).map_err(io::Error::other)??;
            *self.sockets.get_mut(family) = Some(opened);
        }
        let Some(socket) = self.sockets.get(family) else { return Ok(()) };
        self.next = self.next.wrapping_add(1);
        let to = SockaddrStorage::from(SocketAddr::new(at, 0));
        let packet = question(family, self.id, self.next);
        // The answer of this host itself comes before `sendto` returns.
        let sent = SystemTime::now();
        if sendto(socket.as_raw_fd(), &packet, &to, MsgFlags::empty()).is_ok() {
            self.waiting.insert(self.next, (asked, sent));
        }
        Ok(())
    }

    /// Reads the answers that came.
    pub(super) fn read(&mut self) {
        for (family, socket) in self.sockets.iter() {
            let mut buffer = [0; 128];
            while let Some((len, at)) = receive(socket, &mut buffer) {
                let Some(number) = answer(family, self.id, &buffer[..len]) else { continue };
                let Some((asked, sent)) = self.waiting.remove(&number) else { continue };
                let answers = self.known.entry(asked).or_default();
                (answers.misses, answers.is_waiting) = (0, false);
                answers.counted.1 += COUNTED.get(family).copied().unwrap_or_default();
                if let Ok(took) = at.duration_since(sent) {
                    answers.times.push_back(took);
                    if answers.times.len() > REMEMBERED {
                        answers.times.pop_front();
                    }
                }
            }
        }
        let long_ago = SystemTime::now() - Duration::from_secs(60);
        self.waiting.retain(|_, (_, sent)| *sent >= long_ago);
    }

    /// How many of the last questions a peer did not answer.
    pub(super) fn misses(&self, asked: &Asked) -> u32 {
        self.known.get(asked).map_or(0, |answers| answers.misses)
    }

    /// The round-trip time to a peer; `None` if it has not answered yet.
    pub(super) fn round_trip(&self, asked: &Asked) -> Option<Duration> {
        self.known.get(asked)?.times.iter().min().copied()
    }

    /// What questions and answers added to the tunnel's counts of a peer since this was asked last.
    pub(super) fn take_counted(&mut self, asked: &Asked) -> (u64, u64) {
        self.known.get_mut(asked).map_or((0, 0), |answers| std::mem::take(&mut answers.counted))
    }

    /// Forgets that a peer did not answer, since it is asked by another way from now on.
    pub(super) fn forget_misses(&mut self, asked: &Asked) {
        if let Some(answers) = self.known.get_mut(asked) {
            (answers.misses, answers.is_waiting) = (0, false);
        }
    }

    /// Forgets peers that are gone.
    pub(super) fn retain(&mut self, is_there: impl Fn(&Asked) -> bool) {
        self.known.retain(|asked, _| is_there(asked));
    }
}

fn open(family: Family) -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd = match family {
        Family::V4 => socket(AddressFamily::Inet, SockType::Raw, flags, SockProtocol::Icmp)?,
        Family::V6 => socket(AddressFamily::Inet6, SockType::Raw, flags, SockProtocol::IcmpV6)?,
    };
    setsockopt(&fd, sockopt::ReceiveTimestampns, &true)?;
    // Without the right to exceed the host's limit, up to that.
    let is_large = setsockopt(&fd, sockopt::RcvBufForce, &RECEIVE_BUFFER).is_ok();
    if !is_large {
        setsockopt(&fd, sockopt::RcvBuf, &RECEIVE_BUFFER)?;
    }
    Ok(fd)
}

/// A packet, and when it came.
fn receive(socket: &OwnedFd, buffer: &mut [u8]) -> Option<(usize, SystemTime)> {
    let mut parts = [IoSliceMut::new(buffer)];
    let mut space = nix::cmsg_space!(TimeSpec);
    loop {
        let received =
            recvmsg::<()>(socket.as_raw_fd(), &mut parts, Some(&mut space), MsgFlags::MSG_DONTWAIT);
        match received {
            Err(nix::Error::EINTR) => {}
            Err(_) => return None,
            Ok(message) => {
                let came = message.cmsgs().ok().into_iter().flatten().find_map(|part| match part {
                    ControlMessageOwned::ScmTimestampns(at) => {
                        Some(SystemTime::UNIX_EPOCH + Duration::from(at))
                    }
                    _ => None,
                });
                return Some((message.bytes, came.unwrap_or_else(SystemTime::now)));
            }
        }
    }
}

/// An echo request with 8 bytes of content. The kernel puts in the checksum of `ICMPv6` itself.
fn question(family: Family, id: u16, number: u16) -> [u8; 16] {
    let mut packet = [0; 16];
    packet[0] = if family == Family::V4 { 8 } else { 128 };
    packet[4..6].copy_from_slice(&id.to_be_bytes());
    packet[6..8].copy_from_slice(&number.to_be_bytes());
    if family == Family::V4 {
        let words = packet.chunks_exact(2).map(|word| u32::from(u16::from_be_bytes([word[0], word[1]])));
        let sum: u32 = words.sum();
        let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
        packet[2..4].copy_from_slice(&sum.to_be_bytes());
    }
    packet
}

/// The number of an answer to one of our questions. Of IPv4 there is the header before it.
fn answer(family: Family, id: u16, packet: &[u8]) -> Option<u16> {
    let (reply, begin) = match family {
        Family::V4 => (0, usize::from(packet.first()? & 0xf) * 4),
        Family::V6 => (129, 0),
    };
    let icmp = packet.get(begin..begin + 16)?;
    let word = |at: usize| u16::from_be_bytes([icmp[at], icmp[at + 1]]);
    (icmp[0] == reply && word(4) == id).then(|| word(6))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_answer_to_one_of_ours_counts() {
        let asked = question(Family::V4, 0x1234, 7);
        assert_eq!(asked[..8], [8, 0, 0xe5, 0xc4, 0x12, 0x34, 0, 7]);
        let mut packet = vec![0x45; 20];
        packet.extend(asked);
        assert_eq!(answer(Family::V4, 0x1234, &packet), None, "a question");
        packet[20] = 0;
        assert_eq!(answer(Family::V4, 0x1234, &packet), Some(7));
        assert_eq!(answer(Family::V4, 0x1235, &packet), None);
        let mut packet = question(Family::V6, 0x1234, 9);
        packet[0] = 129;
        assert_eq!(answer(Family::V6, 0x1234, &packet), Some(9));
        for len in 0..16 {
            assert_eq!(answer(Family::V6, 0x1234, &packet[..len]), None);
        }
    }

    #[test]
    fn a_host_answers_itself_and_silence_is_counted() {
        flannel_lab::sandbox::in_sandbox(flannel_lab::test_name!(), asked_and_answered);
    }

    fn asked_and_answered() {
        let lab = flannel_lab::netns::Netns::add("echo").unwrap();
        let netns = Netns::open(lab.path()).unwrap();
        let mut echoes = Echoes::default();
        let (here, nowhere) = ((0, PublicKey([1; 32])), (0, PublicKey([2; 32])));
        let localhost: IpAddr = [127, 0, 0, 1].into();
        echoes.ask(&netns, here, localhost);
        assert_eq!(echoes.problem, None);
        let began = std::time::Instant::now();
        while echoes.round_trip(&here).is_none() && began.elapsed() < Duration::from_secs(10) {
            echoes.read();
        }
        assert!(echoes.round_trip(&here).unwrap() < Duration::from_secs(10));
        assert_eq!((echoes.take_counted(&here), echoes.take_counted(&here)), ((80, 80), (0, 0)));
        // 0.0.0.1 is nobody's.
        for _ in 0..3 {
            echoes.ask(&netns, nowhere, [0, 0, 0, 1].into());
        }
        assert_eq!((echoes.misses(&nowhere), echoes.misses(&here)), (2, 0));
        echoes.forget_misses(&nowhere);
        assert_eq!(echoes.misses(&nowhere), 0);
    }
}
