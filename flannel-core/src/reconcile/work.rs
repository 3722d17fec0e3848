//! What the loop has to look at, and why. These are two values, since the same difference can be drift or follow from a
//! new desired state.

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
    held: bool,
    objects: bool,
    keys: BTreeSet<ObjectKey>,
}

/// Which objects a pass compares.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) enum Objects {
    /// All objects, after reading them from the kernel.
    #[default]
    All,
    /// The objects with these keys, without reading the kernel again.
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

/// Why observed and desired state may differ. Of two causes the later variant wins.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Why {
    /// Something changed in the kernel, or may have: a difference is drift.
    #[default]
    Drift,
    /// Only the regular resync. Its dumps sometimes miss entries while others change.
    Resync,
    /// The desired state changed: a difference is not drift.
    Desired,
}

impl Work {
    /// The work with which a loop starts: devices and objects.
    pub(super) fn of_start() -> Self {
        Self { devices: true, objects: true, ..Self::default() }
    }

    /// Adds a check of the underlay, whose link or addresses may have changed.
    pub(super) fn check_underlay(&mut self) {
        self.underlay = true;
    }

    /// Adds a check of this node's claims: their conflicts may have changed.
    pub(super) fn check_claims(&mut self) {
        self.claims = true;
    }

    /// Adds a check of the devices, since one may have changed.
    pub(super) fn check_devices(&mut self) {
        self.devices = true;
    }

    /// Adds a check of what the host does with pods' packets (forwarding, addresses in the way).
    pub(super) fn check_host(&mut self) {
        self.host = true;
    }

    /// Adds a comparison of what the driver holds in its devices: the programmed peers may have changed.
    pub(super) fn hold(&mut self) {
        self.held = true;
    }

    /// Adds reading all objects, since the observed state is unknown.
    pub(super) fn read_objects(&mut self) {
        self.objects = true;
    }

    /// Adds a comparison of the objects with these keys.
    pub(super) fn compare(&mut self, keys: impl IntoIterator<Item = ObjectKey>) {
        self.keys.extend(keys);
    }

    /// Adds computing all peers again, after a check of the devices: leases may need other objects.
    pub(super) fn rebuild_peers(&mut self) {
        (self.peers, self.devices) = (true, true);
    }

    /// Adds everything, since anything may have changed.
    pub(super) fn check_all(&mut self) {
        (self.underlay, self.devices, self.host, self.objects) = (true, true, true, true);
    }

    /// Whether a pass is needed.
    pub(super) fn is_pending(&self) -> bool {
        let Self { underlay, claims: _, peers: _, devices, host, held, objects, keys } = self;
        *underlay || *devices || *host || *held || *objects || !keys.is_empty()
    }

    /// Whether a check of the devices and their objects is pending.
    pub(super) fn has_devices(&self) -> bool {
        self.devices
    }

    /// Whether reading all objects is pending.
    pub(super) fn has_objects(&self) -> bool {
        self.objects
    }

    /// Whether computing all peers is pending.
    pub(super) fn has_peers(&self) -> bool {
        self.peers
    }

    /// Whether a check of this node's claims is pending.
    pub(super) fn has_claims(&self) -> bool {
        self.claims
    }

    /// Takes the check of the underlay off the list. Returns whether it was on the list, as all of these do.
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

    /// Takes the comparison of what the driver holds off the list.
    pub(super) fn begin_hold(&mut self) -> bool {
        std::mem::take(&mut self.held)
    }

    /// Takes the objects off the list. If all are to be read, the single keys are dropped.
    pub(super) fn begin_objects(&mut self) -> Objects {
        let keys = std::mem::take(&mut self.keys);
        if std::mem::take(&mut self.objects) { Objects::All } else { Objects::Keys(keys) }
    }
}

impl Why {
    /// Whether the desired state changed.
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
