//! Publishes the status of the loop, a few times a second at most, however often it changes.

use std::time::{Duration, SystemTime};

use tokio::sync::watch;
use tokio::time::Instant;

use super::config::ConfigProblems;
use super::guard::Guard;
use super::{Driver, PeerWork, Reconciler};
use crate::addr::{Family, PerFamily};
use crate::backend::NetworkStatus;
use crate::events::NetworkEvent;
use crate::lease::LeaseKey;
use crate::status::{Harm, Listed, Problem, Problems, Reach, RepairCounts, Subject, Timings};
use crate::told::Told;

/// The interval between two statuses while it changes all the time.
const EVERY: Duration = Duration::from_millis(250);
/// How many changes in a row are published without a delay.
const BURST: u32 = 4;

/// The published status, and those parts of it that are stored nowhere else.
#[derive(Debug)]
pub(super) struct Shown {
    status: watch::Sender<NetworkStatus>,
    /// Whether the first snapshot of leases was programmed.
    pub(super) synced: bool,
    /// How often drift was repaired.
    pub(super) repairs: u64,
    /// How long the last repair took.
    pub(super) last_repair: Option<Duration>,
    /// Operations sent to the kernel.
    pub(super) operations: u64,
    /// Operations that the kernel refused.
    pub(super) refusals: u64,
    /// What was repaired, by kind and cause.
    pub(super) repaired: RepairCounts,
    /// How long the loop takes for what it does.
    pub(super) timings: Timings,
    /// The rejected leases that were named in the log.
    told: Told,
    /// When the next status would be due if all so far had kept the interval (a token bucket).
    spent: Instant,
    /// Whether there may be changes that are not published.
    is_late: bool,
}

impl Default for Shown {
    fn default() -> Self {
        Self {
            status: watch::Sender::new(NetworkStatus::default()),
            synced: false,
            repairs: 0,
            last_repair: None,
            operations: 0,
            refusals: 0,
            repaired: RepairCounts::default(),
            timings: Timings::default(),
            told: Told::default(),
            spent: Instant::now(),
            is_late: false,
        }
    }
}

impl Shown {
    pub(super) fn subscribe(&self) -> watch::Receiver<NetworkStatus> {
        self.status.subscribe()
    }

    /// When to publish changes that were delayed.
    pub(super) fn due(&self) -> Option<Instant> {
        self.is_late.then(|| self.allowed_at())
    }

    fn allowed_at(&self) -> Instant {
        let ahead = EVERY * (BURST - 1);
        self.spent.checked_sub(ahead).unwrap_or(self.spent)
    }

    /// Whether the status may be published now. If not, it is due later.
    fn may_announce(&mut self, now: Instant) -> bool {
        self.is_late = now < self.allowed_at();
        !self.is_late
    }

    /// Publishes a status if it changed. Returns events about leases that are rejected now and were not before.
    fn announce(&mut self, next: NetworkStatus, now: Instant) -> Vec<NetworkEvent> {
        let mut named = Vec::new();
        let changed = self.status.send_if_modified(|status| {
            let told = &status.problems.leases.sample;
            let news = next.problems.leases.sample.iter().filter(|problem| !told.contains(problem));
            named.extend(news.cloned());
            // Peer lists that are not copies of each other differ, since only changed entries are put into them.
            let changed = !status.peer_list.is_copy_of(&next.peer_list) || *status != next;
            *status = next;
            changed
        });
        if changed {
            self.spent = self.spent.max(now) + EVERY;
        }
        let mut events = Vec::new();
        for problem in named {
            let Subject::Lease(key) = &problem.subject else { continue };
            if let Some(left_out) = self.told.news(key, now) {
                let (lease, reason) = (key.clone(), problem.to_string());
                events.push(NetworkEvent::LeaseRejected { lease, reason, left_out });
            }
        }
        events
    }
}

