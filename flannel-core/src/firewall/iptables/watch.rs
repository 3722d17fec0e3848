//! When to look at the rules again.

use std::future::pending;
use std::time::Duration;

use tokio::time::{Instant, sleep, sleep_until};
use tracing::debug;

use super::variant::Kind;
use crate::netlink::RulesetEvents;

/// What is asked for more often would keep the host busy with nothing else.
const SHORTEST_RESYNC: Duration = Duration::from_secs(1);

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
}

impl Watch {
    pub(super) fn new(kind: Kind, resync: Duration) -> Self {
        let told =
            |error| debug!(%error, "changes of rules are not announced; they are read at every resync");
        let events = RulesetEvents::open().map_err(told).ok();
        let (resync, looked) = (resync.max(SHORTEST_RESYNC), Instant::now());
        Self { kind, resync, looked, events, is_changed: false }
    }

    /// Notes a look, before it begins.
    pub(super) fn looks(&mut self) {
        self.looked = Instant::now();
        self.is_changed = false;
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
        let period = sleep(self.resync.mul_f64(0.95 + 0.1 * fastrand::f64()));
        tokio::pin!(period);
        loop {
            tokio::select! {
                () = &mut period => return,
                () = self.hear() => {}
            }
        }
    }

    /// Takes what the kernel announces.
    async fn hear(&mut self) {
        let Some(events) = &mut self.events else { return pending().await };
        let change = events.next().await;
        let ours = |(family, name): (u8, &str)| change.tables.contains(&(family, name.to_owned()));
        self.is_changed |= change.unknown || TABLES.into_iter().any(ours);
    }
}
