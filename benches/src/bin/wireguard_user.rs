//! A WireGuard device in user space with one peer, from its own process, for the bench `datapath`. Its keys are those of
//! tests.

use std::net::SocketAddr;
use std::sync::Arc;

use clap::Parser;
use flannel_backend_wireguard::device::{Change, Device as _, PeerChange};
use flannel_backend_wireguard::userspace::testing::{private_key, public_key};
use flannel_backend_wireguard::userspace::{UserspaceDevice, UserspaceOptions};
use flannel_benches::Fallible;
use flannel_core::netns::Netns;

/// Carries packets between a TUN and one peer.
#[derive(Parser)]
struct Options {
    /// Name of the TUN to make.
    #[arg(long)]
    tun: String,
    /// UDP port to receive at.
    #[arg(long)]
    port: u16,
    /// Number of this node, of which its key is made.
    #[arg(long)]
    number: u8,
    /// Number of the peer.
    #[arg(long)]
    peer: u8,
    /// Where the peer is.
    #[arg(long)]
    endpoint: SocketAddr,
    /// What the peer may send from.
    #[arg(long)]
    allowed: String,
}

fn main() -> Fallible<()> {
    let options = Options::parse();
    let on_event = Arc::new(|event| println!("the datapath stopped: {event:?}"));
    let make = UserspaceOptions::new(Netns::current()?, options.tun, on_event).listen_port(options.port);
    let device = UserspaceDevice::open(make)?;
    let peer = PeerChange {
        endpoint: Some(options.endpoint),
        allowed_ips: Some([options.allowed.parse()?].into()),
        ..PeerChange::default()
    };
    let changes =
        [Change::PrivateKey(private_key(options.number)), Change::Peer(public_key(options.peer), peer)];
    tokio::runtime::Builder::new_current_thread().build()?.block_on(device.apply(&changes))?;
    println!("up: {}", device.path());
    loop {
        std::thread::park();
    }
}
