//! Carries out what [`crate::nat`] decides: reads the sessions, asks relays, tells the devices and says what is published.

mod echo;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::{Duration, SystemTime};

use flannel_core::addr::{Family, PerFamily};
use flannel_core::lease::{BackendData, LeaseKey};
use flannel_core::peers::{Claim, Peer};
use flannel_core::status::{Harm, Problem, Subject};
use tokio::time::Instant;

use self::echo::{Asked, Echoes};
use super::WireguardDriver;
use crate::device::{DeviceState, PeerState};
use crate::key::PublicKey;
use crate::nat::{MISSES, NatData, NatOptions, Observer, Pair, Sight, Table, View, agree, seen_behind};
use crate::peer::{self, WireguardData};
use crate::plan::{STALE, Wish};
use crate::roster::key_on;
use crate::tunnel::Tunnel;

/// How often the sessions are looked at where somebody is behind a NAT, and while peers are new.
const LOOK: Duration = Duration::from_secs(1);
/// The same while two nodes behind NATs look for a way, or their pods use one.
const QUICK_LOOK: Duration = Duration::from_millis(500);
/// The same where there are no NATs.
const SLOW_LOOK: Duration = Duration::from_secs(60);
/// For how long a peer is new: whether it is behind a NAT is seen at its first handshake.
const NEW: Duration = Duration::from_secs(60);
/// A look costs this part of the time at most, however many peers there are.
const REST: u32 = 20;
/// A node that nobody has seen behind a NAT for this time is none any more.
const FORGET: Duration = Duration::from_secs(600);
/// Places of a peer that are tried, besides that which it publishes.
const MOST_PLACES: usize = 3;
/// Relays that are asked, of those on offer.
const MOST_ASKED: usize = 16;

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

/// What there is of NATs on one device.
#[derive(Default)]
struct OnDevice {
    /// When this node was last seen behind a NAT, and where; of an earlier run that is not known.
    behind: Option<(Instant, Option<SocketAddr>)>,
    peers: BTreeMap<PublicKey, Known>,
    pairs: BTreeMap<PublicKey, Pair>,
    wishes: BTreeMap<PublicKey, Wish>,
    observer: Observer,
    table: Table,
}

/// A programmed peer.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Known {
    lease: LeaseKey,
    published: SocketAddr,
    /// The address of its device.
    base: IpAddr,
    /// What it publishes; most publish nothing.
    says: Option<NatData>,
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

impl OnDevice {
    /// Takes over the programmed peers. Returns whether some are new, and whether some say something else.
    fn set_peers(&mut self, tunnel: &Tunnel, peers: &[(&LeaseKey, &Peer)]) -> (bool, bool) {
        let Some(link) = tunnel.link.as_ref().map(|link| link.index) else { return (false, false) };
        let family = tunnel.families[0];
        let mut next = BTreeMap::new();
        for (lease, peer) in peers {
            let Some((key, published)) = key_on(peer, link) else { continue };
            let says =
                peer.data.as_ref().and_then(|_| peer::more_of(peer).get(family).map(|data| data.nat.clone()));
            let subnets = peer.claims.iter().filter_map(|claim| match claim {
                Claim::Subnet(subnet) if tunnel.families.contains(&subnet.family()) => Some(subnet.base()),
                _ => None,
            });
            let Some(base) = subnets.min() else { continue };
            next.entry(key).or_insert(Known { lease: **lease, published, base, says });
        }
        let are_new = next.keys().any(|key| !self.peers.contains_key(key));
        let is_news = next != self.peers;
        self.peers = next;
        (are_new, is_news)
    }

    /// Where the nodes say that they see others: each place with the number of those who do, who are named by keys.
    fn sightings(&self) -> BTreeMap<PublicKey, BTreeMap<SocketAddr, Vec<PublicKey>>> {
        let mut found: BTreeMap<PublicKey, BTreeMap<SocketAddr, Vec<PublicKey>>> = BTreeMap::new();
        for (by, known) in &self.peers {
            for (key, at) in known.says.iter().flat_map(|says| &says.seen) {
                found.entry(*key).or_default().entry(*at).or_default().push(*by);
            }
        }
        found
    }

