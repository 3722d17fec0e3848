//! A flood of small packets and its sink.

use std::io::{self, IoSlice, IoSliceMut};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use flannel_lab::LabError;
use flannel_lab::netns::Netns;
use nix::sys::socket::{MsgFlags, MultiHeaders, SockaddrStorage, recvmmsg, sendmmsg};

/// Bytes of payload in each packet.
pub const PAYLOAD: usize = 64;
/// Packets in a system call.
const BATCH: usize = 16;
const PORT: u16 = 9999;

/// What came of a flood.
#[derive(Debug, Clone, Copy)]
pub struct Flood {
    /// Packets per second that were sent.
    pub offered: f64,
    /// Packets per second that arrived.
    pub received: f64,
}

/// Sends as fast as one thread can for `time`, from one namespace to an address in another.
pub fn flood(from: &Netns, to: &Netns, dst: IpAddr, time: Duration) -> Result<io::Result<Flood>, LabError> {
    let sink = to.enter(|| -> io::Result<UdpSocket> {
        let sink = UdpSocket::bind(SocketAddr::new(dst, PORT))?;
        sink.set_read_timeout(Some(Duration::from_millis(100)))?;
        Ok(sink)
    })?;
    let source = from.enter(|| -> io::Result<UdpSocket> {
        let source = UdpSocket::bind(match dst {
            IpAddr::V4(_) => "0.0.0.0:0",
            IpAddr::V6(_) => "[::]:0",
        })?;
        source.connect((dst, PORT))?;
        Ok(source)
    })?;
    let (sink, source) = match (sink, source) {
        (Ok(sink), Ok(source)) => (sink, source),
        (Err(error), _) | (_, Err(error)) => return Ok(Err(error)),
    };
    let (stop, received) = (AtomicBool::new(false), AtomicU64::new(0));
    let sent = thread::scope(|scope| {
        scope.spawn(|| receive(&sink, &stop, &received));
        let sent = send(&source, time);
        // What is on its way may still arrive, but not count as more than its time.
        stop.store(true, Ordering::Relaxed);
        sent
    });
    let seconds = time.as_secs_f64();
    Ok(sent.map(|sent| Flood {
        offered: sent as f64 / seconds,
        received: received.load(Ordering::Relaxed) as f64 / seconds,
    }))
}

fn send(source: &UdpSocket, time: Duration) -> io::Result<u64> {
    let payload = [7_u8; PAYLOAD];
    let slices: Vec<[IoSlice<'_>; 1]> = (0..BATCH).map(|_| [IoSlice::new(&payload)]).collect();
    let mut headers = MultiHeaders::<SockaddrStorage>::preallocate(BATCH, None);
    let addresses = vec![None::<SockaddrStorage>; BATCH];
    let (start, mut sent) = (Instant::now(), 0);
    while start.elapsed() < time {
        match sendmmsg(source.as_raw_fd(), &mut headers, &slices, &addresses, [], MsgFlags::empty()) {
            Ok(results) => sent += results.count() as u64,
            Err(nix::Error::ENOBUFS | nix::Error::EAGAIN | nix::Error::ECONNREFUSED) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(sent)
}

fn receive(sink: &UdpSocket, stop: &AtomicBool, received: &AtomicU64) {
    let mut buffers = vec![[0_u8; 2048]; 64];
    let mut headers = MultiHeaders::<SockaddrStorage>::preallocate(64, None);
    while !stop.load(Ordering::Relaxed) {
        let mut slices: Vec<_> = buffers.iter_mut().map(|buffer| [IoSliceMut::new(buffer)]).collect();
        let flags = MsgFlags::MSG_WAITFORONE;
        if let Ok(results) = recvmmsg(sink.as_raw_fd(), &mut headers, slices.iter_mut(), flags, None) {
            received.fetch_add(results.count() as u64, Ordering::Relaxed);
        }
    }
}
