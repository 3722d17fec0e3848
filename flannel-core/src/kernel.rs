//! What the reconcile loop needs from a kernel. [`crate::netlink::Netlink`] implements [`Kernel`] for the real one, and
//! `flannel_core::testing` has a fake for tests.

mod kinds;
mod link_command;
mod link_kind;
mod vxlan;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::net::IpAddr;

use async_trait::async_trait;

use crate::addr::{Family, LinkIndex, MacAddr, Mtu, Vni};
use crate::dataplane::{NextHop, Object, ObjectKey, Op, Route};
use crate::netns::{Netns, NetnsError};
use crate::port_holder::PortHolder;

pub use kinds::Kinds;
pub use link_kind::{LinkAttr, LinkKind};
pub use vxlan::VxlanLink;

/// A network interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// Its index (`ifi_index`), which it keeps when it is renamed.
    pub index: LinkIndex,
    /// Its name.
    pub name: String,
    /// Its further names (`IFLA_ALT_IFNAME`), such as `enp0s3` of a link called `eth0`. No other link has one.
    pub altnames: Vec<String>,
    /// `IFLA_INFO_KIND`, such as `vxlan`; `None` for hardware.
    pub kind: Option<String>,
    /// The bridge or bond that it is a port of (`IFLA_MASTER`).
    pub master: Option<LinkIndex>,
    /// Its hardware address, if that has 48 bits.
    pub mac: Option<MacAddr>,
    /// Its MTU (`IFLA_MTU`).
    pub mtu: Mtu,
    /// Whether it is administratively up (`IFF_UP`).
    pub up: bool,
    /// Whether it has a carrier (`IFF_LOWER_UP`).
    pub carrier: bool,
    /// Whether it is the loopback link.
    pub loopback: bool,
    /// The attributes of a VXLAN device.
    pub vxlan: Option<VxlanLink>,
}

/// A usable address of a link, for the choice of the underlay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinkAddress {
    /// The link that has it.
    pub link: LinkIndex,
    /// The address with its prefix length.
    pub addr: ipnetwork::IpNetwork,
    /// Whether it has global scope (`RT_SCOPE_UNIVERSE`).
    pub global: bool,
    /// `IFA_F_DEPRECATED`.
    pub deprecated: bool,
    /// `IFA_F_PERMANENT`: it has no lifetime that ends.
    pub permanent: bool,
    /// `IFA_F_TEMPORARY`, the same bit as `IFA_F_SECONDARY`.
    pub temporary: bool,
    /// `IFA_F_TENTATIVE`: duplicate address detection is running; it can't be bound yet.
    pub tentative: bool,
}

/// The answer to a route look-up, or a default route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RouteLookup {
    /// The links by which packets leave.
    pub exit: Exit,
    /// The gateway, the first if there are several; `None` if the destination is on-link.
    pub via: Option<IpAddr>,
    /// The preferred source address.
    pub source: Option<IpAddr>,
    /// The metric; 0 where the kernel names none.
    pub metric: u32,
}

/// The links by which packets of a route leave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// No link.
    Nowhere,
    /// One link, through one next hop or several.
    By(LinkIndex),
    /// Several links (ECMP); these are two of them.
    Several(LinkIndex, LinkIndex),
}

impl Exit {
    /// The exit of a route whose next hops leave by these links.
    pub fn of(links: impl IntoIterator<Item = LinkIndex>) -> Self {
        let mut links = links.into_iter();
        let Some(first) = links.next() else { return Self::Nowhere };
        links.find(|link| *link != first).map_or(Self::By(first), |other| Self::Several(first, other))
    }
}

/// A change of a link.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum LinkOp {
    /// Creates a virtual link, not yet up and without a queue. The kernel refuses it if another link has the name, or
    /// another value that must be unique for the kind (VNI and port of a VXLAN device).
    Create {
        /// Its name.
        name: String,
        /// Its MAC; `None` for one that the kernel chooses, or for a kind without.
        mac: Option<MacAddr>,
        /// Its MTU; `None` for the kernel's default.
        mtu: Option<Mtu>,
        /// Its kind, with attributes of that kind.
        kind: LinkKind,
    },
    /// Changes attributes of a link's kind in place; those that are not named stay. Which attributes the kernel can
    /// change depends on the kind.
    Change(LinkIndex, LinkKind),
    /// Sets the MTU.
    SetMtu(LinkIndex, Mtu),
    /// Sets the MAC. The kernel then drops the link's neighbour entries.
    SetMac(LinkIndex, MacAddr),
    /// Sets the link up.
    SetUp(LinkIndex),
    /// Deletes the link; the kernel deletes everything on it, too.
    Delete(LinkIndex),
}

impl LinkOp {
    /// Creates a VXLAN device.
    pub fn create_vxlan(name: impl Into<String>, mac: MacAddr, mtu: Mtu, vxlan: &VxlanLink) -> Self {
        Self::Create { name: name.into(), mac: Some(mac), mtu: Some(mtu), kind: vxlan.to_kind() }
    }
}

