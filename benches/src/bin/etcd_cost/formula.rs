//! What a cluster costs an hour. Requests and events follow from the code; bytes, and what a renewal takes, are fitted. Pure.
//!
//! A renewal reads the lease and its time, keeps it alive, reads both again and watches the lease from there on: six requests.

use std::time::Duration;

use flannel_core::subnet::kit::renew_after;

use crate::measure::Point;

/// An agent watches all leases, its own and the config. It asks the first for its progress when that was quiet for 30 seconds,
/// so changes of leases make fewer questions.
const ASKS: f64 = 3600.0 / 30.0;
/// The start of a node that joins reads the config three times, publishes (grant and transaction), opens three watches and looks at
/// the own lease and its time. It also lists all leases twice; that of a node whose lease is there lists them once.
const START: f64 = 10.0;
const LISTS: f64 = 2.0;
/// Leases in a page of a list.
const PAGE: f64 = 1000.0;

/// Requests, events and bytes of what happens in a cluster.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Rates {
    /// Questions of a node in an hour.
    pub(crate) asks: f64,
    /// Bytes of a question, with its answer.
    pub(crate) ask_bytes: f64,
    /// Bytes of the probes of a node's connection in an hour.
    pub(crate) probe_bytes: f64,
    /// Requests and bytes of a renewal.
    pub(crate) renewal: f64,
    pub(crate) renewal_bytes: f64,
    /// Events of a change, for all nodes.
    pub(crate) events: f64,
    /// Requests of a node that joins, and bytes, with those of its events.
    pub(crate) join: f64,
    pub(crate) join_bytes: f64,
}

/// A cost in an hour.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Hourly {
    pub(crate) requests: f64,
    pub(crate) events: f64,
    pub(crate) bytes: f64,
}

impl Rates {
    /// The cost of so many nodes, when so many join an hour.
    pub(crate) fn hourly(&self, nodes: f64, joins: f64) -> Hourly {
        let renewals = nodes * 3600.0 / period();
        Hourly {
            requests: nodes * self.asks + renewals * self.renewal + joins * self.join,
            events: joins * self.events,
            bytes: nodes * (self.asks * self.ask_bytes + self.probe_bytes)
                + renewals * self.renewal_bytes
                + joins * self.join_bytes,
        }
    }

    /// Those of a point.
    pub(crate) fn measured(point: &Point) -> Self {
        let (quiet, unprobed, renewals) = (&point.quiet, &point.unprobed, &point.renewals);
        let (joins, count) = (&point.changes.joins, f64::from(point.changes.count));
        let node_hours = |seconds: f64| f64::from(point.agents) * seconds / 3600.0;
        let asks = quiet.asks() / node_hours(quiet.seconds);
        let ask_bytes = unprobed.bytes() / unprobed.asks();
        let without_asks = |cost: &crate::bed::Cost| cost.bytes() - cost.asks() * ask_bytes;
        let kept = renewals.of("LeaseKeepAlive");
        Self {
            asks,
            ask_bytes,
            probe_bytes: without_asks(quiet) / node_hours(quiet.seconds),
            renewal: renewals.others() / kept,
            renewal_bytes: without_asks(renewals) / kept,
            events: joins.events / count,
            join: joins.others() / count,
            join_bytes: without_asks(joins) / count,
        }
    }
}

/// Bytes on the wire, and requests of renewals.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Constants {
    /// Of a question, and of the probes of an hour.
    pub(crate) ask: f64,
    pub(crate) probes: f64,
    /// Of a renewal, after its requests.
    pub(crate) renewal: (f64, f64),
    /// Of a change without those who are told, and of each event.
    pub(crate) change: (f64, f64),
    /// Of a start without lists, and of each lease in a list.
    pub(crate) start: (f64, f64),
}

impl Constants {
    /// Fits them to all points.
    pub(crate) fn fit(points: &[Point]) -> Self {
        let rates: Vec<Rates> = points.iter().map(Rates::measured).collect();
        let mean = |of: fn(&Rates) -> f64| rates.iter().map(of).sum::<f64>() / rates.len() as f64;
        let ask = mean(|rates| rates.ask_bytes);
        let bytes = |point: &Point| {
            let puts = &point.changes.puts;
            (puts.bytes() - puts.asks() * ask) / f64::from(point.changes.count)
        };
        let changes: Vec<_> = points.iter().map(|point| (f64::from(point.agents), bytes(point))).collect();
        let change = line(&changes);
        let start = |(point, rates): (&Point, &Rates)| {
            (Joined::of(point).listed, rates.join_bytes - rates.events * change.1)
        };
        let starts: Vec<_> = points.iter().zip(&rates).map(start).collect();
        Self {
            ask,
            probes: mean(|rates| rates.probe_bytes),
            renewal: (mean(|rates| rates.renewal), mean(|rates| rates.renewal_bytes)),
            change,
            start: line(&starts),
        }
    }

