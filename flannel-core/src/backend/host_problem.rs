//! Problems of the host that keep a backend from working.

use std::net::IpAddr;

use crate::addr::Family;
use crate::status::Problem;
use crate::underlay::NoAddress;

/// Why a backend can't work on this host at present. An agent tries again.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HostProblem {
    /// The underlay has no address of a family that the network config enables.
    #[error(transparent)]
    NoAddress(#[from] NoAddress),
    /// The underlay is behind NAT, but with this backend nodes must have the addresses that they publish.
    #[error(
        "the published {family} address {published} is not {local}, the address of {link}: with {backend} the \
         other nodes use it as a gateway, which can't work behind NAT; leave out --public-ip and \
         --public-ipv6, or use another backend such as vxlan"
    )]
    BehindNat {
        /// The backend's name.
        backend: &'static str,
        /// The family.
        family: Family,
        /// The address that peers send to.
        published: IpAddr,
        /// The address of the link.
        local: IpAddr,
        /// The underlay link's name.
        link: String,
    },
    /// A device is missing or wrong; the text says why, and what to do.
    #[error("{0}")]
    Device(String),
    /// A command of the network config failed; the text says which, and why.
    #[error("{0}")]
    Command(String),
    /// The kernel refuses an object that this node itself needs.
    #[error("{0}")]
    Object(Box<Problem>),
}
