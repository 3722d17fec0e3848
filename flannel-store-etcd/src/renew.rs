//! Renews the own lease: checks the key and keeps its etcd lease alive, puts the key back when it was deleted or
//! changed, publishes changed attributes, and gives up only when another node has its subnet. It waits during outages.

use std::convert::Infallible;
use std::time::Duration;

use etcd_client::{Compare, CompareOp, GetOptions, Txn, TxnOp};
use flannel_core::error::chain;
use flannel_core::lease::{Lease, LeaseAttrs, LeaseKey};
use flannel_core::subnet::SubnetError;
use flannel_core::subnet::allocate::{holder, is_same_node, overlaps};
use flannel_core::subnet::kit::Rivalry;
use flannel_core::subnet::kit::is_ours;
use flannel_core::subnet::kit::{Backoff, renew_after};
use tracing::{debug, error, warn};

use super::Store;
use super::create::{Created, Guard, Wanted};
use super::records::{Found, Position};
use super::txn::records;
use super::watch::Feed;

/// How long a lease must stay unchanged before the backoff for putting it back is reset.
const CALM: Duration = Duration::from_secs(10);

/// etcd says how much is left of a lease in whole seconds, rounded down.
const ROUNDED: Duration = Duration::from_secs(1);

/// The result of one check of the lease.
enum Held {
    /// It was right at this position; renew it after this time, a reservation never.
    Until(Position, Option<Duration>),
    /// Its etcd lease was renewed.
    Renewed,
    /// It was gone or changed, and we tried to put it back. With the address of another node, if it had one.
    Restored(Option<String>),
}

impl Store {
    pub(super) async fn keep_renewed(&self, lease: &Lease) -> Result<Infallible, SubnetError> {
        let (mut outage, mut repairs) = (Backoff::new(), Backoff::new());
        let (mut spread, mut rivalry) = (fastrand::f64(), Rivalry::default());
        let mut jumps = self.options.clock.jumps();
        // Whether the time is over after which the lease was to be renewed.
        let mut is_due = false;
        loop {
            let looked = self.look(lease, spread, is_due).await;
            is_due = false;
            let looked = match looked {
                Ok(Held::Restored(Some(by))) if rivalry.changed_by(&by) => {
                    Err(lost(lease.key, rivalry.holder()))
                }
                looked => looked,
            };
            match &looked {
                Ok(_) | Err(SubnetError::LeaseLost { .. }) => self.health.set_unkept(None),
                // The outage was logged already.
                Err(SubnetError::Unavailable { .. }) if !self.health.is_connected() => {}
                Err(error) => self.health.set_unkept(Some(chain(error))),
            }
            match looked {
                Ok(Held::Until(at, wait)) => {
                    let start = self.options.clock.now();
                    let is_seen = tokio::select! {
                        is_seen = self.wait_for_change(lease.key, at, wait) => is_seen,
                        slept = jumps.suspended() => {
                            debug!(?slept, "looking at the own lease after a suspend");
                            // NAT and firewalls have forgotten the connections by now.
                            self.clients.renew().await;
                            true
                        }
                    };
                    if is_seen {
                        outage.reset();
                    } else {
                        tokio::time::sleep(outage.pause()).await;
                    }
                    let waited = self.options.clock.now().since(start);
                    is_due = wait.is_some_and(|wait| waited >= wait);
                    if waited > CALM {
                        repairs.reset();
                        rivalry = Rivalry::default();
                    }
                }
                Ok(Held::Renewed) => {
                    debug!(subnet = %lease.key, "lease renewed");
                    spread = fastrand::f64();
                }
                Ok(Held::Restored(_)) => {
                    warn!(subnet = %lease.key, "lease was deleted or changed; put back");
                    // Two agents of one node would otherwise overwrite each other without a pause.
                    tokio::time::sleep(repairs.pause()).await;
                }
                Err(lost @ SubnetError::LeaseLost { .. }) => {
                    error!(subnet = %lease.key, error = %lost, "lease lost");
                    self.health.set_lost(Some(lost.to_string()));
                    return Err(lost);
                }
                // The status has the reason.
                Err(_) => tokio::time::sleep(outage.pause()).await,
            }
        }
    }

    /// Writes other attributes to the own key, if it is as we left it or has them already.
    pub(super) async fn publish(&self, own: &Lease, attrs: &LeaseAttrs) -> Result<Lease, SubnetError> {
        if attrs.public_ips != own.attrs.public_ips {
            self.clients.renew().await;
        }
        let next = Lease { attrs: attrs.clone(), ..own.clone() };
        let (_, found) = self.read(own.key).await?;
        let (created, modified, etcd_lease) = match found {
            Found::Lease(there) if there.lease.attrs == *attrs => return Ok(there.lease),
            Found::Lease(there) if !is_ours(&there.lease.attrs, &own.attrs) => {
                return Err(self.note_lost(own.key, holder(&there.lease.attrs)));
            }
            Found::Lease(there) => (there.lease.created, there.modified, there.etcd_lease),
            Found::Unreadable(bad) => (bad.created, bad.modified, bad.etcd_lease),
            Found::Nothing => {
                let created = self.create_again(&next).await?;
                return created.ok_or(SubnetError::Contended { attempts: 1 });
            }
        };
        if self.swap(own.key, modified, etcd_lease, attrs, &[]).await? {
            Ok(Lease { created, ..next })
        } else {
            Err(SubnetError::Contended { attempts: 1 })
        }
    }

