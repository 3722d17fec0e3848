use std::io::IoSlice;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use flannel_lab::netns::Netns;
use flannel_lab::sandbox::in_sandbox;
use flannel_lab::test_name;
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use nix::unistd::Pid;

use super::*;
use crate::counters::DropReason;
use crate::forward::{ForwardingTable, Inbound, Outbound, Peer, PeerIndex, Sender, TableCell, TableSpec};
use crate::packet::IpHeader;
use crate::passage::{Batch, Cipher, Opened, Passage, Sealed};
use crate::socket::SocketOptions;
use crate::testing::{Inner, allocations, intact, send_raw};
use crate::tun::TunOptions;
use crate::vnet::VnetHeader;

const PEER: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);
const US: Ipv4Addr = Ipv4Addr::LOCALHOST;
const STRANGER: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 3);
const PORT: u16 = 8285;

fn spec() -> TableSpec {
    TableSpec {
        own_subnets: vec!["10.1.2.0/24".parse().unwrap()],
        own_addresses: PerFamily { v4: Some([10, 1, 2, 0].into()), v6: None },
        overlay_mtu: None,
        peers: vec![Peer {
            endpoint: (PEER, PORT).into(),
            other_sources: vec![],
            subnets: vec!["10.1.1.0/24".parse().unwrap()],
        }],
        allowed_sources: vec![],
    }
}

fn io() -> Io {
    let bind = |family| {
        (family == Family::V4).then(|| {
            Arc::new(UnderlaySocket::bind(SocketAddr::from((US, PORT)), SocketOptions::default()).unwrap())
        })
    };
    Io {
        tun: Arc::new(Tun::open("flannel0", TunOptions::default()).unwrap()),
        sockets: PerFamily::from_fn(bind),
        errors: PerFamily::from_fn(|family| ErrorSocket::open(family).ok()),
        counters: Arc::default(),
        stop: EventFd::from_flags(EfdFlags::EFD_NONBLOCK).unwrap(),
        handover: None,
    }
}

/// Both directions, errors, drops and a new table, on this thread, which counts what it allocates.
#[test]
fn the_packet_path_allocates_nothing() {
    in_sandbox(test_name!(), || {
        let here = Netns::add("here").unwrap();
        let test = || {
            let io = io();
            let lines = ["addr add 10.1.2.1/24 dev flannel0", "link set flannel0 mtu 1472 up"];
            here.ip_batch(&lines.map(str::to_owned)).unwrap();
            here.ip("route add 10.1.0.0/16 dev flannel0").unwrap();
            let cell = TableCell::new(ForwardingTable::new(spec(), None));
            let mut worker = Worker::new(&io, cell.reader(), Ways::Both);
            let peer = UdpSocket::bind((PEER, PORT)).unwrap();
            let stranger = UdpSocket::bind((STRANGER, PORT)).unwrap();
            let pod = UdpSocket::bind("10.1.2.1:0").unwrap();
            let packet = |inner: Inner| inner.from([10, 1, 1, 9]).to([10, 1, 2, 1]).packet();
            let good = [packet(Inner::udp(&[1; 900])), packet(Inner::tcp(&[2; 900]))];
            let spoofed = Inner::udp(b"x").from([10, 1, 2, 9]).packet();
            let bad = [packet(Inner::udp(b"x").ttl(1)), spoofed];
            let traffic = || {
                for _ in 0..50 {
                    good.iter().chain(&bad).for_each(|packet| {
                        peer.send_to(packet, (US, PORT)).unwrap();
                        stranger.send_to(packet, (US, PORT)).unwrap();
                    });
                    pod.send_to(&[3; 1200], "10.1.1.9:9").unwrap();
                    pod.send_to(&[3; 20], "10.1.3.9:9").unwrap();
                }
            };
            // The first of everything may set something up in the C library.
            let mut turns = |count: usize| {
                (0..count).for_each(|_| assert!(worker.turn(PollTimeout::from(10_u16)).unwrap()));
            };
            traffic();
            turns(20);
            let before = io.counters.snapshot();
            traffic();
            cell.set(ForwardingTable::new(spec(), Some(&cell.get())));
            let allocated = allocations(|| turns(40));
            assert_eq!(allocated, 0);
            let after = io.counters.snapshot();
            assert!(after.sent.packets - before.sent.packets >= 50, "and errors on their way back");
            assert!(after.errors_sent > before.errors_sent);
            assert_eq!(after.received.packets - before.received.packets, 100);
            assert!(after.drops.len() >= 3, "{after:?}");
        };
        here.enter(test).unwrap();
    });
}

