//! By which of this node's backends a peer is reached, and by which it is heard. Pure but for asking the drivers.
//!
//! A peer is reached by the backend that its lease names, if this node runs it, else by the first further one by which its
//! node says that it can receive. While probes have proven that the first is blocked, it is reached by a further one if one is
//! there. It is heard by all backends that both nodes run, since each node decides by itself when it
//! sends by another one.

use std::borrow::Cow;

use super::Slot;
use crate::addr::{Family, Mtu, Subnet};
use crate::backend::PathProofs;
use crate::dataplane::{Object, Route};
use crate::lease::Lease;
use crate::peers::{Peer, PeerError};

/// The least MTU of an IPv6 link (RFC 8200 section 5).
const IPV6_LEAST: Mtu = Mtu(1280);

/// The objects and claims of a lease on the devices of these backends.
pub(super) fn peer(slots: &[Slot], lease: &Lease, proofs: &PathProofs) -> Result<Peer, PeerError> {
    let mut peer = match slots {
        [only] => {
            // Leases of other types, and those without a further way by this one, are refused with the driver's own words.
            let view = view(only, lease).unwrap_or(Cow::Borrowed(lease));
            only.driver.peer(&view)?
        }
        _ => among(slots, lease, &proofs.detour(&lease.key))?,
    };
    for (family, mtu) in proofs.mtus(&lease.key).iter() {
        limit(slots, &mut peer, lease.key.subnet(family), *mtu);
    }
    Ok(peer)
}

/// Lets the route to these pods have an MTU. Where one route leads to all nodes, they get one of their own for it.
fn limit(slots: &[Slot], peer: &mut Peer, pods: Option<Subnet>, mtu: Mtu) {
    let Some(pods) = pods else { return };
    // No IPv6 host sends less for a router's word (RFC 8201 section 4), and the kernel drops what is between.
    let mtu = if pods.family() == Family::V6 { mtu.max(IPV6_LEAST) } else { mtu };
    let routes = peer.objects.iter_mut().filter_map(|object| match object {
        Object::Route(route) if route.dst == pods => Some(route),
        _ => None,
    });
    let mut is_done = false;
    routes.for_each(|route| (route.mtu, is_done) = (Some(mtu), true));
    if is_done {
        return;
    }
    let own = slots.iter().flat_map(|slot| slot.driver.own_objects());
    let to_all = own.filter_map(|object| match object {
        Object::Route(route) if route.link.is_some() && route.dst.covers(pods) => Some(route),
        _ => None,
    });
    peer.objects
        .extend(to_all.map(|route| Object::Route(Route { dst: pods, mtu: Some(mtu), ..route })).next());
}

fn among(slots: &[Slot], lease: &Lease, detour: &[String]) -> Result<Peer, PeerError> {
    let mut refusal = None;
    let mut reached: Option<(usize, Peer)> = None;
    for at in ranked(slots, lease, detour) {
        let Some(view) = view(&slots[at], lease) else { continue };
        match slots[at].driver.peer(&view) {
            Ok(peer) => {
                reached = Some((at, peer));
                break;
            }
            // Another way is no better while the lease itself can't be read.
            Err(error @ PeerError::Unreadable(_)) => return Err(error),
            Err(error) => _ = refusal.get_or_insert(error),
        }
    }
    let Some((by, mut peer)) = reached else {
        return Err(refusal.unwrap_or_else(|| {
            let ours: Vec<&str> = slots.iter().map(|slot| slot.kind).collect();
            let theirs = &lease.attrs.backend_type;
            PeerError::NotOurs(format!("its backend is {theirs:?}, ours are {}", ours.join(" and ")))
        }));
    };
    let mut backends = vec![slots[by].kind];
    for (at, slot) in slots.iter().enumerate().filter(|(at, _)| *at != by) {
        let Some(view) = view(slot, lease).or_else(|| stranger(slot, lease)) else { continue };
        // What can't be used of a further way costs only that way.
        let Ok(heard) = slots[at].driver.peer(&view) else { continue };
        backends.push(slot.kind);
        // All but the way itself is there in advance. A further route, such as that to the gateway of a next hop, would take
        // packets to the peer's own address by another way than those to its pods.
        let is_way = |object: &Object| matches!(object, Object::Route(_) | Object::NextHop(_));
        peer.objects.extend(heard.objects.into_iter().filter(|object| !is_way(object)));
        for claim in heard.claims {
            if !peer.claims.contains(&claim) {
                peer.claims.push(claim);
            }
        }
        peer.data = peer.data.take().or(heard.data);
    }
    peer.backends = backends.into();
    Ok(peer)
}

/// The backends by which the lease can be reached, the best first.
fn ranked<'a>(slots: &'a [Slot], lease: &'a Lease, detour: &'a [String]) -> impl Iterator<Item = usize> + 'a {
    let named = slots.iter().position(|slot| slot.published_type == lease.attrs.backend_type);
    let further = lease.attrs.receives.iter().map(|way| way.kind.as_str());
    let detour = detour
        .iter()
        .map(String::as_str)
        .filter(|kind| lease.attrs.receives.iter().any(|way| way.kind == *kind));
    let slot_of = |kind: &str| slots.iter().position(|slot| slot.kind == kind);
    // What is to be encrypted goes no other way, whatever was proven before the lease named this one.
    let is_free = named.is_none_or(|at| !slots[at].is_encrypted);
    let detour = detour.filter_map(slot_of).filter(move |_| is_free);
    detour.chain(named).chain(further.filter_map(slot_of).filter(move |_| is_free))
}

/// The lease as a lease of this backend.
fn view<'a>(slot: &Slot, lease: &'a Lease) -> Option<Cow<'a, Lease>> {
    if slot.published_type == lease.attrs.backend_type {
        return Some(Cow::Borrowed(lease));
    }
    let attrs = lease.attrs.as_kind(slot.kind, &slot.published_type)?;
    Some(Cow::Owned(Lease { attrs, ..lease.clone() }))
}

/// The lease as one of this backend although its node does not say that it can receive by it, for a backend that must know
/// all who may send.
fn stranger<'a>(slot: &Slot, lease: &'a Lease) -> Option<Cow<'a, Lease>> {
    slot.driver.hears_only_peers().then(|| {
        let mut lease = lease.clone();
        lease.attrs.backend_type.clone_from(&slot.published_type);
        Cow::Owned(lease)
    })
}
