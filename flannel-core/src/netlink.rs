//! The kernel of one network namespace, by rtnetlink.
//!
//! It has three sockets: one for requests that are answered once (`batch`), one for lists (`dump`), one for
//! notifications (`events`). `encode`, `decode` and `link` turn values into messages and back, and are pure; `wire` has
//! what they share. No type of the netlink library leaves this module.

mod batch;
mod decode;
mod dump;
mod encode;
mod events;
#[cfg(any(test, feature = "testing"))]
pub(crate) mod fuzz;
pub mod generic;
mod link;
mod lookup;
mod message;
mod netconf;
mod next_hops;
pub(crate) mod nftables;
mod ruleset;
mod socket;
mod sys;
mod wire;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use async_trait::async_trait;
use neli::consts::nl::NlmF;
use neli::consts::rtnl::Rtm;
use neli::rtnl::Ifinfomsg;

use self::batch::{Answer, Requests};
use self::decode::Sight;
use self::dump::Dumps;
use self::events::Events;
pub(crate) use self::lookup::RouteLookups;
use self::message::{Datagram, Message, UnreadableMessage, Verdict};
use self::next_hops::NextHops;
use self::nftables::NfTables;
pub use self::ruleset::{RulesetChange, RulesetEvents};
use self::socket::RECEIVE_BUFFER;
use crate::addr::{Family, LinkIndex, Vni};
use crate::dataplane::{NextHop, Object, ObjectKey, Op, Route};
use crate::firewall::gate;
use crate::kernel::{
    Forwarding, Kernel, KernelError, KernelEvent, Link, LinkAddress, LinkKind, LinkOp, Refusal, RouteLookup,
    Scope,
};
use crate::netns::Netns;
use crate::port_holder::{self, PortHolder};

/// After how many creations of next-hop objects at once their map is packed anew.
const MANY_NEXT_HOPS: usize = 512;

/// A connection to the kernel for the network namespace in which it was opened.
pub struct Netlink {
    netns: Netns,
    requests: Requests,
    dumps: Dumps,
    events: Events,
    next_hops: NextHops,
    /// `None` if the kernel has no `nf_tables`.
    tables: Option<NfTables>,
}

impl std::fmt::Debug for Netlink {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Netlink").finish_non_exhaustive()
    }
}

impl Netlink {
    /// Opens the sockets in the network namespace of the calling thread, where they stay even if the
    /// thread moves on. The same as [`Self::open_in`] with [`Netns::current`].
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime with I/O and time.
    pub fn open() -> Result<Self, KernelError> {
        Self::open_in(&Netns::current()?)
    }

    /// Opens the sockets in a network namespace. Notifications are collected from now on, so no change after this call
    /// is missed.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime with I/O and time.
    pub fn open_in(netns: &Netns) -> Result<Self, KernelError> {
        Self::with_event_buffer(netns, RECEIVE_BUFFER)
    }

    /// Like [`Self::open_in`], with another receive buffer for notifications, in bytes.
    pub(crate) fn with_event_buffer(netns: &Netns, bytes: usize) -> Result<Self, KernelError> {
        netns.run(|| {
            let (requests, dumps) = (Requests::open(RECEIVE_BUFFER)?, Dumps::open(RECEIVE_BUFFER)?);
            let events = Events::open(bytes, requests.port())?;
            let (next_hops, tables) = (NextHops::default(), NfTables::open().ok());
            Ok(Self { netns: netns.clone(), requests, dumps, events, next_hops, tables })
        })?
    }

    async fn read_addresses(&mut self, scope: Scope) -> Result<Vec<Object>, KernelError> {
        let filter = |link| move || encode::addresses_of(scope.family, link);
        let decode = wanted(scope, decode::address_sight);
        self.dumps
            .dump("read addresses", Rtm::Getaddr, filter(scope.link), filter(LinkIndex(0)), decode)
            .await
    }

