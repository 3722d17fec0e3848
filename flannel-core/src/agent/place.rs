//! What an agent opens in its network namespace.

use std::fmt;
use std::sync::Arc;

use futures::future::BoxFuture;

use super::firewall::FirewallOptions;
use crate::addr::Family;
use crate::firewall::{FirewallError, ManagerChoice, Managers};
use crate::kernel::{Kernel, KernelError, OpenKernel};
use crate::netlink::Netlink;
use crate::netns::Netns;

/// Opens the managers of firewall rules for these families.
pub(super) type OpenManagers = dyn Fn(
        Netns,
        ManagerChoice,
        Vec<Family>,
        FirewallOptions,
    ) -> BoxFuture<'static, Result<Managers, FirewallError>>
    + Send
    + Sync;

/// Opens kernel and firewall managers of the agent's network namespace for the agent itself. Backends open their own.
#[derive(Clone)]
pub(super) struct Place {
    kernel: Arc<OpenKernel>,
    managers: Arc<OpenManagers>,
}

impl fmt::Debug for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Place")
    }
}

impl Place {
    /// Opens the real ones.
    pub(super) fn real() -> Self {
        Self {
            kernel: Arc::new(|netns| Ok(Box::new(Netlink::open_in(netns)?) as Box<dyn Kernel>)),
            managers: Arc::new(|netns, choice, families, options| {
                Box::pin(async move { Managers::open(&netns, choice, &families, options.resync).await })
            }),
        }
    }

    /// Opens by these functions.
    #[cfg(any(test, feature = "testing"))]
    pub(super) fn new(kernel: Arc<OpenKernel>, managers: Arc<OpenManagers>) -> Self {
        Self { kernel, managers }
    }

    pub(super) fn open_kernel(&self, netns: &Netns) -> Result<Box<dyn Kernel>, KernelError> {
        (self.kernel)(netns)
    }

    /// Opens the managers that this host has. If no rule is desired, none has to be installed.
    pub(super) fn open_managers(
        &self,
        netns: &Netns,
        choice: ManagerChoice,
        families: Vec<Family>,
        options: FirewallOptions,
    ) -> BoxFuture<'static, Result<Managers, FirewallError>> {
        let families = if options.wants_any() { families } else { Vec::new() };
        (self.managers)(netns.clone(), choice, families, options)
    }
}
