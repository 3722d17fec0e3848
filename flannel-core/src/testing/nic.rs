//! Changes of a node's NIC, as steps for property tests. A device that is not ready never changes the desired state. So
//! whatever happens to the NIC, the agent deletes nothing, and in the end all objects are there.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use proptest::prelude::*;

use super::FakeKernel;
use crate::addr::{Family, LinkIndex, Mtu};
use crate::dataplane::{Object, Op};
use crate::kernel::{LinkAddress, LinkOp};

/// The names that the NIC and others can have.
const NAMES: [&str; 3] = ["eth0", "ens3", "enp0s3"];

/// One change of the NIC.
#[derive(Debug, Clone, Copy)]
pub enum NicStep {
    /// It is set down.
    Down,
    /// It is set up.
    Up,
    /// It loses its carrier or has it again.
    Carrier(bool),
    /// It gets another name, if that is free.
    Rename(usize),
    /// It loses its address of a family.
    AddressGone(Family),
    /// It gets that address back.
    AddressBack(Family),
    /// It is pulled out, with everything on it.
    Deleted,
    /// It is created again under a free name, with another index.
    Recreated(usize),
    /// Another link gets a name, if that is free.
    Impostor(usize),
    /// The other link is gone.
    ImpostorGone,
    /// Its MTU changes, in bytes.
    Mtu(u32),
    /// Notifications get lost.
    Overrun,
    /// The agent runs for some time, in milliseconds.
    Wait(u64),
}

/// Any step. MTUs that are too small for IPv6 are left out, except those that are too small for anything.
pub fn nic_step() -> impl Strategy<Value = NicStep> {
    let name = || 0..NAMES.len();
    let family = || prop::sample::select(Family::ALL.to_vec());
    prop_oneof![
        2 => Just(NicStep::Down),
        2 => Just(NicStep::Up),
        1 => any::<bool>().prop_map(NicStep::Carrier),
        4 => name().prop_map(NicStep::Rename),
        2 => family().prop_map(NicStep::AddressGone),
        2 => family().prop_map(NicStep::AddressBack),
        2 => Just(NicStep::Deleted),
        4 => name().prop_map(NicStep::Recreated),
        2 => name().prop_map(NicStep::Impostor),
        1 => Just(NicStep::ImpostorGone),
        2 => prop::sample::select(vec![40, 1400, 1500, 9000]).prop_map(NicStep::Mtu),
        1 => Just(NicStep::Overrun),
        8 => prop::sample::select(vec![1, 1, 150, 1500, 12_000]).prop_map(NicStep::Wait),
    ]
}

/// The NIC of a host in memory.
pub struct Nic {
    kernel: FakeKernel,
    addresses: Vec<LinkAddress>,
    link: Option<LinkIndex>,
    impostor: Option<LinkIndex>,
    /// Whether it has no address of each family, so that no node is on-link.
    without: [Arc<AtomicBool>; 2],
}

impl Nic {
    /// The NIC with an index and these addresses.
    pub fn new(kernel: &FakeKernel, link: LinkIndex, addresses: Vec<LinkAddress>) -> Self {
        let without: [Arc<AtomicBool>; 2] = Default::default();
        let gone = without.clone();
        kernel.refuse(move |op| {
            let (Op::Create(Object::Route(route)) | Op::Replace(Object::Route(route))) = op else {
                return None;
            };
            let is_gone = gone[index_of(route.dst.family())].load(Ordering::Relaxed);
            // A gateway without a route to it is refused, except onlink gateways.
            (!route.onlink && route.via.is_some() && is_gone).then_some(libc::ENETUNREACH)
        });
        Self { kernel: kernel.clone(), addresses, link: Some(link), impostor: None, without }
    }

    fn is_free(&self, name: &str) -> bool {
        self.kernel.link_named(name).is_none()
    }

    fn edit(&self, link: Option<LinkIndex>, edit: impl FnOnce(&mut crate::kernel::Link)) {
        if let Some(name) = link.and_then(|link| self.kernel.link_numbered(link)).map(|link| link.name) {
            self.kernel.edit_link(&name, true, edit);
        }
    }

    fn address_gone(&self, family: Family) {
        for own in self.addresses.iter().filter(|own| Family::of(own.addr.ip()) == family) {
            self.kernel.remove_address(own.addr.ip());
        }
        self.without[index_of(family)].store(true, Ordering::Relaxed);
        // The kernel deletes the routes whose gateways the address made on-link, for IPv4 without a notification.
        let objects = self.kernel.objects();
        let lost = objects.iter().filter(|object| {
            matches!(object, Object::Route(route)
                if route.link == self.link && route.dst.family() == family && route.via.is_some())
        });
        for object in lost.collect::<Vec<_>>() {
            self.kernel.delete(&object.key(), family == Family::V6);
        }
    }

