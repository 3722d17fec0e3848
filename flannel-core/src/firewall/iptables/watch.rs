//! Decides when to read the rules again.

use std::future::pending;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};
use tracing::debug;

use super::variant::Kind;
use crate::backoff::jitter;
use crate::netlink::RulesetEvents;
use crate::netns::Netns;

/// The shortest resync interval; a shorter one would keep the host busy.
pub(super) const SHORTEST_RESYNC: Duration = Duration::from_secs(1);

/// A firewall that restarts runs several commands; their changes are read together after this time.
const SETTLE: Duration = Duration::from_millis(50);

/// The tables with our rules in the nft variant: `NFPROTO_IPV4` and `NFPROTO_IPV6` of `linux/netfilter.h`, and their
/// names.
const TABLES: [(u8, &str); 4] = [(2, "nat"), (2, "filter"), (10, "nat"), (10, "filter")];

/// Waits until something changed, or, without notifications, for the resync interval; the rules are read at most once
/// in that interval.
#[derive(Debug)]
pub(super) struct Watch {
    kind: Kind,
    resync: Duration,
    looked: Instant,
    /// `None` without notifications.
    events: Option<RulesetEvents>,
    is_changed: bool,
    /// When the legacy variant is read next.
    next: Option<Instant>,
    /// Whether anything in the tables of iptables' nft variant changed.
    heard: bool,
}

impl Watch {
    pub(super) fn new(netns: &Netns, kind: Kind, resync: Duration) -> Self {
        let told = |error| debug!(%error, "the kernel does not notify of rule changes; rules are read at every resync");
        let events = RulesetEvents::open(netns).map_err(told).ok();
        let (resync, looked) = (resync.max(SHORTEST_RESYNC), Instant::now());
        Self { kind, resync, looked, events, is_changed: false, next: None, heard: true }
    }

    /// Records that the rules are about to be read.
    pub(super) fn looks(&mut self) {
        self.looked = Instant::now();
        self.is_changed = false;
    }

    /// Watches another variant from now on.
    pub(super) fn follow(&mut self, kind: Kind) {
        (self.kind, self.next) = (kind, None);
    }

    /// Whether tables of iptables' nft variant may have changed since [`Self::forget_heard`]; always true without notifications.
    pub(super) fn heard_of_iptables(&self) -> bool {
        self.heard || self.events.is_none()
    }

    /// Ends what was heard until now.
    pub(super) fn forget_heard(&mut self) {
        self.heard = false;
    }

    /// Waits until the rules should be read again. Dropping the future loses nothing.
    pub(super) async fn wait(&mut self) {
        if self.kind == Kind::Nft && self.events.is_some() {
            while !self.is_changed {
                self.hear().await;
            }
            return sleep_until((self.looked + self.resync).max(Instant::now() + SETTLE)).await;
        }
        // Legacy rules change without a notification. The jitter keeps several agents of a host from reading at the
        // same instant.
        let period = jitter(self.resync, 0.05);
        let next = *self.next.get_or_insert_with(|| Instant::now() + period);
        loop {
            tokio::select! {
                () = sleep_until(next) => {
                    self.next = None;
                    return;
                }
                () = self.hear() => {}
            }
        }
    }

    /// Receives notifications of the kernel.
    async fn hear(&mut self) {
        let Some(events) = &mut self.events else { return pending().await };
        let change = events.next().await;
        let ours = |(family, name): (u8, &str)| change.tables.contains(&(family, name.to_owned()));
        self.heard |= change.unknown || change.tables.iter().any(|(family, _)| [2, 10].contains(family));
        self.is_changed |= change.unknown || TABLES.into_iter().any(ours);
    }
}
