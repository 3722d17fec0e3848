//! The C library.
#![allow(unsafe_code)]

/// Lets all threads allocate from one heap (glibc's `M_ARENA_MAX`, mallopt(3)): with a heap for each, what one
/// thread freed after a burst of leases is of no use to the others, and stays. The agent allocates little
/// otherwise, and its datapath nothing.
pub(crate) fn share_one_heap() {
    #[cfg(target_env = "gnu")]
    {
        // SAFETY: no pointers are handed over, and no other thread runs yet that could allocate meanwhile.
        unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) };
    }
}
