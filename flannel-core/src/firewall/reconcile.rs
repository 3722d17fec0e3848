//! The loop that keeps the rules: it compares, changes what differs, and waits until something may have changed.

#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::future::pending;
use std::time::Duration;

use serde::Serialize;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::choose::{Managers, Unused};
use super::error::FirewallError;
use super::event::{FirewallEvent, FirewallEventSender, FirewallEvents};
use super::manager::{Plan, RuleManager};
use super::obstacles::Obstacle;
use super::rules::{Ours, Wanted};
use crate::backoff::{Backoff, Delays};
use crate::error::chain;
use crate::events::RepairCause;
use crate::resync;
use crate::times::optional_microseconds;

/// Delays after failures.
const RETRY: Delays = Delays::new(Duration::from_millis(500), Duration::from_secs(30));
/// This many repairs within this time mean that another program removes our rules.
const FIGHT: (usize, Duration) = (10, Duration::from_secs(10));

/// How many times rules are compared at once while others change theirs.
const TRIES: usize = 20;

/// The state of the rules, for health, status and metrics.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct FirewallStatus {
    /// The manager that keeps the rules: `nftables`, `iptables-nft`, `iptables-legacy`, or the name of one that the caller
    /// made. `None` if there are no rules to keep.
    pub manager: Option<&'static str>,
    /// The manager and why it was chosen, for people; empty if there are no rules to keep.
    pub choice: String,
    /// Whether the rules are in the kernel.
    pub in_place: bool,
    /// Why the rules may be missing or wrong; `None` if they are right.
    pub problem: Option<String>,
    /// Notes about rules of others in our chains, and the like.
    pub notes: Vec<String>,
    /// Chains of others that surely drop traffic of pods.
    pub obstacles: Vec<Obstacle>,
    /// Whether pods should reach the world under this node's address.
    pub masquerades: bool,
    /// How many times rules were put back since they were first in place.
    pub repairs: u64,
    /// How long the last repair took: from the event that made us compare to the end of the last change.
    #[serde(rename = "last_repair_us", serialize_with = "optional_microseconds")]
    pub last_repair: Option<Duration>,
}

impl FirewallStatus {
    /// The chains that cut off this node's pods from all others, or from the world although they are masqueraded.
    pub fn cut_off(&self) -> impl Iterator<Item = String> + '_ {
        let cuts_off = |it: &&Obstacle| it.cuts_pods_off(self.masquerades);
        self.obstacles.iter().filter(cuts_off).map(ToString::to_string)
    }

    /// The chains that drop other traffic of pods.
    pub fn hindered(&self) -> impl Iterator<Item = String> + '_ {
        let cuts_less = |it: &&Obstacle| !it.cuts_pods_off(self.masquerades);
        self.obstacles.iter().filter(cuts_less).map(ToString::to_string)
    }
}

/// Asks running rules what differs from what is desired. A clone asks the same rules.
#[derive(Debug, Clone)]
pub struct FirewallInspector(mpsc::Sender<Question>);

/// Where to send the present plan.
type Question = oneshot::Sender<Result<Plan, FirewallError>>;

impl FirewallInspector {
    /// Reads the rules, and returns the changes that would be made now; `None` if the rules are not kept any more. Nothing is
    /// changed.
    pub async fn plan(&self) -> Option<Result<Plan, FirewallError>> {
        let (sender, answer) = oneshot::channel();
        self.0.send(sender).await.ok()?;
        answer.await.ok()
    }
}

/// Keeps the rules of this node.
pub struct Firewall {
    managers: Managers,
    wanted: Wanted,
    ours: Ours,
    status: watch::Sender<FirewallStatus>,
    events: FirewallEventSender,
    /// Which variant the manager used at the last comparison.
    choice: Option<String>,
    repairs: VecDeque<Instant>,
    backoff: Backoff,
    /// Why the leftovers of an earlier run can't be read, and until when not to try again.
    unclear: Option<(String, Instant)>,
    /// What others ask.
    questions: (mpsc::Sender<Question>, mpsc::Receiver<Question>),
}

