//! A kernel in memory: enough of one for the loop and the backends, with hooks that make it fail.

mod answers;
mod effects;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard};

use tokio::sync::Notify;

use crate::addr::{Family, LinkIndex, MacAddr, Mtu};
use crate::dataplane::{Address, Dataplane, Object, ObjectKey, Op};
use crate::kernel::{ConfOf, Forwarding, KernelEvent, Link, LinkAddress, LinkKind, LinkOp, VxlanLink};

/// A kernel in memory. Clones are handles of the same kernel, so that a test can inspect and damage it while a loop
/// runs on it.
#[derive(Clone, Default)]
pub struct FakeKernel {
    state: Arc<Mutex<State>>,
    news: Arc<Notify>,
}

/// Links that somebody makes who does not ask this kernel, such as a process that opens a TUN of the real one.
struct Outside {
    /// Lists those that are there.
    list: Box<dyn Fn() -> Vec<(LinkIndex, String)> + Send>,
    /// Those that were there.
    known: BTreeSet<LinkIndex>,
}

type RefuseHook = Box<dyn FnMut(&Op) -> Option<i32> + Send>;
type ReadHook = Box<dyn FnOnce(&FakeKernel) + Send>;
type RefuseLinkHook = Box<dyn FnMut(&LinkOp) -> Option<i32> + Send>;

#[derive(Default)]
struct State {
    links: BTreeMap<LinkIndex, Link>,
    /// The kinds of the links that were created.
    kinds: BTreeMap<LinkIndex, LinkKind>,
    last_index: u32,
    objects: Dataplane,
    addresses: Vec<LinkAddress>,
    events: VecDeque<KernelEvent>,
    /// How many of them it keeps until they are read, if not all.
    most_events: Option<usize>,
    ops: Vec<Op>,
    link_ops: Vec<LinkOp>,
    dumps: usize,
    refuse: Option<RefuseHook>,
    refuse_link: Option<RefuseLinkHook>,
    dump_error: Option<i32>,
    before_objects: Option<ReadHook>,
    /// Whether sysctls can't be set.
    keeps_sysctls: bool,
    /// The forwarding settings that were changed; all others are on.
    forwarding: BTreeMap<(Family, ConfOf), bool>,
    /// Whether it lacks next-hop objects, as kernels before 5.3.
    lacks_next_hops: bool,
    /// The links that others made, if a test says them.
    outside: Option<Outside>,
    /// The VXLAN devices that don't complete checksums; new ones do.
    software_checksums: BTreeSet<LinkIndex>,
    /// Links that have just lost their last IPv4 address; see [`State::wait_for_changes`].
    without_ipv4: Vec<LinkIndex>,
}

impl FakeKernel {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Adds an ordinary link, up and with a carrier, and returns its index.
    pub fn add_link(&self, name: &str, mtu: u32) -> LinkIndex {
        let mut state = self.lock();
        let index = state.next_index();
        let mac = Some(MacAddr([2, 0, 0, 0, 1, index.0 as u8]));
        state.links.insert(index, Link { mac, up: true, carrier: true, ..plain(index, name, mtu) });
        index
    }

    /// From now on this kernel also has the links that `list` says, which must have numbers of their own. It is asked at
    /// each look at links. They are down at first; one that is not listed any more is gone, with all that was on it.
    pub fn has_links_of(&self, list: impl Fn() -> Vec<(LinkIndex, String)> + Send + 'static) {
        let mut state = self.lock();
        let known = state.outside.take().map(|outside| outside.known).unwrap_or_default();
        state.outside = Some(Outside { list: Box::new(list), known });
    }

    /// Gives a link an address, for the choice of the underlay.
    pub fn add_address(&self, address: LinkAddress) {
        let mut state = self.lock();
        let LinkAddress { link, addr, .. } = address;
        state.events.push_back(KernelEvent::Put(Object::Address(Address { link, addr })));
        state.addresses.push(address);
        drop(state);
        self.news.notify_one();
    }

    /// Takes an address from the link that has it.
    pub fn remove_address(&self, addr: IpAddr) {
        let mut state = self.lock();
        let (gone, kept) =
            std::mem::take(&mut state.addresses).into_iter().partition(|own| own.addr.ip() == addr);
        state.addresses = kept;
        for LinkAddress { link, addr, .. } in gone as Vec<LinkAddress> {
            state.events.push_back(KernelEvent::Gone(ObjectKey::Address(link, addr)));
        }
        drop(state);
        self.news.notify_one();
    }

