//! Rules by iptables, in its legacy and its nft variant.
//!
//! The chains and the text of the rules are Go flannel's, so a node keeps its rules when the agent changes. One
//! `iptables-save` reads the rules of a family, one `iptables-restore --noflush` changes them. Each table is changed
//! completely or not at all, one table after the other.

mod evidence;
#[cfg(any(test, feature = "testing"))]
pub(crate) mod fuzz;
mod rule_text;
mod save;
mod script;
#[cfg(test)]
mod tests;
mod unseen;
mod variant;
mod watch;

use std::time::Duration;

use async_trait::async_trait;
use tokio::time::{Instant, sleep_until};

use self::evidence::Evidence;
pub(super) use self::rule_text::words;
use self::save::Dump;
pub use self::unseen::{UnseenRules, unseen_rules};
use self::variant::{Found, Kind, Programs, Usage, Version};
pub(super) use self::variant::{legacy_tables, may_have_rules};
use self::watch::{SHORTEST_RESYNC, Watch};
use super::error::FirewallError;
use super::manager::{Plan, RuleManager, Step, Work};
use super::program::run;
use super::rules::{Chain, Ours, Wanted};
use crate::addr::Family;
use crate::netns::Netns;

/// How long a change may wait for the lock that all iptables programs of the legacy variant share.
const LOCK_WAIT_SECONDS: &str = "5";

/// Keeps rules by running iptables programs.
#[derive(Debug)]
pub struct Iptables {
    netns: Netns,
    found: Found,
    /// The families for which rules are kept. Without any there is nothing to choose.
    families: Vec<Family>,
    evidence: Evidence,
    /// How much others use the other variant, as last read.
    other: Option<Usage>,
    /// Why the rules should move to the other variant.
    switch: Option<String>,
    next_check: Instant,
    resync: Duration,
    watch: Watch,
    /// Where rules of ours can be; those of the chosen variant first.
    places: Vec<Place>,
}

/// One variant's rules of one family.
#[derive(Debug)]
struct Place {
    kind: Kind,
    family: Family,
    programs: Programs,
    is_chosen: bool,
    /// If the last read found no rules of ours: what counted as ours, and the notes.
    clean: Option<(Ours, Vec<String>)>,
}

impl Iptables {
    /// Finds the programs and chooses the variant that this host uses, as Kubernetes' iptables-wrapper does. It reads
    /// and keeps rules in a network namespace.
    ///
    /// The chosen variant supports all of `families`. For other families only leftovers are removed. `resync` is the
    /// interval between two reads of the rules, one second at least: in the legacy variant they are always read, in the
    /// nft variant only after a notification.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime with I/O and time.
    pub async fn open(netns: &Netns, families: &[Family], resync: Duration) -> Result<Self, FirewallError> {
        let found = variant::find(netns, families).await?;
        let mut places = Vec::new();
        for kind in [found.kind, found.kind.other()] {
            for (family, programs) in found.programs(kind) {
                places.push(Place { kind, family, programs, is_chosen: kind == found.kind, clean: None });
            }
        }
        let (evidence, watch) = (Evidence::new(found.kind), Watch::new(netns, found.kind, resync));
        let (netns, families, resync) = (netns.clone(), families.to_vec(), resync.max(SHORTEST_RESYNC));
        let next_check = Instant::now() + resync;
        let (other, switch) = (None, None);
        Ok(Self { netns, found, families, evidence, other, switch, next_check, resync, watch, places })
    }

    /// Fails if a program is missing that rules of these families need, and names it.
    pub async fn installed(netns: &Netns, families: &[Family]) -> Result<(), FirewallError> {
        variant::installed(netns, families).await.map(drop)
    }

    /// Which variant was chosen and why, for the log.
    pub fn choice(&self) -> &str {
        &self.found.why
    }

    /// Checks whether others use the other variant now, if that may have changed. Returns whether the rules should move
    /// there. Dropping the future loses nothing: what it reads counts once all is read.
    async fn check(&mut self) -> bool {
        self.next_check = Instant::now() + self.resync;
        if self.families.is_empty() || self.switch.is_some() {
            return self.switch.is_some();
        }
        let (this, other) = (self.found.kind, self.found.kind.other());
        let heard = self.watch.heard_of_iptables();
        let may_be_used = match other {
            Kind::Nft => heard,
            Kind::Legacy => {
                let in_use = |family: &Family| {
                    legacy_tables(&self.netns, *family).is_ok_and(|tables| !tables.is_empty())
                };
                Family::ALL.iter().any(in_use)
            }
        };
        if !may_be_used && !self.evidence.is_pending() {
            self.watch.forget_heard();
            return false;
        }
        let ask = async |kind| self.found.usage(&self.netns, kind, &self.families).await.ok().flatten();
        let other = ask(other).await;
        if other == self.other && !heard && !self.evidence.is_pending() {
            return false;
        }
        let this = ask(this).await;
        self.watch.forget_heard();
        // What there was nothing to compare with is looked at again.
        self.other = other.filter(|_| this.is_some());
        self.switch = self.evidence.reconsider(Instant::now(), this, other);
        self.switch.is_some()
    }

