//! Data from one namespace to another, checked byte by byte. What goes wrong is a panic: these are the ends of a test.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::thread;
use std::time::Duration;

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

use crate::netns::Netns;

fn pattern(at: usize) -> u8 {
    (at ^ (at >> 8) ^ (at >> 16)) as u8
}

/// Sends `bytes` over TCP and checks that they arrive as they were.
pub fn tcp(from: &Netns, to: &Netns, address: IpAddr, bytes: usize) {
    let listener = to.enter(|| TcpListener::bind(SocketAddr::new(address, 0)).unwrap()).unwrap();
    let target = listener.local_addr().unwrap();
    let mut sender = from
        .enter(|| TcpStream::connect_timeout(&target, Duration::from_secs(5)).expect("TCP connects"))
        .unwrap();
    let (mut receiver, _) = listener.accept().unwrap();
    // On an emulated machine everything takes its time.
    receiver.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let writing = thread::spawn(move || {
        let data: Vec<u8> = (0..bytes).map(pattern).collect();
        sender.write_all(&data).unwrap();
    });
    let mut buffer = vec![0; 1 << 18];
    let mut at = 0;
    loop {
        let len = receiver.read(&mut buffer).expect("data goes on");
        if len == 0 {
            break;
        }
        assert!(
            buffer[..len].iter().enumerate().all(|(offset, byte)| *byte == pattern(at + offset)),
            "at {at}"
        );
        at += len;
    }
    writing.join().unwrap();
    assert_eq!(at, bytes);
}

/// Pins all threads of this process, the engines' among them, to one processor, until it is dropped.
///
/// The kernel queues what arrives on a virtual link by processor, so it may itself reorder what a thread sends that moves to
/// another one: on Linux 6.1 under load, a sender alone on a veth that moves between its bursts sees them overtake each
/// other.
struct OneProcessor(Vec<(Pid, CpuSet)>);

impl OneProcessor {
    fn pin() -> Self {
        let all = sched_getaffinity(Pid::from_raw(0)).unwrap();
        let first = (0..CpuSet::count()).find(|cpu| all.is_set(*cpu).unwrap()).unwrap();
        let mut one = CpuSet::new();
        one.set(first).unwrap();
        let threads = std::fs::read_dir("/proc/self/task").unwrap().flatten();
        let before = threads.filter_map(|thread| {
            let thread = Pid::from_raw(thread.file_name().to_str()?.parse().ok()?);
            let before = sched_getaffinity(thread).ok()?;
            sched_setaffinity(thread, &one).ok()?;
            Some((thread, before))
        });
        Self(before.collect())
    }
}

impl Drop for OneProcessor {
    fn drop(&mut self) {
        for (thread, before) in &self.0 {
            // It may have ended.
            let _ = sched_setaffinity(*thread, before);
        }
    }
}

/// Sends numbered datagrams of some sizes over UDP; those that arrive have to be whole and in order.
/// Returns how many did.
pub fn udp(from: &Netns, to: &Netns, address: IpAddr, total: usize, sizes: &[usize]) -> usize {
    let _pinned = OneProcessor::pin();
    let receiver = to.enter(|| UdpSocket::bind(SocketAddr::new(address, 0)).unwrap()).unwrap();
    let target = receiver.local_addr().unwrap();
    receiver.set_read_timeout(Some(Duration::from_millis(250))).unwrap();
    let any: SocketAddr = if address.is_ipv4() { ([0; 4], 0).into() } else { ([0_u16; 8], 0).into() };
    let sender = from.enter(|| UdpSocket::bind(any).unwrap()).unwrap();
    sender.connect(target).unwrap();
    let lengths = sizes.to_vec();
    let sending = thread::spawn(move || {
        for number in 0..total {
            let mut data: Vec<u8> = (0..lengths[number % lengths.len()]).map(pattern).collect();
            data[..4].copy_from_slice(&(number as u32).to_be_bytes());
            let _ = sender.send(&data);
            if number % 16 == 15 {
                thread::sleep(Duration::from_millis(1));
            }
        }
    });
    let mut buffer = vec![0; 65536];
    let (mut count, mut next) = (0, 0);
    while let Ok(len) = receiver.recv(&mut buffer) {
        let number = u32::from_be_bytes(buffer[..4].try_into().unwrap()) as usize;
        assert!(number >= next, "{number} came after {next}");
        assert_eq!(len, sizes[number % sizes.len()]);
        assert!((4..len).all(|at| buffer[at] == pattern(at)));
        (count, next) = (count + 1, number + 1);
    }
    sending.join().unwrap();
    count
}

/// How many TCP segments with a wrong checksum a namespace has seen.
pub fn tcp_checksum_errors(netns: &Netns) -> u64 {
    counter(netns, "Tcp:", "InCsumErrors")
}

/// How many datagrams have found the receiver's buffer full: not lost on the way.
pub fn udp_overruns(netns: &Netns) -> u64 {
    let text = netns.enter(|| std::fs::read_to_string("/proc/thread-self/net/snmp6").unwrap()).unwrap();
    let line = text.lines().find(|line| line.starts_with("Udp6RcvbufErrors"));
    let v6: u64 = line.and_then(|line| line.split_whitespace().nth(1)).unwrap().parse().unwrap();
    v6 + counter(netns, "Udp:", "RcvbufErrors")
}

fn counter(netns: &Netns, protocol: &str, wanted: &str) -> u64 {
    let text = netns.enter(|| std::fs::read_to_string("/proc/thread-self/net/snmp").unwrap()).unwrap();
    let mut lines = text.lines().filter(|line| line.starts_with(protocol));
    let (names, values) = (lines.next().unwrap(), lines.next().unwrap());
    let mut pairs = names.split(' ').zip(values.split(' '));
    pairs.find(|(name, _)| *name == wanted).unwrap().1.parse().unwrap()
}
