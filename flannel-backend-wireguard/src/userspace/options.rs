//! What a device in user space is made of, and why there is none.

use std::io;

use flannel_backend_udp::Layout;
use flannel_backend_udp::datapath::{EventHook, SocketError, SocketOptions, TunError, TunOptions};
use flannel_core::netns::{Netns, NetnsError};

/// What a device is made of.
#[non_exhaustive]
pub struct UserspaceOptions {
    /// The namespace of the TUN and the sockets.
    pub netns: Netns,
    /// The name of the TUN; `%d` in it gets a number.
    pub name: String,
    /// What its counters are called.
    pub counted_as: String,
    /// The UDP port, 0 for any that is free.
    pub listen_port: u16,
    /// How many threads move packets.
    pub layout: Layout,
    /// Which offloads of the TUN to use.
    pub tun: TunOptions,
    /// What to use of the sockets.
    pub sockets: SocketOptions,
    /// Called when the datapath can't go on, on one of its threads.
    pub on_event: EventHook,
}

impl UserspaceOptions {
    /// A device `name` in a namespace, on any port, with all that the kernel offers.
    pub fn new(netns: Netns, name: impl Into<String>, on_event: EventHook) -> Self {
        Self {
            netns,
            name: name.into(),
            counted_as: super::KIND.to_owned(),
            listen_port: 0,
            layout: Layout::default(),
            tun: TunOptions::default(),
            sockets: SocketOptions::default(),
            on_event,
        }
    }

    /// The same with counters of this name, where there are several devices.
    #[must_use]
    pub fn counted_as(self, counted_as: impl Into<String>) -> Self {
        Self { counted_as: counted_as.into(), ..self }
    }

    /// The same on this UDP port.
    #[must_use]
    pub fn listen_port(self, listen_port: u16) -> Self {
        Self { listen_port, ..self }
    }

    /// The same with this many threads.
    #[must_use]
    pub fn layout(self, layout: Layout) -> Self {
        Self { layout, ..self }
    }

    /// The same with these offloads of the TUN.
    #[must_use]
    pub fn tun(self, tun: TunOptions) -> Self {
        Self { tun, ..self }
    }

    /// The same with these options of the sockets.
    #[must_use]
    pub fn sockets(self, sockets: SocketOptions) -> Self {
        Self { sockets, ..self }
    }
}

/// Why there is no device.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UserspaceError {
    /// The namespace can't be entered.
    #[error(transparent)]
    Netns(#[from] NetnsError),
    /// There is no TUN.
    #[error("a TUN for WireGuard in user space; it needs /dev/net/tun and CAP_NET_ADMIN")]
    Tun(#[source] TunError),
    /// The port can't be bound.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// The threads can't be started.
    #[error("threads for WireGuard in user space")]
    Threads(#[source] io::Error),
}

impl From<UserspaceError> for io::Error {
    fn from(error: UserspaceError) -> Self {
        let kind = match &error {
            UserspaceError::Socket(error) => error.source.kind(),
            UserspaceError::Threads(error) => error.kind(),
            _ => io::ErrorKind::Other,
        };
        Self::new(kind, error)
    }
}
