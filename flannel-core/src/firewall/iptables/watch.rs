//! When to look at the rules again.

use std::future::pending;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};
use tracing::debug;

use super::variant::Kind;
use crate::backoff::jitter;
use crate::netlink::RulesetEvents;
use crate::netns::Netns;

/// What is asked for more often would keep the host busy with nothing else.
pub(super) const SHORTEST_RESYNC: Duration = Duration::from_secs(1);

/// A firewall that starts anew runs several commands; one look is for all of them.
const SETTLE: Duration = Duration::from_millis(50);

/// The nft variant's tables of ours: `NFPROTO_IPV4` and `NFPROTO_IPV6` of `linux/netfilter.h`, and their names.
const TABLES: [(u8, &str); 4] = [(2, "nat"), (2, "filter"), (10, "nat"), (10, "filter")];

/// Waits until something changed, where the kernel tells, else for a while; never more than one look a while.
#[derive(Debug)]
pub(super) struct Watch {
    kind: Kind,
    resync: Duration,
    looked: Instant,
    /// `None` where the kernel does not tell.
    events: Option<RulesetEvents>,
    is_changed: bool,
    /// When the legacy variant is read next.
    next: Option<Instant>,
    /// Whether anything of iptables' nft variant changed.
    heard: bool,
}

impl Watch {
    pub(super) fn new(netns: &Netns, kind: Kind, resync: Duration) -> Self {
        let told = |error| debug!(%error, "the kernel does not notify of rule changes; rules are read at every resync");
        let events = RulesetEvents::open(netns).map_err(told).ok();
        let (resync, looked) = (resync.max(SHORTEST_RESYNC), Instant::now());
        Self { kind, resync, looked, events, is_changed: false, next: None, heard: true }
    }

    /// Notes a look, before it begins.
    pub(super) fn looks(&mut self) {
        self.looked = Instant::now();
        self.is_changed = false;
    }

    /// Watches another variant from now on.
    pub(super) fn follow(&mut self, kind: Kind) {
        (self.kind, self.next) = (kind, None);
    }

    /// Whether tables that iptables' nft variant may have changed since this was asked last, or nobody tells.
    pub(super) fn heard_of_iptables(&mut self) -> bool {
        std::mem::take(&mut self.heard) || self.events.is_none()
    }

    /// Waits for the time of the next look. Dropping the future is no loss.
    pub(super) async fn wait(&mut self) {
        if self.kind == Kind::Nft && self.events.is_some() {
            while !self.is_changed {
                self.hear().await;
            }
            return sleep_until((self.looked + self.resync).max(Instant::now() + SETTLE)).await;
        }
        // Legacy rules change in silence. Several agents of a host should not all look in the same instant.
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

    /// Takes what the kernel announces.
    async fn hear(&mut self) {
        let Some(events) = &mut self.events else { return pending().await };
        let change = events.next().await;
        let ours = |(family, name): (u8, &str)| change.tables.contains(&(family, name.to_owned()));
        self.heard |= change.unknown || change.tables.iter().any(|(family, _)| [2, 10].contains(family));
        self.is_changed |= change.unknown || TABLES.into_iter().any(ours);
    }
}
