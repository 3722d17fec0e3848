//! The handover of the TUN between two threads, in all interleavings and with all that the memory model permits.
//!
//! Loom runs the model once for each. The code under test is the product's own file; the kernel's TUN and its socket are
//! modelled without any ordering of their own, so what keeps packets in order is the handover alone. An event wakes, as
//! `eventfd` does, but a thread that has passed the TUN on may get it back before it looks at its event.

use loom::sync::Arc;
use loom::sync::atomic::AtomicUsize;
use loom::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use loom::thread;

mod sync {
    pub(crate) use loom::sync::atomic::{AtomicBool, Ordering};
}
#[path = "../src/worker/handover/baton.rs"]
mod baton;

use baton::{Baton, Place};

/// Packets of the flow.
const PACKETS: usize = 2;

/// What the two threads share.
struct Model {
    baton: Baton,
    /// The next packet in the TUN's queue.
    tun: AtomicUsize,
    /// How many packets are on the wire.
    wire: AtomicUsize,
    /// The events by which each is woken.
    woken: [AtomicUsize; 2],
}

impl Model {
    fn new() -> Self {
        let counters = [(); 2].map(|()| AtomicUsize::new(0));
        let [tun, wire] = [(); 2].map(|()| AtomicUsize::new(0));
        Self { baton: Baton::new(), tun, wire, woken: counters }
    }

    /// A thread of the engine that moves a packet at each turn it may, and passes the TUN on after each.
    fn run(&self, place: Place) {
        let (own, other) = if place == Place::First { (0, 1) } else { (1, 0) };
        loop {
            // Before the wait, as in `Worker::turn`.
            let held = self.baton.held(place);
            if held.is_none() {
                // `poll` without the TUN: only the event wakes it. One that is never written to lasts too long for loom.
                while self.woken[own].swap(0, Acquire) == 0 {
                    thread::yield_now();
                }
                continue;
            }
            let packet = self.tun.load(Relaxed);
            if packet < PACKETS {
                self.tun.store(packet + 1, Relaxed);
                assert_eq!(self.wire.load(Relaxed), packet, "packets stay in order, and none is sent twice");
                self.wire.store(packet + 1, Relaxed);
            }
            held.expect("it was looked at").give();
            self.woken[other].fetch_add(1, Release);
            if packet >= PACKETS {
                return;
            }
        }
    }
}

#[test]
fn a_flow_stays_in_order_whenever_the_tun_changes_hands() {
    loom::model(|| {
        let model = Arc::new(Model::new());
        let second = {
            let model = Arc::clone(&model);
            thread::spawn(move || model.run(Place::Second))
        };
        model.run(Place::First);
        second.join().unwrap();
        assert_eq!(model.wire.load(Relaxed), PACKETS);
    });
}