/// Pins the calling thread, and those that it starts, to one processor. The kernel queues what arrives on a virtual link by
/// processor, so it may itself reorder what a thread sends that moves to another one.
fn stay_on_one_processor() {
    let (this, mut one) = (Pid::from_raw(0), CpuSet::new());
    let all = sched_getaffinity(this).unwrap();
    let first = (0..CpuSet::count()).find(|cpu| all.is_set(*cpu).unwrap()).unwrap();
    one.set(first).unwrap();
    sched_setaffinity(this, &one).unwrap();
}

/// Packets of the flow whose order is looked at.
const PACKETS: u32 = 20_000;

/// Two threads, between which the TUN changes hands after every batch, whatever the load is.
#[test]
fn a_flow_stays_in_order_while_the_tun_changes_hands_after_every_batch() {
    in_sandbox(test_name!(), || {
        stay_on_one_processor();
        let here = Netns::add("here").unwrap();
        let test = || {
            let mut handover = Handover::new().unwrap();
            handover.restless = Some(AtomicU64::new(0));
            let io = Io { handover: Some(handover), ..io() };
            here.ip_batch(&["addr add 10.1.2.1/24 dev flannel0", "link set flannel0 up"].map(str::to_owned))
                .unwrap();
            here.ip("route add 10.1.0.0/16 dev flannel0").unwrap();
            let cell = TableCell::new(ForwardingTable::new(spec(), None));
            let peer = UdpSocket::bind((PEER, PORT)).unwrap();
            peer.set_read_timeout(Some(std::time::Duration::from_secs(20))).unwrap();
            let pod = UdpSocket::bind("10.1.2.1:0").unwrap();
            pod.connect("10.1.1.9:9").unwrap();
            let (received, ended) = (AtomicU32::new(0), AtomicBool::new(false));
            std::thread::scope(|scope| {
                for place in [Place::First, Place::Second] {
                    let (io, reader) = (&io, cell.reader());
                    scope.spawn(move || Worker::new(io, reader, Ways::Shared(place)).run());
                }
                let sender = scope.spawn(|| {
                    for number in 0..PACKETS {
                        pod.send(&number.to_be_bytes()).unwrap();
                        std::thread::yield_now();
                        // No more than the TUN's queue has room for.
                        while number - received.load(Ordering::Relaxed) > 200
                            && !ended.load(Ordering::Relaxed)
                        {
                            std::thread::yield_now();
                        }
                    }
                });
                let mut buffer = [0; 2048];
                let in_order = (0..PACKETS).try_for_each(|number| {
                    let len = peer.recv(&mut buffer).map_err(|error| error.to_string())?;
                    received.store(number, Ordering::Relaxed);
                    let bytes = buffer[len - 4..len].try_into().expect("four bytes");
                    let found = u32::from_be_bytes(bytes);
                    if found == number { Ok(()) } else { Err(format!("{found} instead of {number}")) }
                });
                ended.store(true, Ordering::Relaxed);
                io.stop.write(1).unwrap();
                sender.join().unwrap();
                assert_eq!(in_order, Ok(()), "each packet once and in order");
            });
            let given = io.handover.as_ref().unwrap().restless.as_ref().unwrap().load(Ordering::Relaxed);
            assert!(given > u64::from(PACKETS) / 200, "the TUN changed hands {given} times");
            println!("the TUN changed hands {given} times");
        };
        here.enter(test).unwrap();
    });
}

