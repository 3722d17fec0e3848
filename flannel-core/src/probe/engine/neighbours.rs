//! Which peers take an entry in the kernel's table of neighbours, and how many may.
//!
//! It matters only where there are more peers than there is room for, and nothing is asked for before that.

use std::net::IpAddr;
use std::time::Duration;

use tokio::time::Instant;
use tracing::debug;

use crate::addr::{Family, LinkIndex, PerFamily};
use crate::kernel::Exit;
use crate::netlink::RouteLookups;
use crate::netns::Netns;
use crate::probe::pace::{Thresholds, room};

/// How often the kernel's limits are read, at most: it does not notify of them.
const READ: Duration = Duration::from_secs(60);

/// The neighbours among the targets.
pub(super) struct Neighbours {
    netns: Netns,
    /// Says which addresses are on-link; `None` where it can't be opened, and then all of them count as such.
    lookups: Option<RouteLookups>,
    room: PerFamily<usize>,
    read: Option<Instant>,
}

impl Neighbours {
    pub(super) fn new(netns: &Netns) -> Self {
        let lookups = RouteLookups::open_in(netns)
            .inspect_err(|error| debug!(error = %error, "probes can't look up routes"))
            .ok();
        Self { netns: netns.clone(), lookups, room: PerFamily::default(), read: None }
    }

    /// How many may be visited within a minute.
    pub(super) fn room(&self, family: Family) -> usize {
        self.room.get(family).copied().unwrap_or_else(|| room(Thresholds::default()))
    }

    /// Reads the kernel's limits, if that was not done lately.
    pub(super) fn read(&mut self, now: Instant) {
        if self.read.is_some_and(|at| now.saturating_duration_since(at) < READ) {
            return;
        }
        self.read = Some(now);
        let netns = &self.netns;
        // Only the host's own namespace shows them. In others the kernel's defaults are as good a guess as any.
        let read = || PerFamily::from_fn(|family| thresholds(netns, family).map(room));
        self.room = netns.run(read).unwrap_or_default();
    }

    /// The first hop to a node with this address. A node takes an entry of its own unless a gateway leads to it.
    pub(super) async fn hop_to(&mut self, addr: IpAddr) -> Hop {
        let Some(lookups) = &mut self.lookups else { return Hop::UNKNOWN };
        match lookups.lookup(addr).await {
            Ok(Some(route)) if route.via.is_none() => {
                Hop { on_link: true, link: if let Exit::By(link) = route.exit { Some(link) } else { None } }
            }
            Ok(Some(_)) => Hop { on_link: false, link: None },
            // A route that is missing may be back before the packet is sent.
            Ok(None) | Err(_) => Hop::UNKNOWN,
        }
    }
}

/// Where packets to a node go first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Hop {
    /// Whether it is the node itself, or counts as such.
    pub(super) on_link: bool,
    /// The link that the node is on, if that is known and no gateway leads to it.
    pub(super) link: Option<LinkIndex>,
}

impl Hop {
    /// A node of which nothing is known counts as on-link.
    const UNKNOWN: Self = Self { on_link: true, link: None };
}

fn thresholds(netns: &Netns, family: Family) -> Option<Thresholds> {
    let folder = if family == Family::V4 { "ipv4" } else { "ipv6" };
    let read = |number: u8| {
        let value = netns.sysctl(&format!("{folder}/neigh/default/gc_thresh{number}")).ok()?;
        value.parse().ok()
    };
    Some(Thresholds { kept: read(1)?, soft: read(2)?, hard: read(3)? })
}
