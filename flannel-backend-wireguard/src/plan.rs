//! Which changes lead from what a device contains to what it should contain. Pure.
//!
//! Sessions decide what is allowed: a change touches one peer and leaves all others as they are, and what only the
//! device knows (where a peer was last heard from) is not overwritten.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, SystemTime};

use ipnetwork::IpNetwork;

use crate::device::{Change, DeviceState, PeerChange, PeerState};
use crate::key::{PresharedKey, PrivateKey, PublicKey};

/// After this time without a handshake a session carries no packets (`REJECT_AFTER_TIME` of the WireGuard paper,
/// section 6.1), so nothing is lost by trying another endpoint.
pub(crate) const STALE: Duration = Duration::from_secs(180);

/// What a device should contain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Desired {
    pub(crate) private_key: PrivateKey,
    pub(crate) listen_port: u16,
    /// The key that all nodes share besides.
    pub(crate) psk: Option<PresharedKey>,
    /// Seconds, 0 for none.
    pub(crate) keepalive: u16,
    pub(crate) peers: BTreeMap<PublicKey, DesiredPeer>,
}

/// What a device should know of a peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DesiredPeer {
    /// Where its node says that it receives.
    pub(crate) published: SocketAddr,
    /// The subnets of its leases, and of those for which it is the relay.
    pub(crate) allowed_ips: BTreeSet<IpNetwork>,
    /// How its own case differs from that of other peers.
    pub(crate) wish: Wish,
}

/// How a peer's own case differs from that of other peers; the default is that it does not.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Wish {
    /// Seconds between keepalive packets, if other than for all peers.
    pub(crate) keepalive: Option<u16>,
    /// Where to try the peer instead of where its node says that it receives.
    pub(crate) at: Option<SocketAddr>,
    /// Whether nothing comes from where it was last heard from, so that another endpoint may be written although its session
    /// is not over.
    pub(crate) is_lost: bool,
    /// The relay that has its subnets.
    pub(crate) relay: Option<PublicKey>,
    /// Whether it, or this node, is behind a NAT.
    pub(crate) is_nat: bool,
}

/// The published endpoint of each peer that is in force: that was written, or known when the peer was last heard from.
pub(crate) type Settled = BTreeMap<PublicKey, SocketAddr>;

/// What a plan must know besides desired and observed state.
pub(crate) struct Rules<'a> {
    /// The wall clock, in which devices have the time of handshakes.
    pub(crate) now: SystemTime,
    /// Whether what is there for these addresses, and not desired, may be removed.
    pub(crate) may_remove: &'a (dyn Fn(IpNetwork) -> bool + Sync),
    /// Whether a peer without any address may be removed: one is left when another key gets its addresses.
    pub(crate) may_remove_empty: bool,
    /// Whether an address is one of pods or tunnels, and so can't be an endpoint: packets would go round in circles.
    pub(crate) is_overlay: &'a (dyn Fn(IpAddr) -> bool + Sync),
}

/// The result.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Plan {
    /// In the order in which they must be made.
    pub(crate) changes: Vec<Change>,
    /// What is settled once they are made.
    pub(crate) settled: Settled,
    /// Allowed addresses that a peer can't have yet, since another one that must stay has them.
    pub(crate) held_back: Vec<(IpNetwork, PublicKey)>,
}

