//! Renews the own lease by its file time, puts it back when it was deleted or damaged, publishes changed attributes,
//! and gives up only when another node has its subnet.

use std::convert::Infallible;
use std::time::Duration;

use tracing::{debug, error, warn};

use super::files::{Entry, Scan, TOLERANCE};
use super::watch::{Changes, RESCAN};
use super::{Caller, LocalSubnetManager, Store, failed};
use crate::lease::{Lease, LeaseAttrs, LeaseKey};
use crate::subnet::SubnetError;
use crate::subnet::allocate::{holder, is_same_node, overlaps};
use crate::subnet::kit::Rivalry;
use crate::subnet::kit::is_ours;
use crate::subnet::kit::{Backoff, renew_after};

/// How long a lease must stay unchanged before the backoff for putting it back is reset.
const CALM: Duration = Duration::from_secs(10);

/// The result of one check of the lease.
enum Held {
    /// It is right; check again after this time.
    For(Duration),
    /// It was renewed.
    Renewed,
    /// It was gone or changed, and was put back. With the address of another node, if it had one.
    Restored(Option<String>),
}

pub(super) async fn keep_renewed(
    manager: &LocalSubnetManager,
    lease: &Lease,
) -> Result<Infallible, SubnetError> {
    let mut changes = Changes::new(manager.0.folder.clone());
    let mut backoff = Backoff::new();
    let mut jumps = manager.0.options.clock.jumps();
    let (mut spread, mut rivalry) = (fastrand::f64(), Rivalry::default());
    let mut restored = manager.0.options.clock.now();
    loop {
        changes.arm();
        let own = lease.clone();
        let held = manager.changing(move |store, caller| store.confirm(&own, spread, caller)).await;
        let held = match held {
            Ok(Held::Restored(Some(by))) if rivalry.changed_by(&by) => Err(lost(lease.key, rivalry.holder())),
            held => held,
        };
        let pause = match held {
            Ok(Held::For(wait)) => {
                if manager.0.options.clock.now().since(restored) > CALM {
                    backoff.reset();
                    rivalry = Rivalry::default();
                }
                wait.min(RESCAN)
            }
            Ok(Held::Renewed) => {
                debug!(subnet = %lease.key, "lease renewed");
                spread = fastrand::f64();
                continue;
            }
            Ok(Held::Restored(_)) => {
                restored = manager.0.options.clock.now();
                warn!(subnet = %lease.key, "lease was deleted or changed; put back");
                // Two agents of one node would otherwise overwrite each other without a pause.
                tokio::time::sleep(backoff.pause()).await;
                continue;
            }
            Err(lost @ SubnetError::LeaseLost { .. }) => {
                error!(subnet = %lease.key, error = %lost, "lease lost");
                manager.0.health.set_lost(Some(lost.to_string()));
                return Err(lost);
            }
            // The status has the reason.
            Err(_) => backoff.pause(),
        };
        tokio::select! {
            _ = changes.wait(pause) => {}
            // The lease may have expired while nobody could renew it.
            jump = jumps.next() => debug!(?jump, "looking at the own lease after a jump of the clock"),
        }
    }
}

impl Store {
    /// Writes other attributes into the own file, if it is as we left it or has them already.
    pub(super) fn publish(
        &self,
        own: &Lease,
        attrs: &LeaseAttrs,
        caller: &Caller,
    ) -> Result<Lease, SubnetError> {
        let subnets = self.folder.subnets();
        let _lock = self.lock(caller)?;
        self.folder.create_subnets().map_err(failed("create", &subnets))?;
        let scan = self.scan()?;
        let reserved = match scan.live.get(&own.key.to_string()) {
            Some(Entry::Record(there)) if there.lease.attrs == *attrs => return Ok(there.lease.clone()),
            Some(Entry::Record(there)) if !is_ours(&there.lease.attrs, &own.attrs) => {
                return Err(lost(own.key, holder(&there.lease.attrs)));
            }
            Some(Entry::Record(there)) => there.reserved,
            Some(Entry::Bad { reserved, .. }) => *reserved,
            None => match rival(&scan, own.key) {
                Some(rival) => return Err(lost(own.key, rival)),
                None => false,
            },
        };
        let created = self.folder.write(own.key, attrs, reserved, self.options.clock.file_time());
        let created = created.map_err(failed("write to", &subnets))?;
        Ok(Lease { attrs: attrs.clone(), created, ..own.clone() })
    }