    /// Removes the own record. Its etcd lease, which has no more keys, expires by itself.
    pub(super) async fn release(&self, own: &Lease) -> Result<(), SubnetError> {
        let (_, found) = self.read(own.key).await?;
        let modified = match found {
            Found::Nothing => return Ok(()),
            Found::Lease(there) if !is_ours(&there.lease.attrs, &own.attrs) => {
                return Err(lost(own.key, holder(&there.lease.attrs)));
            }
            Found::Lease(there) => there.modified,
            Found::Unreadable(bad) => return Err(SubnetError::Conflict(bad.record.to_string())),
        };
        let name = self.keys.lease(own.key);
        let txn = Txn::new()
            .when([Compare::mod_revision(name.as_str(), CompareOp::Equal, modified)])
            .and_then([TxnOp::delete(name.as_str(), None)])
            .or_else([TxnOp::get(name.as_str(), Some(GetOptions::new().with_keys_only()))]);
        let done = self.txn("delete the own lease", txn).await?;
        // If the request was sent twice, the second one finds the result of the first.
        if done.succeeded() || records(&done).is_empty() {
            Ok(())
        } else {
            Err(SubnetError::Contended { attempts: 1 })
        }
    }

    /// Records in the status that another node has our subnets.
    fn note_lost(&self, key: LeaseKey, holder: String) -> SubnetError {
        let lost = lost(key, holder);
        error!(subnet = %key, error = %lost, "lease lost");
        self.health.set_lost(Some(lost.to_string()));
        lost
    }

    /// Checks the own key, and does what is due.
    async fn look(&self, own: &Lease, spread: f64, is_due: bool) -> Result<Held, SubnetError> {
        let (at, found) = self.read(own.key).await?;
        let mut by = None;
        let (modified, etcd_lease) = match found {
            Found::Lease(there) if there.lease.attrs == own.attrs => {
                if there.etcd_lease == 0 {
                    self.health.set_left(None, Duration::ZERO);
                    return Ok(Held::Until(at, None));
                }
                if let Some(remaining) = self.remaining(there.etcd_lease).await? {
                    self.health.set_left(Some(remaining.left), remaining.granted);
                    let margin = self.options.renew_margin;
                    let wait = renew_after(remaining.left, remaining.granted, margin, spread);
                    // The fraction that the rounding hid would be waited for again and again.
                    let early = if is_due { ROUNDED } else { Duration::ZERO };
                    if wait > early {
                        return Ok(Held::Until(at, Some(wait)));
                    }
                    if self.keep_alive(there.etcd_lease).await? {
                        self.health.set_renewed(remaining.granted);
                        return Ok(Held::Renewed);
                    }
                }
                // The etcd lease is gone, and the key will be gone at any moment.
                (there.modified, there.etcd_lease)
            }
            Found::Lease(there) if !is_ours(&there.lease.attrs, &own.attrs) => {
                return Err(lost(own.key, holder(&there.lease.attrs)));
            }
            Found::Lease(there) => {
                let is_elsewhere = !is_same_node(&there.lease.attrs, &own.attrs);
                by = is_elsewhere.then(|| holder(&there.lease.attrs));
                (there.modified, there.etcd_lease)
            }
            // An unreadable record under our key does not show that another node has it.
            Found::Unreadable(bad) => (bad.modified, bad.etcd_lease),
            Found::Nothing => {
                self.create_again(own).await?;
                return Ok(Held::Restored(None));
            }
        };
        self.swap(own.key, modified, etcd_lease, &own.attrs, &[]).await?;
        Ok(Held::Restored(by))
    }

    async fn create_again(&self, own: &Lease) -> Result<Option<Lease>, SubnetError> {
        let listed = self.list().await?;
        let rival = listed.stored.iter().find(|stored| overlaps(stored.lease.key, own.key));
        if let Some(rival) = rival.filter(|rival| rival.lease.key != own.key) {
            return Err(lost(own.key, holder(&rival.lease.attrs)));
        }
        let unreadable = |key: LeaseKey| key != own.key && overlaps(key, own.key);
        if let Some(rival) = listed.bad.iter().find(|bad| bad.occupied.is_some_and(unreadable)) {
            return Err(lost(own.key, format!("the unreadable record {}", rival.record.key)));
        }
        // All nodes do this at once after the store lost its data, so reading the config for a narrow guard pays off.
        let guard = Guard::of(self.config().await.ok().as_ref(), own.key);
        let revision = listed.at.revision;
        let wanted =
            Wanted { key: own.key, attrs: &own.attrs, guard, revision, replaced: None, former: Vec::new() };
        let mut grant = None;
        let created = self.create(&wanted, &mut grant).await?;
        self.revoke(grant.unwrap_or(0)).await;
        Ok(match created {
            Created::Ours(lease) => Some(lease),
            Created::Taken(_) | Created::Withdrawn => None,
        })
    }

    /// Waits until the key changes after `at`, or `limit` is over. `false` if changes can't be seen any more.
    async fn wait_for_change(&self, key: LeaseKey, at: Position, limit: Option<Duration>) -> bool {
        let wait = async {
            let name = self.keys.lease(key);
            let Ok(mut feed) = Feed::open(self, &name, None, at.revision + 1).await else { return false };
            loop {
                match feed.next(self).await {
                    Ok(response) if !response.events().is_empty() => return true,
                    // The store has another history, or this member lags: the key may be gone without an event.
                    Ok(response) if response.created() && !at.leads_to(Position::of(response.header())) => {
                        return false;
                    }
                    Ok(_) => {}
                    Err(_) => return false,
                }
            }
        };
        match limit {
            Some(limit) => tokio::time::timeout(limit, wait).await.unwrap_or(true),
            None => wait.await,
        }
    }
}

fn lost(key: LeaseKey, holder: String) -> SubnetError {
    SubnetError::LeaseLost { key, holder }
}
