//! Acquires a lease: adopts, creates or replaces a record, each in one transaction that fails if the store has changed
//! since the list.

use std::sync::PoisonError;
use std::time::Duration;

use etcd_client::{Compare, CompareOp, Txn, TxnOp, TxnResponse};
use flannel_core::addr::Family;
use flannel_core::backoff::up_to;
use flannel_core::config::NetworkConfig;
use flannel_core::lease::{Lease, LeaseAttrs, LeaseKey};
use flannel_core::subnet::allocate::{Applicant, Decision, decide, former, holder, is_same_node};
use flannel_core::subnet::{Identity, SubnetError};
use tracing::{debug, info, warn};

use super::Store;
use super::create::{Created, Guard, Wanted};
use super::error::CallError;
use super::records::{Found, Listed, Stored, digest};
use super::txn::{put, records};

/// How many times another subnet is chosen because others took the chosen one.
const ATTEMPTS: u32 = 20;
/// How many former records are deleted in one transaction, which has 128 operations at most. A node has one or two.
const MOST_FORMER: usize = 16;

/// The result of one attempt.
enum Attempt {
    Done(Lease),
    /// Others created leases meanwhile, which were added to the list. Try again with it.
    Again,
    /// The list is out of date. List again.
    ListAgain,
}

/// What is kept from one attempt to the next.
struct Attempts {
    listed: Listed,
    /// Whether the list was read just now, so that it has no lease that is gone.
    is_fresh: bool,
    identity: Identity,
    /// An etcd lease without a key so far.
    grant: Option<i64>,
}

impl Store {
    pub(super) async fn acquire(&self, attrs: &LeaseAttrs) -> Result<Lease, SubnetError> {
        let (is_fresh, (config, listed)) = match self.kept.take() {
            None => (true, self.config_and_leases().await?),
            Some(listed) => {
                let (at, config) = self.config_at().await?;
                // The store may have been replaced or restored since.
                let is_fresh = !listed.at.leads_to(at);
                (is_fresh, (config, if is_fresh { self.list().await? } else { listed }))
            }
        };
        let identity = self.identity();
        let mut state = Attempts { listed, is_fresh, identity, grant: None };
        for attempt in 0..ATTEMPTS {
            // One collision is chance; more of them mean that many nodes start at once.
            let crowd = Duration::from_millis(20 * u64::from(attempt.saturating_sub(1)));
            tokio::time::sleep(up_to(crowd)).await;
            match self.attempt(&config, attrs, &mut state).await {
                Ok(Attempt::Done(lease)) => {
                    info!(subnet = %lease.key, "lease acquired");
                    // A list that has the lease as it is will do for the watch.
                    if attempt == 0 && state.listed.stored.iter().any(|stored| stored.lease == lease) {
                        self.kept.keep(state.listed);
                    }
                    return Ok(lease);
                }
                Ok(Attempt::Again) => state.is_fresh = false,
                Ok(Attempt::ListAgain) => (state.listed, state.is_fresh) = (self.list().await?, true),
                // Another node may have left since, or may publish something else.
                Err(
                    SubnetError::OutOfSubnets { .. } | SubnetError::Claimed { .. } | SubnetError::Conflict(_),
                ) if !state.is_fresh => {
                    (state.listed, state.is_fresh) = (self.list().await?, true);
                }
                // The etcd lease will expire by itself, since the store can't be reached to revoke it.
                Err(error @ SubnetError::Unavailable { .. }) => return Err(error),
                Err(error) => {
                    self.revoke(state.grant.unwrap_or(0)).await;
                    return Err(error);
                }
            }
            debug!(attempt, "lost the race for a subnet");
        }
        self.revoke(state.grant.unwrap_or(0)).await;
        Err(SubnetError::Contended { attempts: ATTEMPTS })
    }

