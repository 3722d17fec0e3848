//! Who makes the devices: the kernel, or this process.

mod choice;
mod kernel;
mod userspace;

use std::io;
use std::sync::Arc;

use async_trait::async_trait;
use flannel_core::addr::Mtu;
use flannel_core::kernel::{Kernel, KernelError, Link, LinkOp};
use flannel_core::netns::Netns;
use tokio::sync::Notify;

use crate::device::Device;
use crate::userspace::UserspaceError;

pub(crate) use choice::Chosen;
pub use choice::Implementation;
pub use kernel::InKernel;
#[cfg(any(test, feature = "testing"))]
pub(crate) use kernel::create;
pub use userspace::InUserspace;

/// Makes WireGuard devices and opens those that are there.
#[async_trait]
pub trait Provider: Send + Sync {
    /// The kind of its links (`IFLA_INFO_KIND`): a link of this name and another kind is somebody else's.
    fn kind(&self) -> &'static str;

    /// Its name for the status, such as `kernel`.
    fn name(&self) -> &'static str;

    /// The kind of links that the other provider makes under the same names and that outlive the process which made them:
    /// where this provider is to make its own, such a link is deleted.
    fn supersedes(&self) -> Option<&'static str> {
        None
    }

    /// The operation that makes a device, if a command could make one, too.
    fn plan(&self, name: &str, mtu: Mtu) -> Option<LinkOp>;

    /// Makes a device, which is not up and has no key yet. It returns the device if that lives in this process; else
    /// [`Self::open`] opens it by its link.
    async fn create(
        &self,
        kernel: &mut dyn Kernel,
        new: &NewDevice<'_>,
    ) -> Result<Option<Arc<dyn Device>>, CreateError>;

    /// Opens the device of a link of this kind that is there.
    async fn open(&self, netns: &Netns, link: &Link) -> io::Result<Arc<dyn Device>>;
}

/// A device to be made.
#[non_exhaustive]
pub struct NewDevice<'a> {
    /// Where it is made.
    pub netns: &'a Netns,
    /// The name of its link.
    pub name: &'a str,
    /// The MTU of its link.
    pub mtu: Mtu,
    /// The UDP port on which it will receive. The kernel binds it when the link is set up.
    pub port: u16,
    /// Notified when a device in this process ends by itself.
    pub alarm: Arc<Notify>,
}

impl<'a> NewDevice<'a> {
    /// A device of this name in a namespace, of whose end nobody is notified.
    pub fn new(netns: &'a Netns, name: &'a str, mtu: Mtu, port: u16) -> Self {
        Self { netns, name, mtu, port, alarm: Arc::default() }
    }

    /// The same, of whose end somebody is notified.
    #[must_use]
    pub fn alarm(self, alarm: Arc<Notify>) -> Self {
        Self { alarm, ..self }
    }
}

/// Why a device can't be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CreateError {
    /// The kernel refused it.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// This process can't have it.
    #[error(transparent)]
    Userspace(#[from] UserspaceError),
}
