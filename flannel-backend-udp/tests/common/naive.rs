//! A forwarder as simple as Go flannel's: one packet, two system calls.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use flannel_backend_udp::datapath::{Tun, TunOptions};
use flannel_lab::netns::Netns;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// One hop more: the TTL, and the header checksum that goes with it (RFC 1141); or the hop limit.
fn decrement_hop_limit(packet: &mut [u8]) {
    if packet[0] >> 4 == 6 {
        packet[7] -= 1;
        return;
    }
    packet[8] -= 1;
    let sum = u32::from(u16::from_be_bytes([packet[10], packet[11]])) + 0x0100;
    let sum = (sum & 0xffff) + (sum >> 16);
    packet[10..12].copy_from_slice(&(sum as u16).to_be_bytes());
}

pub struct Naive {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Naive {
    /// Starts it on a TUN of its own in `netns`, with one peer.
    pub fn start(netns: &Netns, tun: &str, local: SocketAddr, peer: SocketAddr) -> Self {
        let (tun, socket) = netns
            .enter(|| (Tun::open(tun, TunOptions::NONE).unwrap(), UdpSocket::bind(local).unwrap()))
            .unwrap();
        socket.set_nonblocking(true).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&stop);
        let file = File::from(tun.try_clone_fd().unwrap());
        let thread = thread::spawn(move || {
            while !seen.load(Ordering::Relaxed) {
                forward(&file, &socket, peer);
            }
        });
        Self { stop, thread: Some(thread) }
    }
}

/// As upstream's loop: wait, then one packet from each side until both are empty.
fn forward(mut tun: &File, socket: &UdpSocket, peer: SocketAddr) {
    let mut buffer = [0; 2048];
    let mut fds = [PollFd::new(std::os::fd::AsFd::as_fd(tun), PollFlags::POLLIN), {
        PollFd::new(std::os::fd::AsFd::as_fd(socket), PollFlags::POLLIN)
    }];
    poll(&mut fds, PollTimeout::try_from(Duration::from_millis(50)).unwrap()).unwrap();
    loop {
        let mut idle = true;
        if let Ok(len) = tun.read(&mut buffer) {
            idle = false;
            if len >= 20 {
                decrement_hop_limit(&mut buffer[..len]);
                let _ = socket.send_to(&buffer[..len], peer);
            }
        }
        if let Ok(len) = socket.recv(&mut buffer) {
            idle = false;
            if len >= 20 {
                decrement_hop_limit(&mut buffer[..len]);
                let _ = tun.write(&buffer[..len]);
            }
        }
        if idle {
            return;
        }
    }
}

impl Drop for Naive {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}
