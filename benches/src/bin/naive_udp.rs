//! A naive forwarder of upstream's udp wire format: one packet a system call, default socket buffers, one
//! thread. It stands for the Go agent's proxy as a baseline, and was measured somewhat faster than that.

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::os::fd::AsFd;

use clap::Parser;
use flannel_benches::Fallible;
use flannel_benches::sys::make_tun;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// Forwards between a TUN and one peer.
#[derive(Parser)]
struct Options {
    /// Name of the TUN to make.
    #[arg(long)]
    tun: String,
    /// Address and port to send from and receive at.
    #[arg(long)]
    local: SocketAddrV4,
    /// The peer.
    #[arg(long)]
    peer: SocketAddrV4,
}

fn main() -> Fallible<()> {
    let options = Options::parse();
    let mut tun = File::options().read(true).write(true).open("/dev/net/tun")?;
    make_tun(&tun, &options.tun)?;
    fcntl(&tun, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    let socket = UdpSocket::bind(options.local)?;
    socket.set_nonblocking(true)?;
    println!("up");
    let mut buffer = [0_u8; 1472];
    loop {
        let mut fds =
            [PollFd::new(tun.as_fd(), PollFlags::POLLIN), PollFd::new(socket.as_fd(), PollFlags::POLLIN)];
        poll(&mut fds, PollTimeout::NONE)?;
        // As upstream: as long as either had work.
        loop {
            let mut worked = false;
            match tun.read(&mut buffer) {
                Ok(len) => {
                    worked = true;
                    if let Some(packet) = hop(&mut buffer[..len]) {
                        let _ = socket.send_to(packet, options.peer);
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return Err(error.into()),
            }
            match socket.recv(&mut buffer) {
                Ok(len) => {
                    worked = true;
                    if let Some(packet) = hop(&mut buffer[..len]) {
                        let _ = tun.write(packet);
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return Err(error.into()),
            }
            if !worked {
                break;
            }
        }
    }
}

/// Takes one from the TTL and mends the checksum (RFC 1624); `None` if the packet may not go on.
fn hop(packet: &mut [u8]) -> Option<&[u8]> {
    if packet.len() < 20 || packet[0] >> 4 != 4 || packet[8] <= 1 {
        return None;
    }
    let _: Ipv4Addr = <[u8; 4]>::try_from(&packet[16..20]).ok()?.into();
    packet[8] -= 1;
    let sum = u32::from(u16::from_be_bytes([packet[10], packet[11]])) + 0x0100;
    let sum = ((sum & 0xffff) + (sum >> 16)) as u16;
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    Some(packet)
}
