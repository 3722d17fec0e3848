//! Which command each node needs next: what is desired, what was done, and what failed. Pure, but for the random part of the
//! delays between attempts.
//!
//! Nothing shows what a command has done, so a command that succeeded counts as done for as long as this process runs and its
//! values are the same. What an earlier run did is unknown: commands to add nodes are run again, and a node that has left
//! since gets its command to remove it, once the store has listed all nodes.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use flannel_core::backoff::Delays;
use flannel_core::lease::LeaseKey;
use flannel_core::reconcile::PeerWork;
use tokio::time::Instant;

use crate::values::Values;

/// Delays between attempts.
const RETRY: Delays = Delays::new(Duration::from_secs(1), Duration::from_mins(5));

/// What a command gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Input {
    pub(crate) values: Values,
    /// What the node publishes; the standard input.
    pub(crate) data: String,
}

/// What a command is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Action {
    Add,
    Remove,
}

/// A command to run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Job {
    pub(crate) lease: LeaseKey,
    pub(crate) action: Action,
    pub(crate) input: Input,
}

/// What was done for a node.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Done {
    /// Nothing by this run, nor by an earlier one.
    Nothing,
    /// Something, with these values last, that may be in force or not: by an earlier run, by a command that failed, or by
    /// one that is not the config's any more.
    Something(Input),
    /// The command to add the node succeeded with these values.
    Added(Input),
}

/// Why and until when a command is not tried.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Failure {
    action: Action,
    reason: String,
    attempts: u32,
    until: Instant,
    /// The values for which an earlier command is in force.
    in_force: bool,
}

/// One node.
#[derive(Debug, Clone)]
struct Task {
    /// What is desired; `None` for a node that is gone.
    desired: Option<Input>,
    /// Whether the node, if it is gone, may be removed.
    may_go: bool,
    done: Done,
    running: Option<Job>,
    failure: Option<Failure>,
}

impl Task {
    fn new(done: Done) -> Self {
        Self { desired: None, may_go: false, done, running: None, failure: None }
    }

    /// The command that is next, whenever that is.
    fn next(&self) -> Option<(Action, &Input)> {
        match (&self.desired, &self.done) {
            (Some(desired), Done::Added(added)) if desired == added => None,
            (Some(desired), _) => Some((Action::Add, desired)),
            (None, Done::Something(known) | Done::Added(known)) if self.may_go => {
                Some((Action::Remove, known))
            }
            (None, _) => None,
        }
    }

    fn is_over(&self) -> bool {
        self.desired.is_none() && self.running.is_none() && self.done == Done::Nothing
    }
}

/// All nodes.
#[derive(Debug, Default)]
pub(crate) struct Table {
    tasks: BTreeMap<LeaseKey, Task>,
    /// Nodes that may have a command to run now.
    ready: BTreeSet<LeaseKey>,
    /// Nodes whose command waits for its next attempt.
    waiting: BTreeSet<(Instant, LeaseKey)>,
    /// Nodes that are gone, and not known to be gone for sure.
    orphans: BTreeSet<LeaseKey>,
    /// Nodes whose command failed.
    failed: BTreeSet<LeaseKey>,
    /// Nodes whose state changed since [`Self::changed`] was called last.
    changed: BTreeSet<LeaseKey>,
}

impl Table {
    /// A table for the nodes that an earlier run knew.
    pub(crate) fn remembering(known: impl IntoIterator<Item = (LeaseKey, Input)>) -> Self {
        let mut table = Self::default();
        for (lease, input) in known {
            table.tasks.insert(lease, Task::new(Done::Something(input)));
            table.orphans.insert(lease);
        }
        table
    }

    /// Desires one node, besides those of [`Self::desire_all`].
    pub(crate) fn desire(&mut self, lease: LeaseKey, input: Input) {
        let task = self.tasks.entry(lease).or_insert_with(|| Task::new(Done::Nothing));
        self.orphans.remove(&lease);
        if task.desired.as_ref() == Some(&input) {
            return;
        }
        (task.desired, task.may_go) = (Some(input), false);
        self.hurry(lease);
    }

    /// Desires these nodes, and none of the others but `apart`.
    pub(crate) fn desire_all(&mut self, nodes: BTreeMap<LeaseKey, Input>, apart: Option<LeaseKey>) {
        let is_gone = |(lease, task): &(&LeaseKey, &Task)| {
            task.desired.is_some() && !nodes.contains_key(lease) && Some(**lease) != apart
        };
        let gone: Vec<LeaseKey> = self.tasks.iter().filter(is_gone).map(|(lease, _)| *lease).collect();
        for lease in gone {
            if let Some(task) = self.tasks.get_mut(&lease) {
                task.desired = None;
                self.orphans.insert(lease);
                self.forget_failure(lease);
                self.changed.insert(lease);
            }
        }
        for (lease, input) in nodes {
            self.desire(lease, input);
        }
    }

    /// Counts a command as done that was run elsewhere.
    pub(crate) fn was_added(&mut self, lease: LeaseKey, input: Input) {
        let task = Task { desired: Some(input.clone()), ..Task::new(Done::Added(input)) };
        self.tasks.insert(lease, task);
    }

