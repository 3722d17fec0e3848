//! What the kernel announces in a namespace, with the time at which it was heard.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::ops::Range;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use flannel_core::dataplane::{Object, ObjectKey};
use flannel_core::kernel::{Kernel, KernelEvent};
use flannel_core::netlink::Netlink;
use flannel_lab::netns::Netns;
use tokio::sync::oneshot;

use crate::{Fallible, leases};

/// For how long what is sure to come is awaited.
const DEADLINE: Duration = Duration::from_secs(30);

/// Hears of every change of routes, neighbours, FDB entries and next-hop objects in a namespace until it is dropped.
#[derive(Debug)]
pub struct Listener {
    /// What was heard, in order.
    pub news: Receiver<(Instant, KernelEvent)>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Listener {
    /// Listens once this returns.
    pub fn start(netns: &Netns) -> Fallible<Self> {
        let (sender, news) = channel();
        let (opened, is_open) = channel();
        let (stop, stopped) = oneshot::channel::<()>();
        let netns = netns.clone();
        let hear = move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.expect("a runtime").block_on(async {
                let mut kernel = Netlink::open().expect("netlink");
                let _ = opened.send(());
                let hear = async { while forward(kernel.events().await, &sender) {} };
                tokio::select! {
                    () = hear => {}
                    _ = stopped => {}
                }
            });
        };
        let thread = thread::spawn(move || _ = netns.enter(hear));
        is_open.recv()?;
        Ok(Self { news, stop: Some(stop), thread: Some(thread) })
    }

    /// Waits until the routes of all these leases are put, or are gone, and returns when the last was.
    ///
    /// # Panics
    ///
    /// If that does not come.
    pub fn routes(&mut self, leases: Range<u32>, are_put: bool) -> Instant {
        let mut missing: BTreeSet<IpAddr> =
            leases.map(|n| leases::base(n).parse().expect("an address")).collect();
        loop {
            let (at, event) = self.news.recv_timeout(DEADLINE).expect("the routes come");
            let dst = match event {
                KernelEvent::Put(Object::Route(route)) if are_put => route.dst.base(),
                KernelEvent::Gone(ObjectKey::Route(dst, _)) if !are_put => dst.base(),
                _ => continue,
            };
            if missing.remove(&dst) && missing.is_empty() {
                return at;
            }
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        // It may have ended, then nobody hears it.
        let _ = self.stop.take().map(|stop| stop.send(()));
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// The milliseconds from a change to when it was heard of.
pub fn millis(start: Instant, heard: Instant) -> f64 {
    heard.saturating_duration_since(start).as_secs_f64() * 1e3
}

fn forward(events: Vec<KernelEvent>, to: &Sender<(Instant, KernelEvent)>) -> bool {
    let at = Instant::now();
    events.into_iter().all(|event| {
        assert!(!matches!(event, KernelEvent::Overrun), "notifications were lost");
        to.send((at, event)).is_ok()
    })
}