    async fn attempt(
        &self,
        config: &NetworkConfig,
        attrs: &LeaseAttrs,
        state: &mut Attempts,
    ) -> Result<Attempt, SubnetError> {
        refuse_ipv6_only(config, &state.listed)?;
        let local = *self.local.lock().unwrap_or_else(PoisonError::into_inner);
        let (listed, rng) = (&state.listed, &mut fastrand::Rng::new());
        let listing = listed.listing();
        let applicant = Applicant { attrs, identity: &state.identity, local: &local };
        let stored = |key| listed.stored.iter().find(|stored| stored.lease.key == key);
        let swapped = |lease: Option<Lease>| lease.map_or(Attempt::ListAgain, Attempt::Done);
        let decision = decide(config, &listing, applicant, rng)?;
        let own = match &decision {
            Decision::Adopt(own) => own.lease.key,
            Decision::Take(key) | Decision::Reclaim(key) | Decision::Replace { new: key, .. } => *key,
        };
        let former = former(&listing, own, applicant).filter_map(|record| stored(record.lease.key));
        let former: Vec<&Stored> = former.filter(|old| may_go(old)).take(MOST_FORMER).collect();
        let (key, replaced) = match decision {
            Decision::Adopt(own) => {
                let own = stored(own.lease.key).expect("what was decided on was listed");
                return Ok(swapped(self.adopt(own, attrs, &former, state.is_fresh).await?));
            }
            Decision::Reclaim(key) => {
                let name = key.to_string();
                if let Some(bad) = listed.bad.iter().find(|bad| bad.record.key == name) {
                    let is_ours = self.swap(key, bad.modified, bad.etcd_lease, attrs, &former).await?;
                    let lease = || Lease { key, attrs: attrs.clone(), created: bad.created };
                    return Ok(swapped(is_ours.then(lease)));
                }
                // The record has another spelling of the same subnets, which we must not write.
                (key, None)
            }
            Decision::Take(key) => (key, None),
            Decision::Replace { old, new } => (new, stored(old.lease.key)),
        };
        let (guard, revision) = (Guard::of(Some(config), key), listed.at.revision);
        let former =
            former.into_iter().filter(|old| Some(old.lease.key) != replaced.map(|old| old.lease.key));
        let wanted = Wanted { key, attrs, guard, revision, replaced, former: former.collect() };
        match self.create(&wanted, &mut state.grant).await? {
            Created::Ours(lease) => {
                note_gone(&wanted.former);
                return Ok(Attempt::Done(lease));
            }
            Created::Taken(Some(newer)) => {
                state.listed.catch_up(self, &newer);
                return Ok(Attempt::Again);
            }
            Created::Taken(None) => {}
            // The replaced record is gone, but its subnets are kept where possible.
            Created::Withdrawn => {
                let kept = replaced.map(|old| old.lease.key);
                state.identity.subnets = kept.or(state.identity.subnets);
            }
        }
        Ok(Attempt::ListAgain)
    }

    /// Publishes in a record of ours. `None` if it changed meanwhile.
    ///
    /// If the record has the right value and a live etcd lease, only the lease is kept alive, so that peers don't see a
    /// restart. Then the record is read again, unless the list `is_fresh`.
    async fn adopt(
        &self,
        own: &Stored,
        attrs: &LeaseAttrs,
        former: &[&Stored],
        is_fresh: bool,
    ) -> Result<Option<Lease>, SubnetError> {
        let unchanged = own.value == digest(attrs.to_json().as_bytes()) && former.is_empty();
        let is_alive = own.etcd_lease == 0 || self.renew(own.etcd_lease).await?;
        if unchanged && is_alive {
            let is_there = is_fresh || self.is_as_listed(own).await?;
            return Ok(is_there.then(|| own.lease.clone()));
        }
        let swapped = self.swap(own.lease.key, own.modified, own.etcd_lease, attrs, former).await?;
        if swapped {
            note_moved(&own.lease, attrs);
        }
        Ok(swapped.then(|| Lease { attrs: attrs.clone(), ..own.lease.clone() }))
    }

