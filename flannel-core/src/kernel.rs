//! What the reconcile loop needs from a kernel: [`Kernel`] is spoken by [`crate::netlink::Netlink`] for the
//! real one, and by the fake in `flannel_core::testing` for tests.

mod link_kind;
mod vxlan;

use std::collections::BTreeSet;
use std::fmt;
use std::io;
use std::net::IpAddr;

use async_trait::async_trait;

use crate::addr::{Family, LinkIndex, MacAddr, Mtu, Vni};
use crate::dataplane::{Object, ObjectKey, Op, Route};
use crate::netns::{Netns, NetnsError};

pub use crate::dataplane::Kinds;
pub use link_kind::{LinkAttr, LinkKind};
pub use vxlan::VxlanLink;

/// A network interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// Its number.
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
    /// Its MTU, of its own side.
    pub mtu: Mtu,
    /// Whether it is administratively up (`IFF_UP`).
    pub up: bool,
    /// Whether it has a carrier (`IFF_LOWER_UP`).
    pub carrier: bool,
    /// Whether it is the loopback link.
    pub loopback: bool,
    /// What is special to a VXLAN device.
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
    /// `IFA_F_PERMANENT`: set by hand and without end.
    pub permanent: bool,
    /// `IFA_F_TEMPORARY`, the same bit as `IFA_F_SECONDARY`.
    pub temporary: bool,
    /// `IFA_F_TENTATIVE`: duplicate address detection runs; can't be bound yet.
    pub tentative: bool,
}

/// The answer to a route look-up, or a default route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RouteLookup {
    /// By what it leaves.
    pub exit: Exit,
    /// The gateway, of several the first; `None` if the destination is on-link.
    pub via: Option<IpAddr>,
    /// The preferred source address.
    pub source: Option<IpAddr>,
    /// The metric; 0 where the kernel names none.
    pub metric: u32,
}

/// By which links a route leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// By none.
    Nowhere,
    /// By one, through one next hop or several.
    By(LinkIndex),
    /// Its next hops leave by different links (ECMP): two of those.
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
    /// Creates a virtual link, not yet up and without a queue. The kernel refuses it if the name is taken, or what else
    /// only one link of the kind can have (VNI and port of a VXLAN device).
    Create {
        /// Its name.
        name: String,
        /// Its MAC; `None` for one that the kernel chooses, or for a kind without.
        mac: Option<MacAddr>,
        /// Its MTU; `None` for the kernel's default.
        mtu: Option<Mtu>,
        /// Its kind, and what is special to that.
        kind: LinkKind,
    },
    /// Changes attributes of a link's kind in place. Those that are not named stay. Which ones the kernel can change
    /// depends on the kind.
    Change(LinkIndex, LinkKind),
    /// Sets the MTU.
    SetMtu(LinkIndex, Mtu),
    /// Sets the MAC. The kernel then drops the link's neighbour entries.
    SetMac(LinkIndex, MacAddr),
    /// Sets the link up.
    SetUp(LinkIndex),
    /// Deletes the link with all that hangs on it.
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

/// Whose settings a kernel parameter of a family is about (`net.ipv4.conf.*`, `net.ipv6.conf.*`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum ConfOf {
    /// `all`.
    All,
    /// `default`: what links get that are yet to be made.
    Default,
    /// One link's.
    Link(LinkIndex),
}

/// Whether the kernel forwards packets (`NETCONFA_*` in `linux/netconf.h`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Forwarding {
    /// Of which family.
    pub family: Family,
    /// Whose setting it is.
    pub of: ConfOf,
    /// `forwarding`. In IPv4 that of the link decides by which a packet came, in IPv6 that of `all`.
    pub on: bool,
}

