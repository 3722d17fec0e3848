//! By which of this node's backends a peer is reached, and by which it is heard. Pure but for asking the drivers.
//!
//! A peer is reached by the backend that its lease names, if this node runs it, else by the first further one by which its
//! node says that it can receive. It is heard by all backends that both nodes run, since each node decides by itself when it
//! sends by another one.

use std::borrow::Cow;

use super::Slot;
use crate::dataplane::Object;
use crate::lease::Lease;
use crate::peers::{Peer, PeerError};

/// The objects and claims of a lease on the devices of these backends.
pub(super) fn peer(slots: &[Slot], lease: &Lease) -> Result<Peer, PeerError> {
    let [only] = slots else { return among(slots, lease) };
    // Leases of other types, and those without a further way by this one, are refused with the driver's own words.
    let view = view(only, lease).unwrap_or(Cow::Borrowed(lease));
    only.driver.peer(&view)
}

fn among(slots: &[Slot], lease: &Lease) -> Result<Peer, PeerError> {
    let mut refusal = None;
    let mut reached: Option<(usize, Peer)> = None;
    for at in ranked(slots, lease) {
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
        // All but the route to its pods is there in advance, so that a change of the way is one replaced route.
        let subnets = lease.key.subnets();
        let is_to_pods = |object: &Object| matches!(object, Object::Route(route) if subnets.get(route.dst.family()) == Some(&route.dst));
        peer.objects.extend(heard.objects.into_iter().filter(|object| !is_to_pods(object)));
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
fn ranked<'a>(slots: &'a [Slot], lease: &'a Lease) -> impl Iterator<Item = usize> + 'a {
    let named = slots.iter().position(|slot| slot.published_type == lease.attrs.backend_type);
    let further = lease.attrs.receives.iter();
    let further = further.filter_map(|way| slots.iter().position(|slot| slot.kind == way.kind));
    named.into_iter().chain(further)
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
