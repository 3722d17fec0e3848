//! Pings from the pod of node1 to that of node2 while something else goes on.

use std::time::Duration;

use flannel_lab::LabError;
use flannel_lab::ping::{Outage, PingOptions, Pinger};

use crate::Fallible;
use crate::lab::Lab;
use crate::report::{LIMIT, Row};

/// From one echo to the next.
const INTERVAL: Duration = Duration::from_millis(1);

/// One pinger a family.
#[derive(Debug)]
pub(crate) struct Pings(Vec<Pinger>);

impl Pings {
    /// Starts, and waits until it is known to work.
    pub(crate) fn start(lab: &Lab, families: &[bool]) -> Fallible<Self> {
        let mut pings = Self(Vec::new());
        for v6 in families {
            let dst = lab.pod_address(2, *v6).ok_or("the pod of node2 has no address in this family")?;
            // Answers come within a millisecond; a machine that is busy for long is no loss.
            let timeout = Duration::from_millis(500);
            let options = PingOptions { interval: INTERVAL, timeout, ..PingOptions::default() };
            pings.0.push(Pinger::start(lab.pods[&1].netns(), dst, options)?);
        }
        pings.wait_for_replies()?;
        Ok(pings)
    }

    /// Waits until some more replies came.
    pub(crate) fn wait_for_replies(&self) -> Result<(), LabError> {
        self.0.iter().try_for_each(|pinger| pinger.wait_for_replies(50, LIMIT))
    }

    /// Stops, and notes the losses.
    pub(crate) fn stop(self, row: &mut Row) {
        for report in self.0.into_iter().map(Pinger::stop) {
            row.sent += report.sent;
            row.lost += report.lost;
            let outage = report.longest_outage().map_or(Duration::ZERO, |Outage { lasted, .. }| *lasted);
            row.outage = row.outage.max(outage);
        }
    }
}