    /// The rates where nodes join such a cluster.
    pub(crate) fn rates(&self, joined: Joined) -> Rates {
        let (start, lease) = self.start;
        Rates {
            asks: ASKS,
            ask_bytes: self.ask,
            probe_bytes: self.probes,
            renewal: self.renewal.0,
            renewal_bytes: self.renewal.1,
            events: joined.nodes,
            join: START + joined.pages,
            join_bytes: start + lease * joined.listed + self.change.1 * joined.nodes,
        }
    }
}

/// What a node that joins meets.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Joined {
    /// The nodes that are there.
    pub(crate) nodes: f64,
    /// The requests for its lists, and the leases in them.
    pub(crate) pages: f64,
    pub(crate) listed: f64,
}

impl Joined {
    /// A cluster of so many nodes.
    pub(crate) fn new(nodes: f64) -> Self {
        Self { nodes, pages: LISTS * (nodes / PAGE).ceil().max(1.0), listed: LISTS * nodes }
    }

    /// What those of a point met on average.
    pub(crate) fn of(point: &Point) -> Self {
        let all = (0..point.changes.count).map(|number| Self::new(f64::from(point.agents + number)));
        let share = 1.0 / f64::from(point.changes.count);
        all.fold(Self::default(), |sum, one| Self {
            nodes: sum.nodes + one.nodes * share,
            pages: sum.pages + one.pages * share,
            listed: sum.listed + one.listed * share,
        })
    }
}

/// Seconds between two renewals of a lease by default, on average.
pub(crate) fn period() -> f64 {
    let (day, hour) = (Duration::from_hours(24), Duration::from_hours(1));
    renew_after(day, day, hour, 0.5).as_secs_f64()
}

/// A line through some points: its value at zero, and its slope. It has the least squares of deviations in proportion to the
/// points' values.
fn line(points: &[(f64, f64)]) -> (f64, f64) {
    let sum = |of: fn(f64, f64) -> f64| points.iter().map(|(x, y)| of(*x, *y) / (y * y)).sum::<f64>();
    let (w, wx, wy) = (sum(|_, _| 1.0), sum(|x, _| x), sum(|_, y| y));
    let (wxx, wxy) = (sum(|x, _| x * x), sum(|x, y| x * y));
    let slope = (w * wxy - wx * wy) / (w * wxx - wx * wx);
    // A single point has no slope of its own.
    if points.len() > 1 { ((wy - slope * wx) / w, slope) } else { (0.0, wy / wx) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_goes_through_its_points() {
        let (zero, slope) = line(&[(30.0, 700.0), (300.0, 3400.0), (3000.0, 30_400.0)]);
        assert!((zero - 400.0).abs() < 1e-6 && (slope - 10.0).abs() < 1e-9, "{zero} {slope}");
        let (zero, slope) = line(&[(30.0, 600.0)]);
        assert!(zero.abs() < 1e-9 && (slope - 20.0).abs() < 1e-9, "{zero} {slope}");
    }

    #[test]
    fn costs_add_up() {
        let constants = Constants {
            ask: 100.0,
            probes: 64_000.0,
            renewal: (9.0, 2295.0),
            change: (7.0, 300.0),
            start: (5000.0, 200.0),
        };
        let rates = constants.rates(Joined::new(100.0));
        let about = |one: f64, other: f64| (one - other).abs() < 1e-3;
        assert!(about(period(), 22.95 * 3600.0));
        let quiet = rates.hourly(100.0, 0.0);
        assert!(about(quiet.requests, 12_000.0 + 900.0 / 22.95), "{quiet:?}");
        assert!(about(quiet.bytes, 7.6e6 + 1e4) && about(quiet.events, 0.0), "{quiet:?}");
        let busy = rates.hourly(100.0, 2.0);
        assert!(about(busy.requests - quiet.requests, 24.0) && about(busy.events, 200.0), "{busy:?}");
        assert!(about(busy.bytes - quiet.bytes, 200.0 * 300.0 + 2.0 * 45_000.0), "{busy:?}");
        assert_eq!(Joined::new(1000.0), Joined { nodes: 1000.0, pages: 2.0, listed: 2000.0 });
        assert_eq!(Joined::new(1001.0), Joined { nodes: 1001.0, pages: 4.0, listed: 2002.0 });
    }
}
