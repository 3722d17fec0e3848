//! The change of this node's own key: when it begins, and its steps.

use std::collections::BTreeSet;
use std::time::Duration;

use flannel_core::addr::Family;
use flannel_core::error::chain;
use flannel_core::inspect::CommandError;
use flannel_core::lease::{LeaseKey, is_same_data};
use flannel_core::reconcile::Driver as _;
use tokio::time::Instant;

use super::{Known, SPREAD};
use crate::driver::WireguardDriver;
use crate::key_file::{self, KeyFileError};
use crate::plan::STALE;
use crate::rotation::{Own, PeerView, Phase, Step, Way, is_awaited, step};
use crate::tunnel::Tunnel;

/// How many nodes that are waited for the status names.
const MOST_NAMED: usize = 3;

impl WireguardDriver {
    /// Asks for another key, for an operator. Returns what happens now.
    pub(in crate::driver) fn ask_for_rotation(&mut self) -> Result<String, CommandError> {
        if self.rotation.is_own() {
            let progress = self.rotation.progress.clone().unwrap_or_else(|| "it began just now".to_owned());
            return Ok(format!("the key is being changed already: {progress}"));
        }
        self.rotation.begins = Some(Instant::now());
        self.rotation.look_at = Instant::now();
        if let Some(why) = self.waits_for() {
            return Ok(format!("the key is changed as soon as possible: {why}"));
        }
        self.begin().map_err(|error| CommandError::Failed(chain(&error)))?;
        let (now, next) = (self.key.public(), self.second_key().public());
        Ok(format!("the key is being changed from {now} to {next}; flanneld status shows how far it is"))
    }

    /// Why a change of this node's key can't begin now.
    pub(super) fn waits_for(&self) -> Option<String> {
        let rotation = &self.rotation;
        if let Some(lease) = rotation.others.first() {
            return Some(format!("it waits for node {lease}, which is changing its own"));
        }
        let is_published = rotation.is_synced && self.is_published();
        (!is_published).then(|| "it waits for the store to have this node's record".to_owned())
    }

    pub(super) fn begin(&mut self) -> Result<(), KeyFileError> {
        self.rotation.next = Some(key_file::create(&key_file::next_to(&self.key_file))?);
        self.rotation.begins = None;
        self.enter("key rotation begins: the next key is made");
        self.rotation.desires_anew = true;
        self.rotation.look_at = Instant::now();
        Ok(())
    }

    pub(super) fn begin_if_due(&mut self) {
        if self.rotation.is_own() {
            return;
        }
        let now = Instant::now();
        if self.rotation.begins.is_none() && self.is_key_old() {
            // Those that waited for another node don't all begin when it is done.
            self.rotation.begins = Some(now + Duration::from_secs(60).mul_f64(fastrand::f64()));
        }
        let Some(begins) = self.rotation.begins else { return self.show(None) };
        if let Some(why) = self.waits_for() {
            return self.show(Some(format!("key rotation: {why}")));
        }
        if now >= begins
            && let Err(error) = self.begin()
        {
            // The next try is when the key is found to be old again, or somebody asks again.
            self.rotation.begins = None;
            self.rotation.problem = Some(chain(&error));
            self.show(None);
            self.rotation.has_progress = true;
        }
    }

    pub(super) fn is_key_old(&self) -> bool {
        let Some(every) = self.rotation.every else { return false };
        // The same for one key over restarts, and another for each key.
        let spread = f64::from(self.key.public().0[0]) / 255.0 * SPREAD;
        key_file::age(&self.key_file).is_some_and(|age| age >= every.mul_f64(1.0 + spread))
    }

    /// Whether this node's record in the store is what it publishes.
    pub(super) fn is_published(&self) -> bool {
        let Some(record) = &self.rotation.record else { return false };
        let attrs = self.attrs();
        Family::ALL.iter().all(|family| is_same_data(record.get(*family), attrs.backend_data.get(*family)))
    }

