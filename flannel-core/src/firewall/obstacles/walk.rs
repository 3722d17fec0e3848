//! What a table does with a packet, as far as that is certain. Pure.
//!
//! Where a rule may be about the packet or not, both ways are walked. Only if no way lets the packet pass, it is
//! surely cut.

use super::chain::{Chain, Does, Policy, RuleName, Table};
use super::packet::{Packet, Truth};

/// Chains within chains; the kernel has the same limit.
const DEPTH: usize = 16;
/// The most rules that are looked at for one packet.
const STEPS: usize = 100_000;

/// Where a packet ends.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Cut {
    /// The chain.
    pub(super) chain: String,
    /// The rule of it; `None` if it is its policy.
    pub(super) rule: Option<RuleName>,
}

/// Where the ways through a chain lead.
#[derive(Debug, Default)]
struct Ways {
    /// One lets the packet go on, or nobody knows.
    passes: bool,
    /// One ends here; of several the last.
    cut: Option<Cut>,
    /// One comes to the end of the chain.
    returns: bool,
}

impl Ways {
    fn pass() -> Self {
        Self { passes: true, ..Self::default() }
    }

    /// Takes in the ways of a part, but for those that come to its end.
    fn add(&mut self, part: Self) {
        self.passes |= part.passes;
        self.cut = part.cut.or_else(|| self.cut.take());
    }
}

/// Where `packet` surely ends if it enters a base chain; `None` if it passes, or may.
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
            // Nothing that follows makes a way that passes one that does not.
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
            // It was not read, so nobody knows.
            _ => Ways { returns: true, ..Ways::pass() },
        }
    }
}
