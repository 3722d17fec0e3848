//! Devices of the kernel.

use std::io;
use std::sync::Arc;

use async_trait::async_trait;
use flannel_core::addr::Mtu;
use flannel_core::error::chain;
use flannel_core::kernel::{Kernel, Link, LinkKind, LinkOp};
use flannel_core::netns::Netns;

use super::{CreateError, NewDevice, Provider};
use crate::device::Device;
use crate::kernel::KernelDevice;

/// The kernel's own devices.
#[derive(Debug, Clone, Copy, Default)]
pub struct InKernel;

#[async_trait]
impl Provider for InKernel {
    fn kind(&self) -> &'static str {
        "wireguard"
    }

    fn name(&self) -> &'static str {
        "the kernel"
    }

    fn plan(&self, name: &str, mtu: Mtu) -> Option<LinkOp> {
        Some(create(name, mtu))
    }

    async fn create(
        &self,
        kernel: &mut dyn Kernel,
        new: &NewDevice<'_>,
    ) -> Result<Option<Arc<dyn Device>>, CreateError> {
        kernel.change_link(&create(new.name, new.mtu)).await?;
        Ok(None)
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
