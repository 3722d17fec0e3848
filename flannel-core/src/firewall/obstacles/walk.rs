//! Decides what a table surely does with a packet. Pure.
//!
//! If a rule may match the packet or not, both branches are followed. The packet is surely dropped only if no branch
//! lets it pass.

use super::chain::{Chain, Does, Policy, RuleName, Table};
use super::packet::{Packet, Truth};

/// The deepest nesting of jumps; the kernel has the same limit.
const DEPTH: usize = 16;
/// The most rules that are evaluated for one packet.
const STEPS: usize = 100_000;

/// Where a packet ends.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Cut {
    /// The chain.
    pub(super) chain: String,
    /// The rule of it; `None` if it is its policy.
    pub(super) rule: Option<RuleName>,
}

/// The results of all branches through a chain.
#[derive(Debug, Default)]
struct Ways {
    /// A branch lets the packet pass, or is unknown.
    passes: bool,
    /// A branch drops the packet; the last one if there are several.
    cut: Option<Cut>,
    /// A branch reaches the end of the chain.
    returns: bool,
}

impl Ways {
    fn pass() -> Self {
        Self { passes: true, ..Self::default() }
    }

    /// Adds the branches of a called chain, except those that reach its end.
    fn add(&mut self, part: Self) {
        self.passes |= part.passes;
        self.cut = part.cut.or_else(|| self.cut.take());
    }
}

/// Where `packet` is surely dropped if it enters a base chain; `None` if it passes or may pass.
pub(super) fn cut(table: &Table, base: &Chain, packet: &Packet<'_>) -> Option<Cut> {
    let mut walk = Walk { table, packet, is_marked: false, steps: 0 };
    let mut ways = walk.chain(base, 0);
    if ways.returns {
        ways.add(match base.policy? {
            Policy::Accept => Ways::pass(),
            Policy::Drop => {
                Ways { cut: Some(Cut { chain: base.name.clone(), rule: None }), ..Ways::default() }
            }
        });
    }
    ways.cut.filter(|_| !ways.passes)
}

struct Walk<'a> {
    table: &'a Table,
    packet: &'a Packet<'a>,
    is_marked: bool,
    steps: usize,
}

impl Walk<'_> {
    fn chain(&mut self, chain: &Chain, depth: usize) -> Ways {
        let mut ways = Ways::default();
        for rule in &chain.rules {
            self.steps += 1;
            if self.steps > STEPS {
                return Ways::pass();
            }
            let is_about = rule.is_about(self.packet, self.is_marked);
            if is_about == Truth::No {
                continue;
            }
            self.is_marked |= rule.marks;
            let goes_on = match &rule.does {
                Does::Nothing => true,
                Does::Accept => {
                    ways.passes = true;
                    false
                }
                Does::Unknown => {
                    ways.passes = true;
                    true
                }
                Does::Cut => {
                    ways.cut = Some(Cut { chain: chain.name.clone(), rule: Some(rule.name.clone()) });
                    false
                }
                Does::Return => {
                    ways.returns = true;
                    false
                }
                Does::Jump(target) => {
                    let part = self.target(target, depth);
                    let returns = part.returns;
                    ways.add(part);
                    returns
                }
                Does::Goto(target) => {
                    let part = self.target(target, depth);
                    ways.returns |= part.returns;
                    ways.add(part);
                    false
                }
            };
            // If a branch passes, or no packet reaches the next rule, the rest makes no difference.
            if ways.passes || is_about == Truth::Yes && !goes_on {
                return ways;
            }
        }
        ways.returns = true;
        ways
    }

    fn target(&mut self, name: &str, depth: usize) -> Ways {
        match self.table.chain(name) {
            Some(chain) if depth < DEPTH => self.chain(chain, depth + 1),
            // The chain was not read, so its effect is unknown.
            _ => Ways { returns: true, ..Ways::pass() },
        }
    }
}
