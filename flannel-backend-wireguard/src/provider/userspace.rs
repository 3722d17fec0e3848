//! Devices in this process.

use std::io;
use std::sync::Arc;

use async_trait::async_trait;
use flannel_backend_udp::Layout;
use flannel_backend_udp::datapath::EngineEvent;
use flannel_core::addr::Mtu;
use flannel_core::kernel::{Kernel, Link, LinkOp};
use flannel_core::netns::Netns;

use super::{CreateError, NewDevice, Provider};
use crate::device::Device;
use crate::userspace::{UserspaceDevice, UserspaceError, UserspaceOptions};

/// Devices whose packets this process seals and opens. They end with it, or when nobody has them any more.
#[derive(Debug, Clone, Copy, Default)]
pub struct InUserspace {
    layout: Layout,
}

impl InUserspace {
    /// Devices of which each has this many threads.
    pub fn new(layout: Layout) -> Self {
        Self { layout }
    }
}

#[async_trait]
impl Provider for InUserspace {
    fn kind(&self) -> &'static str {
        "tun"
    }

    fn name(&self) -> &'static str {
        "user space"
    }

    /// Links of kind `wireguard` under these names are flannel's, and stay when their maker ends. A TUN goes with the process
    /// that has it, so one that is there is another's.
    fn supersedes(&self) -> Option<&'static str> {
        Some("wireguard")
    }

    fn plan(&self, _: &str, _: Mtu) -> Option<LinkOp> {
        None
    }

    async fn create(
        &self,
        _: &mut dyn Kernel,
        new: &NewDevice<'_>,
    ) -> Result<Option<Arc<dyn Device>>, CreateError> {
        let (alarm, name) = (Arc::clone(&new.alarm), new.name.to_owned());
        let on_event = Arc::new(move |event: EngineEvent| {
            match event {
                EngineEvent::TunGone => tracing::debug!(link = name, "TUN device is gone"),
                event => tracing::error!(?event, link = name, "WireGuard in user space stopped"),
            }
            alarm.notify_one();
        });
        let options = UserspaceOptions::new(new.netns.clone(), new.name, on_event)
            // Its link's counters have the link's name.
            .counted_as(new.name.replacen("flannel-wg", "wireguard", 1))
            .listen_port(new.port)
            .layout(self.layout);
        let opened = tokio::task::spawn_blocking(|| UserspaceDevice::open(options)).await;
        let device = opened.map_err(|error| UserspaceError::Threads(io::Error::other(error)))??;
        device.set_mtu(new.mtu);
        Ok(Some(Arc::new(device)))
    }

    async fn open(&self, _: &Netns, _: &Link) -> io::Result<Arc<dyn Device>> {
        let text = "there is a TUN of this name, which another process has, or had and left; end that process, or remove the \
                    TUN (ip link del)";
        Err(io::Error::new(io::ErrorKind::AlreadyExists, text))
    }
}
