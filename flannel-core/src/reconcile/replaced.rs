//! Routes of ours that somebody else replaced (`ip route replace`). The loop puts them back a few times, then reports a
//! conflict and leaves the foreign route.
//!
//! The kernel keeps no trace of a replaced route. So only what this run observed proves that ours was there first: the
//! kernel had a route of ours that is desired, and we did not delete it. Then a foreign route with its key came later.
//! A foreign route that was there before ours is never touched. After a restart nothing is known.
//!
//! A foreign blackhole in the place of one of ours is left, too, and named. It drops the same packets, so nothing lacks ours.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use tokio::time::Instant;

use super::blocked::Needed;
use super::{Driver, Reconciler};
use crate::addr::{Family, Subnet};
use crate::dataplane::{Dataplane, KERNEL_PROTOCOL, Object, ObjectKey, Op, Route, Through};
use crate::events::NetworkEvent;
use crate::kernel::{KernelError, Link};
use crate::ownership::BOOT_PROTOCOL;
use crate::status::Reason;

/// How often one route is put back within [`WINDOW`].
const TIMES: usize = 3;
const WINDOW: Duration = Duration::from_secs(60);

/// What is known of routes that were replaced.
#[derive(Debug, Default)]
pub(super) struct Replaced {
    /// Desired routes that were ours in this run and are not there now.
    lost: BTreeSet<ObjectKey>,
    /// Those of them that the kernel refused to create, since somebody else's route has their key, and blackholes likewise.
    contested: BTreeSet<ObjectKey>,
    /// Routes that were put back recently, or given up.
    fights: BTreeMap<ObjectKey, Fight>,
}

#[derive(Debug, Default)]
struct Fight {
    put_back: VecDeque<Instant>,
    /// The route that stays where ours should be.
    conceded: Option<Route>,
}

/// What to do about a foreign route in the place of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    PutBack,
    /// It was put back too often.
    Concede,
    /// The kernel made it for an address; replacing it would cut that address off.
    Connected,
}

impl Replaced {
    /// Records that a desired object of ours is gone, or that somebody else's object has its key.
    pub(super) fn lose(&mut self, key: ObjectKey) {
        if let ObjectKey::Route(..) = key {
            self.lost.insert(key);
        }
    }

    /// After a resync: records objects that `before` had and `now` lacks as lost.
    pub(super) fn compare(&mut self, before: &Dataplane, now: &Dataplane, desired: &Dataplane) {
        let is_lost = |key: &ObjectKey| desired.get(key).is_some() && now.get(key).is_none();
        let routes = before.keys().filter(|key| matches!(key, ObjectKey::Route(..)));
        self.lost.extend(routes.filter(is_lost));
        self.lost.retain(|key| now.get(key).is_none());
    }

    /// Records that our object is there again.
    pub(super) fn regain(&mut self, key: &ObjectKey) {
        self.lost.remove(key);
    }

    /// Records that a route can't be created because somebody else's route has its key. Returns whether the other route
    /// matters: because ours was there first, or because a blackhole does what ours would. Then the loop looks it up.
    pub(super) fn contest(&mut self, object: &Object) -> bool {
        let key = object.key();
        let is_blackhole = matches!(object, Object::Route(route) if route.through == Through::Nowhere);
        let matters = is_blackhole || self.lost.contains(&key);
        if matters {
            self.contested.insert(key);
        }
        matters
    }

    fn was_first(&self, key: &ObjectKey) -> bool {
        self.lost.contains(key)
    }

    /// Whether this object differs from the foreign route that was left in the place of ours.
    pub(super) fn has_changed(&self, object: &Object) -> bool {
        let fight = self.fights.get(&object.key());
        fight.and_then(|fight| fight.conceded).is_some_and(|conceded| Object::Route(conceded) != *object)
    }

    /// Forgets routes that are no longer desired: if one is desired again later, a route that then has its key was
    /// there first.
    pub(super) fn prune(&mut self, desired: &Dataplane) {
        self.lost.retain(|key| desired.get(key).is_some());
        self.fights.retain(|key, _| desired.get(key).is_some());
    }

    fn decide(&mut self, key: ObjectKey, holder: Route, now: Instant) -> Verdict {
        if holder.protocol == KERNEL_PROTOCOL {
            return Verdict::Connected;
        }
        self.fights.retain(|_, fight| fight.conceded.is_some() || fight.is_recent(now));
        let fight = self.fights.entry(key).or_default();
        while fight.put_back.front().is_some_and(|at| now.saturating_duration_since(*at) >= WINDOW) {
            fight.put_back.pop_front();
        }
        if fight.conceded == Some(holder) || fight.put_back.len() >= TIMES {
            fight.conceded = Some(holder);
            return Verdict::Concede;
        }
        fight.conceded = None;
        fight.put_back.push_back(now);
        Verdict::PutBack
    }
}

impl Fight {
    fn is_recent(&self, now: Instant) -> bool {
        self.put_back.back().is_some_and(|at| now.saturating_duration_since(*at) < WINDOW)
    }
}

