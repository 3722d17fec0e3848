//! Which backend comes next, which tunnel is blocked, and whose agent ends: chosen from a seed. Pure.

use std::fmt;
use std::time::Duration;

use fastrand::Rng;

use crate::changes::cause::{Pair, pair};
use crate::changes::restart::Restart;
use crate::model::Backend;

/// The backends between which a cluster changes.
const BACKENDS: [Backend; 4] = [Backend::Vxlan, Backend::HostGw, Backend::Udp, Backend::Wireguard];
/// Within this time of the beginning of a round agents end, and changes are taken back.
const MIDST: Duration = Duration::from_secs(5);
/// How long a bridged tunnel stays blocked at most.
const HOLD: Duration = Duration::from_secs(3);

/// A tunnel between two nodes whose packets are dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Block {
    pub(super) from: u8,
    pub(super) to: u8,
    pub(super) both_ways: bool,
    /// Whose tunnel.
    pub(super) kind: Backend,
}

impl Block {
    /// Senders and receivers of what is dropped.
    pub(super) fn ways(self) -> Vec<[u8; 2]> {
        let back = self.both_ways.then_some([self.to, self.from]);
        [Some([self.from, self.to]), back].into_iter().flatten().collect()
    }

    /// The nodes.
    pub(super) fn pair(self) -> Pair {
        pair(self.from, self.to)
    }
}

impl fmt::Display for Block {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let arrow = if self.both_ways { "and" } else { "to" };
        write!(f, "{} from node{} {arrow} node{}", self.kind.name(), self.from, self.to)
    }
}

/// What is changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    /// The config names another backend.
    Switch(Backend),
    /// The same, and after this time the former one again.
    TakenBack(Backend, Duration),
    /// A tunnel is blocked.
    Block(Block),
}

impl Change {
    /// Its name in reports.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Switch(_) => "switch",
            Self::TakenBack(..) => "taken back",
            Self::Block(_) => "blocked",
        }
    }
}

/// A round.
#[derive(Debug, Clone, Copy)]
pub(super) struct Round {
    /// The backend that the config names at first.
    pub(super) backend: Backend,
    /// What is blocked already.
    pub(super) blocked: Option<Block>,
    pub(super) change: Option<Change>,
    pub(super) restart: Option<Restart>,
    /// For how long what is blocked stays so once all is settled; `None` if it does beyond the round.
    pub(super) hold: Option<Duration>,
}

impl Round {
    /// The backend in the end.
    pub(super) fn next(&self) -> Backend {
        match self.change {
            Some(Change::Switch(to)) => to,
            _ => self.backend,
        }
    }

    /// What is blocked before the round is settled.
    pub(super) fn block(&self) -> Option<Block> {
        match self.change {
            Some(Change::Block(block)) => Some(block),
            _ => self.blocked,
        }
    }
}

/// Chooses.
#[derive(Debug)]
pub(super) struct Planner {
    rng: Rng,
    nodes: Vec<u8>,
    backend: Backend,
    blocked: Option<Block>,
}

impl Planner {
    /// Begins at a seed, with a backend that the nodes have.
    pub(super) fn new(seed: u64, nodes: Vec<u8>, backend: Backend) -> Self {
        Self { rng: Rng::with_seed(seed), nodes, backend, blocked: None }
    }

    /// The next round.
    pub(super) fn round(&mut self) -> Round {
        let (backend, blocked) = (self.backend, self.blocked);
        let can_block = blocked.is_none() && matches!(backend, Backend::Vxlan | Backend::Udp);
        let change = match self.rng.u8(..10) {
            0..4 => Some(Change::Switch(self.other())),
            4..6 => Some(Change::TakenBack(self.other(), MIDST.mul_f64(self.rng.f64()))),
            6..9 if can_block => Some(Change::Block(self.block())),
            _ => None,
        };
        let restart =
            (change.is_none() || self.rng.bool()).then(|| Restart::choose(&mut self.rng, &self.nodes, MIDST));
        // What was blocked in an earlier round has outlasted another action then.
        let is_over = blocked.is_some() || self.rng.bool();
        let hold = is_over.then(|| HOLD.mul_f64(self.rng.f64()));
        let round = Round { backend, blocked, change, restart, hold };
        self.backend = round.next();
        self.blocked = round.block().filter(|_| hold.is_none());
        round
    }

    fn other(&mut self) -> Backend {
        let others = BACKENDS.into_iter().filter(|other| *other != self.backend).collect::<Vec<_>>();
        others[self.rng.usize(..others.len())]
    }

    fn block(&mut self) -> Block {
        let mut nodes = self.nodes.clone();
        self.rng.shuffle(&mut nodes);
        Block { from: nodes[0], to: nodes[1], both_ways: self.rng.bool(), kind: self.backend }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_rounds_that_can_be_done() {
        let rounds = |seed| {
            let mut planner = Planner::new(seed, vec![1, 2, 3, 4], Backend::Vxlan);
            (0..500).map(|_| planner.round()).collect::<Vec<_>>()
        };
        assert_eq!(format!("{:?}", rounds(7)), format!("{:?}", rounds(7)));
        assert_ne!(format!("{:?}", rounds(7)), format!("{:?}", rounds(8)));
        let (mut backend, mut blocked, mut outlasted, mut kinds) = (Backend::Vxlan, None, 0, Vec::new());
        for round in rounds(7) {
            assert_eq!((round.backend, round.blocked), (backend, blocked), "{round:?}");
            assert!(round.change.is_some() || round.restart.is_some(), "{round:?}");
            match round.change {
                Some(Change::Switch(to) | Change::TakenBack(to, _)) => assert_ne!(to, backend),
                Some(Change::Block(block)) => {
                    assert_eq!((block.kind, blocked), (backend, None));
                    assert!(block.from != block.to && block.ways().len() == 1 + usize::from(block.both_ways));
                    assert!(matches!(backend, Backend::Vxlan | Backend::Udp));
                }
                None => {}
            }
            assert!(blocked.is_none() || round.hold.is_some(), "one further round: {round:?}");
            outlasted += usize::from(blocked.is_some() && round.change.is_some());
            kinds.extend(round.change.map(Change::name));
            backend = round.next();
            blocked = round.block().filter(|_| round.hold.is_none());
        }
        kinds.sort_unstable();
        kinds.dedup();
        assert_eq!(kinds, ["blocked", "switch", "taken back"]);
        assert!(outlasted > 5, "{outlasted}");
    }
}