    /// Takes the next step of this node's own rotation.
    pub(super) fn advance(&mut self) {
        if !self.rotation.is_own() {
            return;
        }
        let now = Instant::now();
        let are_up = !self.seconds().is_empty() && self.seconds().iter().all(Tunnel::is_up);
        // Nothing is offered where packets of the peers would be dropped.
        let are_up = are_up && !self.rotation.is_strict;
        let is_published = are_up && self.rotation.is_synced && self.is_published();
        let since = *self.rotation.published.get_or_insert(now);
        if !is_published {
            self.rotation.published = None;
        }
        let own = Own {
            phase: self.phase(),
            is_announced: self.rotation.is_announced,
            is_published,
            waited: now.saturating_duration_since(since),
        };
        let mut awaited = BTreeSet::new();
        for (lease, view) in self.views(own.phase, now) {
            awaited.extend(is_awaited(own, view).then_some(lease));
        }
        match step(own, awaited.len()) {
            Step::Rest => {}
            Step::AwaitStore if !are_up => {
                self.show(Some("key rotation waits for its second devices".to_owned()));
            }
            Step::AwaitStore => self.show(Some("key rotation waits for the store".to_owned())),
            Step::AwaitPeers => {
                let text = match own.phase {
                    Phase::Switched => "the next key is in force, and peers move back",
                    _ => "the next key is offered, and peers move to the second device",
                };
                let names: Vec<String> = awaited.iter().take(MOST_NAMED).map(ToString::to_string).collect();
                let more = awaited.len() - names.len();
                let more = if more > 0 { format!(" and {more} more") } else { String::new() };
                self.show(Some(format!("key rotation: {text}; it waits for {}{more}", names.join(", "))));
            }
            Step::Announce => {
                self.rotation.is_announced = true;
                self.enter("key rotation: the next key is published as this node's key");
            }
            Step::Switch => self.switch(),
            Step::Finish => self.finish(),
        }
    }

    /// What this node sees of each peer.
    pub(super) fn views(&mut self, phase: Phase, now: Instant) -> Vec<(LeaseKey, PeerView)> {
        let (known, firsts) = (std::mem::take(&mut self.rotation.known), self.firsts());
        let mut views = Vec::new();
        for Known { lease, at, keys, way } in known.iter().copied() {
            let second = at + firsts;
            let ago = self.rotation.ago(second, self.second_key(), &keys.second);
            let has_answered = ago.is_some_and(|ago| ago <= STALE);
            let (left, device, key) = match phase {
                Phase::Switched => (Way::Second, second, keys.second),
                _ => (Way::First, at, keys.first),
            };
            let bytes = self.rotation.received(device, &key);
            let quiet = self.rotation.quiet.observe(left, at, key, bytes, now);
            views.push((lease, PeerView { has_answered, way, quiet }));
        }
        self.rotation.known = known;
        views
    }

    pub(super) fn switch(&mut self) {
        let Some(next) = self.rotation.next.clone() else { return };
        match key_file::write(&self.key_file, &next) {
            Ok(()) => {
                self.key = next;
                self.rotation.is_announced = false;
                self.enter("key rotation: the next key is in force");
                self.rotation.desires_anew = true;
            }
            Err(error) => self.fail(&error),
        }
    }

    pub(super) fn finish(&mut self) {
        match key_file::remove(&key_file::next_to(&self.key_file)) {
            Ok(()) => {
                self.rotation.next = None;
                self.enter("key rotation is done");
                self.show(None);
                self.rotation.desires_anew = true;
            }
            Err(error) => self.fail(&error),
        }
    }

    /// Ends a rotation of this node's key without the next one.
    pub(in crate::driver) fn abandon_rotation(&mut self) {
        if self.rotation.is_own() {
            self.finish();
        }
        self.rotation.is_announced = false;
    }

    pub(super) fn fail(&mut self, error: &KeyFileError) {
        self.rotation.has_progress |= self.rotation.problem.is_none();
        self.rotation.problem = Some(chain(error));
    }

    /// Begins a stage.
    pub(super) fn enter(&mut self, detail: &str) {
        self.rotation.published = None;
        self.rotation.quiet.clear();
        self.rotation.tell(&self.tunnels, detail);
        self.rotation.has_progress = true;
    }

    pub(super) fn show(&mut self, progress: Option<String>) {
        self.rotation.has_progress |= self.rotation.progress != progress;
        self.rotation.progress = progress;
    }
}