impl fmt::Display for LinkOp {
    /// A verb phrase with its object.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Create { name, .. } => write!(f, "create link {name}"),
            Self::Change(link, kind) => write!(f, "change the {} attributes of link {link}", kind.name),
            Self::SetMtu(link, mtu) => write!(f, "set the MTU of link {link} to {mtu}"),
            Self::SetMac(link, mac) => write!(f, "set the MAC of link {link} to {mac}"),
            Self::SetUp(link) => write!(f, "set link {link} up"),
            Self::Delete(link) => write!(f, "delete link {link}"),
        }
    }
}

/// A part of the kernel's state to read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scope {
    /// The link.
    pub link: LinkIndex,
    /// The family of addresses, neighbours (their overlay address) and routes. FDB entries are read whatever
    /// the family of their remote.
    pub family: Family,
    /// What to read.
    pub kinds: Kinds,
}

/// Which links a kernel parameter of a family applies to (`net.ipv4.conf.*`, `net.ipv6.conf.*`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum ConfOf {
    /// `all`.
    All,
    /// `default`: the value that new links get.
    Default,
    /// One link's.
    Link(LinkIndex),
}

/// Whether the kernel forwards packets (`NETCONFA_*` in `linux/netconf.h`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Forwarding {
    /// Of which family.
    pub family: Family,
    /// Which links it applies to.
    pub of: ConfOf,
    /// `forwarding`. For IPv4 the value of the link counts by which a packet arrived, for IPv6 the value of `all`.
    pub on: bool,
}

/// A notification of the kernel. Notifications get lost, and some changes cause none: they only make repairs faster.
/// Correctness rests on reading the state again.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum KernelEvent {
    /// A link was created or changed.
    Link(Link),
    /// A link is gone.
    LinkGone(LinkIndex, String),
    /// An object was added or replaced.
    Put(Object),
    /// An object is gone, or became something that is not an [`Object`] (a neighbour that is no longer permanent).
    Gone(ObjectKey),
    /// Forwarding was switched on or off, or a link appeared.
    Forwarding(Forwarding),
    /// Notifications were lost (`ENOBUFS`), so the whole state is unknown.
    Overrun,
}

/// One operation of a batch that the kernel refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The operation.
    pub op: Op,
    /// The errno, positive.
    pub errno: i32,
    /// The kernel's extended-ACK text; empty where it sent none.
    pub reason: String,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "kernel refused to {}: {}", self.op, io::Error::from_raw_os_error(self.errno))?;
        if self.reason.is_empty() { Ok(()) } else { write!(f, " ({})", self.reason) }
    }
}

/// The kernel refused a request, or could not be asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KernelError {
    /// A netlink socket could not be opened or used.
    #[error("netlink socket: {what}")]
    Socket {
        /// What was tried.
        what: &'static str,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// A request was refused.
    #[error("kernel refused to {what}{}", extended(.reason))]
    Refused {
        /// What was tried, as a verb phrase with its object: "create link flannel.1".
        what: String,
        /// The kernel's extended-ACK text; empty where it sent none.
        reason: String,
        /// The errno.
        #[source]
        errno: io::Error,
    },
    /// Answers were lost (`ENOBUFS`) or did not come in time: whether the request was carried out is unknown until the
    /// state is read again.
    #[error("answers of the kernel were lost while trying to {what}; the state is read again")]
    Lost {
        /// What was tried.
        what: String,
    },
    /// The kernel sent a message that is unreadable to us.
    #[error("kernel message about {what} is unreadable: {detail}")]
    Unreadable {
        /// What was being read.
        what: &'static str,
        /// What is wrong with it.
        detail: String,
    },
    /// A sysctl could not be set.
    #[error("can't set sysctl /proc/sys/net/{name}")]
    Sysctl {
        /// Its path below `/proc/sys/net`.
        name: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The network namespace can't be entered.
    #[error(transparent)]
    Netns(#[from] NetnsError),
}

fn extended(reason: &str) -> String {
    if reason.is_empty() { String::new() } else { format!(" ({reason})") }
}

impl KernelError {
    /// The errno of a refusal.
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Refused { errno, .. } | Self::Socket { source: errno, .. } => errno.raw_os_error(),
            _ => None,
        }
    }
}

impl Scope {
    /// Whether the link is one that others use, too, of which only routes are read.
    pub fn is_shared(&self) -> bool {
        self.kinds == Kinds::ROUTES
    }
}

/// Opens a connection to the kernel of a network namespace, the real one or a fake.
pub type OpenKernel = dyn Fn(&Netns) -> Result<Box<dyn Kernel>, KernelError> + Send + Sync;

/// Reads and changes the state of one network namespace.
#[async_trait]
pub trait Kernel: Send {
    /// All links.
    async fn links(&mut self) -> Result<Vec<Link>, KernelError>;

    /// One link by name.
    async fn link(&mut self, name: &str) -> Result<Option<Link>, KernelError>;

