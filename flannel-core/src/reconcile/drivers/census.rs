//! How many leases name each backend, and how many of their nodes can receive by it: counted from the changes of leases, so
//! that one change costs the same in a network of any size. Pure.

use std::collections::BTreeMap;

use crate::lease::{LeaseAttrs, LeaseChange};

/// The counts over all leases of other nodes.
#[derive(Debug, Default)]
pub(super) struct Census {
    total: usize,
    /// By the type that leases name, which is empty for udp.
    named: BTreeMap<Box<str>, usize>,
    /// By the kinds of backends by which nodes can receive besides.
    further: BTreeMap<Box<str>, usize>,
}

impl Census {
    /// Counts changes of leases of other nodes. Returns whether a count changed.
    pub(super) fn count(&mut self, changes: &[LeaseChange]) -> bool {
        let mut has_changed = false;
        for LeaseChange { before, after, .. } in changes {
            let [before, after] = [before, after].map(|lease| lease.as_ref().map(|lease| &lease.attrs));
            let kinds =
                |attrs: &LeaseAttrs| attrs.receives.iter().map(|it| it.kind.clone()).collect::<Vec<_>>();
            if before.map(|it| &it.backend_type) == after.map(|it| &it.backend_type)
                && before.map(kinds) == after.map(kinds)
            {
                continue;
            }
            has_changed = true;
            if let Some(before) = before {
                self.total -= 1;
                change(&mut self.named, &before.backend_type, false);
                before.receives.iter().for_each(|it| change(&mut self.further, &it.kind, false));
            }
            if let Some(after) = after {
                self.total += 1;
                change(&mut self.named, &after.backend_type, true);
                after.receives.iter().for_each(|it| change(&mut self.further, &it.kind, true));
            }
        }
        has_changed
    }

    /// How many leases name this type.
    pub(super) fn naming(&self, published_type: &str) -> usize {
        self.named.get(published_type).copied().unwrap_or_default()
    }

    /// How many nodes can't receive by this backend, as far as their leases say.
    pub(super) fn unable(&self, kind: &str, published_type: &str) -> usize {
        let further = self.further.get(kind).copied().unwrap_or_default();
        self.total - (self.naming(published_type) + further).min(self.total)
    }

    /// Whether a lease names none of these types, so that its node is reached by a further way if at all.
    pub(super) fn has_others(&self, published_types: &[&str]) -> bool {
        self.named.keys().any(|named| !published_types.contains(&&**named))
    }

    /// How many nodes can receive by this backend besides the one that their leases name.
    pub(super) fn further(&self, kind: &str) -> usize {
        self.further.get(kind).copied().unwrap_or_default()
    }
}

fn change(counts: &mut BTreeMap<Box<str>, usize>, key: &str, is_more: bool) {
    if is_more {
        *counts.entry(key.into()).or_default() += 1;
    } else if let Some(count) = counts.get_mut(key) {
        *count -= 1;
        if *count == 0 {
            counts.remove(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::addr::PerFamily;
    use crate::lease::{AgedLease, Lease, Reception};

    fn lease(named: &str, further: &[&str]) -> Arc<AgedLease> {
        let reception =
            |kind: &&str| Reception { kind: (*kind).to_owned(), backend_data: PerFamily::default() };
        let receives = further.iter().map(reception).collect();
        let attrs = LeaseAttrs { backend_type: named.to_owned(), receives, ..LeaseAttrs::default() };
        Arc::new(Lease { key: "10.5.1.0-24".parse().unwrap(), attrs, created: 1 }.into())
    }

    #[test]
    fn changes_are_counted() {
        let mut census = Census::default();
        let mut turn = |before: Option<&Arc<AgedLease>>, after: Option<&Arc<AgedLease>>| {
            let key = "10.5.1.0-24".parse().unwrap();
            census.count(&[LeaseChange { key, before: before.cloned(), after: after.cloned() }]);
            (
                census.naming("vxlan"),
                census.unable("udp", ""),
                census.further("udp"),
                census.has_others(&["vxlan"]),
            )
        };
        let (plain, able) = (lease("vxlan", &[]), lease("vxlan", &["udp"]));
        let switched = lease("", &["vxlan"]);
        assert_eq!(turn(None, Some(&plain)), (1, 1, 0, false));
        assert_eq!(turn(None, Some(&plain)), (2, 2, 0, false));
        assert_eq!(turn(Some(&plain), Some(&able)), (2, 1, 1, false));
        assert_eq!(turn(Some(&able), Some(&switched)), (1, 1, 0, true));
        assert_eq!(turn(Some(&plain), None), (0, 0, 0, true));
        assert_eq!(turn(Some(&switched), None), (0, 0, 0, false));
    }
}