impl std::fmt::Debug for Firewall {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Firewall").field("wanted", &self.wanted).finish_non_exhaustive()
    }
}

impl Firewall {
    /// Keeps the rules `wanted`. Rules in our chains that are not among `ours` stay.
    pub fn new(managers: Managers, wanted: Wanted, ours: Ours) -> Self {
        let (manager, masquerades) = (managers.kind(), wanted.masquerade);
        let choice = managers.choice().to_owned();
        let status = FirewallStatus { manager, choice, masquerades, ..FirewallStatus::default() };
        let status = watch::Sender::new(status);
        let choice = managers.active.as_ref().and_then(|active| active.choice()).map(str::to_owned);
        let (repairs, backoff) = (VecDeque::new(), Backoff::with(RETRY));
        let events = FirewallEventSender::default();
        let (unclear, questions) = (None, mpsc::channel(4));
        Self { managers, wanted, ours, status, events, choice, repairs, backoff, unclear, questions }
    }

    /// Sends what happens to `events` instead of a sender of its own.
    #[must_use]
    pub fn telling(self, events: FirewallEventSender) -> Self {
        Self { events, ..self }
    }

    /// The events of the rules. The first reader has all of them; the reader stays valid after `run` has consumed the
    /// firewall.
    pub fn events(&self) -> FirewallEvents {
        self.events.subscribe()
    }

    /// The status of the rules. The receiver stays valid after `run` has consumed the firewall.
    pub fn status(&self) -> watch::Receiver<FirewallStatus> {
        self.status.subscribe()
    }

    /// Asks these rules, once they run.
    pub fn inspector(&self) -> FirewallInspector {
        FirewallInspector(self.questions.0.clone())
    }

    /// Runs until `cancel` fires. The rules stay, so that pods keep their traffic.
    pub async fn run(mut self, cancel: CancellationToken) {
        // A change that has begun is finished; waiting can be dropped.
        let (mut looked, mut next, mut cause) = (Instant::now(), None, RepairCause::Resync);
        while !cancel.is_cancelled() {
            let until = match next {
                Some(until) => until,
                None => self.look(looked, cause).await,
            };
            self.look_around().await;
            let due = tokio::select! {
                () = cancel.cancelled() => return,
                due = self.wait(until) => due,
            };
            (next, cause) = match due {
                Due::Rules(cause) => (None, cause),
                Due::Surroundings => (Some(until), cause),
            };
            looked = Instant::now();
        }
    }

    /// Reports chains that drop pods' traffic, when they may have changed.
    async fn look_around(&mut self) {
        let Some(surroundings) = &mut self.managers.surroundings else { return };
        let Some(obstacles) = surroundings.look(&self.wanted).await else { return };
        let before = self.status.borrow().obstacles.clone();
        if obstacles == before {
            return;
        }
        for obstacle in obstacles.iter().filter(|obstacle| !before.contains(obstacle)) {
            self.events.send(FirewallEvent::ChainDropsPods(Box::new(obstacle.clone())));
        }
        for gone in before.into_iter().filter(|it| !obstacles.contains(it)) {
            let Obstacle { realm, family, table, chain, .. } = gone;
            self.events.send(FirewallEvent::ChainDropsNoMore { realm, family, table, chain });
        }
        self.status.send_modify(|status| status.obstacles = obstacles);
    }

