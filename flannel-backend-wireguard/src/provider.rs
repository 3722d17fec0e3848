//! Who makes the devices: the kernel, or this process.

use std::io;
use std::sync::Arc;

use async_trait::async_trait;
use flannel_core::addr::Mtu;
use flannel_core::error::chain;
use flannel_core::kernel::{Kernel, KernelError, Link, LinkKind, LinkOp};
use flannel_core::netns::Netns;

use crate::device::Device;
use crate::kernel::KernelDevice;

/// Makes WireGuard devices and opens those that are there.
#[async_trait]
pub trait Provider: Send + Sync {
    /// The kind of its links (`IFLA_INFO_KIND`): a link of this name and another kind is somebody else's.
    fn kind(&self) -> &'static str;

    /// Its name for the status, such as `kernel`.
    fn name(&self) -> &'static str;

    /// Makes a device, which is not up and has no key yet.
    async fn create(
        &self,
        netns: &Netns,
        kernel: &mut dyn Kernel,
        name: &str,
        mtu: Mtu,
    ) -> Result<(), KernelError>;

    /// Opens the device of a link.
    async fn open(&self, netns: &Netns, link: &Link) -> io::Result<Arc<dyn Device>>;
}

/// The kernel's own devices.
#[derive(Debug, Clone, Copy, Default)]
pub struct InKernel;

#[async_trait]
impl Provider for InKernel {
    fn kind(&self) -> &'static str {
        "wireguard"
    }

    fn name(&self) -> &'static str {
        "kernel"
    }

    async fn create(
        &self,
        _: &Netns,
        kernel: &mut dyn Kernel,
        name: &str,
        mtu: Mtu,
    ) -> Result<(), KernelError> {
        kernel.change_link(&create(name, mtu)).await
    }

    async fn open(&self, netns: &Netns, link: &Link) -> io::Result<Arc<dyn Device>> {
        let device = KernelDevice::open(netns, link.index);
        device
            .map(|device| Arc::new(device) as Arc<dyn Device>)
            .map_err(|error| io::Error::other(chain(&error)))
    }
}

/// The operation that makes a device of the kernel.
pub(crate) fn create(name: &str, mtu: Mtu) -> LinkOp {
    let kind = LinkKind::new("wireguard", []);
    LinkOp::Create { name: name.to_owned(), mac: None, mtu: Some(mtu), kind }
}
