//! Several backends on one node, as one driver for the loop.
//!
//! A node publishes one backend with its lease, and runs others beside it: those that leases of peers name, as far as the
//! network config allows it ([`Mixing`](crate::config::Mixing)), and during a change of the backend the former or the next
//! one. The rules are two: **a peer is reached by the backend that its lease names** if this node runs it, else by a further
//! one by which its node says that it can receive (`ways`); and **a node receives by every backend that a peer may still send
//! with**. So nodes change their backend one by one, in any order, and each only for itself:
//!
//! ```text
//!   the config names another backend    this node brings it up beside the published one, and publishes that it can receive by it
//!   all nodes can, or enough time       it publishes the other one as its own (`switch`); peers replace their routes to it
//!   nobody names the former one         it no longer publishes that it can receive by it; once no packet comes by it any
//!                                       more, it ends (`retire`), and the loop removes its devices as leftovers
//! ```

mod census;
mod combined;
mod retire;
mod switch;
mod ways;
mod workshop;

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

use super::driver::Made;
use super::{AppliedConfig, Devices, Driver};
use crate::backend::{BackendError, Driven, DriverNeeds, PathProofs, Registration};
use crate::config::{BackendConfig, ConfigError};
use crate::error::chain;
use crate::events::NetworkEvent;
use crate::kernel::Kernel;
use crate::lease::{Lease, LeaseAttrs, Reception};
use crate::state_file::{Device, State};
use crate::status::{Counters, Harm, Problem, Reason, Sessions, Subject};

use census::Census;
use retire::Leaving;
use workshop::Workshop;
pub use workshop::check_further;

/// How long to wait before a backend that can't be brought up is tried again.
const RETRY: Duration = Duration::from_secs(5);

/// The drivers of one node.
pub(super) struct Drivers {
    /// Never empty. The published one is among them.
    slots: Vec<Slot>,
    /// The kind of the backend that this node's lease names.
    published: &'static str,
    /// The kind that the network config names.
    target: &'static str,
    /// What further drivers are made from; `None` if the published one can't share the node.
    workshop: Option<Workshop>,
    census: Census,
    /// Whether the store has listed its leases.
    is_synced: bool,
    /// This node's lease; `None` until it is acquired.
    lease: Option<Lease>,
    /// This node's record, as the store has it.
    record: Option<LeaseAttrs>,
    /// Since when the store has a record that offers the target.
    offered: Option<Instant>,
    /// When to look again at a change that waits for other nodes.
    look_at: Instant,
    /// The backends that can't be brought up now.
    failed: BTreeMap<&'static str, Failed>,
    /// What probes have proven about the ways to peers.
    proofs: PathProofs,
    events: Vec<NetworkEvent>,
    woke: Woke,
}

/// What asked for attention last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Woke {
    /// A step of the drivers as a whole is due.
    Step,
    /// Probes have proven something.
    Proof,
    /// The driver of this slot.
    Driver(usize),
}

/// A driver that is up.
pub(super) struct Slot {
    kind: &'static str,
    /// The type that leases of this backend have.
    published_type: String,
    /// Whether packets between nodes are encrypted.
    is_encrypted: bool,
    config: BackendConfig,
    driver: Box<dyn Driver>,
    made: Vec<Device>,
    /// Whether its devices were right once, so that this node can receive by it.
    is_offered: bool,
    /// Reads its sessions with peers, if its tunnel has such.
    sessions: Sessions,
    /// Reads what its datapath counts, if that is outside of the kernel.
    counters: Counters,
    /// Whether nothing needs it any more, and how far its end is.
    leaving: Option<Leaving>,
}

struct Failed {
    reason: String,
    retry_at: Instant,
}

impl Drivers {
    /// The driver of the configured backend, and what others are made from.
    pub(super) fn new(driven: Driven, registration: &Registration<'_>) -> Self {
        let Registration { netns, config, underlay, beside, previous, .. } = *registration;
        let Driven { kind, driver, state } = driven;
        let published_type = driver.attrs().backend_type;
        let config = config.clone();
        let mut slot = Slot::new(kind, published_type, config.backend.clone(), driver, state.devices);
        let mut recalled = previous.map(|previous| previous.beside.clone()).unwrap_or_default();
        recalled.extend(
            previous.and_then(|previous| previous.config.as_ref()).map(|config| config.backend.clone()),
        );
        recalled.retain(|it| it.kind != config.backend.kind);
        let mut proven = previous.map(|previous| previous.proven.clone()).unwrap_or_default();
        proven.retain(|key, _| previous.is_some_and(|previous| previous.leases.contains_key(key)));
        let former = recalled.iter().flat_map(|former| former.mixing.detours()).collect();
        let proofs = PathProofs::new(config.backend.mixing.detours(), former, &proven, Instant::now());
        let (netns, underlay, backends) = (netns.clone(), underlay.clone(), beside.to_vec());
        let workshop = Workshop { netns, config, underlay, backends, recalled };
        slot.is_encrypted = workshop.is_encrypted(kind);
        Self {
            slots: vec![slot],
            published: kind,
            target: kind,
            workshop: workshop.maker(kind).is_some().then_some(workshop),
            census: Census::default(),
            is_synced: false,
            lease: None,
            record: None,
            offered: None,
            look_at: Instant::now(),
            failed: BTreeMap::new(),
            proofs,
            events: Vec::new(),
            woke: Woke::Step,
        }
    }