    /// Changes a link behind the agent's back, with or without a notification. Objects are lost by that as in the real
    /// kernel.
    pub fn edit_link(&self, name: &str, announce: bool, edit: impl FnOnce(&mut Link)) {
        let mut state = self.lock();
        if let Some(link) = state.links.values_mut().find(|link| link.name == name) {
            let before = link.clone();
            edit(link);
            let link = link.clone();
            state.changed(&before, &link);
            if announce {
                state.events.push_back(KernelEvent::Link(link));
            }
        }
        drop(state);
        self.news.notify_one();
    }

    /// Sets whether a VXLAN device completes checksums behind the agent's back. As in the real kernel there is a notification,
    /// with the link as it was.
    pub fn set_checksum_offload(&self, name: &str, on: bool) {
        let mut state = self.lock();
        state.set_checksum_offload(name, on);
        drop(state);
        self.news.notify_one();
    }

    /// Whether a VXLAN device completes checksums; `None` if there is none of this name.
    pub fn checksum_offload(&self, name: &str) -> Option<bool> {
        let state = self.lock();
        let link = state.links.values().find(|link| link.name == name && link.vxlan.is_some())?;
        Some(!state.software_checksums.contains(&link.index))
    }

    /// Deletes a link and everything on it. As in the real kernel there is a notification for the link, but not for its
    /// IPv4 routes.
    pub fn delete_link(&self, name: &str) {
        let mut state = self.lock();
        if let Some(link) = state.links.values().find(|link| link.name == name).cloned() {
            state.delete_link(&link);
        }
        drop(state);
        self.news.notify_one();
    }

    /// Turns it into a kernel without next-hop objects, as before Linux 5.3.
    pub fn lack_next_hops(&self) {
        self.lock().lacks_next_hops = true;
    }

    /// Switches forwarding on or off. As in the real kernel `all` does so for all links.
    pub fn set_forwarding(&self, family: Family, of: ConfOf, on: bool) {
        let mut state = self.lock();
        if of == ConfOf::All {
            state.forwarding.retain(|(other, _), _| *other != family);
        }
        state.forwarding.insert((family, of), on);
        state.events.push_back(KernelEvent::Forwarding(Forwarding { family, of, on }));
        drop(state);
        self.news.notify_one();
    }

    /// Adds an object behind the agent's back.
    pub fn put(&self, object: Object, announce: bool) {
        let mut state = self.lock();
        state.objects.insert(object);
        if announce {
            state.events.push_back(KernelEvent::Put(object));
        }
        drop(state);
        self.news.notify_one();
    }

    /// Puts an object by the kernel's rules, as another program would: what it takes the place of goes as in the kernel.
    pub fn replace(&self, object: Object) {
        let mut state = self.lock();
        let is_refused = state.execute(&Op::Replace(object)).is_some();
        if !is_refused && is_put_silently(&object) {
            state.events.push_back(KernelEvent::Put(object));
        }
        drop(state);
        self.news.notify_one();
    }

    /// Deletes an object behind the agent's back.
    pub fn delete(&self, key: &ObjectKey, announce: bool) {
        let mut state = self.lock();
        let gone = state.objects.remove(key);
        if announce {
            if let ObjectKey::Neighbour(..) = key {
                // First it fails, then it goes.
                state.events.push_back(KernelEvent::Gone(*key));
            }
            state.events.push_back(KernelEvent::Gone(*key));
        }
        state.drop_routes_through(key);
        if let Some(gone) = gone {
            state.lost(&gone);
        }
        drop(state);
        self.news.notify_one();
    }

    /// Drops the notifications that were not read yet, and reports that (`Overrun`).
    pub fn overrun(&self) {
        let mut state = self.lock();
        state.events.clear();
        state.events.push_back(KernelEvent::Overrun);
        drop(state);
        self.news.notify_one();
    }

    /// Loses the notifications, and reports that (`Overrun`), whenever more than `most` were not read yet.
    pub fn hold_notifications(&self, most: usize) {
        self.lock().most_events = Some(most);
    }

    /// Refuses operations from now on with the errno that `hook` returns.
    pub fn refuse(&self, hook: impl FnMut(&Op) -> Option<i32> + Send + 'static) {
        self.lock().refuse = Some(Box::new(hook));
    }

    /// Refuses changes of links from now on with the errno that `hook` returns.
    pub fn refuse_link(&self, hook: impl FnMut(&LinkOp) -> Option<i32> + Send + 'static) {
        self.lock().refuse_link = Some(Box::new(hook));
    }

