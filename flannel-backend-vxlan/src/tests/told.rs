//! What the log says of a start that is tried again.

use std::cell::RefCell;
use std::fmt::Debug;

use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Metadata, Subscriber};

use super::*;

thread_local! {
    static LOG: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
}

/// Keeps the messages of each thread's events.
struct ThreadLog;

struct Message(String);

impl Visit for Message {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        if field.name() == "message" {
            self.0 = format!("{value:?}");
        }
    }
}

impl Subscriber for ThreadLog {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut message = Message(String::new());
        event.record(&mut message);
        LOG.with_borrow_mut(|log| log.push(message.0));
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

/// A node that waits for its subnet registers again and again.
#[tokio::test(start_paused = true)]
async fn the_route_form_is_told_once_however_often_the_start_is_tried() {
    // One for all threads: with one for each, tests beside this one would switch lines off for it.
    tracing::subscriber::set_global_default(ThreadLog).unwrap();
    let host = Host::new(true, DUAL);
    let (kernel, netns) = (host.kernel.clone(), Netns::current().unwrap());
    let backend = VxlanBackend::with_kernel(move |_| Ok(Box::new(kernel.clone())));
    let told = || {
        let log = LOG.take();
        log.iter().filter(|message| *message == "route form chosen").count()
    };
    for expected in [1, 0, 0] {
        let registration = Registration::new(&netns, &host.config, &host.underlay, &host.store);
        backend.register(registration).await.unwrap();
        assert_eq!(told(), expected);
    }
    // Another answer is news.
    host.kernel.lack_next_hops();
    let links = ["flannel.1", "flannel-v6.1"];
    for name in links {
        host.kernel.delete_link(name);
    }
    let registration = Registration::new(&netns, &host.config, &host.underlay, &host.store);
    backend.register(registration).await.unwrap();
    assert_eq!(told(), 1);
}
