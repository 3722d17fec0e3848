//! What the loop has to look at, and why: two values, since the same look finds drift, or what is desired anew.

use std::collections::BTreeSet;

use crate::dataplane::ObjectKey;

/// What has to be looked at.
#[derive(Debug, Default)]
pub(super) struct Work {
    underlay: bool,
    claims: bool,
    peers: bool,
    devices: bool,
    host: bool,
    objects: bool,
    keys: BTreeSet<ObjectKey>,
}

/// Which objects a pass compares.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) enum Objects {
    /// All, which are read first.
    #[default]
    All,
    /// Those under these keys, by what is known of the kernel.
    Keys(BTreeSet<ObjectKey>),
}

impl Objects {
    /// Whether all were read.
    pub(super) fn are_all(&self) -> bool {
        *self == Self::All
    }

    /// Whether the object under a key was compared.
    pub(super) fn contains(&self, key: &ObjectKey) -> bool {
        match self {
            Self::All => true,
            Self::Keys(keys) => keys.contains(key),
        }
    }
}

/// Why the kernel may hold something else than is desired. The later of two takes precedence.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Why {
    /// Something happened in the kernel, or may have: what differs is drift.
    #[default]
    Drift,
    /// The regular resync, and nothing else. Its dumps skip some entries now and then while others change.
    Resync,
    /// Something else is desired than before: what differs is no drift.
    Desired,
}

impl Work {
    /// What a loop begins with.
    pub(super) fn of_start() -> Self {
        Self { devices: true, objects: true, ..Self::default() }
    }

    /// The underlay's link and addresses may have changed.
    pub(super) fn check_underlay(&mut self) {
        self.underlay = true;
    }

    /// This node's record may fare otherwise among those of others.
    pub(super) fn check_claims(&mut self) {
        self.claims = true;
    }

    /// A device may have changed.
    pub(super) fn check_devices(&mut self) {
        self.devices = true;
    }

    /// What the host does with packets of pods may have changed.
    pub(super) fn check_host(&mut self) {
        self.host = true;
    }

    /// What the kernel holds is unknown.
    pub(super) fn read_objects(&mut self) {
        self.objects = true;
    }

    /// The objects under these keys may not be as desired.
    pub(super) fn compare(&mut self, keys: impl IntoIterator<Item = ObjectKey>) {
        self.keys.extend(keys);
    }

    /// What leases mean may have changed: all peers are worked out again, on devices that are looked at before.
    pub(super) fn rebuild_peers(&mut self) {
        (self.peers, self.devices) = (true, true);
    }

    /// Anything may have changed.
    pub(super) fn check_all(&mut self) {
        (self.underlay, self.devices, self.host, self.objects) = (true, true, true, true);
    }

    /// Whether a pass is needed.
    pub(super) fn is_pending(&self) -> bool {
        let Self { underlay, claims: _, peers: _, devices, host, objects, keys } = self;
        *underlay || *devices || *host || *objects || !keys.is_empty()
    }

    /// Whether the devices, and what is on them, are known to be looked at.
    pub(super) fn has_devices(&self) -> bool {
        self.devices
    }

    /// Whether what the kernel holds is yet to be read.
    pub(super) fn has_objects(&self) -> bool {
        self.objects
    }

    /// Whether peers are yet to be worked out again.
    pub(super) fn has_peers(&self) -> bool {
        self.peers
    }

    /// Whether this node's claims are yet to be looked at.
    pub(super) fn has_claims(&self) -> bool {
        self.claims
    }

    /// Takes the check of the underlay off the list. Returns whether it was on it, as all of these do.
    pub(super) fn begin_underlay(&mut self) -> bool {
        std::mem::take(&mut self.underlay)
    }

    /// Takes the check of this node's claims off the list.
    pub(super) fn begin_claims(&mut self) -> bool {
        std::mem::take(&mut self.claims)
    }

    /// Takes the check of the devices off the list.
    pub(super) fn begin_devices(&mut self) -> bool {
        std::mem::take(&mut self.devices)
    }

    /// Takes the rebuilding of the peers off the list.
    pub(super) fn begin_peers(&mut self) -> bool {
        std::mem::take(&mut self.peers)
    }

    /// Takes the check of the host off the list.
    pub(super) fn begin_host(&mut self) -> bool {
        std::mem::take(&mut self.host)
    }

    /// Takes the objects off the list. Whoever reads all need not compare single ones.
    pub(super) fn begin_objects(&mut self) -> Objects {
        let keys = std::mem::take(&mut self.keys);
        if std::mem::take(&mut self.objects) { Objects::All } else { Objects::Keys(keys) }
    }
}

impl Why {
    /// Something else is desired than before.
    pub(super) fn is_desired(self) -> bool {
        self == Self::Desired
    }

    /// Adds another reason.
    pub(super) fn add(&mut self, other: Self) {
        *self = (*self).max(other);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_desired_anew_hides_drift_and_drift_does_not_hide_it() {
        for (reasons, why) in [
            (&[][..], Why::Drift),
            (&[Why::Resync], Why::Resync),
            (&[Why::Desired, Why::Resync, Why::Drift], Why::Desired),
        ] {
            let mut sum = Why::default();
            for reason in reasons {
                sum.add(*reason);
            }
            assert_eq!(sum, why);
        }
    }

    #[test]
    fn whoever_reads_all_compares_all() {
        let key = ObjectKey::Route("10.5.2.0/24".parse().unwrap(), 0);
        let mut work = Work::default();
        assert!(!work.is_pending() && Work::of_start().is_pending());
        work.compare([key]);
        assert!(work.is_pending());
        work.read_objects();
        assert_eq!(work.begin_objects(), Objects::All);
        assert!(!work.is_pending(), "the key is among them");
        work.compare([key]);
        assert!(work.begin_objects().contains(&key) && !work.is_pending());
    }
}