    /// Stops refusing.
    pub fn refuse_nothing(&self) {
        let mut state = self.lock();
        (state.refuse, state.refuse_link) = (None, None);
    }

    /// Makes reading objects fail with this errno from now on; `None` ends that.
    pub fn fail_dumps(&self, errno: Option<i32>) {
        self.lock().dump_error = errno;
    }

    /// Does this once, before the objects of a link are read the next time: what happens between two parts of a read.
    pub fn before_objects(&self, hook: impl FnOnce(&Self) + Send + 'static) {
        self.lock().before_objects = Some(Box::new(hook));
    }

    /// Makes setting sysctls fail from now on, as in a container, or succeed again.
    pub fn keep_sysctls(&self, keep: bool) {
        self.lock().keeps_sysctls = keep;
    }

    /// All objects.
    pub fn objects(&self) -> Dataplane {
        self.lock().objects.clone()
    }

    /// A link by name.
    pub fn link_named(&self, name: &str) -> Option<Link> {
        self.lock().links.values().find(|link| link.name == name).cloned()
    }

    /// A link by index.
    pub fn link_numbered(&self, link: LinkIndex) -> Option<Link> {
        self.lock().links.get(&link).cloned()
    }

    /// The operations tried since the last call.
    pub fn take_ops(&self) -> Vec<Op> {
        std::mem::take(&mut self.lock().ops)
    }

    /// The link changes tried since the last call.
    pub fn take_link_ops(&self) -> Vec<LinkOp> {
        std::mem::take(&mut self.lock().link_ops)
    }

    /// How many reads of objects there were since the last call.
    pub fn take_dumps(&self) -> usize {
        std::mem::take(&mut self.lock().dumps)
    }
}

/// Whether there is no notification of such an object if the agent puts it.
fn is_put_silently(object: &Object) -> bool {
    matches!(object, Object::NextHop(_) | Object::Neighbour(_) | Object::Route(_))
}

/// An ordinary link, which is down.
fn plain(index: LinkIndex, name: &str, mtu: u32) -> Link {
    Link {
        index,
        name: name.to_owned(),
        altnames: Vec::new(),
        kind: None,
        master: None,
        mac: None,
        mtu: Mtu(mtu),
        up: false,
        carrier: false,
        loopback: false,
        vxlan: None,
    }
}

impl State {
    /// The notifications since the last call, unless there were too many.
    fn take_events(&mut self) -> Vec<KernelEvent> {
        let are_lost = self.most_events.is_some_and(|most| self.events.len() > most);
        let events = self.events.drain(..).collect();
        if are_lost { vec![KernelEvent::Overrun] } else { events }
    }

    /// Looks which links others have made or deleted since the last look.
    fn look_outside(&mut self) {
        let Some(outside) = &mut self.outside else { return };
        let listed = (outside.list)();
        let now: BTreeSet<_> = listed.iter().map(|(index, _)| *index).collect();
        let before = std::mem::replace(&mut outside.known, now.clone());
        for gone in before.difference(&now) {
            if let Some(link) = self.links.get(gone).cloned() {
                self.delete_link(&link);
            }
        }
        for (index, name) in listed.into_iter().filter(|(index, _)| !before.contains(index)) {
            assert!(!self.links.contains_key(&index), "{name} has the number of another link");
            self.last_index = self.last_index.max(index.0);
            let link = plain(index, &name, 1500);
            self.links.insert(index, link.clone());
            self.events.push_back(KernelEvent::Link(link));
        }
    }

    fn next_index(&mut self) -> LinkIndex {
        self.last_index += 1;
        LinkIndex(self.last_index)
    }

