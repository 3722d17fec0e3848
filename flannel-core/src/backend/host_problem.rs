//! What of the host keeps a backend from working.

use std::net::IpAddr;

use crate::addr::Family;
use crate::status::Problem;
use crate::underlay::NoAddress;

/// Why the host is not in a state in which a backend can work. An agent tries again.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HostProblem {
    /// The underlay has no address of a family that the network config enables.
    #[error(transparent)]
    NoAddress(#[from] NoAddress),
    /// The underlay is behind NAT, and the backend needs its nodes to have the addresses that they publish.
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
    /// A device is not there, or not as it should be: why, and what to do.
    #[error("{0}")]
    Device(String),
    /// An object that this node itself needs can't be had.
    #[error("{0}")]
    Object(Box<Problem>),
}
