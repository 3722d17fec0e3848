//! What a backend itself does for a peer, beyond the kernel objects that the loop puts. Pure.

/// How far the backend's own work for a programmed peer is.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum PeerWork {
    /// There is none, or it is done.
    Done,
    /// It has not been done yet.
    Pending,
    /// It failed, and is tried again.
    Failed {
        /// Why, and what to do.
        reason: String,
        /// Whether it was done before for an earlier version of the lease, which is still in force.
        in_force: bool,
    },
}
