//! Carries out what [`crate::nat`] decides: reads the sessions, asks relays, tells the devices and says what is published.

mod echo;
mod find;
mod known;
mod ways;

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use flannel_core::addr::{Family, PerFamily};
use flannel_core::lease::{BackendData, LeaseKey};
use flannel_core::peers::Peer;
use flannel_core::status::{Harm, Problem, Subject};
use tokio::time::Instant;

use self::echo::{Asked, Echoes};
use self::known::{Known, OnDevice};
use super::WireguardDriver;
use crate::device::PeerState;
use crate::key::PublicKey;
use crate::nat::{NatData, NatOptions, Observer};
use crate::peer::WireguardData;
use crate::plan::Wish;
use crate::tunnel::Tunnel;

/// How often the sessions are looked at where somebody is behind a NAT, and while peers are new.
const LOOK: Duration = Duration::from_secs(1);
/// The same where there are no NATs.
const SLOW_LOOK: Duration = Duration::from_secs(60);
/// For how long a peer is new: whether it is behind a NAT is seen at its first handshake.
const NEW: Duration = Duration::from_secs(60);
/// A look costs this part of the time at most, however many peers there are.
const REST: u32 = 20;

/// What this node knows of NATs.
pub(crate) struct Nat {
    options: NatOptions,
    /// The first devices.
    devices: Vec<OnDevice>,
    echoes: Echoes,
    /// When to look next.
    pub(super) look_at: Instant,
    /// Until when peers are new.
    new_until: Instant,
    holds_anew: bool,
    has_news: bool,
    notes: Vec<Problem>,
}

impl Nat {
    /// Of a node that published this last, with these first devices.
    pub(crate) fn new(
        options: NatOptions,
        published: Option<&PerFamily<BackendData>>,
        tunnels: &[Tunnel],
    ) -> Self {
        let now = Instant::now();
        let device = |tunnel: &Tunnel| {
            let data = published.and_then(|data| WireguardData::decode(data.get(tunnel.families[0])?).ok());
            let nat = data.map(|data| data.nat).unwrap_or_default();
            OnDevice {
                behind: nat.is_behind.then_some((now, None)),
                observer: Observer::recalling(nat.seen),
                ..OnDevice::default()
            }
        };
        Self {
            options,
            devices: tunnels.iter().map(device).collect(),
            echoes: Echoes::default(),
            look_at: now + LOOK,
            new_until: now + NEW,
            holds_anew: false,
            has_news: false,
            notes: Vec::new(),
        }
    }

    /// What this node publishes for the device at a place.
    fn data(&self, at: usize) -> NatData {
        let is_behind = self.is_behind(at);
        let device = &self.devices[at];
        NatData {
            is_behind,
            is_relay: self.options.relay && !is_behind,
            seen: if is_behind { BTreeMap::new() } else { device.observer.published().clone() },
            relays: device.table.published().clone(),
        }
    }

    fn is_behind(&self, at: usize) -> bool {
        self.options.behind || self.devices[at].behind.is_some()
    }

    /// Whether somebody is behind a NAT, or that is to be found out.
    fn is_any(&self, now: Instant) -> bool {
        let is_behind = |peer: &Known| peer.says.as_ref().is_some_and(|says| says.is_behind);
        let is_any = |at: usize| self.is_behind(at) || self.devices[at].peers.values().any(is_behind);
        now < self.new_until || (0..self.devices.len()).any(is_any)
    }

    /// Whether the last look found that devices should contain others than before.
    pub(super) fn holds_anew(&mut self) -> bool {
        std::mem::take(&mut self.holds_anew)
    }

    /// Whether the last look found something for the status or the record.
    pub(super) fn has_news(&mut self) -> bool {
        std::mem::take(&mut self.has_news)
    }

    /// How the case of a peer of the device at a place differs from that of others.
    pub(super) fn wish(&self, at: usize, key: &PublicKey) -> Wish {
        self.devices.get(at).and_then(|device| device.wishes.get(key)).copied().unwrap_or_default()
    }

    pub(super) fn problems(&self) -> impl Iterator<Item = Problem> + '_ {
        let problem = self.echoes.problem.iter().map(|text| {
            Problem::new(Subject::Device, Harm::Some, format!("nodes behind NATs get no relay: {text}"))
        });
        self.notes.iter().cloned().chain(problem)
    }
}

/// How long ago the last handshake with a peer was.
fn handshake(peer: Option<&PeerState>, now: SystemTime) -> Option<Duration> {
    // One in the future was before the clock was set back.
    peer?.last_handshake.map(|at| now.duration_since(at).unwrap_or_default())
}

/// What a look needs to know of the clocks.
#[derive(Clone, Copy)]
struct Times {
    now: Instant,
    wall: SystemTime,
}

impl WireguardDriver {
    /// What this node publishes about NATs for each family of pods.
    pub(super) fn published_nat(&self) -> PerFamily<NatData> {
        let of = |family: Family| {
            self.tunnels[..self.nat.devices.len()].iter().position(|it| it.families[0] == family)
        };
        PerFamily::from_fn(|family| of(family).map(|at| self.nat.data(at)))
    }

    /// Takes over the programmed peers. One that is new and behind a NAT is tried where it is seen from the beginning.
    pub(super) fn note_nat_of(&mut self, peers: &[(&LeaseKey, &Peer)]) {
        let now = Instant::now();
        for (device, tunnel) in self.nat.devices.iter_mut().zip(&self.tunnels) {
            let (are_new, is_news) = device.set_peers(tunnel, peers);
            if are_new {
                self.nat.new_until = now + NEW;
            }
            if are_new || is_news {
                self.nat.look_at = self.nat.look_at.min(now);
            }
        }
        for at in 0..self.nat.devices.len() {
            let first = self.first_wishes(at);
            self.nat.devices[at].wishes.extend(first);
        }
        self.nat.holds_anew = false;
    }

    /// Looks at the sessions. Returns whether the loop has something to do.
    pub(super) async fn look_at_nat(&mut self) -> bool {
        let began = Instant::now();
        self.nat.echoes.read();
        let mut states = Vec::new();
        for tunnel in &self.tunnels[..self.nat.devices.len()] {
            let device = tunnel.device.as_ref().filter(|_| tunnel.is_there);
            states.push(match device {
                Some(device) => device.state().await.ok(),
                None => None,
            });
        }
        let times = Times { now: Instant::now(), wall: SystemTime::now() };
        let before = (self.published_nat(), std::mem::take(&mut self.nat.notes));
        let mut pause = if self.nat.is_any(times.now) { LOOK } else { SLOW_LOOK };
        for (at, state) in states.iter().enumerate() {
            let Some(state) = state else { continue };
            self.find_out(at, state, times);
            self.measure_relays(at, times);
            pause = pause.min(self.choose_ways(at, state, times));
        }
        let is_there =
            |(at, key): &Asked| self.nat.devices.get(*at).is_some_and(|it| it.peers.contains_key(key));
        self.nat.echoes.retain(is_there);
        self.nat.has_news |= self.nat.holds_anew || before != (self.published_nat(), self.nat.notes.clone());
        self.nat.look_at = times.now + pause.max(began.elapsed() * REST);
        self.nat.has_news
    }
}