    /// Makes the kernel's rules as desired. Returns when to compare again at the latest.
    async fn look(&mut self, since: Instant, cause: RepairCause) -> Instant {
        let active = converge(self.managers.active.as_deref_mut(), &self.wanted, &self.ours).await;
        match active {
            Ok(mut done) => {
                done.notes.extend(self.managers.missed.clone());
                let unclear = self.unclear.as_ref().map(|(note, _)| note.clone());
                done.notes.extend(unclear.clone());
                self.note(done, since, cause);
                // Rules of the other manager are removed only after ours are in place, so that no packet leaves without
                // masquerading.
                self.clear_unused().await;
                self.note_unclear(unclear.as_ref());
                self.backoff.reset();
                let (next, problem) = self.rest().unzip();
                self.set_problem(problem);
                next.unwrap_or_else(|| resync::next(Instant::now()))
            }
            Err(error) => self.failed(&error),
        }
    }

    fn note(&mut self, done: Done, since: Instant, cause: RepairCause) {
        if let Some(surroundings) = self.managers.surroundings.as_mut().filter(|_| done.changes > 0) {
            surroundings.set_due();
        }
        self.note_choice();
        let was_in_place = self.status.borrow().in_place;
        if done.changes > 0 && was_in_place {
            self.repairs.push_back(Instant::now());
            let (changes, took) = (done.changes, since.elapsed());
            self.events.send(FirewallEvent::RulesRepaired { changes, cause, took });
        } else if !was_in_place && !self.wanted.is_empty() {
            self.events.send(FirewallEvent::RulesInPlace { changes: done.changes });
        }
        let before = self.status.borrow().notes.clone();
        for reason in done.notes.iter().filter(|note| !before.contains(note)).cloned() {
            self.events.send(FirewallEvent::RulesLimited { reason });
        }
        self.status.send_modify(|status| {
            if done.changes > 0 && was_in_place {
                status.repairs += 1;
                status.last_repair = Some(since.elapsed());
            }
            status.in_place = true;
            status.notes = done.notes;
        });
    }

    /// Records that the manager uses another variant than before.
    fn note_choice(&mut self) {
        let Some(active) = &self.managers.active else { return };
        let Some(choice) = active.choice() else { return };
        let known = &mut self.choice;
        if known.as_deref().is_some_and(|known| known != choice) {
            let manager = active.kind();
            self.events.send(FirewallEvent::RulesMoved { manager, choice: choice.to_owned() });
            self.status.send_modify(|status| {
                status.manager = Some(manager);
                choice.clone_into(&mut status.choice);
            });
        }
        *known = Some(choice.to_owned());
    }

    /// Removes leftovers of managers without rules to keep. A failure does no harm, so it is noted, and tried again at
    /// a resync.
    async fn clear_unused(&mut self) {
        if self.unclear.as_ref().is_some_and(|(_, until)| Instant::now() < *until) {
            return;
        }
        self.unclear = None;
        while let Some(unused) = self.managers.unused.last_mut() {
            if let Err(error) = clear(unused, &self.ours, &self.events).await {
                let note = format!("rules of an earlier run may be left: {}", chain(&error));
                self.unclear = Some((note, Instant::now() + resync::PERIOD / 2));
                return;
            }
            self.managers.unused.pop();
        }
    }

    /// Replaces the note about unreadable leftovers.
    fn note_unclear(&self, before: Option<&String>) {
        let now = self.unclear.as_ref().map(|(note, _)| note.clone());
        if now.as_ref() == before {
            return;
        }
        if let Some(reason) = now.clone() {
            self.events.send(FirewallEvent::LeftoverRulesUnclear { reason });
        }
        self.status.send_modify(|status| {
            status.notes.retain(|note| Some(note) != before);
            status.notes.extend(now);
        });
    }

    fn failed(&mut self, error: &FirewallError) -> Instant {
        self.set_problem(Some(format!("firewall rules: {}", chain(error))));
        Instant::now() + self.backoff.pause()
    }

    /// Until when to leave the rules alone, and why, if there were too many repairs recently.
    fn rest(&mut self) -> Option<(Instant, String)> {
        let (most, within) = FIGHT;
        while self.repairs.len() > most {
            self.repairs.pop_front();
        }
        let first = self.repairs.front().filter(|_| self.repairs.len() == most)?;
        let until = *first + within;
        let why = format!(
            "firewall rules were put back {most} times in {} s: another program removes or changes them; \
             they are repaired more slowly now",
            within.as_secs()
        );
        (Instant::now() < until).then_some((until, why))
    }