    /// Brings up the backends that this node ran before, so that its first record says that it still receives by them.
    pub(super) async fn recall(&mut self, kernel: &mut dyn Kernel, previous: Option<&State>) {
        let workshop = self.workshop.iter();
        let kinds =
            workshop.flat_map(|it| it.recalled.iter().filter_map(|config| Some(it.maker(&config.kind)?.0)));
        for kind in kinds.collect::<Vec<_>>() {
            if self.slot(kind).is_none() {
                self.bring_up(kind, kernel, previous).await;
            }
        }
    }

    fn slot(&self, kind: &str) -> Option<&Slot> {
        self.slots.iter().find(|slot| slot.kind == kind)
    }

    fn published(&self) -> &Slot {
        self.slot(self.published).expect("the published backend never ends")
    }

    /// What the state file is to have of all backends.
    fn made(&self) -> Made {
        Made {
            backend: self.published,
            devices: self.slots.iter().flat_map(|slot| slot.made.clone()).collect(),
            beside: self.configs_beside(),
            proven: self.proofs.all(),
        }
    }

    /// The configs of the backends besides the configured one.
    fn configs_beside(&self) -> Vec<BackendConfig> {
        self.slots.iter().filter(|slot| slot.kind != self.target).map(|slot| slot.config.clone()).collect()
    }

