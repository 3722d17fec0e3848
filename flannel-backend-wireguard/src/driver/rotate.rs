//! Carries out what [`crate::rotation`] decides: makes the second devices, reads the sessions, moves peers, changes the key.

mod own;
mod second;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::{Duration, SystemTime};

use flannel_core::addr::{Family, LinkIndex, PerFamily};
use flannel_core::dataplane::Object;
use flannel_core::error::chain;
use flannel_core::events::NetworkEvent;
use flannel_core::lease::{BackendData, LeaseKey};
use flannel_core::peers::Peer;
use flannel_core::status::{Harm, Problem, Subject};
use tokio::time::Instant;
use tracing::warn;

use super::WireguardDriver;
use crate::device::DeviceState;
use crate::key::{PrivateKey, PublicKey};
use crate::key_file;
use crate::peer::{self, Keys};
use crate::roster::{key_on, keys};
use crate::rotation::{Keepalive, Phase, Quiet, Sessions, Way, keepalive, way};
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
        let is_changing =
            peer.data.is_some() && peer::more_of(peer).iter().any(|(_, data)| data.next.is_some());
        if is_changing {
            self.rotation.others.insert(lease);
        }
        if peer.backends.first().is_some_and(|kind| *kind != peer::KIND) {
            // This node may soon send to it by this backend, without waiting for a handshake then.
            let each = keys(peer).map(|(link, key, _)| ((link, key), Keepalive::Handshake));
            self.rotation.keepalives.extend(each);
        }
        let (firsts, ours) = (self.firsts(), self.phase());
        let link = |tunnel: &Tunnel| tunnel.link.as_ref().map(|link| link.index);
        for at in 0..self.seconds().len() {
            let (Some(first), Some(second)) = (link(&self.tunnels[at]), link(&self.tunnels[firsts + at]))
            else {
                continue;
            };
            let (Some((first_key, _)), Some((second_key, _))) = (key_on(peer, first), key_on(peer, second))
            else {
                continue;
            };
            let phase = Phase::of(first_key, is_changing.then_some(second_key));
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
}
