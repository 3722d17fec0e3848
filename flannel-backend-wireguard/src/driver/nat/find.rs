//! Finds out whether this node is behind a NAT, where peers are, and which relays are there.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use flannel_core::status::{Harm, Problem, Subject};

use super::known::Known;
use super::{Times, handshake};
use crate::device::DeviceState;
use crate::driver::WireguardDriver;
use crate::key::PublicKey;
use crate::nat::{MISSES, Sight, seen_behind};
use crate::plan::STALE;
use crate::tunnel::Tunnel;

/// A node that nobody has seen behind a NAT for this time is none any more.
const FORGET: Duration = Duration::from_secs(600);
/// Places of a peer that are tried, besides that which it publishes.
const MOST_PLACES: usize = 3;
/// Relays that are asked, of those on offer.
const MOST_ASKED: usize = 16;

impl WireguardDriver {
    /// Finds out whether this node is behind a NAT, and, if not, where peers are.
    pub(super) fn find_out(&mut self, at: usize, state: &DeviceState, Times { now, wall }: Times) {
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
    pub(super) fn note_nat(&mut self, at: usize) {
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
    pub(super) fn measure_relays(&mut self, at: usize, Times { now, .. }: Times) {
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

    /// Where others see a peer, or an earlier run of this node saw it; what most see first.
    pub(super) fn places(
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
    pub(super) fn may_be_at(&self, at: SocketAddr) -> bool {
        let is_overlay = self.sides.iter().any(|(_, side)| side.network.contains(at.ip()));
        let ip = at.ip();
        !is_overlay && at.port() != 0 && !ip.is_unspecified() && !ip.is_multicast() && !ip.is_loopback()
    }

    /// Where this node says that a device receives.
    pub(super) fn own_endpoint(&self, tunnel: &Tunnel) -> Option<SocketAddr> {
        let family = tunnel.families[0];
        let side = self.sides.get(family)?;
        Some(SocketAddr::new(side.published, self.config.port(family)))
    }
}
