//! The backend of a cluster changes, tunnels are blocked, and agents are restarted in the middle of that.
//!
//! A switch costs no ping, nor one that is taken back. A blocked tunnel costs the pings of its pair until that is bridged. An agent that is
//! restarted costs those of its node's pairs whose packets travel through an agent: which that are the kernels' routes say.

mod plan;
mod wire;

use std::collections::BTreeSet;
use std::path::Path;
use std::thread::{scope, sleep};
use std::time::{Duration, Instant};

use flannel_lab::bed::Bed;
use flannel_lab::cluster;

use self::plan::{Change, Planner, Round};
use self::wire::Wire;
use super::cause::{Cause, Pair, Why, pairs_of};
use super::restart::Restart;
use super::traffic::Traffic;
use super::{FLAGS, Run, Scene};
use crate::Fallible;
use crate::lab::{LIMIT, Lab};
use crate::model::Backend;
use crate::options::Options;
use crate::store::{FOLDER, Store};

/// The backend at first.
const FIRST: Backend = Backend::Vxlan;
/// How soon packets get round a blocked tunnel.
const BRIDGED: Duration = Duration::from_secs(5);
/// How long after an agent is ready the first packet through it may be on its way.
const FIRST_PACKET: Duration = Duration::from_secs(1);

/// A cluster whose backend changes.
pub(super) struct Cluster {
    wire: Wire,
    planner: Planner,
}

impl Cluster {
    /// Builds it.
    pub(super) fn start(options: &Options, flanneld: &Path, seed: u64) -> Fallible<Self> {
        let families = options.families;
        let cluster = cluster::Cluster::builder().nodes(options.nodes).families(families).build()?;
        let store = Store::start(options.store, &cluster, &wire::config(FIRST, false, families))?;
        let bed = Bed::new(cluster, store, flanneld).folder(FOLDER).flags(FLAGS);
        let lab = Lab::of(bed, FIRST);
        let nodes = (1..=options.nodes).collect::<Vec<_>>();
        nodes.iter().try_for_each(|number| lab.start_agent(*number))?;
        for number in &nodes {
            lab.wait_until_ready(*number, LIMIT)?;
            lab.attach(*number)?;
        }
        lab.read_nodes()?;
        let wire = Wire::new(lab, flanneld)?;
        wire.wait_until_published(FIRST)?;
        Ok(Self { wire, planner: Planner::new(seed, nodes, FIRST) })
    }

    /// Does what a round changes, and does not wait until it is settled.
    fn change(&self, round: &Round) -> Fallible<()> {
        match round.change {
            Some(Change::Switch(to)) => self.wire.configure(to, round.backend),
            Some(Change::TakenBack(to, pause)) => {
                self.wire.configure(to, round.backend)?;
                sleep(pause);
                self.wire.configure(round.backend, to)
            }
            Some(Change::Block(block)) => self.wire.block(block),
            None => Ok(()),
        }
    }

    /// Restarts an agent, and says when it was away and of which pairs that costs pings.
    fn restart(&self, restart: Restart) -> Fallible<([Instant; 2], BTreeSet<Pair>)> {
        restart.wait();
        let others = pairs_of(restart.node, self.lab().numbers());
        let through_agents = || {
            let pairs = others.iter().copied();
            pairs.filter(|pair| self.wire.is_through_agents(*pair)).collect::<BTreeSet<Pair>>()
        };
        // In a switch a pair may come to it at the last moment.
        let mut pairs = through_agents();
        let times = restart.perform(self.lab(), &[], || {
            pairs.extend(through_agents());
            Ok(())
        })?;
        Ok((times, pairs))
    }

    /// Waits until all nodes have what the config says, and what is blocked is bridged.
    fn settle(&self, round: &Round) -> Fallible<()> {
        self.wire.wait_until_published(round.next())?;
        self.lab().numbers().try_for_each(|number| self.lab().wait_until_ready(number, LIMIT))?;
        let in_use = round.block().filter(|block| block.kind == round.next());
        in_use.map_or(Ok(()), |block| self.wire.wait_until_bridged(block))
    }
}

