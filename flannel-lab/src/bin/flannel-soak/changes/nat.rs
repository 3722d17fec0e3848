//! Nodes behind NATs, with relays: NATs forget and are replaced, relays end and come back.
//!
//! What each may cost is in `docs/backends.md`, "Nodes behind NATs" and "WireGuard in user space". Pairs that nothing happens to lose
//! nothing, and neither do those that a relay carries while another one ends.

mod paths;
mod plan;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::thread::scope;
use std::time::{Duration, Instant};

use flannel_lab::bed::Bed;
use flannel_lab::cluster::{Cluster, Families};
use flannel_lab::nat::NatBox;
use flannel_lab::store::{Folder, Store as _};
use serde_json::json;

use self::paths::{Paths, key};
use self::plan::{Fault, Planner};
use super::cause::{Cause, Pair, Why, pairs_of};
use super::restart::Restart;
use super::traffic::Traffic;
use super::{FLAGS, Run, Scene};
use crate::Fallible;
use crate::lab::{self, LIMIT, Lab};
use crate::model::Backend;
use crate::store::{FOLDER, Store};

/// The nodes that are reached where they say: relays, both.
const PUBLIC: [u8; 2] = [1, 2];
/// How many are behind a NAT each.
const BEHIND: usize = 3;
/// The flag of a public node.
const RELAY: [&str; 1] = ["--relay"];
/// How soon packets flow again after a relay or a mapping is gone.
const BACK: Duration = Duration::from_secs(5);
/// After which time without a handshake two nodes behind NATs take a relay.
const RELAYED: Duration = Duration::from_secs(7);
/// After which time without an answer a node finds out that the other end of a session has forgotten it.
const NOTICED: Duration = Duration::from_secs(15);
/// How long after an agent is ready it may have no session yet.
const HANDSHAKE: Duration = Duration::from_secs(2);
/// How long two ends may have different ways, each by its own clock.
const BETWEEN_WAYS: Duration = Duration::from_secs(1);

/// Public nodes, and nodes behind NATs.
pub(super) struct Site {
    lab: Lab,
    nats: Vec<NatBox>,
    behind: Vec<u8>,
    flanneld: PathBuf,
    planner: Planner,
    /// At the end of the last round.
    paths: Paths,
}

impl Site {
    /// Builds it.
    pub(super) fn start(flanneld: &Path, seed: u64) -> Fallible<Self> {
        let public = u8::try_from(PUBLIC.len())?;
        let mut cluster = Cluster::builder().nodes(public).families(Families::V4).build()?;
        let numbers = (1..).take(PUBLIC.len() + BEHIND).collect();
        let planner = Planner::new(seed, numbers, BEHIND);
        let add = |(segment, kind)| cluster.add_node_behind(segment, kind);
        let nats = (1..).zip(planner.kinds().to_vec()).map(add).collect::<Result<Vec<_>, _>>()?;
        let folder = Path::new(FOLDER).join("nat");
        let store = Folder::new(folder.join("store"))?;
        store.put_config(&lab::config(&json!({ "Type": Backend::Wireguard.name() }), Families::V4))?;
        let bed = Bed::new(cluster, Store::Local(store), flanneld).folder(folder).flags(FLAGS);
        let lab = Lab::of(bed, Backend::Wireguard);
        let behind = nats.iter().map(NatBox::number).collect::<Vec<_>>();
        for number in PUBLIC.iter().chain(&behind) {
            lab.start_agent_with(*number, flags(*number))?;
        }
        for number in PUBLIC.iter().chain(&behind) {
            lab.wait_until_ready(*number, LIMIT)?;
            lab.attach(*number)?;
        }
        lab.read_nodes()?;
        let paths = Paths::default();
        Ok(Self { lab, nats, behind, flanneld: flanneld.to_owned(), planner, paths })
    }

    fn pairs_of(&self, number: u8) -> BTreeSet<Pair> {
        pairs_of(number, self.lab.numbers())
    }
}

impl Scene for Site {
    fn round(&mut self, run: &mut Run<'_>, traffic: &Traffic) -> Fallible<()> {
        let round = self.planner.round();
        let before = Paths::read(&self.lab, &self.flanneld, &self.behind)?;
        if let Some((at, fault)) = round.nat {
            run.act(fault.name(), &format!("of node{}, {fault:?}", self.nats[at].number()));
        }
        if let Some(restart) = round.restart {
            run.act(name(restart), &restart.to_string());
        }
        let began = Instant::now();
        let (lab, nats) = (&self.lab, &mut self.nats);
        let (failed, restarted) = scope(|scope| {
            let restart = round.restart.map(|restart| {
                scope.spawn(move || {
                    restart.wait();
                    restart.perform(lab, flags(restart.node), || Ok(()))
                })
            });
            let failed = match round.nat {
                Some((at, Fault::Forgets)) => nats[at].restart(),
                Some((at, Fault::Replaced(kind))) => nats[at].exchange(kind),
                None => Ok(()),
            };
            (failed, restart.map(|thread| thread.join().expect("no restart panics")))
        });
        failed?;
        let restarted = restarted.transpose()?;
        // An agent that is away meanwhile finds its way afterwards.
        let last = restarted.map_or(began, |[_, ready]| ready);
        if let Some((at, fault)) = round.nat {
            let (why, time) = match fault {
                Fault::Forgets => (Why::MappingsLost, BACK),
                Fault::Replaced(_) => (Why::NatReplaced, RELAYED + BACK),
            };
            run.causes.push(Cause::new(why, self.pairs_of(self.nats[at].number()), began, last + time));
        }
        if let (Some(restart), Some([ended, ready])) = (round.restart, restarted) {
            let pairs = self.pairs_of(restart.node);
            run.causes.push(Cause::new(Why::AgentAway, pairs, ended, ready + HANDSHAKE));
            let known = if PUBLIC.contains(&restart.node) { NOTICED } else { RELAYED };
            let pairs = pairs_of(restart.node, self.behind.iter().copied());
            run.causes.push(Cause::new(Why::WayForgotten, pairs, ended, ready + known + BACK));
            let relayed = before.relayed_by(&key(&self.lab, restart.node)?);
            run.causes.push(Cause::new(Why::RelayGone, relayed, ended, ended + BACK));
        }
        self.lab.numbers().try_for_each(|number| self.lab.wait_until_ready(number, LIMIT))?;
        run.journal.note("    all agents are ready");
        traffic.wait_for_replies()?;
        run.journal.note("    all pairs have replies");
        let paths = Paths::read(&self.lab, &self.flanneld, &self.behind)?;
        // By its own clock each may have changed its way at any time since the end of the last round.
        let changed = paths.changed_since(&std::mem::replace(&mut self.paths, paths.clone()));
        let other_way = Cause::new(Why::OtherWay, changed, traffic.start, Instant::now());
        run.causes.push(other_way.of_at_most(BETWEEN_WAYS));
        Ok(())
    }

    fn lab(&self) -> &Lab {
        &self.lab
    }
}

/// What the agent of a node is started with besides.
fn flags(number: u8) -> &'static [&'static str] {
    if PUBLIC.contains(&number) { &RELAY } else { &[] }
}

/// The name of a restart in reports.
fn name(restart: Restart) -> &'static str {
    match (restart.name(), PUBLIC.contains(&restart.node)) {
        ("agent killed", true) => "relay killed",
        (_, true) => "relay restarted",
        (name, false) => name,
    }
}
