//! Which operations may be carried out now: what the store has not confirmed as gone is not deleted.

use std::cell::OnceCell;
use std::collections::BTreeSet;

use tokio::time::Instant;

use super::{Driver, Reconciler};
use crate::addr::MacAddr;
use crate::dataplane::{Dataplane, Object, ObjectKey, Op};
use crate::lease::Unknown;

impl<D: Driver> Reconciler<D> {
    /// The operations that may be carried out now.
    pub(super) fn permitted(&mut self, mut ops: Vec<Op>, now: Instant) -> Vec<Op> {
        ops.retain(|op| !self.blocked.is_waiting(&op.key(), now));
        if !ops.iter().any(|op| matches!(op, Op::Delete(_))) {
            return ops;
        }
        if !self.leases.is_synced() {
            // Before the first snapshot an empty table does not mean that objects should be deleted.
            ops.retain(|op| !matches!(op, Op::Delete(_)));
            return ops;
        }
        let unknown = [self.leases.unknown(), self.peers.unknown()];
        if unknown.iter().any(|unknown| !unknown.is_empty()) {
            let kept = Kept { unknown, have: &self.have, macs: OnceCell::new() };
            let (withheld, permitted) =
                ops.into_iter().partition(|op| matches!(op, Op::Delete(object) if kept.covers(object)));
            self.withheld.extend(Vec::<Op>::into_iter(withheld).map(|op| op.key()));
            ops = permitted;
        }
        ops
    }

    /// The deletions that wait for an unreadable record.
    pub(super) fn withheld_among(&self, ops: &[Op], have: &Dataplane) -> BTreeSet<ObjectKey> {
        let kept =
            Kept { unknown: [self.leases.unknown(), self.peers.unknown()], have, macs: OnceCell::new() };
        let is_withheld = |op: &&Op| matches!(op, Op::Delete(object) if kept.covers(object));
        ops.iter().filter(is_withheld).map(Op::key).collect()
    }
}

/// Objects of subnets whose lease record is unreadable. They must not be deleted until it can be read. Only exactly
/// these subnets count: an unreadable record of the whole network must not keep the leftovers of other nodes.
struct Kept<'a> {
    unknown: [&'a Unknown; 2],
    have: &'a Dataplane,
    /// The MACs of their neighbours, computed on demand.
    macs: OnceCell<BTreeSet<MacAddr>>,
}

impl Kept<'_> {
    fn covers(&self, object: &Object) -> bool {
        let has_base = |base| self.unknown.iter().any(|unknown| unknown.has_base(base));
        match object {
            Object::Address(_) => false,
            Object::Neighbour(neighbour) => has_base(neighbour.addr),
            Object::Fdb(entry) => {
                let macs = self.have.iter().filter_map(|object| match object {
                    Object::Neighbour(neighbour) if has_base(neighbour.addr) => Some(neighbour.mac),
                    _ => None,
                });
                self.macs.get_or_init(|| macs.collect()).contains(&entry.mac)
            }
            Object::NextHop(next_hop) => has_base(next_hop.gateway),
            Object::Route(route) => self.unknown.iter().any(|unknown| unknown.has_subnet(route.dst)),
        }
    }
}