/// A pod's super-packet and a peer's train, each of one byte a segment: one drop, and the next packet passes.
#[test]
fn tiny_segments_are_refused_at_both_doors() {
    in_sandbox(test_name!(), || {
        let here = Netns::add("here").unwrap();
        let test = || {
            let io = io();
            here.ip_batch(&["addr add 10.1.2.1/24 dev flannel0", "link set flannel0 up"].map(str::to_owned))
                .unwrap();
            let cell = TableCell::new(ForwardingTable::new(spec(), None));
            let mut worker = Worker::new(&io, cell.reader(), Ways::Both);
            let mut turns = |counted: &dyn Fn() -> bool| {
                let deadline = Instant::now() + std::time::Duration::from_secs(5);
                while !counted() {
                    assert!(Instant::now() < deadline, "{:?}", io.counters.snapshot());
                    assert!(worker.turn(PollTimeout::from(10_u16)).unwrap());
                }
            };
            let link = here.link_index("flannel0").unwrap().unwrap();
            let from_pod = |len: usize, gso_size: u16| {
                let packet = Inner::tcp(&vec![7; len]).from([10, 1, 2, 1]).to([10, 1, 1, 9]).packet();
                let vnet = VnetHeader {
                    flags: VnetHeader::NEEDS_CHECKSUM,
                    gso_type: VnetHeader::GSO_TCPV4,
                    header_len: 40,
                    gso_size,
                    csum_start: 20,
                    csum_offset: 16,
                };
                send_raw(link, 0x0800, &[&vnet.to_bytes()[..], &packet].concat()).unwrap();
            };
            let peer = UdpSocket::bind((PEER, PORT)).unwrap();
            peer.connect((US, PORT)).unwrap();
            let good = Inner::udp(&[1; 22]).from([10, 1, 1, 9]).to([10, 1, 2, 1]).packet();
            let from_peer = |datagrams: &[u8], size: u16| {
                let control = [ControlMessage::UdpGsoSegments(&size)];
                let parts = [IoSlice::new(datagrams)];
                sendmsg::<()>(peer.as_raw_fd(), &parts, &control, MsgFlags::empty(), None).unwrap();
            };
            from_pod(60_000, 1);
            turns(&|| io.counters.drops(DropReason::TinySegments) == 1);
            from_pod(60_000, 7);
            turns(&|| io.counters.drops(DropReason::TinySegments) == 2);
            from_pod(600, 8);
            turns(&|| io.counters.snapshot().sent.packets == 75);
            from_peer(&good, 1);
            turns(&|| io.counters.drops(DropReason::TinySegments) == 2 + 50);
            from_peer(&[good.clone(), good.clone()].concat(), 50);
            turns(&|| io.counters.snapshot().received.packets == 2);
            assert_eq!(io.counters.drops(DropReason::Truncated), 0, "no byte of it was looked at");
        };
        here.enter(test).unwrap();
    });
}

/// A tunnel whose cipher turns all bits over, behind a byte that says how many of them are padding.
struct Turned;

impl Passage for Turned {
    const SEALS: bool = true;

    type Batch<'b> = Self;

    fn begin(&mut self, _: Instant) -> Self {
        Self
    }
}

impl Batch for Turned {
    const IS_HOP: bool = false;
    const SEALS: bool = true;

    type Cipher = Self;

    fn cipher(&mut self) -> Option<&mut Self> {
        Some(self)
    }

    fn outbound(&mut self, _: &IpHeader, _: usize) -> Outbound {
        Outbound::Send(PeerIndex(0))
    }

    fn endpoint(&self, _: PeerIndex) -> SocketAddr {
        (PEER, PORT).into()
    }

    fn sent(&mut self, _: PeerIndex, _: u64, _: u64) {}

    fn sender(&self, _: IpAddr) -> Sender {
        Sender::Stranger
    }

    fn inbound(&mut self, sender: Sender, _: IpAddr, _: &IpHeader) -> Inbound {
        assert_eq!(sender, Sender::Peer(PeerIndex(0)), "as the cipher said");
        Inbound::Accept(Some(PeerIndex(0)))
    }

    fn received(&mut self, _: Sender, _: PeerIndex, _: u64, _: u64) {}

    fn error_source(&self, _: Family) -> Option<IpAddr> {
        None
    }
}

impl Cipher for Turned {
    const OVERHEAD: usize = 17;
    const LONGEST: usize = 40;

    fn seal(
        &mut self,
        peer: PeerIndex,
        packet: &mut [u8],
        len: usize,
        out: &mut [u8],
    ) -> Result<Option<Sealed>, DropReason> {
        assert!(out.len() >= Self::LONGEST && out.len() >= len + Self::OVERHEAD);
        let padded = len.next_multiple_of(16);
        packet[len..padded].fill(0);
        out[0] = u8::try_from(padded - len).unwrap();
        for (to, byte) in out[1..].iter_mut().zip(&packet[..padded]) {
            *to = !byte;
        }
        Ok(Some(Sealed { len: 1 + padded, to: self.endpoint(peer) }))
    }

