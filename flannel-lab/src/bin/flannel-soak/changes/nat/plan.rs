//! Which NAT forgets its mappings or is replaced, and whose agent ends: chosen from a seed. Pure.

use std::time::Duration;

use fastrand::Rng;
use flannel_lab::nat::NatKind;

use crate::changes::restart::Restart;

/// All kinds of NATs.
const KINDS: [NatKind; 3] = [NatKind::FullCone, NatKind::PortRestricted, NatKind::Symmetric];
/// Within this time of the beginning of a round agents end.
const MIDST: Duration = Duration::from_secs(5);

/// What happens to a NAT.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    /// It forgets its mappings.
    Forgets,
    /// One of another kind takes its place.
    Replaced(NatKind),
}

impl Fault {
    /// Its name in reports.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Forgets => "NAT forgets",
            Self::Replaced(_) => "NAT replaced",
        }
    }
}

/// A round.
#[derive(Debug, Clone, Copy)]
pub(super) struct Round {
    /// Which of the NATs, and what happens to it.
    pub(super) nat: Option<(usize, Fault)>,
    pub(super) restart: Option<Restart>,
}

/// Chooses.
#[derive(Debug)]
pub(super) struct Planner {
    rng: Rng,
    nodes: Vec<u8>,
    kinds: Vec<NatKind>,
}

impl Planner {
    /// Begins at a seed, with a NAT of some kind for each of `behind` nodes.
    pub(super) fn new(seed: u64, nodes: Vec<u8>, behind: usize) -> Self {
        let mut rng = Rng::with_seed(seed);
        let kinds = (0..behind).map(|_| KINDS[rng.usize(..KINDS.len())]).collect();
        Self { rng, nodes, kinds }
    }

    /// The kinds of the NATs.
    pub(super) fn kinds(&self) -> &[NatKind] {
        &self.kinds
    }

    /// The next round.
    pub(super) fn round(&mut self) -> Round {
        let at = self.rng.usize(..self.kinds.len());
        let nat = match self.rng.u8(..10) {
            0..4 => Some((at, Fault::Forgets)),
            4..7 => {
                let others = KINDS.into_iter().filter(|kind| *kind != self.kinds[at]).collect::<Vec<_>>();
                self.kinds[at] = others[self.rng.usize(..others.len())];
                Some((at, Fault::Replaced(self.kinds[at])))
            }
            _ => None,
        };
        let restart =
            (nat.is_none() || self.rng.bool()).then(|| Restart::choose(&mut self.rng, &self.nodes, MIDST));
        Round { nat, restart }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_rounds_in_which_something_happens() {
        let planner = |seed| Planner::new(seed, vec![1, 2, 3, 4, 5], 3);
        let rounds = |seed| {
            let mut planner = planner(seed);
            (0..300).map(|_| planner.round()).collect::<Vec<_>>()
        };
        assert_eq!(format!("{:?}", rounds(7)), format!("{:?}", rounds(7)));
        let mut kinds = planner(7).kinds().to_vec();
        for round in rounds(7) {
            assert!(round.nat.is_some() || round.restart.is_some(), "{round:?}");
            if let Some((at, Fault::Replaced(kind))) = round.nat {
                assert_ne!(kinds[at], kind, "another kind");
                kinds[at] = kind;
            }
        }
        let count = |is_it: fn(&Round) -> bool| rounds(7).iter().filter(|round| is_it(round)).count();
        assert!(count(|round| matches!(round.nat, Some((_, Fault::Forgets)))) > 60);
        assert!(count(|round| matches!(round.nat, Some((_, Fault::Replaced(_))))) > 40);
        assert!(count(|round| round.nat.is_some() && round.restart.is_some()) > 60);
    }
}
