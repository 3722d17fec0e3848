//! Decides which of several leases are programmed, given the precedence of each pair. Pure.
//!
//! A lease is programmed if no lease with precedence over it is. Precedence is defined for pairs, so it can go in a
//! circle (by MAC, by address, by subnet ..): then the lease of the first rank is programmed, and none that conflicts
//! with it.

use std::collections::VecDeque;

/// Two conflicting leases, seen from one of them.
#[derive(Debug, Clone, Copy)]
pub(super) struct Edge {
    /// The other one.
    pub(super) other: usize,
    /// Whether the other has precedence in one of their conflicts, and whether this one has in one.
    pub(super) is_beaten: bool,
    pub(super) beats: bool,
}

/// The decision about one lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Open,
    Programmed,
    Rejected,
}

/// Decides for each lease whether it is programmed. `edges` has the conflicts of each lease, and `ranks` breaks
/// circles. The time is linear in the edges, apart from sorting the ranks.
pub(super) fn solve<R: Ord>(ranks: &[R], edges: &[Vec<Edge>]) -> Vec<bool> {
    let mut solver = Solver {
        edges,
        states: vec![State::Open; edges.len()],
        beaten_by: edges.iter().map(|edges| edges.iter().filter(|edge| edge.is_beaten).count()).collect(),
        ready: VecDeque::new(),
    };
    solver.ready.extend((0..edges.len()).filter(|node| solver.beaten_by[*node] == 0));
    solver.run();
    if solver.states.contains(&State::Open) {
        let mut circles: Vec<usize> =
            (0..edges.len()).filter(|node| solver.states[*node] == State::Open).collect();
        circles.sort_unstable_by_key(|node| &ranks[*node]);
        for node in circles {
            solver.ready.push_back(node);
            solver.run();
        }
    }
    solver.states.into_iter().map(|state| state == State::Programmed).collect()
}

struct Solver<'a> {
    edges: &'a [Vec<Edge>],
    states: Vec<State>,
    /// How many leases with precedence over it are not rejected.
    beaten_by: Vec<usize>,
    /// The leases that can be programmed, if they are still open.
    ready: VecDeque<usize>,
}

impl Solver<'_> {
    fn run(&mut self) {
        while let Some(node) = self.ready.pop_front() {
            if self.states[node] != State::Open {
                continue;
            }
            self.states[node] = State::Programmed;
            for edge in &self.edges[node] {
                self.reject(edge.other);
            }
        }
    }

    fn reject(&mut self, node: usize) {
        if self.states[node] != State::Open {
            return;
        }
        self.states[node] = State::Rejected;
        for edge in self.edges[node].iter().filter(|edge| edge.beats) {
            self.beaten_by[edge.other] -= 1;
            if self.beaten_by[edge.other] == 0 {
                self.ready.push_back(edge.other);
            }
        }
    }
}
