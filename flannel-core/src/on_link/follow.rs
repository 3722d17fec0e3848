//! Reads which addresses are on-link, and says which notifications may change that: for every backend that reaches such
//! peers without a tunnel.

use super::OnLink;
use crate::addr::{Family, LinkIndex, PerFamily, Subnet};
use crate::dataplane::{Object, ObjectKey, Route};
use crate::kernel::{Kernel, KernelError, KernelEvent, Kinds, Scope};

impl OnLink {
    /// Reads the routes through a link, of the families of `networks`. Routes to `networks` lead to pods, so they don't
    /// matter for nodes, and there are many.
    pub async fn read(
        kernel: &mut dyn Kernel,
        link: LinkIndex,
        networks: &PerFamily<Subnet>,
    ) -> Result<Self, KernelError> {
        let mut routes = Vec::new();
        for family in networks.families().collect::<Vec<Family>>() {
            let objects = kernel.objects(Scope { link, family, kinds: Kinds::ROUTES }).await?;
            routes.extend(objects.into_iter().filter_map(|object| match object {
                Object::Route(route) if !is_to_pods(networks, route.dst) => Some(route),
                _ => None,
            }));
        }
        Ok(Self::new(&routes))
    }

    /// Whether a notification may change which addresses are on-link on `link`, so that they should be read again. When
    /// an address is removed the kernel deletes routes with it, some without a notification.
    pub fn is_concerned(&self, event: &KernelEvent, link: LinkIndex, networks: &PerFamily<Subnet>) -> bool {
        match event {
            KernelEvent::Put(Object::Route(route)) if route.link == Some(link) => {
                !is_to_pods(networks, route.dst) && self.is_changed_by(route)
            }
            KernelEvent::Put(Object::Route(Route { dst, metric, .. }))
            | KernelEvent::Gone(ObjectKey::Route(dst, metric)) => self.rests_on(*dst, *metric),
            KernelEvent::Put(Object::Address(address)) => address.link == link,
            KernelEvent::Gone(ObjectKey::Address(of, _)) => *of == link,
            _ => false,
        }
    }
}

fn is_to_pods(networks: &PerFamily<Subnet>, dst: Subnet) -> bool {
    networks.get(dst.family()).is_some_and(|network| network.covers(dst))
}
