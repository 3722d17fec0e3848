//! Who may lose pings, by what, and for how long. Pure.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

/// How long before its cause a ping may have been sent that was still on its way.
const ON_ITS_WAY: Duration = Duration::from_millis(200);

/// What costs pings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Why {
    /// A tunnel is blocked, and not bridged yet.
    Blocked,
    /// Packets travel through an agent, and it is away.
    AgentAway,
    /// A NAT has forgotten its mappings.
    MappingsLost,
    /// A NAT of another kind is in the place of the one before.
    NatReplaced,
    /// The relay of two nodes is gone.
    RelayGone,
    /// A node has forgotten in its restart by which ports others behind NATs send.
    WayForgotten,
    /// Two nodes behind NATs have changed the way by which they reach each other.
    OtherWay,
}

impl Why {
    /// Its name in reports.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Blocked => "tunnel blocked",
            Self::AgentAway => "agent away",
            Self::MappingsLost => "mappings lost",
            Self::NatReplaced => "NAT replaced",
            Self::RelayGone => "relay gone",
            Self::WayForgotten => "way forgotten",
            Self::OtherWay => "other way",
        }
    }
}

/// Two nodes, the smaller number first.
pub(super) type Pair = [u8; 2];

/// Two nodes in order.
pub(super) fn pair(a: u8, b: u8) -> Pair {
    [a.min(b), a.max(b)]
}

/// The pairs of a node with others.
pub(super) fn pairs_of(node: u8, others: impl IntoIterator<Item = u8>) -> BTreeSet<Pair> {
    others.into_iter().filter(|other| *other != node).map(|other| pair(node, other)).collect()
}

/// A cause of losses, or the permission for them.
#[derive(Debug, Clone)]
pub(super) struct Cause {
    pub(super) why: Why,
    pub(super) pairs: BTreeSet<Pair>,
    /// When the first ping may be lost, and the last one.
    from: Instant,
    pub(super) until: Instant,
    /// How long one outage may last, if that is less than all the time.
    longest: Option<Duration>,
}

impl Cause {
    /// Something that happened at this moment.
    pub(super) fn new(why: Why, pairs: BTreeSet<Pair>, at: Instant, until: Instant) -> Self {
        let from = at.checked_sub(ON_ITS_WAY).unwrap_or(at);
        Self { why, pairs, from, until, longest: None }
    }

    /// The same for outages that last no longer than this.
    pub(super) fn of_at_most(mut self, longest: Duration) -> Self {
        self.longest = Some(longest);
        self
    }
}

/// A run of lost pings.
#[derive(Debug, Clone, Copy)]
pub(super) struct Outage {
    pub(super) pair: Pair,
    pub(super) v6: bool,
    pub(super) lost: u64,
    /// When the first one and the last one were sent.
    pub(super) first: Instant,
    pub(super) last: Instant,
    /// Until the next one that was answered.
    pub(super) lasted: Duration,
}

/// Why these pings were lost: the cause that explains them all and is over first; or the first one of several, of which one
/// follows upon another.
pub(super) fn why(causes: &[Cause], outage: &Outage) -> Option<Why> {
    let is_of_pair = |cause: &&Cause| {
        cause.pairs.contains(&outage.pair) && cause.longest.is_none_or(|longest| outage.lasted <= longest)
    };
    let mut of_pair = causes.iter().filter(is_of_pair).collect::<Vec<_>>();
    let explains = |cause: &&&Cause| cause.from <= outage.first && outage.last <= cause.until;
    if let Some(alone) = of_pair.iter().filter(explains).min_by_key(|cause| cause.until) {
        return Some(alone.why);
    }
    of_pair.sort_unstable_by_key(|cause| cause.from);
    let (mut covered, mut first) = (outage.first, None);
    for cause in of_pair {
        if cause.from <= covered && covered <= cause.until {
            first.get_or_insert(cause.why);
            covered = cause.until;
        }
    }
    first.filter(|_| covered >= outage.last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outage_is_explained_by_causes_of_its_pair_and_time() {
        let start = Instant::now() + Duration::from_secs(60);
        let at = |ms| start + Duration::from_millis(ms);
        let cause = |why, pairs, from, until| Cause::new(why, pairs, at(from), at(until));
        let causes = [
            cause(Why::AgentAway, pairs_of(2, 1..=3), 5_500, 7_000),
            cause(Why::Blocked, pairs_of(2, [1]), 1_000, 6_000),
            cause(Why::OtherWay, pairs_of(3, [4]), 0, 9_000).of_at_most(Duration::from_millis(500)),
        ];
        let why = |pair, first, last| {
            let lasted = Duration::from_millis(last - first + 100);
            why(&causes, &Outage { pair, v6: false, lost: 1, first: at(first), last: at(last), lasted })
        };
        for (what, pair, first, last, wanted) in [
            ("within its time", [1, 2], 1_000, 5_900, Some(Why::Blocked)),
            ("a ping on its way", [1, 2], 900, 5_900, Some(Why::Blocked)),
            ("before", [1, 2], 700, 5_900, None),
            ("one cause after the other", [1, 2], 1_000, 6_900, Some(Why::Blocked)),
            ("the one that is over first", [1, 2], 5_500, 5_900, Some(Why::Blocked)),
            ("longer than both", [1, 2], 1_000, 7_100, None),
            ("the second alone", [1, 2], 6_500, 6_900, Some(Why::AgentAway)),
            ("of another pair of the node", [2, 3], 5_500, 6_900, Some(Why::AgentAway)),
            ("of a pair without the node", [1, 3], 5_500, 6_900, None),
            ("a short one", [3, 4], 100, 400, Some(Why::OtherWay)),
            ("one that lasts too long", [3, 4], 100, 900, None),
        ] {
            assert_eq!(why(pair, first, last), wanted, "{what}");
        }
        assert_eq!(pair(4, 3), [3, 4]);
    }
}
