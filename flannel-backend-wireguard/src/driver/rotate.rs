//! Carries out what [`crate::rotation`] decides: makes the second devices, reads the sessions, moves peers, changes the key.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::{Duration, SystemTime};

use flannel_core::addr::{Family, LinkIndex, PerFamily};
use flannel_core::dataplane::{KERNEL_PROTOCOL, Object};
use flannel_core::error::chain;
use flannel_core::events::NetworkEvent;
use flannel_core::inspect::CommandError;
use flannel_core::kernel::{Kernel, KernelError, Kinds, LinkOp, Scope};
use flannel_core::lease::{BackendData, LeaseKey, is_same_data};
use flannel_core::peers::Peer;
use flannel_core::reconcile::{Devices, Driver as _};
use flannel_core::status::{Harm, Problem, Subject};
use tokio::time::Instant;
use tracing::warn;

use super::{WireguardDriver, keys};
use crate::device::DeviceState;
use crate::key::{PrivateKey, PublicKey};
use crate::key_file::{self, KeyFileError};
use crate::peer::Keys;
use crate::rotation::{Keepalive, Own, PeerView, Phase, Quiet, Sessions, Step, Way, keepalive, step, way};
use crate::tunnel::Tunnel;

/// The name of the command that begins a rotation.
pub(super) const COMMAND: &str = "rotate-key";
/// How often the sessions are looked at while a node changes its key: the kernel tells nobody of handshakes.
const LOOK: Duration = Duration::from_secs(1);
/// How often to look whether the key has become old.
const AGE_LOOK: Duration = Duration::from_secs(60);
/// The longest time for which a second device that somebody may still need is left alone before the next look at it.
const KEPT: Duration = Duration::from_secs(60);
/// At most this much longer than the interval a key is in use, so that nodes which began together change it one by one.
const SPREAD: f64 = 0.1;
/// Seconds between packets that begin a handshake.
const KEEPALIVE: u16 = 10;

/// What this node knows of changes of keys, its own and those of others.
pub(crate) struct Rotation {
    /// The next key of this node, if it changes its own: that of the file beside the key file.
    next: Option<PrivateKey>,
    /// Whether the next key is published as the key, which the first devices do not have yet.
    is_announced: bool,
    /// The backend data of this node's record in the store.
    pub(super) record: Option<PerFamily<BackendData>>,
    /// Since when that has been what this node publishes.
    published: Option<Instant>,
    /// Whether the store has listed its leases.
    pub(super) is_synced: bool,
    /// After what time a key is changed; `None` if never.
    every: Option<Duration>,
    /// When a change of this node's key that was asked for, or is due, may begin.
    begins: Option<Instant>,
    /// Peers on two devices.
    known: Vec<Known>,
    keepalives: BTreeMap<(LinkIndex, PublicKey), Keepalive>,
    /// The nodes that change their keys.
    others: BTreeSet<LeaseKey>,
    /// The content of each device, as last read while there are second ones.
    states: Vec<Option<DeviceState>>,
    quiet: Quiet,
    /// Whether second devices of an earlier run were looked for.
    has_looked_for_second: bool,
    /// When second devices that nobody seems to need may be removed.
    removes: Instant,
    /// When to look next.
    pub(super) look_at: Instant,
    desires_anew: bool,
    has_progress: bool,
    /// How far it is, in words.
    progress: Option<String>,
    /// Whether packets from peers that arrive by the device which this node's route does not take may be dropped. Then the
    /// second devices get no peers.
    pub(super) is_strict: bool,
    /// Why it does not go on.
    pub(super) problem: Option<String>,
    events: Vec<NetworkEvent>,
}

/// A peer on a pair of devices.
#[derive(Debug, Clone, Copy)]
struct Known {
    lease: LeaseKey,
    /// The place of the first device.
    at: usize,
    keys: Keys,
    /// By which of them the route goes.
    way: Way,
}