    /// Why backends are not up that should be.
    fn troubles(&self) -> impl Iterator<Item = Problem> + '_ {
        self.failed.iter().map(|(kind, failed)| {
            let reason = format!("backend {kind} can't be brought up: {}", failed.reason);
            Problem::new(Subject::Device, Harm::Some, reason)
        })
    }

    /// Brings up the backends that are needed, goes on with a change of the backend, and ends those that nothing needs.
    /// Returns whether the set of drivers or the published one changed.
    async fn arrange(&mut self, kernel: &mut dyn Kernel) -> bool {
        let wanted = self.wanted();
        let mut has_changed = self.retire(&wanted);
        self.failed.retain(|kind, _| wanted.contains(kind));
        for kind in wanted {
            let is_due = self.failed.get(kind).is_none_or(|failed| Instant::now() >= failed.retry_at);
            if self.slot(kind).is_none() && is_due {
                has_changed |= self.bring_up(kind, kernel, None).await;
            }
        }
        let is_shared = self.slots.len() > 1;
        self.slots.iter_mut().for_each(|slot| slot.driver.set_shared(is_shared));
        has_changed | self.advance()
    }

    /// The kinds of the backends that should be up.
    fn wanted(&self) -> Vec<&'static str> {
        let mut wanted = vec![self.published];
        let Some(workshop) = &self.workshop else { return wanted };
        if self.target != self.published {
            wanted.push(self.target);
        }
        let allowed = workshop.all_allowed();
        let type_of = |kind: &str| workshop.maker(kind).map_or("", |(_, maker)| maker.lease_type());
        let types: Vec<&str> = allowed.iter().map(|kind| type_of(kind)).collect();
        let has_others = self.census.has_others(&types);
        for kind in allowed {
            let is_named = self.census.naming(type_of(kind)) > 0;
            let is_further = has_others && self.census.further(kind) > 0;
            // Before the leases are known, those of the last run may still be needed.
            let is_recalled = !self.is_synced && self.slot(kind).is_some();
            let is_in_use = |former: &&BackendConfig| {
                former.kind == self.published || self.census.naming(type_of(&former.kind)) > 0
            };
            // Peers that still have the former one may have no other way to each other.
            let formers = workshop.recalled.iter().filter(is_in_use);
            let detours = [&workshop.config.backend].into_iter().chain(formers);
            let is_detour = detours.flat_map(|it| &it.mixing.fallback).any(|way| way.kind == kind);
            if (is_named || is_further || is_recalled || is_detour) && !wanted.contains(&kind) {
                wanted.push(kind);
            }
        }
        wanted
    }

    /// Makes the driver of a backend. Its devices come with those of the others. Returns whether it is up.
    async fn bring_up(
        &mut self,
        kind: &'static str,
        kernel: &mut dyn Kernel,
        previous: Option<&State>,
    ) -> bool {
        let Some(workshop) = &self.workshop else { return false };
        let (Some((_, maker)), Some(backend)) = (workshop.maker(kind), workshop.allowed(kind)) else {
            return false;
        };
        let stored = previous.and_then(|previous| previous.own.as_ref()).map(|own| &own.attrs);
        let known = self.record.iter().chain(stored).filter_map(|it| it.as_kind(kind, maker.lease_type()));
        let known: Vec<LeaseAttrs> = known.collect();
        let known: Vec<&LeaseAttrs> = known.iter().collect();
        let config = workshop.config_of(&backend);
        let needs = DriverNeeds::new(&workshop.netns, &config, &workshop.underlay, &known, previous);
        match maker.driver(needs, kernel).await {
            Ok(Driven { mut driver, state, .. }) => {
                if let Some(lease) = &self.lease {
                    driver.set_lease(lease);
                }
                let published_type = maker.lease_type().to_owned();
                let is_encrypted = maker.is_encrypted();
                let slot = Slot::new(kind, published_type, backend, driver, state.devices);
                self.slots.push(Slot { is_encrypted, ..slot });
                self.failed.remove(kind);
                self.events.push(NetworkEvent::BackendStarted { backend: kind.to_owned() });
                true
            }
            Err(error) => {
                self.fail(kind, &error);
                false
            }
        }
    }

    /// Lets packets of a peer arrive by another device than the one by which this node sends to it: each of both decides by
    /// what the other one's lease names. The underlay's link is the host's, so there it is only said.
    async fn loosen(&mut self, kernel: &mut dyn Kernel, all: &mut Devices) {
        let Some(underlay) =
            self.workshop.as_ref().filter(|_| self.slots.len() > 1).map(|it| it.underlay.link)
        else {
            return;
        };
        for device in all.shown.iter().filter(|device| device.usable) {
            let name = &device.name;
            let why = if device.link == underlay {
                match kernel.checks_sources(name).await {
                    Ok(checks) => checks.then(|| "rp_filter is 1".to_owned()),
                    Err(error) => Some(chain(&error)),
                }
            } else {
                kernel.loosen_source_check(name).await.err().map(|error| chain(&error))
            };
            if let Some(why) = why {
                let cause = format!(
                    "{name}: {why}, so packets are dropped that come by it from peers which this node reaches by another \
                     backend"
                );
                let advice = format!("set net.ipv4.conf.{name}.rp_filter=2 on this host");
                all.partial.push(Problem::new(Subject::Device, Harm::Some, Reason::new(cause, advice)));
            }
        }
    }

    fn fail(&mut self, kind: &'static str, error: &BackendError) {
        let reason = chain(error);
        let is_news = self.failed.get(kind).is_none_or(|failed| failed.reason != reason);
        if is_news {
            let backend = kind.to_owned();
            self.events.push(NetworkEvent::BackendNotStarted { backend, reason: reason.clone() });
        }
        self.failed.insert(kind, Failed { reason, retry_at: Instant::now() + RETRY });
    }

    /// By which backends this node receives, beside the published one.
    fn receptions(&self) -> Vec<Reception> {
        let others =
            self.slots.iter().filter(|it| it.kind != self.published && it.is_offered && it.leaving.is_none());
        let reception = |slot: &Slot| Reception {
            kind: slot.kind.to_owned(),
            backend_data: slot.driver.attrs().backend_data,
        };
        others.map(reception).collect()
    }

    /// Gives a driver that is up its config, which the network config has changed. One that is not up will be made with it.
    fn apply_to(&mut self, kind: &str, next: &BackendConfig) -> Result<AppliedConfig, ConfigError> {
        let Some(slot) = self.slots.iter_mut().find(|slot| slot.kind == kind) else {
            return Ok(AppliedConfig::default());
        };
        let applied = slot.driver.apply_config(next, slot.config.own_changed_keys(next))?;
        if applied.restart.is_empty() {
            slot.config = next.clone();
        }
        Ok(applied)
    }

    /// Gives the drivers beside the configured one the configs that the network config has for them. Returns whether one of
    /// them takes a restart for that.
    fn apply_to_accepted(&mut self, next: &BackendConfig) -> Result<bool, ConfigError> {
        let mut takes_restart = false;
        for accepted in next.mixing.further() {
            let applied = self.apply_to(&accepted.kind, accepted).map_err(|error| error.placed(accepted))?;
            takes_restart |= !applied.restart.is_empty();
        }
        Ok(takes_restart)
    }

    /// Checks that this node can run the backends that a config lets it run.
    fn check(&self, backend: &BackendConfig) -> Result<(), ConfigError> {
        let Some(workshop) = &self.workshop else { return Ok(()) };
        check_further(&workshop.backends, &workshop.config_of(backend))
    }

    /// When the next step is due that no driver and no lease announces.
    fn next_step(&self) -> Option<Instant> {
        let retry = self.failed.values().map(|failed| failed.retry_at).min();
        let leaving = self.slots.iter().filter_map(|slot| Some(slot.leaving.as_ref()?.look_at)).min();
        [retry, leaving, self.switch_due()].into_iter().flatten().min()
    }
}

impl Slot {
    fn new(
        kind: &'static str,
        published_type: String,
        config: BackendConfig,
        driver: Box<dyn Driver>,
        made: Vec<Device>,
    ) -> Self {
        Self {
            kind,
            published_type,
            is_encrypted: false,
            config,
            driver,
            made,
            is_offered: false,
            sessions: Sessions::default(),
            counters: Counters::default(),
            leaving: None,
        }
    }
}