    /// The keys of relays on offer.
    fn offers(&self) -> BTreeSet<PublicKey> {
        let is_offer =
            |known: &Known| known.says.as_ref().is_some_and(|says| says.is_relay && !says.is_behind);
        self.peers.iter().filter(|(_, known)| is_offer(known)).map(|(key, _)| *key).collect()
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

    /// What is to be done with peers behind NATs that were not looked at yet.
    fn first_wishes(&self, at: usize) -> Vec<(PublicKey, Wish)> {
        let device = &self.nat.devices[at];
        let is_behind = |known: &Known| known.says.as_ref().is_some_and(|says| says.is_behind);
        let new =
            device.peers.iter().filter(|(key, known)| is_behind(known) && !device.wishes.contains_key(*key));
        let new: Vec<PublicKey> = new.map(|(key, _)| *key).collect();
        if new.is_empty() {
            return Vec::new();
        }
        let sightings = device.sightings();
        let wish = |key: &PublicKey| {
            let place = self.places(at, &sightings, key).first().copied();
            Wish { at: place, is_nat: true, ..Wish::default() }
        };
        new.iter().map(|key| (*key, wish(key))).collect()
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

    /// Finds out whether this node is behind a NAT, and, if not, where peers are.
    fn find_out(&mut self, at: usize, state: &DeviceState, Times { now, wall }: Times) {
        let own = self.key.public();
        let tunnel = &self.tunnels[at];
        let Some(published) = self.own_endpoint(tunnel) else { return };
        let device = &self.nat.devices[at];
        let sightings = device.sightings();
        let is_fresh =
            |key: &PublicKey| handshake(state.peers.get(key), wall).is_some_and(|ago| ago <= STALE);
        // Only who has a session with this node can know.
        let seen = sightings.get(&own).into_iter().flatten().filter(|(_, by)| by.iter().any(is_fresh));
        let seen: Vec<SocketAddr> = seen.map(|(at, _)| *at).collect();
        let is_own_address = |at: &SocketAddr| {
            // An address that a socket can be bound to is one of this host.
            self.netns.run(|| UdpSocket::bind((at.ip(), 0)).is_ok()).unwrap_or_default()
        };
        let found = seen_behind(&seen, published, is_own_address).copied();
        let mut sights = Vec::new();
        for (key, known) in &device.peers {
            let peer = state.peers.get(key);
            let endpoint = peer.and_then(|peer| peer.endpoint).filter(|at| self.may_be_at(*at));
            let elsewhere = match endpoint.filter(|_| is_fresh(key)) {
                Some(at) if at == known.published => continue,
                Some(at) => Some(at),
                None if device.observer.published().contains_key(key) => None,
                None => continue,
            };
            let others = sightings.get(key).into_iter().flatten();
            let by_others = others.flat_map(|(at, by)| std::iter::repeat_n(*at, by.len())).collect();
            sights.push(Sight { key: *key, elsewhere, by_others });
        }
        let device = &mut self.nat.devices[at];
        match found {
            Some(found) => device.behind = Some((now, Some(found))),
            None if device.behind.is_some_and(|(at, _)| now.saturating_duration_since(at) >= FORGET) => {
                device.behind = None;
            }
            None => {}
        }
        let nodes = device.peers.len();
        device.observer.update(own, &sights, nodes, now);
        self.note_nat(at);
    }

    /// Says in the status that this node is behind a NAT.
    fn note_nat(&mut self, at: usize) {
        if !self.nat.is_behind(at) {
            return;
        }
        let by = match self.nat.devices[at].behind {
            Some((_, Some(seen))) => format!("peers see it at {seen}"),
            _ if self.nat.options.behind => "so it was started (--behind-nat)".to_owned(),
            _ => "as it was before its restart".to_owned(),
        };
        let name = self.tunnels[at].name;
        let no_relay = if self.nat.options.relay { ", so it is no relay in spite of --relay" } else { "" };
        let text = format!(
            "device {name}: this node is behind a NAT ({by}), and keeps its sessions open by packets{no_relay}"
        );
        self.nat.notes.push(Problem::new(Subject::Device, Harm::None, text));
    }

    /// Asks the relays whether they are there.
    fn measure_relays(&mut self, at: usize, Times { now, .. }: Times) {
        let device = &self.nat.devices[at];
        let is_behind = |known: &Known| known.says.as_ref().is_some_and(|says| says.is_behind);
        let is_needed = self.nat.is_behind(at) && device.peers.values().any(is_behind);
        let offers = if is_needed { device.offers() } else { BTreeSet::new() };
        // Those that are published go on being asked.
        let (published, others): (Vec<_>, Vec<_>) =
            offers.into_iter().partition(|key| device.table.published().contains_key(key));
        let asked: Vec<PublicKey> = published.into_iter().chain(others).take(MOST_ASKED).collect();
        let mut answering = BTreeMap::new();
        for key in &asked {
            let base = self.nat.devices[at].peers[key].base;
            let (echoes, asked) = (&mut self.nat.echoes, (at, *key));
            if echoes.misses(&asked) < MISSES {
                answering.extend(echoes.round_trip(&asked).map(|took| (*key, took)));
            }
            echoes.ask(&self.netns, asked, base);
        }
        self.nat.devices[at].table.update(&answering, now);
    }

    /// Decides on the way to each peer that is behind a NAT, or has this node behind one. Returns when to look again.
    fn choose_ways(&mut self, at: usize, state: &DeviceState, Times { now, wall }: Times) -> Duration {
        let unix = wall.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        let we_are_behind = self.nat.is_behind(at);
        let own = self.key.public();
        let sightings = self.nat.devices[at].sightings();
        let mut pairs = std::mem::take(&mut self.nat.devices[at].pairs);
        let mut wishes = BTreeMap::new();
        let places = |key: &PublicKey| self.places(at, &sightings, key);
        let we_are_seen = places(&own);
        let offers = self.nat.devices[at].offers();
        let managed = self.nat.devices[at].peers.iter().filter_map(|(key, known)| {
            let it_is_behind = known.says.as_ref().is_some_and(|says| says.is_behind);
            (we_are_behind || it_is_behind).then(|| (*key, known.clone(), it_is_behind, places(key)))
        });
        let managed: Vec<_> = managed.collect();
        let keys: BTreeSet<PublicKey> = managed.iter().map(|(key, ..)| *key).collect();
        pairs.retain(|key, _| keys.contains(key));
        let (mut pause, mut questions, mut are_used) = (LOOK, Vec::new(), false);
        for (key, known, it_is_behind, it_is_seen) in &managed {
            let (asked, peer) = ((at, *key), state.peers.get(key));
            let relays = known.says.as_ref().map(|says| &says.relays);
            let relay = relays.and_then(|theirs| {
                let is_on_offer = |relay: &PublicKey| offers.contains(relay) && relay != key;
                agree(self.nat.devices[at].table.published(), theirs, is_on_offer)
            });
            let view = View {
                we_are_behind,
                it_is_behind: *it_is_behind,
                we_are_seen: &we_are_seen,
                it_is_seen,
                published: known.published,
                handshake: handshake(peer, wall),
                bytes: peer.map_or((0, 0), |peer| (peer.tx_bytes, peer.rx_bytes)),
                of_questions: self.nat.echoes.take_counted(&asked),
                misses: self.nat.echoes.misses(&asked),
                relay,
                keepalive: self.config.keepalive,
            };
            let pair = pairs.entry(*key).or_insert_with(|| Pair::new(now));
            wishes.insert(*key, pair.step(&view, now, unix));
            if view.are_both_behind() {
                if pair.is_doubtful(now) {
                    questions.push((asked, known.base));
                } else {
                    // It is heard from, or goes another way from now on.
                    self.nat.echoes.forget_misses(&asked);
                }
                are_used |= pair.is_used(now);
                if pair.is_used(now) || !pair.is_straight() {
                    pause = pause.min(QUICK_LOOK);
                }
                pause = pair.leaves_in(&view, now).map_or(pause, |left| pause.min(left));
            }
        }
        if are_used {
            self.hurry_observers(at, &own, &mut wishes);
        }
        for (asked, base) in questions {
            self.nat.echoes.ask(&self.netns, asked, base);
        }
        let device = &mut self.nat.devices[at];
        device.pairs = pairs;
        if device.wishes != wishes {
            device.wishes = wishes;
            self.nat.holds_anew = true;
        }
        self.note_relays(at);
        pause
    }

    /// Should the NAT in front of this node take another port, those who tell peers of it must know soon.
    fn hurry_observers(&self, at: usize, own: &PublicKey, wishes: &mut BTreeMap<PublicKey, Wish>) {
        for (key, known) in &self.nat.devices[at].peers {
            let sees_us = known.says.as_ref().is_some_and(|says| says.seen.contains_key(own));
            if let Some(wish) = wishes.get_mut(key).filter(|_| sees_us) {
                wish.keepalive = wish.keepalive.map(|seconds| seconds.min(crate::nat::FAST));
            }
        }
    }

    /// Says in the status who forwards packets, and so can read them.
    fn note_relays(&mut self, at: usize) {
        let device = &self.nat.devices[at];
        let mut carried: BTreeMap<PublicKey, usize> = BTreeMap::new();
        for relay in device.wishes.values().filter_map(|wish| wish.relay) {
            *carried.entry(relay).or_default() += 1;
        }
        let name = |relay: &PublicKey| device.peers.get(relay).map(|known| known.lease.to_string());
        let notes: Vec<Problem> = carried
            .iter()
            .map(|(relay, peers)| {
                let relay = name(relay).unwrap_or_else(|| relay.to_string());
                let nodes = if *peers == 1 { "one node".to_owned() } else { format!("{peers} nodes") };
                let cause = format!(
                    "packets to {nodes} behind NATs go by the relay {relay}, which decrypts them and encrypts them anew"
                );
                Problem::new(Subject::Device, Harm::None, cause)
            })
            .collect();
        self.nat.notes.extend(notes);
    }

    /// Where others see a peer, or an earlier run of this node saw it; what most see first.
    fn places(
        &self,
        at: usize,
        sightings: &BTreeMap<PublicKey, BTreeMap<SocketAddr, Vec<PublicKey>>>,
        key: &PublicKey,
    ) -> Vec<SocketAddr> {
        let mut votes: BTreeMap<SocketAddr, usize> =
            sightings.get(key).into_iter().flatten().map(|(at, by)| (*at, by.len())).collect();
        if let Some(at) = self.nat.devices[at].observer.published().get(key) {
            *votes.entry(*at).or_default() += 1;
        }
        let mut places: Vec<_> = votes.into_iter().filter(|(at, _)| self.may_be_at(*at)).collect();
        places.sort_by_key(|(at, votes)| (std::cmp::Reverse(*votes), *at));
        places.into_iter().take(MOST_PLACES).map(|(at, _)| at).collect()
    }

    /// Whether a node can be tried at an endpoint.
    fn may_be_at(&self, at: SocketAddr) -> bool {
        let is_overlay = self.sides.iter().any(|(_, side)| side.network.contains(at.ip()));
        let ip = at.ip();
        !is_overlay && at.port() != 0 && !ip.is_unspecified() && !ip.is_multicast() && !ip.is_loopback()
    }

    /// Where this node says that a device receives.
    fn own_endpoint(&self, tunnel: &Tunnel) -> Option<SocketAddr> {
        let family = tunnel.families[0];
        let side = self.sides.get(family)?;
        Some(SocketAddr::new(side.published, self.config.port(family)))
    }
}
