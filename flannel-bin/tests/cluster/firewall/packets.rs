//! Senders and listeners that tell under which address a packet arrives.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use flannel_lab::netns::Netns;
use nix::sys::socket::{setsockopt, sockopt};

use crate::harness::SOON;

/// Where listeners are.
pub(super) const PORT: u16 = 7070;
/// How long a packet is waited for before it is sent again; the first may wait for a neighbour.
const PATIENCE: Duration = Duration::from_millis(300);
/// How often it is sent before nobody is taken to hear it.
const TRIES: u32 = 6;

fn any(v6: bool) -> IpAddr {
    if v6 { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() }
}

/// A socket of IPv6 takes IPv4's port, too, so each has its own.
fn port(v6: bool, number: u16) -> u16 {
    PORT + 2 * number + u16::from(v6)
}

/// A listener.
pub(super) struct Ear(UdpSocket);

impl Ear {
    pub(super) fn open(netns: &Netns, v6: bool, port: u16) -> Self {
        let socket = netns.enter(|| UdpSocket::bind((any(v6), port))).unwrap().unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        Self(socket)
    }

    fn hear(&self) -> Option<IpAddr> {
        self.0.recv_from(&mut [0; 64]).ok().map(|(_, from)| from.ip())
    }
}

/// How something is sent.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Mouth {
    /// The source address, if the kernel is not to choose it.
    pub(super) from: Option<IpAddr>,
    /// The packet's mark.
    pub(super) mark: u32,
}

impl Mouth {
    fn open(self, netns: &Netns, v6: bool) -> UdpSocket {
        let from = self.from.unwrap_or_else(|| any(v6));
        let socket = netns.enter(|| UdpSocket::bind((from, 0))).unwrap().unwrap();
        setsockopt(&socket, sockopt::Mark, &self.mark).unwrap();
        socket
    }
}

/// Sends to a listener and tells whom that takes for the sender; `None` if it hears nothing.
pub(super) fn heard(from: &Netns, mouth: Mouth, to: &Netns, dst: IpAddr) -> Option<IpAddr> {
    heard_at_port(from, mouth, to, dst, PORT)
}

/// The same through a port that is not the listener's own.
pub(super) fn heard_at_port(
    from: &Netns,
    mouth: Mouth,
    to: &Netns,
    dst: IpAddr,
    port: u16,
) -> Option<IpAddr> {
    let ear = Ear::open(to, dst.is_ipv6(), PORT);
    let mouth = mouth.open(from, dst.is_ipv6());
    (0..TRIES).find_map(|_| {
        // An ICMP error for the packet before is no reason to end.
        _ = mouth.send_to(b"hello", (dst, port));
        ear.hear()
    })
}

/// Sends to a multicast group, of which a listener at `at` is a member.
pub(super) fn heard_in_group(from: &Netns, source: IpAddr, to: &Netns, at: IpAddr) -> Option<IpAddr> {
    let v6 = at.is_ipv6();
    let ear = Ear::open(to, v6, PORT);
    let mouth = Mouth { from: Some(source), mark: 0 }.open(from, v6);
    // Else it goes out by the link that has the address.
    from.enter(|| setsockopt(&mouth, sockopt::BindToDevice, &"eth0".into())).unwrap().unwrap();
    let index_of = |netns: &Netns, link: &str| netns.link_index(link).unwrap();
    let group: IpAddr = match at {
        IpAddr::V4(at) => {
            let group = Ipv4Addr::new(239, 1, 2, 3);
            ear.0.join_multicast_v4(&group, &at).unwrap();
            group.into()
        }
        IpAddr::V6(_) => {
            let group = Ipv6Addr::new(0xff05, 0, 0, 0, 0, 0, 1, 3);
            let links = to.ip_json(&format!("address show to {at}")).unwrap();
            let link = links[0]["ifname"].as_str().unwrap().to_owned();
            ear.0.join_multicast_v6(&group, index_of(to, &link).unwrap()).unwrap();
            group.into()
        }
    };
    (0..TRIES).find_map(|_| {
        _ = mouth.send_to(b"hello", (group, PORT));
        ear.hear()
    })
}

/// New connections without end: a packet every few milliseconds, each from a port of its own.
pub(super) struct Stream {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
    heard: Arc<AtomicU64>,
    threads: (JoinHandle<()>, JoinHandle<Vec<IpAddr>>),
}

impl Stream {
    pub(super) fn start(from: &Netns, to: &Netns, dst: IpAddr) -> Self {
        let v6 = dst.is_ipv6();
        // So that no packet is lost to a neighbour that is not known yet.
        assert!(heard(from, Mouth::default(), to, dst).is_some());
        let ear = Ear::open(to, v6, port(v6, 1));
        let stop = Arc::new(AtomicBool::new(false));
        let (sent, heard) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let (ends, counts, from) = (stop.clone(), sent.clone(), from.clone());
        let speak = std::thread::spawn(move || {
            from.enter(|| {
                while !ends.load(Ordering::Relaxed) {
                    let socket = UdpSocket::bind((any(v6), 0)).unwrap();
                    socket.send_to(b"hello", (dst, port(v6, 1))).unwrap();
                    counts.fetch_add(1, Ordering::Relaxed);
                    std::thread::sleep(Duration::from_millis(4));
                }
            })
            .unwrap();
        });
        let (ends, counts) = (stop.clone(), heard.clone());
        let listen = std::thread::spawn(move || {
            let mut all = Vec::new();
            loop {
                match ear.hear() {
                    Some(source) => all.push(source),
                    // Nothing more is on its way.
                    None if ends.load(Ordering::Relaxed) => return all,
                    None => {}
                }
                counts.store(all.len() as u64, Ordering::Relaxed);
            }
        });
        Self { stop, sent, heard, threads: (speak, listen) }
    }

    /// How many were sent, of which some may be on their way.
    pub(super) fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// Waits until so many more were heard.
    #[track_caller]
    pub(super) fn wait_for(&self, more: u64) {
        let (goal, begin) = (self.heard.load(Ordering::Relaxed) + more, Instant::now());
        while self.heard.load(Ordering::Relaxed) < goal {
            assert!(begin.elapsed() < SOON, "nothing is heard any more");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Ends it; the sources of all that was heard, in order.
    pub(super) fn stop(self) -> Vec<IpAddr> {
        self.stop.store(true, Ordering::Relaxed);
        self.threads.0.join().unwrap();
        self.threads.1.join().unwrap()
    }
}

/// A connection that is kept, with a word and its echo now and then.
pub(super) struct Talk {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Talk {
    pub(super) fn start(from: &Netns, to: &Netns, dst: IpAddr) -> Self {
        let listener =
            to.enter(|| TcpListener::bind((any(dst.is_ipv6()), port(dst.is_ipv6(), 2)))).unwrap().unwrap();
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut word = [0; 5];
            while stream.read_exact(&mut word).is_ok() {
                stream.write_all(&word).unwrap();
            }
        });
        let to = SocketAddr::new(dst, port(dst.is_ipv6(), 2));
        let mut stream = from.enter(|| TcpStream::connect_timeout(&to, SOON)).unwrap().unwrap();
        stream.set_read_timeout(Some(SOON)).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let ends = stop.clone();
        let thread = std::thread::spawn(move || {
            while !ends.load(Ordering::Relaxed) {
                stream.write_all(b"hello").unwrap();
                stream.read_exact(&mut [0; 5]).unwrap();
                std::thread::sleep(Duration::from_millis(10));
            }
        });
        Self { stop, thread }
    }

    /// Ends it; it never broke.
    #[track_caller]
    pub(super) fn finish(self) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap();
    }
}
