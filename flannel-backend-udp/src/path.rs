//! By which path packets travel here: which offloads the kernel accepted, and how many threads move packets. Pure, but for
//! reading a socket.

use std::fmt;

use flannel_core::addr::PerFamily;

use crate::socket::UnderlaySocket;

/// How many threads move packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Layout {
    /// One under low load, one for each direction under high load. On a machine with one processor the same as
    /// [`OneThread`](Self::OneThread).
    #[default]
    Adaptive,
    /// One for both directions: the best latency, and the least CPU time for each packet.
    OneThread,
    /// One for each direction: the best bandwidth where there are cores for it.
    TwoThreads,
}

/// Which offloads the kernel accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Path {
    /// The TUN's name.
    pub tun: String,
    /// Whether packets have a virtio-net header on the TUN.
    pub vnet_header: bool,
    /// Whether super-packets of TCP come and go.
    pub tso: bool,
    /// Whether super-packets of UDP come and go.
    pub uso: bool,
    /// How many threads.
    pub layout: Layout,
    /// The sockets.
    pub sockets: PerFamily<SocketPath>,
}

/// What a socket can do here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct SocketPath {
    /// Trains are sent in one call.
    pub gso: bool,
    /// Trains are received in one piece.
    pub gro: bool,
    /// Several messages go in one call.
    pub batch: bool,
    /// Bytes of the send buffer.
    pub send_buffer: usize,
    /// Bytes of the receive buffer.
    pub receive_buffer: usize,
}

impl SocketPath {
    pub(crate) fn of(socket: &UnderlaySocket) -> Self {
        let (send_buffer, receive_buffer) = socket.buffers();
        Self { gso: socket.gso(), gro: socket.gro(), batch: socket.batch(), send_buffer, receive_buffer }
    }
}

impl Layout {
    fn in_words(self) -> &'static str {
        match self {
            Self::Adaptive => "one thread, two under load",
            Self::OneThread => "one thread",
            Self::TwoThreads => "two threads",
        }
    }
}

impl Path {
    /// The paths of one node's devices in a few words, for a status and a label of metrics: the offloads that one of them
    /// lacks, and the threads of each. `None` without a path. What each path has is its text.
    pub fn summary(paths: &[Self]) -> Option<String> {
        let threads = paths.first()?.layout.in_words();
        let lacks = |has: &dyn Fn(&Self) -> bool| !paths.iter().all(has);
        let lacks_of_socket =
            |has: fn(&SocketPath) -> bool| lacks(&|path| path.sockets.iter().all(|(_, it)| has(it)));
        let missing: Vec<&str> = [
            ("vnet_hdr", lacks(&|path| path.vnet_header)),
            ("tso", lacks(&|path| path.tso)),
            ("uso", lacks(&|path| path.uso)),
            ("gso", lacks_of_socket(|socket| socket.gso)),
            ("gro", lacks_of_socket(|socket| socket.gro)),
            ("mmsg", lacks_of_socket(|socket| socket.batch)),
        ]
        .into_iter()
        .filter_map(|(name, is_missing)| is_missing.then_some(name))
        .collect();
        Some(match missing[..] {
            [] => format!("all offloads; {threads}"),
            _ => format!("no {}; {threads}", missing.join(" ")),
        })
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = |name: &'static str, on: bool| if on { name } else { "-" };
        let Self { tun, vnet_header, tso, uso, .. } = self;
        write!(f, "{tun}: {} {} {}", word("vnet_hdr", *vnet_header), word("tso", *tso), word("uso", *uso))?;
        for (family, socket) in self.sockets.iter() {
            let SocketPath { gso, gro, batch, send_buffer, receive_buffer } = socket;
            write!(f, "; {family}: {} {} {}", word("gso", *gso), word("gro", *gro), word("mmsg", *batch))?;
            write!(f, " buffers {} + {} KiB", send_buffer >> 10, receive_buffer >> 10)?;
        }
        write!(f, "; {}", self.layout.in_words())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOCKET: SocketPath =
        SocketPath { gso: true, gro: true, batch: true, send_buffer: 8 << 20, receive_buffer: 8 << 20 };

    fn path(uso: bool, v6: SocketPath) -> Path {
        Path {
            tun: "flannel-wg".to_owned(),
            vnet_header: true,
            tso: true,
            uso,
            layout: Layout::Adaptive,
            sockets: PerFamily { v4: Some(SOCKET), v6: Some(v6) },
        }
    }

    #[test]
    fn a_summary_names_what_is_missing_anywhere_and_is_short() {
        let whole = path(true, SOCKET);
        let no_gro = SocketPath { gro: false, ..SOCKET };
        for (paths, want) in [
            (vec![], None),
            (vec![whole.clone()], Some("all offloads; one thread, two under load")),
            (vec![whole.clone(), whole.clone()], Some("all offloads; one thread, two under load")),
            (vec![whole, path(false, no_gro)], Some("no uso gro; one thread, two under load")),
        ] {
            assert_eq!(Path::summary(&paths).as_deref(), want);
        }
        let bare = SocketPath { gso: false, gro: false, batch: false, ..SOCKET };
        let none = Path { vnet_header: false, tso: false, ..path(false, bare) };
        assert!(Path::summary(&[none]).is_some_and(|text| text.len() < 70));
    }

    #[test]
    fn the_text_of_a_path_has_everything() {
        let text = path(false, SocketPath { gro: false, ..SOCKET }).to_string();
        let want = "flannel-wg: vnet_hdr tso -; IPv4: gso gro mmsg buffers 8192 + 8192 KiB; IPv6: gso - mmsg buffers 8192 + \
                    8192 KiB; one thread, two under load";
        assert_eq!(text, want);
    }
}