    /// Moves the rules to the other variant. Those of this one are removed once the others are in place.
    fn move_to_other(&mut self, why: &str) {
        self.found.switch_to(self.evidence.kind, why);
        for place in &mut self.places {
            (place.is_chosen, place.clean) = (place.kind == self.found.kind, None);
        }
        self.places.sort_by_key(|place| !place.is_chosen);
        self.other = None;
        self.watch.follow(self.found.kind);
    }

    fn is_at_least(&self, version: Version) -> bool {
        self.found.version.is_some_and(|ours| ours >= version)
    }
}

#[async_trait]
impl RuleManager for Iptables {
    fn name(&self) -> &'static str {
        "iptables"
    }

    fn kind(&self) -> &'static str {
        self.found.kind.manager()
    }

    async fn plan(&mut self, want: &Wanted, ours: &Ours) -> Result<Plan, FirewallError> {
        if let Some(why) = self.switch.take() {
            self.move_to_other(&why);
        }
        self.watch.looks();
        // Both options came with the same release.
        let (can_be_random, can_wait) =
            (self.is_at_least(Version::RANDOM_FULLY), self.is_at_least(Version::WAIT));
        let mut plan = Plan::default();
        let mut failed = None;
        for place in &mut self.places {
            // While the rules of the chosen variant can't be read, those of the other variant stay, since they may be
            // the only ones.
            if failed.is_some() && !place.is_chosen {
                break;
            }
            let want = Chain::ALL.map(|chain| {
                let rules = want.rules(place.family, chain, can_be_random);
                (chain, rules.filter(|_| place.is_chosen))
            });
            match place.plan(&self.netns, &want, ours, can_wait, &mut plan).await {
                Err(error) if want.iter().all(|(_, rules)| rules.is_none()) => {
                    plan.notes.push(format!("whether rules of ours are left can't be seen: {error}"));
                }
                Err(error) => _ = failed.get_or_insert(error),
                Ok(()) => {}
            }
        }
        match failed {
            // A failure of one family does not delay the other: the next attempt fails again, and then there is nothing
            // else to do.
            Some(error) if !plan.steps.is_empty() => plan.notes.push(error.to_string()),
            Some(error) => return Err(error),
            None => {}
        }
        Ok(plan)
    }

    async fn apply(&mut self, step: &Step) -> Result<(), FirewallError> {
        step.run(&self.netns).await
    }

    async fn changed(&mut self) {
        loop {
            tokio::select! {
                () = self.watch.wait() => return,
                () = sleep_until(self.next_check) => {}
            }
            if self.check().await {
                return;
            }
        }
    }

    fn choice(&self) -> Option<&str> {
        Some(&self.found.why)
    }
}

impl Place {
    /// Adds the steps for this variant and family.
    async fn plan(
        &mut self,
        netns: &Netns,
        want: &script::Want,
        ours: &Ours,
        can_wait: bool,
        plan: &mut Plan,
    ) -> Result<(), FirewallError> {
        let wants_none = want.iter().all(|(_, rules)| rules.is_none());
        if let Some((_, notes)) = self.clean.as_ref().filter(|(then, _)| wants_none && then == ours) {
            plan.notes.extend(notes.iter().cloned());
            return Ok(());
        }
        self.clean = None;
        let text = self.look(netns).await?;
        let dump = Dump::parse(&text).map_err(|why| self.unreadable(why))?;
        let changes = script::plan(&dump, want, |chain, rule| ours.owns(self.family, chain, rule));
        if let Some(table) = changes.hidden_table {
            let why = format!("table {table} has rules that only `nft list table` can show");
            return Err(self.unreadable(why));
        }
        let said = |note: &String| format!("{}: {note}", self.programs.command);
        let notes: Vec<_> = changes.notes.iter().map(said).collect();
        plan.notes.extend(notes.iter().cloned());
        if !changes.is_empty() {
            plan.steps.push(self.step(&changes, can_wait));
        } else if wants_none {
            self.clean = Some((ours.clone(), notes));
        }
        Ok(())
    }

    /// Reads the rules. That neither creates tables nor loads kernel modules.
    async fn look(&self, netns: &Netns) -> Result<String, FirewallError> {
        let is_unused = self.kind == Kind::Legacy
            && match variant::legacy_tables(netns, self.family) {
                Ok(tables) => tables.is_empty(),
                Err(_) => !self.is_chosen,
            };
        if is_unused {
            return Ok(String::new());
        }
        match run(netns, self.programs.save, &[""; 0], "").await {
            // A kernel without this variant has no rules in it.
            Err(FirewallError::Failed { .. }) if !self.is_chosen => Ok(String::new()),
            told => told,
        }
    }

    fn step(&self, changes: &script::Changes, can_wait: bool) -> Step {
        let wait = ["-w", LOCK_WAIT_SECONDS];
        let wait = if can_wait { &wait[..] } else { &[] };
        let work = Work::Program {
            program: self.programs.restore,
            args: ["--noflush"].iter().chain(wait).map(ToString::to_string).collect(),
            input: changes.input(),
        };
        Step { work, commands: changes.commands(&[&[self.programs.command], wait].concat().join(" ")) }
    }

    fn unreadable(&self, why: String) -> FirewallError {
        FirewallError::Unreadable { command: self.programs.save.to_owned(), why }
    }
}