impl Scene for Cluster {
    fn round(&mut self, run: &mut Run<'_>, _: &Traffic) -> Fallible<()> {
        let round = self.planner.round();
        if let Some(change) = round.change {
            run.act(change.name(), &describe(&round, change));
        }
        if let Some(restart) = round.restart {
            run.act(restart.name(), &restart.to_string());
        }
        let began = Instant::now();
        let this = &*self;
        let (changed, restarted) = scope(|scope| {
            let restart = round.restart.map(|restart| scope.spawn(move || this.restart(restart)));
            let changed = this.change(&round);
            (changed, restart.map(|thread| thread.join().expect("no restart panics")))
        });
        changed?;
        let restarted = restarted.transpose()?;
        let settled = this.settle(&round);
        let ready = restarted.as_ref().map(|([_, ready], _)| *ready);
        run.causes.extend(blocked(&round, began, ready, Instant::now()));
        if let Some(([ended, ready], pairs)) = restarted {
            run.causes.push(Cause::new(Why::AgentAway, pairs, ended, ready + FIRST_PACKET));
        }
        settled?;
        if let (Some(block), Some(hold)) = (round.block(), round.hold) {
            sleep(hold);
            run.act("unblocked", &block.to_string());
            this.wire.unblock(block)?;
        }
        Ok(())
    }

    fn lab(&self) -> &Lab {
        &self.wire.lab
    }
}

fn describe(round: &Round, change: Change) -> String {
    let from = round.backend.name();
    match change {
        Change::Switch(to) => format!("from {from} to {}", to.name()),
        Change::TakenBack(to, pause) => format!("from {from} to {} for {pause:?}", to.name()),
        Change::Block(block) => block.to_string(),
    }
}

/// What a blocked tunnel may cost in a round that began then and is settled now: if it is blocked in this round, or all nodes come back to it. A node's
/// agent that was `ready` meanwhile has to prove it first.
fn blocked(round: &Round, began: Instant, ready: Option<Instant>, now: Instant) -> Option<Cause> {
    let block = round.block()?;
    let concerns = |restart: Restart| block.pair().contains(&restart.node);
    let ready = ready.filter(|_| round.restart.is_some_and(concerns));
    let until = match round.change? {
        Change::Block(_) => ready.map_or(began, |ready| ready.max(began)),
        Change::TakenBack(..) => now,
        Change::Switch(_) => return None,
    };
    Some(Cause::new(Why::Blocked, BTreeSet::from([block.pair()]), began, until + BRIDGED))
}

#[cfg(test)]
mod tests {
    use super::plan::Block;
    use super::*;

    #[test]
    fn a_blocked_tunnel_costs_its_pair_five_seconds() {
        let block = Block { from: 2, to: 1, both_ways: false, kind: Backend::Vxlan };
        let round = Round {
            backend: Backend::Vxlan,
            blocked: None,
            change: Some(Change::Block(block)),
            restart: None,
            hold: None,
        };
        let began = Instant::now();
        let after = |seconds| began + Duration::from_secs(seconds);
        let until = |round: &Round, ready| {
            let cause = blocked(round, began, ready, after(10))?;
            assert_eq!(cause.pairs, BTreeSet::from([[1, 2]]));
            Some(cause.until)
        };
        assert_eq!(until(&round, None), Some(after(5)));
        // The agent of a third node has nothing to prove.
        let restart = |node| Some(Restart::choose(&mut fastrand::Rng::with_seed(1), &[node], BRIDGED));
        assert_eq!(until(&Round { restart: restart(3), ..round }, Some(after(2))), Some(after(5)));
        assert_eq!(until(&Round { restart: restart(1), ..round }, Some(after(2))), Some(after(7)));
        let later = Round { blocked: Some(block), hold: Some(BRIDGED), ..round };
        let after_change = |change| until(&Round { change, ..later }, None);
        assert_eq!(after_change(None), None);
        assert_eq!(after_change(Some(Change::Switch(Backend::Udp))), None);
        assert_eq!(after_change(Some(Change::TakenBack(Backend::Udp, BRIDGED))), Some(after(15)));
    }
}