    fn set_problem(&self, problem: Option<String>) {
        if self.status.borrow().problem == problem {
            return;
        }
        self.events.send(match problem.clone() {
            Some(reason) => FirewallEvent::RulesNotReady { reason },
            None => FirewallEvent::RulesReady,
        });
        self.status.send_modify(|status| status.problem = problem);
    }

    async fn wait(&mut self, until: Instant) -> Due {
        // After too many repairs, or after a failure, a notification does not shorten the wait.
        let in_hurry = self.status.borrow().problem.is_none();
        let Managers { active, surroundings, .. } = &mut self.managers;
        let changed = async {
            match active {
                Some(active) if in_hurry => active.changed().await,
                _ => pending().await,
            }
        };
        let around = async {
            match surroundings {
                Some(surroundings) => surroundings.changed().await,
                None => pending().await,
            }
        };
        tokio::select! {
            () = changed => Due::Rules(RepairCause::Announced),
            () = sleep_until(until) => {
                Due::Rules(if in_hurry { RepairCause::Resync } else { RepairCause::Retry })
            }
            () = around => Due::Surroundings,
            Some(question) = self.questions.1.recv() => {
                // What differs is repaired right after the answer.
                self.answer(question).await;
                Due::Rules(RepairCause::Announced)
            }
        }
    }

    async fn answer(&mut self, question: Question) {
        let plan = match self.managers.active.as_deref_mut() {
            Some(active) => active.plan(&self.wanted, &self.ours).await,
            None => Ok(Plan::default()),
        };
        // Whoever asked may be gone.
        let _ = question.send(plan);
    }
}

/// What to check next.
#[derive(Debug, PartialEq, Eq)]
enum Due {
    /// The rules, for this cause.
    Rules(RepairCause),
    Surroundings,
}

/// Removes the leftovers of a manager without rules to keep, if it is installed.
async fn clear(unused: &mut Unused, ours: &Ours, events: &FirewallEventSender) -> Result<(), FirewallError> {
    let Some(unused) = unused.open().await? else { return Ok(()) };
    let manager = unused.name();
    let done = match converge(Some(unused), &Wanted::default(), ours).await {
        // It has no rules of an earlier run either.
        Err(FirewallError::NoNfTables(_)) => return Ok(()),
        done => done?,
    };
    if done.changes > 0 {
        events.send(FirewallEvent::LeftoverRulesRemoved { manager });
    }
    for reason in done.notes {
        events.send(FirewallEvent::LeftoverRulesStay { reason });
    }
    Ok(())
}

/// The result of a comparison.
#[derive(Debug, Default)]
pub(crate) struct Done {
    changes: usize,
    notes: Vec<String>,
}

/// Makes the rules of a manager as wanted, planning again if others change rules meanwhile.
pub(crate) async fn converge(
    manager: Option<&mut (dyn RuleManager + 'static)>,
    wanted: &Wanted,
    ours: &Ours,
) -> Result<Done, FirewallError> {
    let Some(manager) = manager else { return Ok(Done::default()) };
    for _ in 0..TRIES {
        match converge_once(manager, wanted, ours).await {
            Err(FirewallError::Outdated) => {}
            done => return done,
        }
    }
    Err(FirewallError::Outdated)
}

async fn converge_once(
    manager: &mut dyn RuleManager,
    wanted: &Wanted,
    ours: &Ours,
) -> Result<Done, FirewallError> {
    let plan = manager.plan(wanted, ours).await?;
    for step in &plan.steps {
        debug!(manager = manager.name(), commands = ?step.commands, "changing firewall rules");
        manager.apply(step).await?;
    }
    let changes = plan.steps.iter().map(|step| step.commands.len()).sum();
    Ok(Done { changes, notes: plan.notes })
}
