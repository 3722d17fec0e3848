//! What was sent and what came back, and the report made of it.

use std::time::Duration;

/// A run of echoes without a reply.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outage {
    /// The number of the first one lost, from 0.
    pub first: u64,
    /// How many in a row were lost.
    pub lost: u64,
    /// When the first one lost was sent, after the pinger's start.
    pub began: Duration,
    /// When the last one lost was sent, after the pinger's start.
    pub last: Duration,
    /// From the first one lost to the next one answered, or to the end.
    pub lasted: Duration,
}

/// Round-trip times.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rtt {
    /// The shortest.
    pub min: Duration,
    /// The middle one.
    pub median: Duration,
    /// The longest.
    pub max: Duration,
}

/// How a ping went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PingReport {
    /// Echoes sent, those the kernel refused to send included.
    pub sent: u64,
    /// Echoes answered.
    pub received: u64,
    /// Echoes not answered.
    pub lost: u64,
    /// Replies beyond the first to an echo.
    pub duplicates: u64,
    /// Round-trip times, if there was a reply.
    pub rtt: Option<Rtt>,
    /// All runs of lost echoes.
    pub outages: Vec<Outage>,
    /// What the kernel last refused to send, or reported, if anything: "Message too long", say.
    pub last_error: Option<String>,
}

impl PingReport {
    /// The longest outage, if there was one.
    pub fn longest_outage(&self) -> Option<&Outage> {
        self.outages.iter().max_by_key(|outage| outage.lasted)
    }
}

/// One entry an echo, by number. Times are after the start.
#[derive(Debug, Default)]
pub(super) struct Journal {
    entries: Vec<Entry>,
    received: u64,
    duplicates: u64,
    pub(super) last_error: Option<String>,
    /// Answers that take longer come too late.
    latest: Option<Duration>,
}

#[derive(Debug)]
struct Entry {
    sent: Duration,
    rtt: Option<Duration>,
}

impl Journal {
    /// Counts the answers that take no longer than `latest`.
    pub(super) fn counting(latest: Option<Duration>) -> Self {
        Self { latest, ..Self::default() }
    }

    pub(super) fn sent(&mut self, at: Duration) {
        self.entries.push(Entry { sent: at, rtt: None });
    }

    pub(super) fn received(&mut self, number: u64, at: Duration) {
        let entry = usize::try_from(number).ok().and_then(|number| self.entries.get_mut(number));
        match entry {
            Some(Entry { rtt: Some(_), .. }) => self.duplicates += 1,
            Some(entry) if self.latest.is_some_and(|latest| at.saturating_sub(entry.sent) > latest) => {}
            Some(entry) => {
                entry.rtt = Some(at.saturating_sub(entry.sent));
                self.received += 1;
            }
            None => {}
        }
    }

    /// How many were sent, and how many of them answered.
    pub(super) fn counts(&self) -> (u64, u64) {
        (self.entries.len() as u64, self.received)
    }

    pub(super) fn report(&self, end: Duration) -> PingReport {
        let (sent, received) = self.counts();
        let mut rtts = self.entries.iter().filter_map(|entry| entry.rtt).collect::<Vec<_>>();
        rtts.sort_unstable();
        let rtt = match rtts[..] {
            [] => None,
            [min, ..] => Some(Rtt { min, median: rtts[rtts.len() / 2], max: rtts[rtts.len() - 1] }),
        };
        PingReport {
            sent,
            received,
            lost: sent - received,
            duplicates: self.duplicates,
            rtt,
            outages: self.outages(end),
            last_error: self.last_error.clone(),
        }
    }

    fn outages(&self, end: Duration) -> Vec<Outage> {
        let mut outages: Vec<Outage> = Vec::new();
        let mut open = false;
        for (number, entry) in (0..).zip(&self.entries) {
            match (entry.rtt, outages.last_mut().filter(|_| open)) {
                (None, Some(outage)) => {
                    outage.lost += 1;
                    outage.last = entry.sent;
                }
                (None, None) => {
                    let lasted = end.saturating_sub(entry.sent);
                    let sent = entry.sent;
                    outages.push(Outage { first: number, lost: 1, began: sent, last: sent, lasted });
                }
                (Some(_), Some(outage)) => outage.lasted = entry.sent.saturating_sub(outage.began),
                (Some(_), None) => {}
            }
            open = entry.rtt.is_none();
        }
        outages
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn runs_of_losses_are_outages() {
        let mut journal = Journal::default();
        (0..8).for_each(|number| journal.sent(ms(number * 10)));
        for (number, rtt) in [(0, 3), (3, 1), (4, 2), (6, 9), (4, 5), (99, 1)] {
            journal.received(number, ms(number * 10 + rtt));
        }
        let report = journal.report(ms(100));
        assert_eq!((report.sent, report.received, report.lost, report.duplicates), (8, 4, 4, 1));
        assert_eq!(report.rtt, Some(Rtt { min: ms(1), median: ms(3), max: ms(9) }));
        assert_eq!(
            report.outages,
            [
                Outage { first: 1, lost: 2, began: ms(10), last: ms(20), lasted: ms(20) },
                Outage { first: 5, lost: 1, began: ms(50), last: ms(50), lasted: ms(10) },
                Outage { first: 7, lost: 1, began: ms(70), last: ms(70), lasted: ms(30) },
            ]
        );
        assert_eq!(report.longest_outage().unwrap().first, 7);
    }

    #[test]
    fn what_comes_too_late_is_lost() {
        let mut journal = Journal::counting(Some(ms(50)));
        (0..3).for_each(|number| journal.sent(ms(number * 10)));
        for (number, at) in [(0, 51), (1, 60), (2, 30)] {
            journal.received(number, ms(at));
        }
        let report = journal.report(ms(100));
        assert_eq!((report.received, report.lost, report.outages[0].lost), (2, 1, 1));
    }

    #[test]
    fn nothing_sent_is_nothing_lost() {
        let report = Journal::default().report(ms(1));
        assert_eq!((report.sent, report.lost, report.rtt), (0, 0, None));
        assert!(report.outages.is_empty());
    }
}