/// Plans the changes: key and port first, then peers that go, then peers that give up addresses, then all others. So no
/// address is taken from a peer that keeps it.
///
/// With another key of the device all sessions end, so peers are made anew: each handshake that the device shows from then on
/// is one with this key.
pub(crate) fn plan(want: &Desired, have: &DeviceState, settled: &Settled, rules: &Rules<'_>) -> Plan {
    let mut plan = Plan::default();
    if have.private_key.as_ref() != Some(&want.private_key) {
        plan.changes.push(Change::PrivateKey(want.private_key.clone()));
    }
    let are_anew = have.private_key.as_ref().is_some_and(|key| *key != want.private_key);
    if have.listen_port != want.listen_port {
        plan.changes.push(Change::ListenPort(want.listen_port));
    }
    // Whoever has an address and keeps it.
    let mut keepers: BTreeMap<IpNetwork, PublicKey> = BTreeMap::new();
    let (mut shrink, mut put) = (Vec::new(), Vec::new());
    for (key, peer) in &have.peers {
        let wanted = want.peers.get(key);
        let may_go = if peer.allowed_ips.is_empty() {
            rules.may_remove_empty
        } else {
            peer.allowed_ips.iter().all(|ip| (rules.may_remove)(*ip))
        };
        if wanted.is_none() && may_go {
            plan.changes.push(Change::RemovePeer(*key));
            continue;
        }
        if wanted.is_some() && are_anew {
            plan.changes.push(Change::RemovePeer(*key));
        }
        let is_wanted = |ip: &IpNetwork| wanted.is_some_and(|wanted| wanted.allowed_ips.contains(ip));
        let kept = peer.allowed_ips.iter().filter(|ip| is_wanted(ip) || !(rules.may_remove)(**ip));
        let kept: BTreeSet<IpNetwork> = kept.copied().collect();
        keepers.extend(kept.iter().map(|ip| (*ip, *key)));
        if wanted.is_none() && kept != peer.allowed_ips {
            // It must stay for the sake of some of its addresses, and gives up the others.
            let change = PeerChange { allowed_ips: Some(kept), ..PeerChange::default() };
            plan.changes.push(Change::Peer(*key, change));
        }
    }
    for (key, wanted) in &want.peers {
        let before = have.peers.get(key);
        let mut allowed = wanted.allowed_ips.clone();
        if let Some(before) = before {
            // What must not be removed yet.
            allowed.extend(before.allowed_ips.iter().filter(|ip| !(rules.may_remove)(**ip)));
        }
        for ip in wanted.allowed_ips.iter().filter(|ip| keepers.get(ip).is_some_and(|holder| holder != key)) {
            allowed.remove(ip);
            plan.held_back.push((*ip, *key));
        }
        let at = wanted.wish.at.unwrap_or(wanted.published);
        let (endpoint, now_settled) = match before {
            None => (Some(at), at),
            Some(before) => endpoint(at, wanted.wish.is_lost, before, settled.get(key).copied(), rules),
        };
        plan.settled.insert(*key, now_settled);
        let keepalive = wanted.wish.keepalive.unwrap_or(want.keepalive);
        let change = match before {
            Some(before) if !are_anew => PeerChange {
                preshared_key: (before.preshared_key != want.psk).then(|| want.psk.clone()),
                endpoint,
                keepalive: (before.keepalive != keepalive).then_some(keepalive),
                allowed_ips: (before.allowed_ips != allowed).then_some(allowed),
            },
            _ => PeerChange {
                preshared_key: want.psk.clone().map(Some),
                // Where it was last heard from stays known.
                endpoint: endpoint.or(before.and_then(|before| before.endpoint)),
                keepalive: Some(keepalive).filter(|seconds| *seconds > 0),
                allowed_ips: Some(allowed),
            },
        };
        let before = before.filter(|_| !are_anew);
        if before.is_some() && change == PeerChange::default() {
            continue;
        }
        let gives_up = before.is_some_and(|before| {
            let after = change.allowed_ips.as_ref();
            after.is_some_and(|after| !before.allowed_ips.is_subset(after))
        });
        if gives_up { &mut shrink } else { &mut put }.push(Change::Peer(*key, change));
    }
    // A peer that gives up an address may get one that another gives up: first all give up.
    let (mut later, mut first) = (Vec::new(), Vec::new());
    for change in shrink {
        if let Change::Peer(key, PeerChange { allowed_ips: Some(after), .. }) = &change {
            let kept = have.peers[key].allowed_ips.intersection(after).copied().collect::<BTreeSet<_>>();
            if kept != *after {
                let give = PeerChange { allowed_ips: Some(kept), ..PeerChange::default() };
                first.push(Change::Peer(*key, give));
                later.push(change);
                continue;
            }
        }
        first.push(change);
    }
    plan.changes.append(&mut first);
    plan.changes.append(&mut later);
    plan.changes.append(&mut put);
    plan
}

/// Whether to write the published endpoint of a peer that is there, and which published endpoint is settled then.
///
/// A peer is sent to where it was last heard from, which may be another address than it publishes (NAT). That is undone
/// only if the peer publishes another endpoint than before, and then only if it was heard from at its former one, or
/// was not heard from for long, or is lost. One that is tried elsewhere counts as publishing that.
fn endpoint(
    published: SocketAddr,
    is_lost: bool,
    peer: &PeerState,
    before: Option<SocketAddr>,
    rules: &Rules<'_>,
) -> (Option<SocketAddr>, SocketAddr) {
    let write = (Some(published), published);
    let Some(seen) = peer.endpoint else { return write };
    if seen == published {
        return (None, published);
    }
    if (rules.is_overlay)(seen.ip()) {
        return write;
    }
    let is_stale = is_lost
        || peer.last_handshake.is_none_or(|at| {
            // A clock that was set back makes it appear to be in the future.
            rules.now.duration_since(at).is_ok_and(|ago| ago > STALE)
        });
    match before {
        Some(before) if before == published => (None, published),
        Some(before) if seen == before || is_stale => write,
        Some(before) => (None, before),
        // An earlier agent wrote what it knew.
        None if is_stale => write,
        None => (None, published),
    }
}

#[cfg(test)]
mod tests;