impl<D: Driver> Reconciler<D> {
    /// Reads which routes have the contested keys, with one dump for each family. Returns the operations that put ours
    /// back.
    pub(super) async fn look_at_contested(&mut self) -> Result<Vec<Op>, KernelError> {
        let keys = std::mem::take(&mut self.replaced.contested);
        if keys.is_empty() {
            return Ok(Vec::new());
        }
        // After an error the loop tries to create them again, which contests them again.
        let read = self.read_holders(&keys).await.inspect_err(|_| self.work.compare(keys.iter().copied()))?;
        let (holders, links) = read;
        let now = Instant::now();
        let mut ops = Vec::new();
        for key in keys {
            let Some(desired @ Object::Route(ours)) = self.peers.want().get(&key) else { continue };
            // Of several routes with one key the kernel uses the first.
            let there = holders.get(&key).map(Vec::as_slice).unwrap_or_default();
            let Some((holder, behind)) = there.split_first() else {
                // The other route is gone by now, or the kernel refused for another reason, which the next attempt
                // shows.
                self.replaced.regain(&key);
                self.work.compare([key]);
                continue;
            };
            let holder = *holder;
            if self.is_ours(&Object::Route(holder)) {
                // The foreign route comes after ours and does no harm.
                self.replaced.regain(&key);
                self.have.insert(Object::Route(holder));
                self.mark_users([key]);
                self.work.compare([key]);
                continue;
            }
            let foreign = shown(&holder, &links);
            let create = Op::Create(desired);
            // Two blackholes drop the same packets.
            let needed = match (ours.through, holder.through) {
                (Through::Nowhere, Through::Nowhere) => Needed::ByNobody,
                _ => self.needed(&create),
            };
            if !self.replaced.was_first(&key) {
                let does = if needed == Needed::ByNobody { " and does what ours would" } else { "" };
                let reason = Reason::new(
                    format!(
                        "route {} is in the way: it is not ours ({foreign}){does}, so it stays",
                        ours.dst
                    ),
                    "remove it and ours is put in its place",
                );
                self.block_for(needed, &create, libc::EEXIST, reason, false, now);
                continue;
            }
            let reason: Reason = match self.replaced.decide(key, holder, now) {
                Verdict::PutBack => {
                    let route = self.named(&desired);
                    self.events.send(NetworkEvent::RouteReplaced { route, foreign });
                    // The kernel does not accept two equal routes.
                    let behind =
                        behind.iter().copied().map(Object::Route).filter(|route| self.is_ours(route));
                    ops.extend(behind.map(Op::Delete));
                    let helper = gateway_route(&ours).map(Object::Route);
                    let helper = helper.filter(|helper| self.peers.want().get(&helper.key()).is_none());
                    ops.extend(helper.map(Op::Create));
                    ops.push(Op::Replace(desired));
                    ops.extend(helper.map(Op::Delete));
                    continue;
                }
                Verdict::Concede => Reason::new(
                    format!(
                        "route {} of ours was replaced by somebody else's, {foreign}, again after it was put back \
                         {TIMES} times within a minute, so that stays",
                        ours.dst
                    ),
                    "find who writes it (ip monitor route) and stop or delete it, and ours is put in its place",
                ),
                Verdict::Connected => Reason::new(
                    format!(
                        "route {} is in the way: the kernel made it for an address ({foreign}), so it stays",
                        ours.dst
                    ),
                    "remove that address and ours is put in its place",
                ),
            };
            self.block_for(needed, &create, libc::EEXIST, reason, true, now);
        }
        Ok(ops)
    }

    async fn read_holders(
        &mut self,
        keys: &BTreeSet<ObjectKey>,
    ) -> Result<(BTreeMap<ObjectKey, Vec<Route>>, Vec<Link>), KernelError> {
        let mut holders: BTreeMap<ObjectKey, Vec<Route>> = BTreeMap::new();
        for family in Family::ALL {
            let of_family =
                |key: &ObjectKey| matches!(key, ObjectKey::Route(dst, _) if dst.family() == family);
            if keys.iter().any(of_family) {
                for route in self.kernel.routes_at(family, keys).await? {
                    holders.entry(Object::Route(route).key()).or_default().push(route);
                }
            }
        }
        Ok((holders, self.kernel.links().await?))
    }
}

/// A route to the gateway of `ours`. The kernel refuses an IPv6 route with an onlink gateway that a route of another
/// link covers, and the foreign route on the other link covers ours. With a route to the gateway on our device, the
/// kernel accepts it.
fn gateway_route(ours: &Route) -> Option<Route> {
    let needs = ours.onlink && ours.through == Through::Itself && ours.dst.family() == Family::V6;
    let dst = Subnet::containing(ours.via.filter(|_| needs)?, Family::V6.bits())?;
    Some(Route { dst, via: None, onlink: false, ..*ours })
}

/// A route as `ip route` prints it.
fn shown(route: &Route, links: &[Link]) -> String {
    let via = route.via.map(|via| format!("via {via} "));
    let link = route.link.map(|index| {
        let name = links.iter().find(|link| link.index == index).map(|link| link.name.clone());
        format!("dev {} ", name.unwrap_or_else(|| format!("with index {index}")))
    });
    let nowhere = (route.via.is_none() && route.link.is_none()).then_some(match route.through {
        Through::Nowhere => "blackhole ",
        _ => "without one gateway or link of its own ",
    });
    let protocol = match route.protocol {
        BOOT_PROTOCOL => "boot".to_owned(),
        KERNEL_PROTOCOL => "kernel".to_owned(),
        other => other.to_string(),
    };
    let mtu = route.mtu.map(|mtu| format!(" mtu lock {mtu}"));
    format!(
        "{}{}{}proto {protocol}{}",
        via.unwrap_or_default(),
        link.unwrap_or_default(),
        nowhere.unwrap_or_default(),
        mtu.unwrap_or_default()
    )
}
