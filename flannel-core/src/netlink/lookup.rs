//! Looks up routes: how the kernel would reach an address.

use std::net::IpAddr;

use neli::consts::nl::NlmF;
use neli::consts::rtnl::Rtm;

use super::batch::{Answer, Requests};
use super::message::Datagram;
use super::socket::RECEIVE_BUFFER;
use super::{decode, encode};
use crate::kernel::{KernelError, RouteLookup};
use crate::netns::Netns;

/// The errors of a look-up without a usable route: no route, and the IPv4 route types `unreachable`, `prohibit` and
/// `blackhole`.
const LEADS_NOWHERE: [i32; 4] = [libc::ENETUNREACH, libc::EHOSTUNREACH, libc::EACCES, libc::EINVAL];

/// A connection to the kernel of one network namespace that looks up routes and nothing else, so that it gets no
/// notifications.
pub(crate) struct RouteLookups(Requests);

impl RouteLookups {
    /// Opens the socket. It must be called in a tokio runtime with I/O.
    pub(crate) fn open_in(netns: &Netns) -> Result<Self, KernelError> {
        netns.run(|| Requests::open(RECEIVE_BUFFER).map(Self))?
    }

    /// How the kernel would reach `dst`; `None` if it has no route.
    pub(crate) async fn lookup(&mut self, dst: IpAddr) -> Result<Option<RouteLookup>, KernelError> {
        self.0.lookup(dst).await
    }
}

impl Requests {
    pub(super) async fn lookup(&mut self, dst: IpAddr) -> Result<Option<RouteLookup>, KernelError> {
        let what = || format!("look up the route to {dst}");
        let body = encode::lookup(dst);
        let encode = |datagram: &mut Datagram, seq| datagram.push(Rtm::Getroute, NlmF::empty(), seq, body);
        match self.ask(what, encode, decode::lookup).await? {
            Answer::Message(route) => Ok(route),
            Answer::Verdict(verdict) if LEADS_NOWHERE.contains(&verdict.errno) => Ok(None),
            Answer::Verdict(verdict) => Err(verdict.refused(what())),
        }
    }
}
