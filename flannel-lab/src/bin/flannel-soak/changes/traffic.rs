//! The pings of all pairs, and the outages that they had.

use std::time::{Duration, Instant};

use flannel_lab::ping::PingOptions;

use super::cause::{Outage, pair};
use crate::Fallible;
use crate::lab::Lab;
use crate::pings::{Loss, Pings};

/// From one echo to the next: many pairs on few processors, some of which encrypt.
const INTERVAL: Duration = Duration::from_millis(100);
/// Answers come within milliseconds, on a busy machine later. What comes later still waited for a session or a way.
const LATEST: Duration = Duration::from_secs(2);

/// Pings between all pairs since a moment.
pub(super) struct Traffic {
    pub(super) start: Instant,
    pings: Pings,
}

/// How many pings there were, and which of them were lost.
pub(super) struct Losses {
    pub(super) sent: u64,
    pub(super) outages: Vec<Outage>,
}

impl Traffic {
    /// Starts.
    pub(super) fn start(lab: &Lab) -> Fallible<Self> {
        let options = PingOptions {
            interval: INTERVAL,
            timeout: LATEST,
            latest: Some(LATEST),
            ..PingOptions::default()
        };
        Ok(Self { start: Instant::now(), pings: Pings::with(lab, options)? })
    }

    /// Waits until every pair has had more replies.
    pub(super) fn wait_for_replies(&self) -> Fallible<()> {
        self.pings.wait_for_replies()
    }

    /// Waits until every pair has had replies, and forgets what was lost before.
    pub(super) fn stop_once_replied(self) -> Fallible<()> {
        self.wait_for_replies()?;
        self.stop();
        Ok(())
    }

    /// Stops.
    pub(super) fn stop(self) -> Losses {
        let (sent, losses) = self.pings.stop();
        let outages = losses.iter().flat_map(|Loss { a, b, v6, start, report }| {
            report.outages.iter().map(|outage| Outage {
                pair: pair(*a, *b),
                v6: *v6,
                lost: outage.lost,
                first: *start + outage.began,
                last: *start + outage.last,
                lasted: outage.lasted,
            })
        });
        Losses { sent, outages: outages.collect() }
    }
}
