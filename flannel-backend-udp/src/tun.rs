//! The TUN, from which we read packets for other nodes, and to which we write packets for our pods.
//!
//! Its address, MTU and state are set by netlink, not here.

mod sys;

use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

use flannel_core::addr::LinkIndex;

use crate::vnet::VnetHeader;

/// Which offloads to ask for. All, unless something is to be tested or worked around.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct TunOptions {
    /// The virtio-net header, without which there is no offload at all.
    pub vnet_header: bool,
    /// Checksums left to us, and super-packets of TCP.
    pub tso: bool,
    /// Super-packets of UDP.
    pub uso: bool,
}

impl Default for TunOptions {
    fn default() -> Self {
        Self { vnet_header: true, tso: true, uso: true }
    }
}

impl TunOptions {
    /// No offload: one packet a read, without a header in front.
    pub const NONE: Self = Self { vnet_header: false, tso: false, uso: false };

    /// The same, with or without the virtio-net header.
    #[must_use]
    pub fn vnet_header(self, vnet_header: bool) -> Self {
        Self { vnet_header, ..self }
    }

    /// The same, with or without super-packets of TCP.
    #[must_use]
    pub fn tso(self, tso: bool) -> Self {
        Self { tso, ..self }
    }

    /// The same, with or without super-packets of UDP.
    #[must_use]
    pub fn uso(self, uso: bool) -> Self {
        Self { uso, ..self }
    }
}

/// An open TUN.
#[derive(Debug)]
pub struct Tun {
    file: File,
    name: String,
    index: LinkIndex,
    offloads: TunOptions,
}

/// Why the TUN can't be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TunError {
    /// The name can't be an interface's.
    #[error("{0:?} can't be the name of a TUN")]
    Name(String),
    /// `/dev/net/tun` can't be opened.
    #[error("opening /dev/net/tun")]
    Open(#[source] io::Error),
    /// The TUN can't be attached to.
    #[error("attaching to the TUN {name}")]
    Attach {
        /// Its name.
        name: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The descriptor is not that of a TUN, or of one with another framing of packets.
    #[error("the descriptor is not that of a TUN for bare packets")]
    NotOurs(#[source] io::Error),
}

impl Tun {
    /// Makes or opens the TUN `name` in the calling thread's namespace; `flannel%d` gets a number.
    ///
    /// The kernel deletes it when the last descriptor is closed, unless somebody makes it persistent.
    pub fn open(name: &str, options: TunOptions) -> Result<Self, TunError> {
        if name.is_empty() || name.len() >= libc::IFNAMSIZ || name.bytes().any(|byte| byte == 0) {
            return Err(TunError::Name(name.to_owned()));
        }
        let mut open = OpenOptions::new();
        open.read(true).write(true).custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC);
        let file = open.open("/dev/net/tun").map_err(TunError::Open)?;
        let known = sys::features(&file).unwrap_or(0);
        let mut flags = libc::IFF_TUN | libc::IFF_NO_PI;
        let vnet_header = options.vnet_header && known & libc::IFF_VNET_HDR != 0;
        if vnet_header {
            flags |= libc::IFF_VNET_HDR;
        }
        let attach = |source| TunError::Attach { name: name.to_owned(), source };
        let name = sys::attach(&file, name, flags).map_err(attach)?;
        Self::with_offloads(file, name, TunOptions { vnet_header, ..options })
    }

    /// Takes over a TUN that is open already, made with `IFF_TUN | IFF_NO_PI` and maybe `IFF_VNET_HDR`.
    pub fn from_fd(fd: OwnedFd, options: TunOptions) -> Result<Self, TunError> {
        let file = File::from(fd);
        let (name, flags) = sys::attached(&file).map_err(TunError::NotOurs)?;
        if flags & libc::IFF_TUN == 0 || flags & libc::IFF_NO_PI == 0 {
            return Err(TunError::NotOurs(io::ErrorKind::InvalidInput.into()));
        }
        let old = nix::fcntl::fcntl(&file, nix::fcntl::FcntlArg::F_GETFL);
        let nonblocking =
            nix::fcntl::OFlag::from_bits_retain(old.unwrap_or(0)) | nix::fcntl::OFlag::O_NONBLOCK;
        nix::fcntl::fcntl(&file, nix::fcntl::FcntlArg::F_SETFL(nonblocking))
            .map_err(|errno| TunError::NotOurs(errno.into()))?;
        let vnet_header = flags & libc::IFF_VNET_HDR != 0;
        Self::with_offloads(file, name, TunOptions { vnet_header, ..options })
    }

    /// Asks for the offloads, and for fewer and fewer until the kernel accepts them.
    fn with_offloads(file: File, name: String, wanted: TunOptions) -> Result<Self, TunError> {
        let tcp = libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6;
        let udp = libc::TUN_F_USO4 | libc::TUN_F_USO6;
        let steps = [
            (tcp | libc::TUN_F_TSO_ECN | udp, true, true),
            (tcp | libc::TUN_F_TSO_ECN, true, false),
            (tcp, true, false),
            (0, false, false),
        ];
        let possible = steps.into_iter().filter(|(_, tso, uso)| {
            let allowed = wanted.vnet_header && wanted.tso;
            (allowed || !tso) && (wanted.uso || !uso)
        });
        let mut offloads = TunOptions { tso: false, uso: false, ..wanted };
        for (bits, tso, uso) in possible {
            // Even none at all has to be set: a persistent TUN keeps what its last owner chose.
            if sys::set_offload(&file, bits).is_ok() {
                offloads = TunOptions { tso, uso, ..offloads };
                break;
            }
        }
        let index = nix::net::if_::if_nametoindex(name.as_str())
            .map_err(|errno| TunError::Attach { name: name.clone(), source: errno.into() })?;
        Ok(Self { file, name, index: LinkIndex(index), offloads })
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its index in the namespace in which it was opened.
    pub fn index(&self) -> LinkIndex {
        self.index
    }

    /// What the kernel agreed to.
    pub fn offloads(&self) -> TunOptions {
        self.offloads
    }

    /// A second descriptor, to pass on or to keep it alive.
    pub fn try_clone_fd(&self) -> io::Result<OwnedFd> {
        self.file.as_fd().try_clone_to_owned()
    }

    /// Bytes before each packet, in both directions.
    pub(crate) fn prefix(&self) -> usize {
        if self.offloads.vnet_header { VnetHeader::LEN } else { 0 }
    }

    /// Reads one packet, with its prefix.
    pub(crate) fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        (&self.file).read(buffer)
    }

    /// Writes one packet, prefix first.
    pub(crate) fn write(&self, parts: &[IoSlice<'_>]) -> io::Result<()> {
        (&self.file).write_vectored(parts).map(drop)
    }
}

impl AsFd for Tun {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}