/// Something that the kernel announced. Announcements get lost and some changes are silent: they bring
/// repairs forward, correctness rests on reading the state again.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum KernelEvent {
    /// A link was created or changed.
    Link(Link),
    /// A link is gone.
    LinkGone(LinkIndex, String),
    /// An object was added or replaced.
    Put(Object),
    /// An object is gone, or is no more what we count as one (a neighbour that is not permanent).
    Gone(ObjectKey),
    /// Forwarding was switched on or off, or a link is new.
    Forwarding(Forwarding),
    /// Announcements were lost (`ENOBUFS`): everything is unknown.
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
    /// Answers were lost (`ENOBUFS`) or did not come in time: what was done is unknown, read it again.
    #[error("answers of the kernel were lost while trying to {what}; the state is read again")]
    Lost {
        /// What was tried.
        what: String,
    },
    /// The kernel sent something that can't be decoded.
    #[error("kernel message about {what} can't be decoded: {detail}")]
    Malformed {
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
    /// The network namespace can't be worked in.
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
    /// Whether it is a link that others use, too: only routes are read there.
    pub fn is_shared(&self) -> bool {
        self.kinds == Kinds::ROUTES
    }
}

/// Opens a connection to the kernel of a network namespace: the real one, or a fake.
pub type OpenKernel = dyn Fn(&Netns) -> Result<Box<dyn Kernel>, KernelError> + Send + Sync;

/// Reads and changes the state of one network namespace.
#[async_trait]
pub trait Kernel: Send {
    /// All links.
    async fn links(&mut self) -> Result<Vec<Link>, KernelError>;

    /// One link by name.
    async fn link(&mut self, name: &str) -> Result<Option<Link>, KernelError>;

    /// One link by its number, which it keeps when it is renamed.
    async fn link_at(&mut self, index: LinkIndex) -> Result<Option<Link>, KernelError>;

    /// The kind of a link with its attributes as they are now, for a backend that compares those of its devices; `None`
    /// for a link that is not there, or is hardware. [`Link`] has them for VXLAN devices only: those of other kinds have
    /// counters and timers among them, which would make each look another one.
    async fn link_kind(&mut self, index: LinkIndex) -> Result<Option<LinkKind>, KernelError>;

    /// All addresses of all links, both families.
    async fn addresses(&mut self) -> Result<Vec<LinkAddress>, KernelError>;

    /// The default routes of the main table, in the kernel's order.
    async fn default_routes(&mut self, family: Family) -> Result<Vec<RouteLookup>, KernelError>;

    /// How the kernel would reach `dst`; `None` if it has no route.
    async fn lookup(&mut self, dst: IpAddr) -> Result<Option<RouteLookup>, KernelError>;

    /// Reads the objects of a scope, complete or not at all.
    async fn objects(&mut self, scope: Scope) -> Result<Vec<Object>, KernelError>;

    /// Reads the routes of the main table that have a protocol, on whatever link; complete or not at all.
    async fn routes_by(&mut self, family: Family, protocol: u8) -> Result<Vec<Object>, KernelError>;

    /// Reads where a family is forwarded. Empty where the kernel does not tell.
    async fn forwarding(&mut self, family: Family) -> Result<Vec<Forwarding>, KernelError>;

    /// Reads the routes of the main table under these keys, whoever wrote them, in the kernel's order: of several
    /// with one key the first is in use. One read for all.
    async fn routes_at(
        &mut self,
        family: Family,
        keys: &BTreeSet<ObjectKey>,
    ) -> Result<Vec<Route>, KernelError>;

    /// Removes the table of the [gate](crate::firewall::gate) of a VNI whose devices go. Without one nothing happens.
    async fn remove_gate(&mut self, vni: Vni) -> Result<(), KernelError> {
        let _ = vni;
        Ok(())
    }

    /// Makes a link ignore IPv6 router advertisements (sysctl `accept_ra`). A kernel without sysctls does nothing.
    async fn ignore_router_advertisements(&mut self, link: &str) -> Result<(), KernelError> {
        let _ = link;
        Ok(())
    }

    /// Who has a UDP port, for a message that says that it is taken; `None` if nobody is known to have it.
    async fn udp_port_holder(&mut self, port: u16) -> Option<String> {
        let _ = port;
        None
    }

    /// Changes one link.
    async fn change_link(&mut self, op: &LinkOp) -> Result<(), KernelError>;

    /// Tries every operation, in order and in few batches, and returns those that were refused. The
    /// absence of what is deleted is no refusal.
    async fn execute(&mut self, ops: &[Op]) -> Result<Vec<Refusal>, KernelError>;

    /// Waits for announcements and takes all that are there, at least one. Dropping the future loses none.
    async fn events(&mut self) -> Vec<KernelEvent>;
}
