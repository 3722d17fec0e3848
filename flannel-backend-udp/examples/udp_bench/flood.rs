//! As many 64-byte datagrams as one thread can send.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use super::common::Lab;
use super::sys::{receive_many, send_many};

/// Sends for some time; returns how many were sent and received, and how long it took.
pub fn run(lab: &Lab, to: IpAddr, time: Duration) -> (u64, u64, Duration) {
    let sink = lab.pod(2).enter(|| UdpSocket::bind(SocketAddr::new(to, 0)).unwrap()).unwrap();
    sink.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    let target = sink.local_addr().unwrap();
    let source = lab.pod(1).enter(|| UdpSocket::bind("0.0.0.0:0").unwrap()).unwrap();
    source.connect(target).unwrap();
    let sending = thread::spawn(move || {
        let (start, mut sent) = (Instant::now(), 0);
        while start.elapsed() < time {
            sent += send_many(&source, &[0x5a; 64], 16);
        }
        (sent, start.elapsed())
    });
    let mut received = 0;
    loop {
        match receive_many(&sink) {
            0 if sending.is_finished() => break,
            count => received += count,
        }
    }
    let (sent, took) = sending.join().unwrap();
    (sent, received, took)
}