    /// One link by its index, which it keeps when it is renamed.
    async fn link_at(&mut self, index: LinkIndex) -> Result<Option<Link>, KernelError>;

    /// The kind of a link with its present attributes, for a backend that compares them with those it wants; `None` if
    /// there is no such link, or if it is hardware. [`Link`] has the attributes of VXLAN devices only: those of other
    /// kinds include counters and timers, so each notification would look like a change.
    async fn link_kind(&mut self, index: LinkIndex) -> Result<Option<LinkKind>, KernelError>;

    /// All addresses of all links, both families.
    async fn addresses(&mut self) -> Result<Vec<LinkAddress>, KernelError>;

    /// The default routes of the main table, in the kernel's order.
    async fn default_routes(&mut self, family: Family) -> Result<Vec<RouteLookup>, KernelError>;

    /// How the kernel would reach `dst`; `None` if it has no route.
    async fn lookup(&mut self, dst: IpAddr) -> Result<Option<RouteLookup>, KernelError>;

    /// Reads the objects of a scope. It returns all of them or an error.
    async fn objects(&mut self, scope: Scope) -> Result<Vec<Object>, KernelError>;

    /// Reads the routes of the main table with a protocol, on all links. It returns all of them or an error.
    async fn routes_by(&mut self, family: Family, protocol: u8) -> Result<Vec<Object>, KernelError>;

    /// Reads the forwarding settings of a family. Empty where the kernel does not report them.
    async fn forwarding(&mut self, family: Family) -> Result<Vec<Forwarding>, KernelError>;

    /// Reads the routes of the main table with these keys, whoever wrote them, in the kernel's order: the kernel uses
    /// the first of several routes with one key. It takes one dump for all keys.
    async fn routes_at(
        &mut self,
        family: Family,
        keys: &BTreeSet<ObjectKey>,
    ) -> Result<Vec<Route>, KernelError>;

    /// The ids of these next-hop objects, for commands that name them: those that they have, and for those that don't exist
    /// ids that were free at the last read. Empty for a kernel without ids.
    fn next_hop_ids(&self, wanted: &BTreeSet<NextHop>) -> BTreeMap<NextHop, u32> {
        let _ = wanted;
        BTreeMap::new()
    }

    /// Removes the table of the [gate](crate::firewall::gate) of a VNI whose devices are removed. A table that does not
    /// exist is no error.
    async fn remove_gate(&mut self, vni: Vni) -> Result<(), KernelError> {
        let _ = vni;
        Ok(())
    }

    /// Makes a link ignore IPv6 router advertisements (sysctl `accept_ra`). A fake kernel without sysctls does nothing.
    async fn ignore_router_advertisements(&mut self, link: &str) -> Result<(), KernelError> {
        let _ = link;
        Ok(())
    }

    /// Whether the host demands of an IPv4 packet that the route to its source goes by the link by which it came (sysctl
    /// `rp_filter` 1, RFC 3704 section 2.2). A fake kernel without sysctls does not.
    async fn checks_sources(&mut self, link: &str) -> Result<bool, KernelError> {
        let _ = link;
        Ok(false)
    }

    /// Lets packets of any source that this host has a route to arrive by a link, whichever link that route has (sysctl
    /// `rp_filter` 2, RFC 3704 section 2.4), where the host demands that route to be by the same link. A fake kernel without
    /// sysctls does nothing.
    async fn loosen_source_check(&mut self, link: &str) -> Result<(), KernelError> {
        let _ = link;
        Ok(())
    }

    /// Whether a device of ours says that it completes checksums (`ethtool -k`: tx-checksumming); `None` if there is no such
    /// device, or on a fake kernel.
    async fn tx_checksum(&mut self, link: &str) -> Result<Option<bool>, KernelError> {
        let _ = link;
        Ok(None)
    }

    /// Sets whether a device of ours completes checksums (`ethtool -K LINK tx on|off`). If it doesn't, the kernel computes
    /// them before packets reach the device.
    async fn set_tx_checksum(&mut self, link: &str, on: bool) -> Result<(), KernelError> {
        let _ = (link, on);
        Ok(())
    }

    /// Who has a UDP port, for an error message; `None` if nobody has it.
    async fn udp_port_holder(&mut self, port: u16) -> Option<PortHolder> {
        let _ = port;
        None
    }

    /// Changes one link.
    async fn change_link(&mut self, op: &LinkOp) -> Result<(), KernelError>;

    /// Tries all operations in order, in few batches, and returns those that the kernel refused. Deleting an object
    /// that does not exist is not a refusal.
    async fn execute(&mut self, ops: &[Op]) -> Result<Vec<Refusal>, KernelError>;

    /// Waits for notifications and returns all that have arrived, at least one. Dropping the future loses none. What
    /// [`Self::execute`] created or replaced may be left out, since its answer says the same.
    async fn events(&mut self) -> Vec<KernelEvent>;
}