    /// The store has listed all nodes: those that are gone may be removed, except those that are unreadable there.
    pub(crate) fn prune(&mut self, is_unreadable: &dyn Fn(&LeaseKey) -> bool) {
        let gone: Vec<LeaseKey> =
            self.orphans.iter().filter(|lease| !is_unreadable(lease)).copied().collect();
        for lease in gone {
            self.orphans.remove(&lease);
            if let Some(task) = self.tasks.get_mut(&lease) {
                task.may_go = true;
                self.ready.insert(lease);
            }
        }
    }

    /// Lets all nodes but `apart` be added again, since the command is another one.
    pub(crate) fn add_again(&mut self, apart: Option<LeaseKey>) {
        let others: Vec<LeaseKey> =
            self.tasks.keys().filter(|lease| Some(**lease) != apart).copied().collect();
        for lease in others {
            let Some(task) = self.tasks.get_mut(&lease) else { continue };
            if let Done::Added(input) = &task.done {
                task.done = Done::Something(input.clone());
            }
            if task.desired.is_some() {
                self.hurry(lease);
            }
        }
    }

    /// Tries a node at once.
    fn hurry(&mut self, lease: LeaseKey) {
        self.forget_failure(lease);
        self.ready.insert(lease);
        self.changed.insert(lease);
    }

    fn forget_failure(&mut self, lease: LeaseKey) {
        self.failed.remove(&lease);
        if let Some(failure) = self.tasks.get_mut(&lease).and_then(|task| task.failure.take()) {
            self.waiting.remove(&(failure.until, lease));
        }
    }

    /// Takes the next command to run.
    pub(crate) fn start(&mut self) -> Option<Job> {
        while let Some(lease) = self.ready.pop_first() {
            let Some(task) = self.tasks.get_mut(&lease) else { continue };
            if task.is_over() {
                self.tasks.remove(&lease);
                self.failed.remove(&lease);
                continue;
            }
            // One that runs is looked at again when it has ended.
            if task.running.is_some() {
                continue;
            }
            let Some((action, input)) = task.next() else { continue };
            let job = Job { lease, action, input: input.clone() };
            // From now on it is unknown what there is.
            if let (Action::Add, Done::Nothing) = (action, &task.done) {
                task.done = Done::Something(job.input.clone());
            }
            task.running = Some(job.clone());
            return Some(job);
        }
        None
    }

    /// Records how the command of a node ended.
    pub(crate) fn ended(&mut self, lease: LeaseKey, result: Result<(), String>, now: Instant) {
        let Some(task) = self.tasks.get_mut(&lease) else { return };
        let Some(Job { action, input, .. }) = task.running.take() else { return };
        self.ready.insert(lease);
        self.changed.insert(lease);
        let was_added = matches!(task.done, Done::Added(_));
        let reason = match (result, action) {
            (Ok(()), Action::Add) => {
                task.done = Done::Added(input);
                return self.forget_failure(lease);
            }
            (Ok(()), Action::Remove) => {
                task.done = Done::Nothing;
                return self.forget_failure(lease);
            }
            (Err(reason), _) => reason,
        };
        // What was added before with other values may still work, or not.
        let in_force =
            task.failure.as_ref().map_or(was_added, |failure| failure.in_force) && action == Action::Add;
        // It may have done a part of its work, also of removing what was there.
        task.done = Done::Something(input.clone());
        let is_same = task.next().is_some_and(|(next, with)| next == action && *with == input);
        if !is_same {
            // It failed with values that nobody wants any more.
            return self.forget_failure(lease);
        }
        let attempts = task.failure.as_ref().map_or(0, |failure| failure.attempts);
        let until = now + RETRY.jittered(attempts);
        task.failure = Some(Failure { action, reason, attempts: attempts + 1, until, in_force });
        self.ready.remove(&lease);
        self.waiting.insert((until, lease));
        self.failed.insert(lease);
    }

    /// When a command is to be tried again.
    pub(crate) fn due(&self) -> Option<Instant> {
        self.waiting.first().map(|(at, _)| *at)
    }

    /// Lets the commands be tried that are due.
    pub(crate) fn wake(&mut self, now: Instant) {
        while let Some((at, lease)) = self.waiting.first().copied().filter(|(at, _)| *at <= now) {
            self.waiting.remove(&(at, lease));
            self.ready.insert(lease);
        }
    }

    /// Whether there may be a command to run.
    #[cfg(test)]
    pub(crate) fn is_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    /// The nodes whose state changed since the last call.
    pub(crate) fn changed(&mut self) -> Vec<LeaseKey> {
        std::mem::take(&mut self.changed).into_iter().collect()
    }

    /// How far the work for a node is.
    pub(crate) fn work_for(&self, lease: &LeaseKey) -> PeerWork {
        let Some(task) = self.tasks.get(lease) else { return PeerWork::Done };
        match (&task.failure, task.next()) {
            (Some(failure), _) => {
                PeerWork::Failed { reason: failure.reason.clone(), in_force: failure.in_force }
            }
            (None, Some(_)) => PeerWork::Pending,
            (None, None) => PeerWork::Done,
        }
    }

    /// The nodes that could not be added, or removed, with the reason.
    pub(crate) fn failures(&self, of: Action) -> impl Iterator<Item = (LeaseKey, &str)> {
        self.failed.iter().filter_map(move |lease| {
            let failure = self.tasks.get(lease)?.failure.as_ref().filter(|failure| failure.action == of)?;
            Some((*lease, failure.reason.as_str()))
        })
    }
}

#[cfg(test)]
mod tests;
