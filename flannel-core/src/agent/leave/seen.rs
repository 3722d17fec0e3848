//! What the kernel has that may be ours.

use crate::addr::Family;
use crate::dataplane::{Object, ROUTE_PROTOCOL, Route};
use crate::kernel::{Kernel, KernelError, Kinds, Link, LinkAddress, Scope};
use crate::ownership::BOOT_PROTOCOL;

/// The state of the kernel.
#[derive(Debug, Clone, Default)]
pub(super) struct Seen {
    /// All links.
    pub(super) links: Vec<Link>,
    /// All addresses.
    pub(super) addresses: Vec<LinkAddress>,
    /// The routes of the main table with our protocol, and those with the protocol of Go's routes.
    pub(super) routes: Vec<Route>,
}

/// Reads it.
pub(super) async fn look(kernel: &mut dyn Kernel) -> Result<Seen, KernelError> {
    let links = kernel.links().await?;
    let addresses = kernel.addresses().await?;
    let mut routes = Vec::new();
    for family in Family::ALL {
        // Some kernels name the link of a route through a next-hop object only in the object.
        for link in links.iter().filter(|link| link.vxlan.is_some()) {
            kernel.objects(Scope { link: link.index, family, kinds: Kinds::NEXT_HOPS }).await?;
        }
        for protocol in [ROUTE_PROTOCOL, BOOT_PROTOCOL] {
            let found = kernel.routes_by(family, protocol).await?;
            routes.extend(found.into_iter().filter_map(|object| match object {
                Object::Route(route) => Some(route),
                _ => None,
            }));
        }
    }
    Ok(Seen { links, addresses, routes })
}