impl Rotation {
    /// What an earlier run left in the file beside the key file. A key is changed `every` so often.
    pub(crate) fn of(key_file: &Path, every: Option<Duration>) -> Self {
        let next = key_file::read(&key_file::next_to(key_file)).unwrap_or_else(|error| {
            warn!(error = chain(&error), "an unfinished change of the WireGuard key can't go on");
            None
        });
        let now = Instant::now();
        Self {
            next,
            is_announced: false,
            record: None,
            published: None,
            is_synced: false,
            every,
            begins: None,
            known: Vec::new(),
            keepalives: BTreeMap::new(),
            others: BTreeSet::new(),
            states: Vec::new(),
            quiet: Quiet::default(),
            has_looked_for_second: false,
            removes: now,
            look_at: now + LOOK,
            desires_anew: false,
            has_progress: false,
            progress: None,
            is_strict: false,
            problem: None,
            events: Vec::new(),
        }
    }

    /// Whether this node changes its own key.
    pub(super) fn is_own(&self) -> bool {
        self.next.is_some()
    }

    fn is_any(&self) -> bool {
        self.is_own() || !self.others.is_empty()
    }

    /// Whether the last look found that other objects are desired.
    pub(super) fn desires_anew(&mut self) -> bool {
        std::mem::take(&mut self.desires_anew)
    }

    /// Whether the last look found something for the status.
    pub(super) fn has_progress(&mut self) -> bool {
        std::mem::take(&mut self.has_progress)
    }

    pub(super) fn forget_peers(&mut self) {
        self.known.clear();
        self.keepalives.clear();
        self.others.clear();
    }

    pub(super) fn problems(&self) -> Vec<Problem> {
        let progress =
            self.progress.iter().map(|text| Problem::new(Subject::Device, Harm::None, text.clone()));
        let problem = self.problem.iter().map(|text| {
            let text = format!("key rotation can't go on, and packets flow as before: {text}");
            Problem::new(Subject::Device, Harm::None, text)
        });
        progress.chain(problem).collect()
    }

    fn tell(&mut self, tunnels: &[Tunnel], detail: &str) {
        let link = tunnels.first().map_or("", |tunnel| tunnel.name).to_owned();
        self.events.push(NetworkEvent::DeviceChanged { link, detail: detail.to_owned() });
    }

    /// How long ago the last handshake was of a device that has `own` key, with a peer.
    fn ago(&self, device: usize, own: &PrivateKey, peer: &PublicKey) -> Option<Duration> {
        let state =
            self.states.get(device)?.as_ref().filter(|state| state.private_key.as_ref() == Some(own))?;
        let at = state.peers.get(peer)?.last_handshake?;
        // One in the future was before the clock was set back.
        Some(SystemTime::now().duration_since(at).unwrap_or_default())
    }

    fn received(&self, device: usize, peer: &PublicKey) -> u64 {
        let state = self.states.get(device).and_then(Option::as_ref);
        state.and_then(|state| state.peers.get(peer)).map_or(0, |peer| peer.rx_bytes)
    }
}

impl WireguardDriver {
    fn firsts(&self) -> usize {
        self.tunnels.iter().filter(|tunnel| tunnel.second_key.is_none()).count()
    }

    fn seconds(&self) -> &[Tunnel] {
        &self.tunnels[self.firsts()..]
    }

    /// The key of the second devices: the next one, or the present one of a node that serves another's rotation.
    pub(super) fn second_key(&self) -> &PrivateKey {
        self.rotation.next.as_ref().unwrap_or(&self.key)
    }

    /// The second device of each family.
    pub(super) fn second_links(&self) -> PerFamily<LinkIndex> {
        PerFamily::from_fn(|family| {
            let tunnel = self.seconds().iter().find(|tunnel| tunnel.families.contains(&family))?;
            tunnel.link.as_ref().map(|link| link.index)
        })
    }

    /// What this node publishes: its key, and the next one once devices receive with it.
    pub(super) fn published_keys(&self) -> (PublicKey, Option<PublicKey>) {
        let next = self.rotation.next.as_ref().map(PrivateKey::public);
        let are_up = !self.seconds().is_empty() && self.seconds().iter().all(Tunnel::is_up);
        let key = next.filter(|_| self.rotation.is_announced).unwrap_or_else(|| self.key.public());
        (key, next.filter(|_| are_up && !self.rotation.is_strict))
    }

    fn phase(&self) -> Phase {
        match &self.rotation.next {
            None => Phase::Idle,
            Some(next) if *next == self.key => Phase::Switched,
            Some(_) => Phase::Offered,
        }
    }

