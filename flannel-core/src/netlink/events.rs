//! Notifications of the kernel.

use neli::consts::nl::Nlmsg;
use neli::consts::rtnl::Rtm;
use tracing::{debug, warn};

use super::decode::{self, Sight};
use super::link;
use super::message::{Message, Undecodable, split};
use super::netconf;
use super::next_hops::{self, NextHops};
use super::socket::{Socket, is_lost};
use crate::kernel::{KernelError, KernelEvent};

/// The groups to join.
const GROUPS: [u32; 9] = [
    libc::RTNLGRP_LINK,
    libc::RTNLGRP_NEIGH,
    libc::RTNLGRP_IPV4_IFADDR,
    libc::RTNLGRP_IPV6_IFADDR,
    libc::RTNLGRP_IPV4_ROUTE,
    libc::RTNLGRP_IPV6_ROUTE,
    libc::RTNLGRP_IPV4_NETCONF,
    libc::RTNLGRP_IPV6_NETCONF,
    // Joining it is no error where the kernel has no next-hop objects: every kernel has 32 groups.
    libc::RTNLGRP_NEXTHOP,
];

/// After so many events a call returns, so that a storm of them starves nobody.
const AT_ONCE: usize = 4096;

/// Pause after an error of the socket itself, which would come again at once.
const PAUSE: std::time::Duration = std::time::Duration::from_secs(1);

/// The socket that is joined to all groups of interest.
pub(super) struct Events {
    socket: Socket,
}

impl Events {
    /// Opens the socket.
    pub(super) fn open(receive_buffer: usize) -> Result<Self, KernelError> {
        Ok(Self { socket: Socket::open(&GROUPS, receive_buffer)? })
    }

    /// Waits for notifications and takes those that are there. It waits only while it holds none, so dropping the
    /// future loses none.
    ///
    /// `own` is the port of the socket through which we make changes: the next-hop objects that we made or
    /// removed ourselves are in the book already.
    pub(super) async fn next(&mut self, own: u32, next_hops: &mut NextHops) -> Vec<KernelEvent> {
        let mut events = Vec::new();
        while events.is_empty() {
            match self.socket.receive().await {
                Ok(messages) => decode_all(messages, own, next_hops, &mut events),
                Err(error) if is_lost(&error) => overrun(&mut events),
                Err(error) => {
                    warn!(%error, "notifications of the kernel can't be read");
                    tokio::time::sleep(PAUSE).await;
                    overrun(&mut events);
                }
            }
        }
        while events.len() < AT_ONCE {
            match self.socket.try_receive() {
                Ok(Some(messages)) => decode_all(messages, own, next_hops, &mut events),
                Err(error) if is_lost(&error) => overrun(&mut events),
                // Another error comes again at the next call, which has nothing to return before it.
                Ok(None) | Err(_) => break,
            }
        }
        events
    }
}

/// One loss is as bad as many.
fn overrun(events: &mut Vec<KernelEvent>) {
    if events.last() != Some(&KernelEvent::Overrun) {
        events.push(KernelEvent::Overrun);
    }
}

/// Decodes a datagram. What can't be decoded announced something that is now unknown.
pub(super) fn decode_all(datagram: &[u8], own: u32, next_hops: &mut NextHops, events: &mut Vec<KernelEvent>) {
    for message in split(datagram) {
        let event = message.and_then(|message| match u16::from(message.kind) {
            next_hops::NEW | next_hops::DEL if message.port == own => Ok(None),
            netconf::NEW => Ok(netconf::forwarding(&message)?.map(KernelEvent::Forwarding)),
            next_hops::NEW | next_hops::DEL => next_hops.announced(&message, events).map(|()| None),
            _ => event(&message, next_hops),
        });
        match event {
            Ok(Some(KernelEvent::LinkGone(link, name))) => {
                next_hops.forget_link(link);
                events.push(KernelEvent::LinkGone(link, name));
            }
            Ok(Some(KernelEvent::Overrun)) => overrun(events),
            Ok(event) => events.extend(event),
            Err(error) => {
                debug!(%error, "notification of the kernel can't be decoded");
                overrun(events);
            }
        }
    }
}

/// The event that a message announces; `None` if it is about something else.
fn event(message: &Message<'_>, next_hops: &NextHops) -> Result<Option<KernelEvent>, Undecodable> {
    Ok(match message.kind {
        Rtm::Newlink => link::link(message)?.map(KernelEvent::Link),
        Rtm::Dellink => link::gone(message)?.map(|(index, name)| KernelEvent::LinkGone(index, name)),
        Rtm::Newaddr => put(decode::address_sight(message)?),
        Rtm::Deladdr => gone(decode::address_sight(message)?),
        Rtm::Newneigh => put(decode::neighbour_sight(message)?),
        Rtm::Delneigh => gone(decode::neighbour_sight(message)?),
        Rtm::Newroute => put(decode::route_sight(message, next_hops)?),
        Rtm::Delroute => gone(decode::route_sight(message, next_hops)?),
        other if u16::from(other) == u16::from(Nlmsg::Overrun) => Some(KernelEvent::Overrun),
        _ => None,
    })
}

fn put(sight: Sight) -> Option<KernelEvent> {
    match sight {
        Sight::Present(object) => Some(KernelEvent::Put(object)),
        Sight::Absent(key) => Some(KernelEvent::Gone(key)),
        Sight::Irrelevant => None,
    }
}

fn gone(sight: Sight) -> Option<KernelEvent> {
    sight.key().map(KernelEvent::Gone)
}
