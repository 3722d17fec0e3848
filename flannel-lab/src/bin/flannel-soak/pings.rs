//! Pings between all pairs of pods, all the while, and who lost some.

use std::thread::{self, ScopedJoinHandle};
use std::time::{Duration, Instant};

use flannel_lab::ping::{PingOptions, PingReport, Pinger};

use crate::Fallible;
use crate::lab::{LIMIT, Lab};

/// From one echo to the next.
const INTERVAL: Duration = Duration::from_millis(20);
/// Answers come within a millisecond; a machine that is busy for long is no loss.
const TIMEOUT: Duration = Duration::from_secs(2);

/// A pair's pinger in one family. A reply takes the way in both directions, so one a pair will do.
#[derive(Debug)]
struct Pair {
    a: u8,
    b: u8,
    v6: bool,
    start: Instant,
    pinger: Pinger,
}

/// What a pair lost.
#[derive(Debug)]
pub(crate) struct Loss {
    pub(crate) a: u8,
    pub(crate) b: u8,
    pub(crate) v6: bool,
    /// When the first ping was sent.
    pub(crate) start: Instant,
    pub(crate) report: PingReport,
}

/// All pairs.
#[derive(Debug)]
pub(crate) struct Pings {
    options: PingOptions,
    pairs: Vec<Pair>,
}

impl Pings {
    /// Starts.
    pub(crate) fn start(lab: &Lab) -> Fallible<Self> {
        Self::with(lab, PingOptions { interval: INTERVAL, timeout: TIMEOUT, ..PingOptions::default() })
    }

    /// Starts with these options.
    pub(crate) fn with(lab: &Lab, options: PingOptions) -> Fallible<Self> {
        Ok(Self { pairs: between(lab, &options, |_| true)?, options })
    }

    /// Starts those of a node anew that has another pod. What they lost says nothing.
    pub(crate) fn renew(&mut self, lab: &Lab, node: u8) -> Fallible<()> {
        self.pairs.retain(|pair| ![pair.a, pair.b].contains(&node));
        self.pairs.extend(between(lab, &self.options, |pair| pair.contains(&node))?);
        Ok(())
    }

    /// Waits until every pair has had more replies.
    pub(crate) fn wait_for_replies(&self) -> Fallible<()> {
        for Pair { a, b, v6, pinger, .. } in &self.pairs {
            let what = |error| format!("node{a} to node{b}, IPv{}: {error}", if *v6 { 6 } else { 4 });
            pinger.wait_for_replies(2, LIMIT).map_err(what)?;
        }
        Ok(())
    }

    /// Stops, and returns how many were sent, and the losses.
    pub(crate) fn stop(self) -> (u64, Vec<Loss>) {
        // All at once: each waits for replies that may never come.
        let reports = thread::scope(|scope| {
            let stop = |Pair { a, b, v6, start, pinger }| {
                scope.spawn(move || Loss { a, b, v6, start, report: pinger.stop() })
            };
            let threads = self.pairs.into_iter().map(stop).collect::<Vec<_>>();
            let join = |thread: ScopedJoinHandle<'_, Loss>| thread.join().expect("no pinger panics");
            threads.into_iter().map(join).collect::<Vec<_>>()
        });
        let sent = reports.iter().map(|loss| loss.report.sent).sum();
        (sent, reports.into_iter().filter(|loss| loss.report.lost > 0).collect())
    }
}

/// Starts those of some pairs.
fn between(lab: &Lab, options: &PingOptions, is_wanted: impl Fn([u8; 2]) -> bool) -> Fallible<Vec<Pair>> {
    let mut pairs = Vec::new();
    let pods = lab.pods();
    for v6 in lab.families() {
        for (a, pod) in &*pods {
            for (b, other) in pods.range(a + 1..).filter(|(b, _)| is_wanted([*a, **b])) {
                let dst = if v6 { other.ipv6() } else { other.ipv4() };
                let dst = dst.ok_or_else(|| format!("the pod of node{b} lacks a family"))?;
                let start = Instant::now();
                let pinger = Pinger::start(pod.netns(), dst, options.clone())?;
                pairs.push(Pair { a: *a, b: *b, v6, start, pinger });
            }
        }
    }
    Ok(pairs)
}
