//! A NIC whose checksum offload is broken for what is in a tunnel: a relay between a node's port and the bridge that drops
//! the frames whose inner checksum the NIC should complete.
//!
//! Between virtual links frames keep the mark that their checksum is unfinished, and a packet socket shows it in the
//! offload header of virtio. So the relay sees what a NIC would have to complete.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use nix::net::if_::if_nametoindex;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::{read, write};

use crate::netns::Netns;
use crate::{LabError, sys};

/// A whole frame of segmentation offload with its header.
const FRAME: usize = 1 << 17;
/// The flag of the header's first byte for a checksum that is to be completed (`VIRTIO_NET_HDR_F_NEEDS_CSUM`).
const NEEDS_CHECKSUM: u8 = 1;
/// Where the header says at which byte of the frame the checksum begins.
const CHECKSUM_START: std::ops::Range<usize> = 6..8;
/// The headers of Ethernet and IPv6: a checksum that begins further back is that of a packet in a tunnel.
const OUTER: u16 = 14 + 40;
/// How soon the relay sees that it is to end, in milliseconds.
const LOOK: u16 = 50;

/// A NIC whose checksum offload is broken; from
/// [`Node::break_checksum_offload`](crate::node::Node::break_checksum_offload). It is whole again when this is dropped.
pub struct BrokenOffload {
    fabric: Netns,
    port: String,
    bridge: String,
    ends: Arc<AtomicBool>,
    relay: Option<JoinHandle<()>>,
}

impl fmt::Debug for BrokenOffload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("BrokenOffload").field(&self.port).finish()
    }
}

impl BrokenOffload {
    /// Takes a port off its bridge and relays between both.
    pub(crate) fn between(fabric: &Netns, port: &str, bridge: &str) -> Result<Self, LabError> {
        let (inner, outer) = (format!("{port}-x"), format!("{port}-y"));
        fabric.ip_batch(&[
            format!("link add {inner} type veth peer name {outer}"),
            format!("link set {outer} master {bridge} up"),
            format!("link set {inner} up"),
            format!("link set {port} nomaster"),
        ])?;
        fabric.wait_for_port(bridge, &outer)?;
        let open = |link: &str| {
            let index = if_nametoindex(link)?;
            sys::packet_socket(index)
        };
        let sockets = fabric.enter(|| io::Result::Ok((open(port)?, open(&inner)?)))?;
        let sockets = sockets.map_err(LabError::io(format!("packet sockets on {port} and {inner}")))?;
        let ends = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&ends);
        let relay = thread::spawn(move || relay(&sockets.0, &sockets.1, &told));
        let (fabric, port, bridge) = (fabric.clone(), port.to_owned(), bridge.to_owned());
        Ok(Self { fabric, port, bridge, ends, relay: Some(relay) })
    }
}

impl Drop for BrokenOffload {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::Relaxed);
        // The node may be gone already, and its port with it.
        let _ = self.fabric.ip(&format!("link set {} master {}", self.port, self.bridge));
        let _ = self.fabric.ip(&format!("link del {}-x", self.port));
        if let Some(relay) = self.relay.take() {
            let _ = relay.join();
        }
    }
}

/// Whether a frame with its header is a tunnel's, and the checksum in it is not finished. That of the tunnel itself is
/// finished by every NIC.
fn is_unfinished_inside(frame: &[u8]) -> bool {
    let start = frame.get(CHECKSUM_START).map(|bytes| u16::from_ne_bytes([bytes[0], bytes[1]]));
    frame.first().is_some_and(|flags| flags & NEEDS_CHECKSUM != 0) && start.is_some_and(|start| start > OUTER)
}

/// Moves frames both ways until it is to end.
fn relay(node: &OwnedFd, world: &OwnedFd, ends: &AtomicBool) {
    let mut frame = vec![0; FRAME];
    while !ends.load(Ordering::Relaxed) {
        let mut fds =
            [PollFd::new(node.as_fd(), PollFlags::POLLIN), PollFd::new(world.as_fd(), PollFlags::POLLIN)];
        if poll(&mut fds, PollTimeout::from(LOOK)).is_err() {
            continue;
        }
        let is_readable = fds.map(|fd| fd.any().unwrap_or(false));
        for (from, to, is_readable, leaves) in
            [(node, world, is_readable[0], true), (world, node, is_readable[1], false)]
        {
            let Some(len) = is_readable.then(|| read(from, &mut frame).ok()).flatten() else { continue };
            if !(leaves && is_unfinished_inside(&frame[..len])) {
                // A frame that can't be sent is lost, as on a real link.
                let _ = write(to, &frame[..len]);
            }
        }
    }
}
