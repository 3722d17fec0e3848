//! Rules through iptables, in its legacy and its nft variant.
//!
//! The chains and the text of the rules are Go flannel's, so a node keeps its rules over a change of agent.
//! One `iptables-save` tells what a family has, one `iptables-restore --noflush` changes it. Each table
//! is changed in full or not at all; the tables one after the other.

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
pub(super) use self::variant::legacy_tables;
use self::variant::{Found, Kind, Programs, Usage, Version};
use self::watch::{SHORTEST_RESYNC, Watch};
use super::manager::{FirewallError, Plan, RuleManager, Step, run};
use super::rules::{Chain, Ours, Wanted};
use crate::addr::Family;
use crate::netns::Netns;

/// How long a change may wait for the lock that all iptables programs of the legacy variant share.
const LOCK_WAIT_SECONDS: &str = "5";

/// Holds rules by running iptables programs.
#[derive(Debug)]
pub struct Iptables {
    netns: Netns,
    found: Found,
    /// What rules are to be kept for. Without any there is nothing to choose.
    families: Vec<Family>,
    evidence: Evidence,
    /// How much others use the variant that was not chosen, as far as it was looked at.
    other: Option<Usage>,
    /// Why the other variant is to have the rules from now on.
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
    /// Whose rules were looked for when none were there, and what else was to be said of it.
    clean: Option<(Ours, Vec<String>)>,
}

impl Iptables {
    /// Finds the programs and chooses the variant that this host uses, as Kubernetes' iptables-wrapper does. Rules are
    /// read and kept in a network namespace.
    ///
    /// The chosen variant can do all of `families`. Of the others only leftovers are removed. `resync` is how
    /// often the rules are looked at, at most once a second: always in the legacy variant, and where changes
    /// were announced in the nft variant.
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

    /// Says which program is missing, if one is that rules of these families need.
    pub async fn installed(netns: &Netns, families: &[Family]) -> Result<(), FirewallError> {
        variant::installed(netns, families).await.map(drop)
    }

    /// Which variant was chosen and why, for the log.
    pub fn choice(&self) -> &str {
        &self.found.why
    }

    /// Looks whether others use the other variant now, if they may. Returns whether the rules are to move there.
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
            return false;
        }
        let ask = async |kind| self.found.usage(&self.netns, kind, &self.families).await.ok().flatten();
        let other = ask(other).await;
        if other == self.other && !heard && !self.evidence.is_pending() {
            return false;
        }
        self.other = other;
        let this = ask(this).await;
        self.switch = self.evidence.reconsider(Instant::now(), this, other);
        self.switch.is_some()
    }

    /// From here on the other variant has the rules. Those of this one go once they are there.
    fn move_to_other(&mut self, why: &str) {
        self.found.take(self.evidence.kind, why);
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

    async fn plan(&mut self, want: &Wanted, ours: &Ours) -> Result<Plan, FirewallError> {
        if let Some(why) = self.switch.take() {
            self.move_to_other(&why);
        }
        self.watch.looks();
        // Both came with the same release.
        let (can_be_random, can_wait) =
            (self.is_at_least(Version::RANDOM_FULLY), self.is_at_least(Version::WAIT));
        let mut plan = Plan::default();
        let mut failed = None;
        for place in &mut self.places {
            // What is in the other variant may be all there is, as long as nobody knows what is in this one.
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
            // One family does not wait for the other: the next look fails again, with nothing else to do.
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
    /// Adds what is to be done here.
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

    /// What is there. Tables are not made by looking at them, and no kernel module is loaded for it.
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
        Step {
            program: self.programs.restore,
            args: ["--noflush"].iter().chain(wait).map(ToString::to_string).collect(),
            input: changes.input(),
            commands: changes.commands(&[&[self.programs.command], wait].concat().join(" ")),
        }
    }

    fn unreadable(&self, why: String) -> FirewallError {
        FirewallError::Unreadable { command: self.programs.save.to_owned(), why }
    }
}
