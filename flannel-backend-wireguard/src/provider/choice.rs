//! Which provider a node uses.

use std::sync::Arc;

use flannel_backend_udp::Layout;
use flannel_core::error::chain;
use flannel_core::kernel::KernelError;
use flannel_core::netns::Netns;

use super::{InKernel, InUserspace, Provider};
use crate::kernel;

/// Which implementation of WireGuard a node uses. Nodes with different ones understand each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Implementation {
    /// The kernel's, where it has one; else that in user space. A kernel that gets one later is used from the next start on.
    #[default]
    Auto,
    /// The kernel's. Without it the backend can't start.
    Kernel,
    /// The one in this process, even if the kernel has one.
    Userspace,
}

/// A provider, and why it is this one.
#[derive(Clone)]
pub(crate) struct Chosen {
    pub(crate) provider: Arc<dyn Provider>,
    /// The kernel's answer that it has no WireGuard, in words, if that is why.
    pub(crate) why: Option<String>,
}

impl Implementation {
    /// Chooses the provider. The kernel is asked, and loads its module if there is one.
    pub(crate) fn choose(self, netns: &Netns, layout: Layout) -> Chosen {
        let asked = match self {
            Self::Auto => kernel::ask(netns),
            Self::Kernel | Self::Userspace => Ok(()),
        };
        let (is_in_kernel, why) = self.decide(&asked);
        let provider: Arc<dyn Provider> =
            if is_in_kernel { Arc::new(InKernel) } else { Arc::new(InUserspace::new(layout)) };
        Chosen { provider, why }
    }

    /// Whether the kernel's devices are used, and if nobody asked for others, why not. Only an answer that there is no
    /// WireGuard counts as such: devices that are there keep their sessions when the kernel fails to answer for once.
    fn decide(self, asked: &Result<(), KernelError>) -> (bool, Option<String>) {
        match (self, asked) {
            (Self::Userspace, _) => (false, None),
            (Self::Auto, Err(error)) if has_none(error) => {
                (false, Some(format!("the kernel has no WireGuard ({})", chain(error))))
            }
            _ => (true, None),
        }
    }
}

/// Whether the kernel said that it has no WireGuard, or no generic netlink to ask by.
fn has_none(error: &KernelError) -> bool {
    matches!(
        error.errno(),
        Some(libc::ENOENT | libc::EOPNOTSUPP | libc::ENODEV | libc::EPROTONOSUPPORT | libc::EAFNOSUPPORT)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn user_space_is_for_kernels_that_say_they_have_none_and_for_who_asks() {
        let refused = |errno| {
            let what = "find the netlink family wireguard".to_owned();
            let errno = std::io::Error::from_raw_os_error(errno);
            Err(KernelError::Refused { what, reason: String::new(), errno })
        };
        for (choice, asked, in_kernel, has_reason) in [
            (Implementation::Auto, Ok(()), true, false),
            (Implementation::Auto, refused(libc::ENOENT), false, true),
            (Implementation::Auto, refused(libc::EOPNOTSUPP), false, true),
            (Implementation::Auto, refused(libc::ENOBUFS), true, false),
            (Implementation::Auto, refused(libc::EPERM), true, false),
            (Implementation::Kernel, refused(libc::ENOENT), true, false),
            (Implementation::Userspace, Ok(()), false, false),
        ] {
            let (is_in_kernel, why) = choice.decide(&asked);
            assert_eq!((is_in_kernel, why.is_some()), (in_kernel, has_reason), "{choice:?} {asked:?}");
        }
    }
}
