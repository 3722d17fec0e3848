//! Notifications of the kernel.

use neli::consts::nl::Nlmsg;
use neli::consts::rtnl::Rtm;
use tracing::{debug, warn};

use super::decode::{self, Sight};
use super::link;
use super::message::{Message, UnreadableMessage, split};
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
    // A kernel without next-hop objects accepts this group, too: every kernel has 32 groups.
    libc::RTNLGRP_NEXTHOP,
];

/// A call returns after this many events, so that a storm does not starve others.
const AT_ONCE: usize = 4096;

/// The pause after an error of the socket itself, which would occur again at once.
const PAUSE: std::time::Duration = std::time::Duration::from_secs(1);

/// The socket that is joined to all groups of interest.
pub(super) struct Events {
    socket: Socket,
}

impl Events {
    /// Opens the socket. It gets no notifications of what the socket with the port id `own` does to routes, neighbours and next-hop
    /// objects, since its answers say the same: they would be most of what it gets. (That a neighbour is gone, and all about FDB
    /// entries, is announced without a port id.)
    pub(super) fn open(receive_buffer: usize, own: u32) -> Result<Self, KernelError> {
        let socket = Socket::open(&GROUPS, receive_buffer)?;
        let kinds = [
            Rtm::Newroute.into(),
            Rtm::Delroute.into(),
            Rtm::Newneigh.into(),
            next_hops::NEW,
            next_hops::DEL,
        ];
        socket.leave_out(own, &kinds);
        Ok(Self { socket })
    }

    /// Waits for notifications and returns all that have arrived. It waits only while it has none, so dropping the
    /// future loses none.
    ///
    /// `own` is the port id of the socket by which we make changes: `next_hops` already has our own changes of next-hop
    /// objects.
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
                // Another error will occur again in the next call, which then has no events to return first.
                Ok(None) | Err(_) => break,
            }
        }
        events
    }
}

/// Adds an overrun, unless the last event is one.
fn overrun(events: &mut Vec<KernelEvent>) {
    if events.last() != Some(&KernelEvent::Overrun) {
        events.push(KernelEvent::Overrun);
    }
}

/// Decodes a datagram. If it can't be decoded, anything may have changed.
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
                debug!(%error, "unreadable notification of the kernel");
                overrun(events);
            }
        }
    }
}

/// The event of a message; `None` if it is about something else.
fn event(message: &Message<'_>, next_hops: &NextHops) -> Result<Option<KernelEvent>, UnreadableMessage> {
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