    /// By which device a peer is reached.
    pub(super) fn way(&self, family: Family, keys: Keys) -> Way {
        let at = self.tunnels.iter().position(|tunnel| tunnel.families.contains(&family));
        at.map_or(Way::First, |at| self.way_at(at, keys))
    }

    fn way_at(&self, at: usize, keys: Keys) -> Way {
        let second = at + self.firsts();
        if !self.tunnels.get(second).is_some_and(Tunnel::is_up) {
            return Way::First;
        }
        let sessions = Sessions {
            first: self.rotation.ago(at, &self.key, &keys.first),
            second: self.rotation.ago(second, self.second_key(), &keys.second),
        };
        way(self.phase(), keys.phase, sessions)
    }

    /// Remembers on which devices a programmed peer is, and by which it is reached.
    pub(super) fn note_rotation_of(&mut self, lease: LeaseKey, peer: &Peer) {
        if peer.data.is_some() {
            self.rotation.others.insert(lease);
        }
        let (firsts, ours) = (self.firsts(), self.phase());
        let link = |tunnel: &Tunnel| tunnel.link.as_ref().map(|link| link.index);
        for at in 0..self.seconds().len() {
            let (Some(first), Some(second)) = (link(&self.tunnels[at]), link(&self.tunnels[firsts + at]))
            else {
                continue;
            };
            let key_on = |on| keys(peer).find(|(link, ..)| *link == on).map(|(_, key, _)| key);
            let (Some(first_key), Some(second_key)) = (key_on(first), key_on(second)) else { continue };
            let phase = Phase::of(first_key, peer.data.as_ref().map(|_| second_key));
            let is_second =
                |object: &Object| matches!(object, Object::Route(route) if route.link == Some(second));
            let way = if peer.objects.iter().any(is_second) { Way::Second } else { Way::First };
            let keys = Keys { first: first_key, second: second_key, phase };
            self.rotation.known.push(Known { lease, at, keys, way });
            for (link, key, device) in [(first, first_key, Way::First), (second, second_key, Way::Second)] {
                self.rotation.keepalives.insert((link, key), keepalive(device, way, ours, phase));
            }
        }
    }

    /// The keepalive interval of a peer, if it is not that of the config.
    pub(super) fn keepalive(&self, link: LinkIndex, key: PublicKey) -> Option<u16> {
        let configured = Some(self.config.keepalive).filter(|seconds| *seconds > 0);
        match self.rotation.keepalives.get(&(link, key))? {
            Keepalive::AsConfigured => None,
            Keepalive::Off => Some(0),
            Keepalive::Handshake => Some(configured.map_or(KEEPALIVE, |seconds| seconds.min(KEEPALIVE))),
        }
    }

    /// Looks at once if second devices are needed, or no longer.
    pub(super) fn hurry_rotation(&mut self) {
        if self.rotation.is_any() == self.seconds().is_empty() {
            self.rotation.look_at = Instant::now();
        }
    }

    /// Adds the second devices to those that are to be there, or removes them.
    pub(super) async fn choose_second(
        &mut self,
        kernel: &mut dyn Kernel,
        devices: &mut Devices,
    ) -> Result<(), KernelError> {
        self.rotation.problem = None;
        devices.events.append(&mut self.rotation.events);
        let (key, firsts) = (self.second_key().clone(), self.firsts());
        for tunnel in &mut self.tunnels[firsts..] {
            tunnel.second_key = Some(key.clone());
        }
        if self.seconds().is_empty() {
            let seconds: Vec<Tunnel> = self.tunnels.iter().map(|first| first.second(key.clone())).collect();
            let mut is_there = false;
            if !std::mem::replace(&mut self.rotation.has_looked_for_second, true) {
                for tunnel in &seconds {
                    let link = kernel.link(tunnel.name).await?;
                    let (kind, other) = (self.chosen.provider.kind(), self.chosen.provider.supersedes());
                    let is_ours = |of: &str| of == kind || Some(of) == other;
                    is_there |= link.is_some_and(|link| link.kind.as_deref().is_some_and(is_ours));
                }
            }
            if is_there || self.rotation.is_any() {
                self.tunnels.extend(seconds);
            }
        } else if self.may_remove_second() {
            if self.is_second_unused(kernel).await? {
                self.remove_second(kernel, devices).await;
            } else {
                self.rotation.removes = Instant::now() + KEPT;
            }
        }
        Ok(())
    }