impl<D: Driver> Reconciler<D> {
    /// Publishes the status if it changed, now or when the interval is over.
    pub(super) fn publish(&mut self) {
        self.shown.synced |= self.leases.is_synced()
            && !self.work.has_objects()
            && !self.work.has_devices()
            && self.devices.problems.is_empty();
        let now = Instant::now();
        if !self.shown.may_announce(now) {
            return;
        }
        self.update_book(SystemTime::now());
        let next = NetworkStatus {
            synced: self.shown.synced,
            recalled: self.leases.recalled(),
            problems: self.problems(),
            peers: self.peers.programmed(),
            peer_list: self.book.list().clone(),
            devices: self.devices.shown.clone(),
            overlay_mtu: self.devices.overlay_mtu,
            backends: self.backends(),
            datapath: self.devices.datapath.clone(),
            repairs: self.shown.repairs,
            last_repair: self.shown.last_repair,
            repaired: self.shown.repaired,
            operations: self.shown.operations,
            refusals: self.shown.refusals,
            timings: self.shown.timings.clone(),
            counters: self.device_counters.clone().and(self.devices.counters.clone()),
            gate: self.guard.as_ref().map(Guard::counters).unwrap_or_default(),
            sessions: self.devices.sessions.clone(),
        };
        for event in self.shown.announce(next, now) {
            self.events.send(event);
        }
    }

    /// The kinds of the backends, first the published one.
    fn backends(&self) -> Vec<String> {
        let beside = self.driver.beside().into_iter().map(str::to_owned);
        [self.backend.clone()].into_iter().chain(beside).collect()
    }

    /// All problems, whatever their harm.
    fn problems(&self) -> Problems {
        let mut node = Vec::new();
        let all = |subject, text: String| Problem::new(subject, Harm::All, text);
        let networks = self.record.networks();
        let has_both = networks.iter().count() > 1;
        node.extend(self.devices.problems.of_node(has_both));
        node.extend(self.held.problems.of_node(has_both));
        node.extend_from_slice(&self.held.notes);
        node.extend(self.underlay_problem());
        node.extend(self.claims.lost().iter().map(|text| all(Subject::OwnLease, text.clone())));
        node.extend_from_slice(&self.devices.unserved);
        node.extend_from_slice(&self.devices.partial);
        node.extend(self.blocked.ours());
        node.extend_from_slice(self.host.problems());
        node.extend(self.driver.problems());
        node.extend(self.guard.iter().flat_map(Guard::problems));
        let ConfigProblems { restart_needed, unusable } = self.config_problems();
        let harmless = |subject, text: String| Problem::new(subject, Harm::None, text);
        node.extend(unusable.map(|text| harmless(Subject::Config, text)));
        node.extend(restart_needed.map(|text| harmless(Subject::Restart, text)));
        let bad = self.leases.unreadable();
        let failed = self.driver.failed_peers();
        let count = bad.len() + self.peers.troubled() + failed.len();
        let bad = bad.named().map(|record| harmless(Subject::Lease(record.key.clone()), record.to_string()));
        let refused = self.peers.problems().map(|(key, why)| {
            let harm = if self.peers.is_lost(&key) { Harm::Some } else { Harm::None };
            let problem = Problem::new(Subject::Lease(key.to_string()), harm, format!("lease {key}: {why}"));
            Problem { peer: Some(key), ..problem }
        });
        let failed_work = failed.iter().filter_map(|key| {
            let PeerWork::Failed { reason, .. } = self.driver.work_for(key) else { return None };
            let problem =
                Problem::new(Subject::Lease(key.to_string()), Harm::Some, format!("lease {key}: {reason}"));
            Some(Problem { peer: Some(*key), ..problem })
        });
        let leases = Listed::new(count, bad.chain(refused).chain(failed_work));
        let mut objects = self.blocked.listed();
        objects.extend(self.host.shadows());
        let reach =
            PerFamily::from_fn(|family| networks.get(family).map(|_| self.reach(family, &node, &failed)));
        Problems { node, objects, leases, reach }
    }

    /// How many peers of a family there are, and how many of them pods can't reach.
    fn reach(&self, family: Family, node: &[Problem], failed: &[LeaseKey]) -> Reach {
        let Reach { expected, cut } = self.peers.reach(family);
        let is_down = node.iter().any(|it| it.harm == Harm::All && it.family.is_none_or(|of| of == family));
        if is_down {
            return Reach { expected, cut: expected };
        }
        let shadowed = self.host.shadowed(family).filter(|peer| !self.blocked.is_cut(family, peer)).count();
        let failed = failed.iter().filter(|peer| peer.subnet(family).is_some()).count();
        Reach { expected, cut: (cut + self.blocked.cut(family) + shadowed + failed).min(expected) }
    }
}