    fn execute(&mut self, op: &Op) -> Option<i32> {
        let object = *op.object();
        if link_of(&object).is_some_and(|link| !self.links.contains_key(&link)) {
            return (!matches!(op, Op::Delete(_))).then_some(libc::ENODEV);
        }
        let is_down = |link: LinkIndex| self.links.get(&link).is_some_and(|link| !link.up);
        if let Op::Create(Object::Route(_) | Object::NextHop(_))
        | Op::Replace(Object::Route(_) | Object::NextHop(_)) = op
            && link_of(&object).is_some_and(is_down)
        {
            return Some(libc::ENETDOWN);
        }
        let lacks = |next_hop: &ObjectKey| self.objects.get(next_hop).is_none();
        match op {
            _ if self.lacks_next_hops && matches!(object, Object::NextHop(_)) => {
                return Some(libc::EOPNOTSUPP);
            }
            Op::Create(Object::Route(_)) if self.objects.get(&object.key()).is_some() => {
                return Some(libc::EEXIST);
            }
            Op::Create(Object::Route(route)) | Op::Replace(Object::Route(route))
                if route.next_hop().is_some_and(|next_hop| lacks(&next_hop)) =>
            {
                return Some(libc::EINVAL);
            }
            // As in the real connection, these cause no notification if they are our own.
            Op::Create(own) | Op::Replace(own) if is_put_silently(own) => {
                self.objects.insert(object);
            }
            Op::Delete(Object::NextHop(_)) => {
                self.objects.remove(&object.key());
                self.drop_routes_through(&object.key());
            }
            Op::Create(_) | Op::Replace(_) => {
                // As in the kernel, putting an FDB entry replaces the MAC's other remote.
                if let Object::Fdb(entry) = object {
                    let others: Vec<_> = self.objects.remotes_of(entry.link, entry.mac).collect();
                    for other in others {
                        self.objects.remove(&ObjectKey::Fdb(other));
                    }
                }
                self.objects.insert(object);
                self.events.push_back(KernelEvent::Put(object));
            }
            Op::Delete(_) => {
                if let Some(gone) = self.objects.remove(&object.key()) {
                    if !matches!(object, Object::Route(_)) {
                        self.events.push_back(KernelEvent::Gone(object.key()));
                    }
                    self.lost(&gone);
                }
            }
        }
        None
    }

    fn change_link(&mut self, op: &LinkOp) -> Result<(), i32> {
        let index = match op {
            LinkOp::Create { name, mac, mtu, kind } => {
                let vxlan = vxlan_of(kind)?;
                let taken = |link: &Link| {
                    let same = |other: &VxlanLink| {
                        vxlan.as_ref().is_some_and(|vxlan| {
                            (other.vni, other.port) == (vxlan.vni, vxlan.port)
                                && other.local.map(Family::of) == vxlan.local.map(Family::of)
                        })
                    };
                    link.name == *name || link.vxlan.as_ref().is_some_and(same)
                };
                if self.links.values().any(taken) {
                    return Err(libc::EEXIST);
                }
                let index = self.next_index();
                let link = Link {
                    index,
                    name: name.clone(),
                    altnames: Vec::new(),
                    kind: Some(kind.name.clone()),
                    master: None,
                    mac: *mac,
                    mtu: mtu.unwrap_or(Mtu(1500)),
                    up: false,
                    carrier: false,
                    loopback: false,
                    vxlan,
                };
                self.links.insert(index, link);
                self.kinds.insert(index, kind.clone());
                index
            }
            LinkOp::Delete(index) => {
                let link = self.links.get(index).cloned().ok_or(libc::ENODEV)?;
                self.delete_link(&link);
                return Ok(());
            }
            LinkOp::Change(index, _)
            | LinkOp::SetMtu(index, _)
            | LinkOp::SetMac(index, _)
            | LinkOp::SetUp(index) => *index,
        };
        let link = self.links.get_mut(&index).ok_or(libc::ENODEV)?;
        let before = link.clone();
        match op {
            LinkOp::Change(_, changes) => {
                // A test may have edited it.
                let edited = link.vxlan.as_ref().map(VxlanLink::to_kind);
                let kind = self.kinds.entry(index).or_insert_with(|| changes.clone());
                if let Some(edited) = edited {
                    *kind = edited;
                }
                kind.merge(changes);
                link.vxlan = vxlan_of(kind)?;
            }
            LinkOp::SetMtu(_, mtu) => link.mtu = *mtu,
            LinkOp::SetMac(_, mac) => link.mac = Some(*mac),
            LinkOp::SetUp(_) => (link.up, link.carrier) = (true, true),
            LinkOp::Create { .. } | LinkOp::Delete(_) => {}
        }
        let link = link.clone();
        self.changed(&before, &link);
        self.events.push_back(KernelEvent::Link(link));
        Ok(())
    }
}

fn vxlan_of(kind: &LinkKind) -> Result<Option<VxlanLink>, i32> {
    let is_vxlan = kind.name == VxlanLink::KIND;
    is_vxlan.then(|| VxlanLink::of_kind(kind)).transpose().map_err(|_| libc::EINVAL)
}

fn link_of(object: &Object) -> Option<LinkIndex> {
    match object {
        Object::Address(address) => Some(address.link),
        Object::Neighbour(neighbour) => Some(neighbour.link),
        Object::Fdb(entry) => Some(entry.link),
        Object::NextHop(next_hop) => Some(next_hop.link),
        Object::Route(route) => route.link,
    }
}