    /// Removes the own file.
    pub(super) fn release(&self, own: &Lease, caller: &Caller) -> Result<(), SubnetError> {
        let subnets = self.folder.subnets();
        let _lock = self.lock(caller)?;
        let now = self.clock.now(&self.folder).time;
        let read = self.folder.read(own.key, now).map_err(failed("read", &subnets))?;
        match read {
            None => return Ok(()),
            Some((Entry::Record(there), _)) if !is_ours(&there.lease.attrs, &own.attrs) => {
                return Err(lost(own.key, holder(&there.lease.attrs)));
            }
            Some((Entry::Record(_), _)) => {}
            Some((Entry::Bad { record, .. }, _)) => return Err(SubnetError::Conflict(record.to_string())),
        }
        self.folder.remove([&own.key.to_string()]).map_err(failed("delete from", &subnets))
    }

    /// Whether the own record is dated in the future by the folder's clock, so that a new date helps.
    fn is_ahead(&self, key: LeaseKey) -> bool {
        let now = self.clock.look(&self.folder);
        let read = self.folder.read(key, now.time);
        now.is_fresh && matches!(read, Ok(Some((_, left))) if left > self.options.ttl + TOLERANCE)
    }

    /// Checks the own file; takes the lock only if there is something to do.
    fn confirm(&self, own: &Lease, spread: f64, caller: &Caller) -> Result<Held, SubnetError> {
        let subnets = self.folder.subnets();
        let (ttl, margin) = (self.options.ttl, self.options.renew_margin);
        let now = self.clock.now(&self.folder).time;
        let read = self.folder.read(own.key, now).map_err(failed("read", &subnets))?;
        if let Some((Entry::Record(record), left)) = read
            && record.lease.attrs == own.attrs
        {
            self.health.set_left((!record.reserved).then_some(left), ttl);
            let wait = if record.reserved {
                RESCAN
            } else if left > ttl + TOLERANCE && self.is_ahead(own.key) {
                Duration::ZERO
            } else {
                renew_after(left, ttl, margin, spread)
            };
            if !wait.is_zero() {
                return Ok(Held::For(wait));
            }
        }
        let _lock = self.lock(caller)?;
        self.folder.create_subnets().map_err(failed("create", &subnets))?;
        let scan = self.scan()?;
        let name = own.key.to_string();
        let mut by = None;
        let reserved = match scan.live.get(&name) {
            Some(Entry::Record(there)) if there.lease.attrs == own.attrs => {
                let touched = self.folder.touch(own.key, self.options.clock.file_time());
                touched.map_err(failed("renew in", &subnets))?;
                self.health.set_renewed(ttl);
                return Ok(Held::Renewed);
            }
            Some(Entry::Record(there)) if !is_ours(&there.lease.attrs, &own.attrs) => {
                return Err(lost(own.key, holder(&there.lease.attrs)));
            }
            Some(Entry::Record(there)) => {
                let is_elsewhere = !is_same_node(&there.lease.attrs, &own.attrs);
                by = is_elsewhere.then(|| holder(&there.lease.attrs));
                there.reserved
            }
            // An unreadable record under our key does not show that another node has it.
            Some(Entry::Bad { reserved, .. }) => *reserved,
            None => {
                if let Some(rival) = rival(&scan, own.key) {
                    return Err(lost(own.key, rival));
                }
                false
            }
        };
        let written = self.folder.write(own.key, &own.attrs, reserved, self.options.clock.file_time());
        written.map_err(failed("write to", &subnets))?;
        Ok(Held::Restored(by))
    }
}

fn lost(key: LeaseKey, holder: String) -> SubnetError {
    SubnetError::LeaseLost { key, holder }
}

/// The node that has an address of a key without a record in force.
fn rival(scan: &Scan, key: LeaseKey) -> Option<String> {
    scan.live.values().find_map(|entry| match entry {
        Entry::Record(record) if overlaps(record.lease.key, key) => Some(holder(&record.lease.attrs)),
        Entry::Bad { record, occupied: Some(taken), .. } if overlaps(*taken, key) => {
            Some(format!("the unreadable record {}", record.key))
        }
        _ => None,
    })
}
