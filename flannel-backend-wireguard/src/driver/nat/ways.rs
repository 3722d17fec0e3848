//! Decides by which way each peer is reached that is behind a NAT, or has this node behind one.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime};

use flannel_core::status::{Harm, Problem, Subject};

use super::known::Known;
use super::{LOOK, Times, handshake};
use crate::device::DeviceState;
use crate::driver::WireguardDriver;
use crate::key::PublicKey;
use crate::nat::{Pair, View, agree};
use crate::plan::Wish;

/// How often the sessions are looked at while two nodes behind NATs look for a way, or their pods use one.
const QUICK_LOOK: Duration = Duration::from_millis(500);

impl WireguardDriver {
    /// What is to be done with peers behind NATs that were not looked at yet.
    pub(super) fn first_wishes(&self, at: usize) -> Vec<(PublicKey, Wish)> {
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

    /// Decides on the way to each peer that is behind a NAT, or has this node behind one. Returns when to look again.
    pub(super) fn choose_ways(
        &mut self,
        at: usize,
        state: &DeviceState,
        Times { now, wall }: Times,
    ) -> Duration {
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
    pub(super) fn hurry_observers(&self, at: usize, own: &PublicKey, wishes: &mut BTreeMap<PublicKey, Wish>) {
        for (key, known) in &self.nat.devices[at].peers {
            let sees_us = known.says.as_ref().is_some_and(|says| says.seen.contains_key(own));
            if let Some(wish) = wishes.get_mut(key).filter(|_| sees_us) {
                wish.keepalive = wish.keepalive.map(|seconds| seconds.min(crate::nat::FAST));
            }
        }
    }

    /// Says in the status who forwards packets, and so can read them.
    pub(super) fn note_relays(&mut self, at: usize) {
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
}