    async fn read_neighbours(&mut self, scope: Scope) -> Result<Vec<Object>, KernelError> {
        let filter = || encode::neighbours_of(scope.family, Some(scope.link));
        let all = || encode::neighbours_of(scope.family, None);
        let decode = wanted(scope, decode::neighbour_sight);
        self.dumps.dump("read neighbours", Rtm::Getneigh, filter, all, decode).await
    }

    async fn read_link(
        &mut self,
        what: impl Fn() -> String + Send + Copy,
        body: Ifinfomsg,
    ) -> Result<Option<Link>, KernelError> {
        self.read_link_as(what, body, link::link).await
    }

    /// Reads something of one link; `None` if there is no such link.
    async fn read_link_as<T: Send>(
        &mut self,
        what: impl Fn() -> String + Send + Copy,
        body: Ifinfomsg,
        decode: impl Fn(&Message<'_>) -> Result<Option<T>, UnreadableMessage> + Send,
    ) -> Result<Option<T>, KernelError> {
        let encode = |datagram: &mut Datagram, seq| datagram.push(Rtm::Getlink, NlmF::empty(), seq, body);
        match self.requests.ask(what, encode, decode).await? {
            Answer::Message(found) => Ok(found),
            Answer::Verdict(Verdict { errno: libc::ENODEV, .. }) => Ok(None),
            Answer::Verdict(verdict) => Err(verdict.refused(what())),
        }
    }

    async fn read_fdb(&mut self, scope: Scope) -> Result<Vec<Object>, KernelError> {
        let filter = |link| move || encode::fdb_of(link);
        let decode = wanted(scope, decode::neighbour_sight);
        self.dumps.dump("read the FDB", Rtm::Getneigh, filter(scope.link), filter(LinkIndex(0)), decode).await
    }

    async fn read_next_hops(&mut self, scope: Scope) -> Result<Vec<Object>, KernelError> {
        let filter = || next_hops::of_link(scope.link);
        let list = self
            .dumps
            .dump("read next hops", Rtm::from(next_hops::GET), filter, filter, next_hops::decode)
            .await;
        let list = match list {
            // A kernel that does not know next-hop objects has none.
            Err(error) if error.errno() == Some(libc::EOPNOTSUPP) => Vec::new(),
            list => list?,
        };
        let objects = self.next_hops.read(scope.link, list).into_iter();
        Ok(objects.filter(|it| Family::of(it.gateway) == scope.family).map(Object::NextHop).collect())
    }

    async fn read_routes(&mut self, scope: Scope) -> Result<Vec<Object>, KernelError> {
        let filter = |link| move || encode::routes_of(scope.family, link);
        let next_hops = &self.next_hops;
        let decode = wanted(scope, |message: &Message<'_>| decode::route_sight(message, next_hops));
        self.dumps.dump("read routes", Rtm::Getroute, filter(Some(scope.link)), filter(None), decode).await
    }
}

/// Keeps the objects of a scope's link, since a kernel may not apply the filter.
fn wanted(
    scope: Scope,
    decode: impl Fn(&Message<'_>) -> Result<Sight, UnreadableMessage>,
) -> impl Fn(&Message<'_>) -> Result<Option<Object>, UnreadableMessage> {
    move |message| {
        Ok(decode(message)?.present().filter(|object| match object {
            Object::Address(it) => it.link == scope.link && Family::of(it.addr.ip()) == scope.family,
            Object::Neighbour(it) => it.link == scope.link && Family::of(it.addr) == scope.family,
            Object::Fdb(it) => it.link == scope.link,
            Object::NextHop(it) => it.link == scope.link && Family::of(it.gateway) == scope.family,
            Object::Route(it) => it.link == Some(scope.link) && it.dst.family() == scope.family,
        }))
    }
}

#[async_trait]
impl Kernel for Netlink {
    async fn links(&mut self) -> Result<Vec<Link>, KernelError> {
        self.dumps.dump("read links", Rtm::Getlink, link::all_links, link::all_links, link::link).await
    }

    async fn link(&mut self, name: &str) -> Result<Option<Link>, KernelError> {
        // No link can have such a name, and the kernel would refuse the request as invalid.
        if name.is_empty() || name.len() >= libc::IFNAMSIZ || name.contains('\0') {
            return Ok(None);
        }
        self.read_link(|| format!("read link {name}"), link::link_named(name)).await
    }

    async fn link_at(&mut self, index: LinkIndex) -> Result<Option<Link>, KernelError> {
        // No link has index 0; the kernel would take the request for one without a link.
        if index == LinkIndex(0) {
            return Ok(None);
        }
        self.read_link(|| format!("read link number {index}"), link::link_at(index)).await
    }

    async fn link_kind(&mut self, index: LinkIndex) -> Result<Option<LinkKind>, KernelError> {
        if index == LinkIndex(0) {
            return Ok(None);
        }
        let what = || format!("read the kind of link number {index}");
        self.read_link_as(what, link::link_at(index), link::kind).await
    }

    async fn addresses(&mut self) -> Result<Vec<LinkAddress>, KernelError> {
        let mut addresses = Vec::new();
        for family in Family::ALL {
            let all = || encode::addresses_of(family, LinkIndex(0));
            addresses
                .extend(self.dumps.dump("read addresses", Rtm::Getaddr, all, all, decode::address).await?);
        }
        Ok(addresses)
    }

    async fn default_routes(&mut self, family: Family) -> Result<Vec<RouteLookup>, KernelError> {
        let all = || encode::routes_of(family, None);
        let routes =
            self.dumps.dump("read default routes", Rtm::Getroute, all, all, decode::default_route).await?;
        Ok(routes)
    }

    async fn lookup(&mut self, dst: IpAddr) -> Result<Option<RouteLookup>, KernelError> {
        self.requests.lookup(dst).await
    }

    async fn objects(&mut self, scope: Scope) -> Result<Vec<Object>, KernelError> {
        let mut objects = Vec::new();
        if scope.kinds.addresses {
            objects.extend(self.read_addresses(scope).await?);
        }
        if scope.kinds.neighbours {
            objects.extend(self.read_neighbours(scope).await?);
        }
        if scope.kinds.fdb {
            objects.extend(self.read_fdb(scope).await?);
        }
        // Read before the routes that refer to them.
        if scope.kinds.next_hops {
            objects.extend(self.read_next_hops(scope).await?);
        }
        if scope.kinds.routes {
            objects.extend(self.read_routes(scope).await?);
        }
        Ok(objects)
    }

    async fn routes_by(&mut self, family: Family, protocol: u8) -> Result<Vec<Object>, KernelError> {
        let filter = || encode::routes_by(family, protocol);
        let all = || encode::routes_of(family, None);
        let next_hops = &self.next_hops;
        let decode = |message: &Message<'_>| {
            let by = |object: &Object| matches!(object, Object::Route(it) if it.protocol == protocol && it.dst.family() == family);
            Ok(decode::route_sight(message, next_hops)?.present().filter(by))
        };
        self.dumps.dump("read marked routes", Rtm::Getroute, filter, all, decode).await
    }

    async fn forwarding(&mut self, family: Family) -> Result<Vec<Forwarding>, KernelError> {
        let all = || netconf::of(family);
        let list = self
            .dumps
            .dump("read where packets are forwarded", netconf::get(), all, all, netconf::forwarding)
            .await;
        match list {
            // A kernel without the family, or before Linux 3.8, does not report it.
            Err(error) if matches!(error.errno(), Some(libc::EOPNOTSUPP | libc::EAFNOSUPPORT)) => {
                Ok(Vec::new())
            }
            list => Ok(list?.into_iter().filter(|it| it.family == family).collect()),
        }
    }

    async fn routes_at(
        &mut self,
        family: Family,
        keys: &BTreeSet<ObjectKey>,
    ) -> Result<Vec<Route>, KernelError> {
        let all = || encode::routes_of(family, None);
        let next_hops = &self.next_hops;
        let decode = |message: &Message<'_>| {
            let present = decode::route_sight(message, next_hops)?.present();
            Ok(present.and_then(|object| match object {
                Object::Route(route) if keys.contains(&object.key()) => Some(route),
                _ => None,
            }))
        };
        self.dumps.dump("read routes by destination", Rtm::Getroute, all, all, decode).await
    }

    fn next_hop_ids(&self, wanted: &BTreeSet<NextHop>) -> BTreeMap<NextHop, u32> {
        let mut free = self.next_hops.free_numbers();
        let mut id = |next_hop: &NextHop| self.next_hops.number_of(next_hop).or_else(|| free.next());
        wanted.iter().filter_map(|next_hop| Some((*next_hop, id(next_hop)?))).collect()
    }

    async fn remove_gate(&mut self, vni: Vni) -> Result<(), KernelError> {
        match &mut self.tables {
            Some(tables) => gate::remove_by(tables, vni).await,
            None => Ok(()),
        }
    }

    async fn ignore_router_advertisements(&mut self, link: &str) -> Result<(), KernelError> {
        let name = format!("ipv6/conf/{link}/accept_ra");
        self.netns.set_sysctl(&name, "0").map_err(|source| KernelError::Sysctl { name, source })
    }

    async fn checks_sources(&mut self, link: &str) -> Result<bool, KernelError> {
        // The larger of both values is in force.
        let read = |of: &str| -> Result<u8, KernelError> {
            let name = format!("ipv4/conf/{of}/rp_filter");
            let text = self.netns.sysctl(&name).map_err(|source| KernelError::Sysctl { name, source })?;
            Ok(text.trim().parse().unwrap_or(0))
        };
        Ok(read("all")?.max(read(link)?) == 1)
    }

    async fn loosen_source_check(&mut self, link: &str) -> Result<(), KernelError> {
        if !self.checks_sources(link).await? {
            return Ok(());
        }
        let name = format!("ipv4/conf/{link}/rp_filter");
        self.netns.set_sysctl(&name, "2").map_err(|source| KernelError::Sysctl { name, source })
    }

    async fn tx_checksum(&mut self, link: &str) -> Result<Option<bool>, KernelError> {
        match self.netns.run(|| sys::tx_checksum(link, None))? {
            Ok(is_on) => Ok(Some(is_on)),
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(None),
            Err(errno) => Err(offload_refused(&format!("read tx-checksumming of {link}"), errno)),
        }
    }

    async fn set_tx_checksum(&mut self, link: &str, on: bool) -> Result<(), KernelError> {
        let set = self.netns.run(|| sys::tx_checksum(link, Some(on)))?;
        set.map(drop).map_err(|errno| offload_refused(&format!("set tx-checksumming of {link}"), errno))
    }

    async fn udp_port_holder(&mut self, port: u16) -> Option<PortHolder> {
        port_holder::udp_port_holder(&self.netns, port)
    }

    async fn change_link(&mut self, op: &LinkOp) -> Result<(), KernelError> {
        let what = || op.to_string();
        let encode = |datagram: &mut Datagram, seq| link::change(datagram, op, seq);
        match self.requests.ask(what, encode, |_| Ok(())).await? {
            Answer::Message(()) | Answer::Verdict(Verdict { errno: 0, .. }) => Ok(()),
            Answer::Verdict(verdict) => Err(verdict.refused(what())),
        }
    }

    async fn execute(&mut self, ops: &[Op]) -> Result<Vec<Refusal>, KernelError> {
        let refusals = self.requests.execute(ops, &mut self.next_hops).await?;
        let creates = |op: &&Op| matches!(op, Op::Create(Object::NextHop(_)));
        if ops.iter().filter(creates).count() > MANY_NEXT_HOPS {
            self.next_hops.repack();
        }
        Ok(refusals)
    }

    async fn events(&mut self) -> Vec<KernelEvent> {
        self.events.next(self.requests.port(), &mut self.next_hops).await
    }
}

fn offload_refused(what: &str, errno: std::io::Error) -> KernelError {
    KernelError::Refused { what: what.to_owned(), reason: String::new(), errno }
}