    fn address_back(&self, family: Family) {
        let Some(link) = self.link else { return };
        if self.without[index_of(family)].swap(false, Ordering::Relaxed) {
            for own in self.addresses.iter().filter(|own| Family::of(own.addr.ip()) == family) {
                self.kernel.add_address(LinkAddress { link, ..own.clone() });
            }
        }
    }

    fn recreate(&mut self, name: &str) {
        if self.link.is_none() && self.is_free(name) {
            self.link = Some(self.kernel.add_link(name, 1500));
            self.kernel.edit_link(name, true, |_| {});
            for family in Family::ALL {
                self.address_back(family);
            }
        }
    }

    fn impostor_gone(&mut self) {
        if let Some(link) = self.impostor.take().and_then(|link| self.kernel.link_numbered(link)) {
            self.kernel.delete_link(&link.name);
        }
    }

    /// Applies a step.
    pub async fn apply(&mut self, step: NicStep) {
        match step {
            NicStep::Down => self.edit(self.link, |link| (link.up, link.carrier) = (false, false)),
            NicStep::Up => self.edit(self.link, |link| (link.up, link.carrier) = (true, true)),
            NicStep::Carrier(carrier) => self.edit(self.link, |link| link.carrier = link.up && carrier),
            NicStep::Rename(name) => {
                if self.is_free(NAMES[name]) {
                    self.edit(self.link, |link| NAMES[name].clone_into(&mut link.name));
                }
            }
            NicStep::AddressGone(family) => self.address_gone(family),
            NicStep::AddressBack(family) => self.address_back(family),
            NicStep::Deleted => {
                if let Some(link) = self.link.take().and_then(|link| self.kernel.link_numbered(link)) {
                    self.kernel.delete_link(&link.name);
                    self.without.iter().for_each(|without| without.store(true, Ordering::Relaxed));
                }
            }
            NicStep::Recreated(name) => self.recreate(NAMES[name]),
            NicStep::Impostor(name) => {
                if self.impostor.is_none() && self.is_free(NAMES[name]) {
                    self.impostor = Some(self.kernel.add_link(NAMES[name], 1500));
                    self.kernel.edit_link(NAMES[name], true, |_| {});
                }
            }
            NicStep::ImpostorGone => self.impostor_gone(),
            NicStep::Mtu(mtu) => self.edit(self.link, |link| link.mtu = Mtu(mtu)),
            NicStep::Overrun => self.kernel.overrun(),
            NicStep::Wait(millis) => tokio::time::sleep(std::time::Duration::from_millis(millis)).await,
        }
    }

    /// What the agent deleted since the last call, except a device that it had made on the other link while that had
    /// the name.
    pub fn taken_away(&self) -> Vec<String> {
        let deleted = |op: Op| matches!(op, Op::Delete(_)).then(|| format!("{op:?}"));
        let of_link = |op: LinkOp| matches!(op, LinkOp::Delete(_)).then(|| format!("{op:?}"));
        let links = self.kernel.take_link_ops();
        let links = links.into_iter().filter_map(of_link).filter(|_| self.impostor.is_none());
        self.kernel.take_ops().into_iter().filter_map(deleted).chain(links).collect()
    }

    /// Restores the NIC, and gives the agent time to notice.
    pub async fn heal(&mut self) {
        self.impostor_gone();
        self.recreate(NAMES[0]);
        self.edit(self.link, |link| {
            // A NIC that was created again is found by its name.
            NAMES[0].clone_into(&mut link.name);
            (link.up, link.carrier, link.mtu) = (true, true, Mtu(1500));
        });
        for family in Family::ALL {
            self.address_back(family);
        }
        tokio::time::sleep(std::time::Duration::from_secs(140)).await;
    }

    /// All objects, with links by name, since indices change.
    pub fn objects(&self) -> Vec<String> {
        let links: Vec<LinkIndex> = self.kernel.objects().iter().filter_map(|object| object.link()).collect();
        let name = |link: LinkIndex| {
            if Some(link) == self.link {
                return "the NIC".to_owned();
            }
            let found = self.kernel.link_numbered(link);
            found.map_or_else(|| "a link that is gone".to_owned(), |link| link.name)
        };
        let mut objects: Vec<String> = (self.kernel.objects().iter())
            .map(|object| {
                let text = format!("{object:?}");
                links.iter().fold(text, |text, link| text.replace(&format!("{link:?}"), &name(*link)))
            })
            .collect();
        objects.sort();
        objects
    }
}

fn index_of(family: Family) -> usize {
    match family {
        Family::V4 => 0,
        Family::V6 => 1,
    }
}
