//! What of WireGuard's cost is the cipher's: every byte of a stream is sealed once and opened once, whatever carries it.

use std::fmt;
use std::thread;
use std::time::Duration;

use flannel_backend_wireguard::userspace::testing::core::{End, session};
use flannel_backend_wireguard::userspace::testing::packet;
use flannel_benches::Fallible;
use flannel_benches::stats::Sample;
use nix::time::{ClockId, clock_gettime};

/// A full packet of a tunnel with an MTU of 1420, and what TCP with timestamps carries in it.
const PACKET: usize = 1420;
const PAYLOAD: usize = PACKET - 52;
/// As many as the kernel passes in one super-packet.
const PACKETS: usize = 47;
const DATAGRAM: usize = PACKET + 32;
/// Batches in a round, which take about half a second.
const BATCHES: usize = 2000;

/// Processor seconds for a GB of TCP payload.
#[derive(Default)]
pub(crate) struct Cost {
    seal: Sample,
    open: Sample,
}

impl fmt::Display for Cost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (seal, open) = (self.seal.median(), self.open.median());
        write!(
            f,
            "WireGuard's core alone, processor seconds per GB: sealing {seal:.2}, opening {open:.2}, "
        )?;
        write!(f, "together {:.2}", seal + open)
    }
}

impl Cost {
    /// Adds a round. A second thread does the same meanwhile, since a stream keeps two processors busy, too.
    pub(crate) fn measure(&mut self) -> Fallible<()> {
        let other = thread::spawn(|| Self::default().add().map_err(|error| error.to_string()));
        let result = self.add();
        other.join().map_err(|_| "the second thread panicked")??;
        result
    }

    fn add(&mut self) -> Fallible<()> {
        let (mut one, mut other) = session();
        let packets = packet([10, 0, 1, 1], [10, 0, 2, 1], &[7; PACKET - 20]).repeat(PACKETS);
        let (mut sealed, mut opened) = (vec![0; PACKETS * DATAGRAM], vec![0; PACKETS * DATAGRAM]);
        for _ in 0..BATCHES {
            self.seal.push(timed(|| seal_all(&mut one, &packets, &mut sealed))?);
            self.open.push(timed(|| open_all(&mut other, &sealed, &mut opened))?);
        }
        Ok(())
    }
}

fn seal_all(end: &mut End, packets: &[u8], out: &mut [u8]) -> bool {
    let mut pairs = packets.chunks(PACKET).zip(out.chunks_mut(DATAGRAM));
    pairs.all(|(packet, out)| end.seal(packet, out) == Some(DATAGRAM))
}

fn open_all(end: &mut End, datagrams: &[u8], out: &mut [u8]) -> bool {
    let mut pairs = datagrams.chunks(DATAGRAM).zip(out.chunks_mut(DATAGRAM));
    pairs.all(|(datagram, out)| end.open(datagram, out) == Some(PACKET))
}

/// This thread's processor time for a batch, in seconds for a GB of payload.
fn timed(batch: impl FnOnce() -> bool) -> Fallible<f64> {
    let clock = || clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map(Duration::from);
    let before = clock()?;
    let is_done = batch();
    let used = clock()?.saturating_sub(before);
    if !is_done {
        return Err("WireGuard's core refused its own packets".into());
    }
    Ok(used.as_secs_f64() * 1e9 / (PACKETS * PAYLOAD) as f64)
}