    /// Whether nobody needs the second devices, as far as the leases say.
    fn may_remove_second(&self) -> bool {
        let rotation = &self.rotation;
        let is_time = Instant::now() >= rotation.removes;
        let are_all_back = rotation.known.iter().all(|known| known.way == Way::First);
        !self.seconds().is_empty() && !rotation.is_any() && rotation.is_synced && is_time && are_all_back
    }

    /// Whether no route to a peer goes by a second device: there may be one of a peer whose record is unreadable.
    async fn is_second_unused(&self, kernel: &mut dyn Kernel) -> Result<bool, KernelError> {
        for tunnel in self.seconds() {
            let Some(link) = tunnel.link.as_ref().filter(|_| tunnel.is_there) else { continue };
            for family in &tunnel.families {
                let scope = Scope { link: link.index, family: *family, kinds: Kinds::ROUTES };
                let is_ours = |object: &Object| {
                    matches!(object, Object::Route(route)
                        if route.protocol != KERNEL_PROTOCOL && self.in_overlay(route.dst))
                };
                if kernel.objects(scope).await?.iter().any(is_ours) {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }

    async fn remove_second(&mut self, kernel: &mut dyn Kernel, devices: &mut Devices) {
        let firsts = self.firsts();
        for tunnel in self.tunnels.split_off(firsts) {
            if let Some(link) = tunnel.link.as_ref().filter(|_| tunnel.is_there)
                && let Err(error) = kernel.change_link(&LinkOp::Delete(link.index)).await
                && error.errno() != Some(libc::ENODEV)
            {
                self.rotation.problem = Some(chain(&error));
                self.rotation.removes = Instant::now() + KEPT;
                self.tunnels.push(tunnel);
                continue;
            }
            let (link, detail) =
                (tunnel.name.to_owned(), "removed: no node changes its key any more".to_owned());
            devices.events.push(NetworkEvent::DeviceChanged { link, detail });
        }
        self.rotation.states.clear();
    }

    /// Reads the sessions while there are two devices, and lets packets from a peer arrive on either.
    pub(super) async fn look_at_sessions(&mut self, kernel: &mut dyn Kernel) {
        if self.seconds().is_empty() {
            return;
        }
        self.read_sessions().await;
        self.rotation.is_strict = false;
        for tunnel in self.tunnels.iter().filter(|tunnel| tunnel.families.contains(&Family::V4)) {
            if let Some(link) = tunnel.link.as_ref().filter(|_| tunnel.is_there)
                && let Err(error) = kernel.loosen_source_check(&link.name).await
            {
                let advice = "set net.ipv4.conf.all.rp_filter=2 on this host";
                self.rotation.problem = Some(format!("{}; {advice}", chain(&error)));
                self.rotation.is_strict = true;
            }
        }
    }

    async fn read_sessions(&mut self) {
        self.rotation.states.resize(self.tunnels.len(), None);
        for (tunnel, seen) in self.tunnels.iter().zip(&mut self.rotation.states) {
            let Some(device) = tunnel.device.as_ref().filter(|_| tunnel.is_there) else {
                *seen = None;
                continue;
            };
            // One that can't be read now is as it was; holding it reports the error.
            if let Ok(state) = device.state().await {
                *seen = Some(state);
            }
        }
    }

    /// Looks at sessions, and takes the next step. Returns whether the loop has something to do.
    pub(super) async fn look_at_rotation(&mut self) -> bool {
        if !self.seconds().is_empty() {
            self.read_sessions().await;
        }
        self.begin_if_due();
        self.advance();
        let has_moved = |known: &Known| self.way_at(known.at, known.keys) != known.way;
        let are_missing = self.rotation.is_any() && self.seconds().is_empty();
        let is_news = self.rotation.known.iter().any(has_moved) || are_missing || self.may_remove_second();
        self.rotation.desires_anew |= is_news;
        self.schedule();
        self.rotation.desires_anew || self.rotation.has_progress
    }

    fn schedule(&mut self) {
        let rotation = &self.rotation;
        let is_active = rotation.is_any() || rotation.begins.is_some() || !self.seconds().is_empty();
        let pause = match rotation.every {
            _ if is_active => LOOK,
            Some(_) => AGE_LOOK,
            None => Duration::from_hours(24),
        };
        self.rotation.look_at = Instant::now() + pause;
    }

    /// Asks for another key, for an operator. Returns what happens now.
    pub(super) fn ask_for_rotation(&mut self) -> Result<String, CommandError> {
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
    fn waits_for(&self) -> Option<String> {
        let rotation = &self.rotation;
        if let Some(lease) = rotation.others.first() {
            return Some(format!("it waits for node {lease}, which is changing its own"));
        }
        let is_published = rotation.is_synced && self.is_published();
        (!is_published).then(|| "it waits for the store to have this node's record".to_owned())
    }

    fn begin(&mut self) -> Result<(), KeyFileError> {
        self.rotation.next = Some(key_file::create(&key_file::next_to(&self.key_file))?);
        self.rotation.begins = None;
        self.enter("key rotation begins: the next key is made");
        self.rotation.desires_anew = true;
        self.rotation.look_at = Instant::now();
        Ok(())
    }

    fn begin_if_due(&mut self) {
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

    fn is_key_old(&self) -> bool {
        let Some(every) = self.rotation.every else { return false };
        // The same for one key over restarts, and another for each key.
        let spread = f64::from(self.key.public().0[0]) / 255.0 * SPREAD;
        key_file::age(&self.key_file).is_some_and(|age| age >= every.mul_f64(1.0 + spread))
    }

    /// Whether this node's record in the store is what it publishes.
    fn is_published(&self) -> bool {
        let Some(record) = &self.rotation.record else { return false };
        let attrs = self.attrs();
        Family::ALL.iter().all(|family| is_same_data(record.get(*family), attrs.backend_data.get(*family)))
    }

    /// Takes the next step of this node's own rotation.
    fn advance(&mut self) {
        if !self.rotation.is_own() {
            return;
        }
        let now = Instant::now();
        let are_up = !self.seconds().is_empty() && self.seconds().iter().all(Tunnel::is_up);
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
        let views = self.views(own.phase, now);
        let step = step(own, views.iter().map(|(_, view)| *view));
        match step {
            Step::Rest => {}
            Step::AwaitStore => self.show(Some("key rotation waits for the store".to_owned())),
            Step::AwaitPeers(count) => {
                let has_moved =
                    |(_, view): &&(LeaseKey, PeerView)| view.has_answered && view.quiet > Duration::ZERO;
                let moved = views.iter().filter(has_moved).count();
                let text = match own.phase {
                    Phase::Switched => "the new key is in force; peers move back",
                    _ => "the next key is offered; peers move to the second device",
                };
                let total = views.len();
                let detail =
                    format!("key rotation: {text} ({count} of {total} are awaited, {moved} answer there)");
                self.show(Some(detail));
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
    fn views(&mut self, phase: Phase, now: Instant) -> Vec<(LeaseKey, PeerView)> {
        let (known, firsts) = (std::mem::take(&mut self.rotation.known), self.firsts());
        let mut views = Vec::new();
        for Known { lease, at, keys, way } in known.iter().copied() {
            let second = at + firsts;
            let has_answered = self.rotation.ago(second, self.second_key(), &keys.second).is_some();
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

    fn switch(&mut self) {
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

    fn finish(&mut self) {
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
    pub(super) fn abandon_rotation(&mut self) {
        if self.rotation.is_own() {
            self.finish();
        }
        self.rotation.is_announced = false;
    }

    fn fail(&mut self, error: &KeyFileError) {
        self.rotation.has_progress |= self.rotation.problem.is_none();
        self.rotation.problem = Some(chain(error));
    }

    /// Begins a stage.
    fn enter(&mut self, detail: &str) {
        self.rotation.published = None;
        self.rotation.quiet.clear();
        self.rotation.tell(&self.tunnels, detail);
        self.rotation.has_progress = true;
    }

    fn show(&mut self, progress: Option<String>) {
        self.rotation.has_progress |= self.rotation.progress != progress;
        self.rotation.progress = progress;
    }
}