    /// Whether the record of a lease is still the one that was listed.
    async fn is_as_listed(&self, listed: &Stored) -> Result<bool, CallError> {
        let (_, found) = self.read(listed.lease.key).await?;
        let known = (listed.modified, listed.etcd_lease);
        Ok(matches!(found, Found::Lease(now) if (now.modified, now.etcd_lease) == known))
    }

    /// Writes our value to a key that was last changed at `modified`: on its etcd lease if that is alive, else on a new
    /// one; a reservation (lease 0) stays one. The same transaction deletes the `former` records. `false` if the key,
    /// or one of these, changed meanwhile.
    pub(super) async fn swap(
        &self,
        key: LeaseKey,
        modified: i64,
        etcd_lease: i64,
        attrs: &LeaseAttrs,
        former: &[&Stored],
    ) -> Result<bool, CallError> {
        let is_kept = etcd_lease == 0 || self.renew(etcd_lease).await?;
        let id = if is_kept { etcd_lease } else { self.grant().await? };
        let (name, value) = (self.keys.lease(key), attrs.to_json());
        let is_as_listed =
            |name: &str, modified| Compare::mod_revision(name.to_owned(), CompareOp::Equal, modified);
        let mut when = vec![is_as_listed(&name, modified)];
        let mut then = vec![put(&name, &value, id)];
        for old in former {
            let name = self.keys.lease(old.lease.key);
            when.push(is_as_listed(&name, old.modified));
            then.push(TxnOp::delete(name, None));
        }
        let txn = Txn::new().when(when).and_then(then).or_else([TxnOp::get(name.as_str(), None)]);
        let done = match self.txn("publish the lease", txn).await {
            // The key had another value, which is not a lease.
            Err(error) if error.is_too_large() => None,
            done => Some(done?),
        };
        let succeeded = done.as_ref().is_some_and(TxnResponse::succeeded);
        // If the request was sent twice, the second one finds the result of the first.
        let mut there = done.iter().flat_map(records);
        let swapped = succeeded
            || there.any(|found| found.value() == value.as_bytes() && found.lease() == id && id != 0);
        if !swapped && !is_kept {
            self.revoke(id).await;
        }
        if succeeded {
            note_gone(former);
        }
        Ok(swapped)
    }
}

/// Whether a former record of this node may be deleted. Reservations are deleted only by their operator.
fn may_go(old: &Stored) -> bool {
    let is_reserved = old.etcd_lease == 0;
    if is_reserved {
        warn!(subnet = %old.lease.key, "a reservation names this node beside its lease; delete one of them");
    }
    !is_reserved
}

fn note_gone(former: &[&Stored]) {
    for old in former {
        info!(subnet = %old.lease.key, underlay = holder(&old.lease.attrs), "former lease of this node deleted");
    }
}

/// Logs that a lease was kept over a change of the address.
fn note_moved(own: &Lease, attrs: &LeaseAttrs) {
    if !is_same_node(&own.attrs, attrs) {
        let (before, underlay) = (holder(&own.attrs), holder(attrs));
        info!(subnet = %own.key, before, underlay, "lease kept; the address of this node changed");
    }
}

/// Refuses a lease with IPv6 alone if any lease has IPv4, since there may be Go nodes then: they misread its key as
/// `0.0.0.0/0`.
fn refuse_ipv6_only(config: &NetworkConfig, listed: &Listed) -> Result<(), SubnetError> {
    if config.networks.v4.is_some() {
        return Ok(());
    }
    let keys = listed.stored.iter().map(|stored| stored.lease.key);
    let mut keys = keys.chain(listed.bad.iter().filter_map(|bad| bad.occupied));
    match keys.find(|key| key.subnet(Family::V4).is_some()) {
        None => Ok(()),
        Some(key) => Err(SubnetError::Conflict(format!(
            "the network config says EnableIPv4: false, but lease {key} has an IPv4 subnet, and its node may not \
             understand leases without one; delete such leases first"
        ))),
    }
}
