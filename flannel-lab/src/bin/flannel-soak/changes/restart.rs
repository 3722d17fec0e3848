//! An agent that ends in the middle of something else, and comes back.

use std::fmt;
use std::thread::sleep;
use std::time::{Duration, Instant};

use fastrand::Rng;

use crate::Fallible;
use crate::lab::{LIMIT, Lab};

/// An agent's end and return.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Restart {
    pub(super) node: u8,
    /// Without a chance to clean up; otherwise as a supervisor would.
    killed: bool,
    /// After the beginning of the round.
    after: Duration,
    away: Duration,
}

impl Restart {
    /// One of an agent of `nodes`, within this time.
    pub(super) fn choose(rng: &mut Rng, nodes: &[u8], within: Duration) -> Self {
        let node = nodes[rng.usize(..nodes.len())];
        let up_to = |rng: &mut Rng, limit: Duration| limit.mul_f64(rng.f64());
        let killed = rng.bool();
        // Half of them as fast as a supervisor can.
        let away = if rng.bool() { Duration::ZERO } else { up_to(rng, Duration::from_secs(3)) };
        Self { node, killed, after: up_to(rng, within), away }
    }

    /// Its name in reports.
    pub(super) fn name(self) -> &'static str {
        if self.killed { "agent killed" } else { "agent restarted" }
    }

    /// Waits for its moment.
    pub(super) fn wait(self) {
        sleep(self.after);
    }

    /// Does it, and returns when the agent began to end, and when the next one was ready. `gone` happens while there is none.
    pub(super) fn perform(
        self,
        lab: &Lab,
        flags: &[&str],
        gone: impl FnOnce() -> Fallible<()>,
    ) -> Fallible<[Instant; 2]> {
        let agent = lab.agent(self.node);
        let began = Instant::now();
        if self.killed {
            agent.kill()?;
        } else {
            let status = agent.terminate()?;
            if !status.success() {
                return Err(format!("node{}'s agent ended with {status}", self.node).into());
            }
        }
        gone()?;
        sleep(self.away);
        lab.start_agent_with(self.node, flags)?;
        lab.wait_until_ready(self.node, LIMIT)?;
        Ok([began, Instant::now()])
    }
}

impl fmt::Display for Restart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "node{} after {:?}, for {:?}", self.node, self.after, self.away)
    }
}