    fn open(&mut self, _: SocketAddr, datagram: &[u8], out: &mut [u8]) -> Result<Opened, DropReason> {
        let (padding, sealed) = datagram.split_first().ok_or(DropReason::BadMessage)?;
        let len = sealed.len().checked_sub((*padding).into()).ok_or(DropReason::BadMessage)?;
        if len == 0 {
            return Ok(Opened::Message);
        }
        for (to, byte) in out.iter_mut().zip(sealed) {
            *to = !byte;
        }
        Ok(Opened::Packet(PeerIndex(0), len))
    }
}

/// Segments longer and shorter than their headers, with padding that would run into the next: each datagram opens into
/// the packet that belongs there, and what a peer seals arrives.
#[test]
fn a_cipher_seals_every_segment_and_opens_every_datagram() {
    in_sandbox(test_name!(), || {
        let here = Netns::add("here").unwrap();
        let test = || {
            let io = io();
            here.ip_batch(&["addr add 10.1.2.1/24 dev flannel0", "link set flannel0 up"].map(str::to_owned))
                .unwrap();
            let mut worker = Worker::new(&io, Turned, Ways::Both);
            let mut turns = |counted: &dyn Fn() -> bool| {
                let deadline = Instant::now() + std::time::Duration::from_secs(5);
                while !counted() {
                    assert!(Instant::now() < deadline, "{:?}", io.counters.snapshot());
                    assert!(worker.turn(PollTimeout::from(10_u16)).unwrap());
                }
            };
            let link = here.link_index("flannel0").unwrap().unwrap();
            let peer = UdpSocket::bind((PEER, PORT)).unwrap();
            peer.connect((US, PORT)).unwrap();
            peer.set_nonblocking(true).unwrap();
            let opened = || {
                let mut buffer = [0; 2048];
                let mut opened = Vec::new();
                while let Ok(len) = peer.recv(&mut buffer) {
                    let end = len - usize::from(buffer[0]);
                    opened.push(buffer[1..end].iter().map(|byte| !byte).collect::<Vec<u8>>());
                }
                opened
            };
            for (len, size) in [(600_usize, 8_u16), (1000, 39), (3000, 41), (60_000, 1400), (60_001, 1333)] {
                let payload: Vec<u8> = (0..len).map(|at| ((at * 7) >> 3) as u8).collect();
                let packet = Inner::tcp(&payload).from([10, 1, 2, 1]).to([10, 1, 1, 9]).packet();
                let vnet = VnetHeader {
                    flags: VnetHeader::NEEDS_CHECKSUM,
                    gso_type: VnetHeader::GSO_TCPV4,
                    header_len: 40,
                    gso_size: size,
                    csum_start: 20,
                    csum_offset: 16,
                };
                let before = io.counters.snapshot().sent.packets;
                send_raw(link, 0x0800, &[&vnet.to_bytes()[..], &packet].concat()).unwrap();
                let count = len.div_ceil(size.into()) as u64;
                turns(&|| io.counters.snapshot().sent.packets >= before + count);
                // The kernel's hellos on the link go this way, too.
                let mut parts = opened();
                parts.retain(|part| part.first() == Some(&0x45));
                assert_eq!(parts.len() as u64, count, "{len} in {size}");
                assert!(parts.iter().all(|part| intact(part)), "{len} in {size}");
                // Hop limit and protocol, addresses and ports.
                let same = |part: &Vec<u8>| part[8..10] == packet[8..10] && part[12..24] == packet[12..24];
                assert!(parts.iter().all(same), "{len} in {size}");
                let all: Vec<u8> = parts.iter().flat_map(|part| part[40..].to_vec()).collect();
                assert!(all == payload, "{len} in {size}");
            }
            let pod = UdpSocket::bind("10.1.2.1:2000").unwrap();
            pod.set_nonblocking(true).unwrap();
            let packet = Inner::udp(b"sealed").from([10, 1, 1, 9]).to([10, 1, 2, 1]).packet();
            let sealed: Vec<u8> = [0].into_iter().chain(packet.iter().map(|byte| !byte)).collect();
            for datagram in [&[0][..], &[1], &[9, 0], &sealed] {
                peer.send(datagram).unwrap();
            }
            turns(&|| io.counters.snapshot().received.packets == 1);
            let mut buffer = [0; 100];
            assert_eq!(pod.recv(&mut buffer).ok(), Some(6));
            assert_eq!(&buffer[..6], b"sealed");
            assert_eq!(io.counters.drops(DropReason::BadMessage), 2, "the first one is only a message");
        };
        here.enter(test).unwrap();
    });
}
