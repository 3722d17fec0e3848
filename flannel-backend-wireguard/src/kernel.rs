//! WireGuard devices of the kernel, by its generic netlink family `wireguard` (uapi `linux/wireguard.h`).
//!
//! A device with many peers takes several messages each way. A dump goes on with a peer's allowed addresses in the next
//! message; a change is cut between peers, or between allowed addresses of one. `WGDEVICE_F_REPLACE_PEERS` is never set,
//! since that would end all sessions.

pub(crate) mod wire;

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use flannel_core::addr::LinkIndex;
use flannel_core::error::chain;
use flannel_core::kernel::KernelError;
use flannel_core::netlink::generic::Generic;
use flannel_core::netns::Netns;

use crate::device::{Change, Device, DeviceState};

/// A device of the kernel, known by its index, which it keeps when it is renamed.
#[derive(Debug)]
pub struct KernelDevice {
    link: LinkIndex,
    generic: Mutex<Generic>,
}

impl KernelDevice {
    /// Opens the device with this index in a network namespace. An error with `ENOENT` says that the kernel has no
    /// WireGuard.
    pub fn open(netns: &Netns, link: LinkIndex) -> Result<Self, KernelError> {
        let generic = Generic::open(netns, wire::FAMILY, wire::VERSION)?;
        Ok(Self { link, generic: Mutex::new(generic) })
    }

    /// Reads the content, on the calling thread: the kernel answers at once.
    pub fn read(&self) -> io::Result<DeviceState> {
        let what = format!("read the peers of WireGuard link {}", self.link);
        let request = wire::get(self.link);
        let messages = {
            let mut generic = self.generic.lock().unwrap_or_else(PoisonError::into_inner);
            generic.dump(&what, wire::GET_DEVICE, &request).map_err(|error| failed(&error))?
        };
        let mut state = wire::Reader::default();
        for message in &messages {
            state.add(message).map_err(|detail| {
                let text =
                    format!("kernel message about WireGuard link {} is unreadable: {detail}", self.link);
                io::Error::new(io::ErrorKind::InvalidData, text)
            })?;
        }
        Ok(state.finish())
    }

    fn write(&self, changes: &[Change]) -> io::Result<()> {
        let what = format!("change the keys and peers of WireGuard link {}", self.link);
        let mut generic = self.generic.lock().unwrap_or_else(PoisonError::into_inner);
        for message in wire::set(self.link, changes) {
            generic.request(&what, wire::SET_DEVICE, message.bytes()).map_err(|error| failed(&error))?;
        }
        Ok(())
    }
}

/// Asks whether the kernel has WireGuard. It loads the module if there is one. An error with `ENOENT` says that it has none.
pub(crate) fn ask(netns: &Netns) -> Result<(), KernelError> {
    Generic::open(netns, wire::FAMILY, wire::VERSION).map(drop)
}

/// Keeps the kind of the kernel's errno, by which callers tell what to do, and the text of what was tried.
fn failed(error: &KernelError) -> io::Error {
    let kind = error.errno().map_or(io::ErrorKind::Other, |errno| io::Error::from_raw_os_error(errno).kind());
    io::Error::new(kind, chain(error))
}

#[async_trait]
impl Device for KernelDevice {
    async fn state(&self) -> io::Result<DeviceState> {
        self.read()
    }

    async fn apply(&self, changes: &[Change]) -> io::Result<()> {
        self.write(changes)
    }

    fn reader(self: Arc<Self>) -> Option<Arc<crate::device::ReadState>> {
        Some(Arc::new(move || self.read()))
    }
}
