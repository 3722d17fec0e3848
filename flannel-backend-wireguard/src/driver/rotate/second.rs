//! The second devices: they are made when a node changes its key, and removed when nobody needs them any more.

use flannel_core::addr::Family;
use flannel_core::dataplane::{KERNEL_PROTOCOL, Object};
use flannel_core::error::chain;
use flannel_core::events::NetworkEvent;
use flannel_core::kernel::{Kernel, KernelError, Kinds, LinkOp, Scope};
use flannel_core::reconcile::Devices;
use tokio::time::Instant;

use super::KEPT;
use crate::driver::WireguardDriver;
use crate::rotation::Way;
use crate::tunnel::Tunnel;

impl WireguardDriver {
    /// Adds the second devices to those that are to be there, or removes them.
    pub(in crate::driver) async fn choose_second(
        &mut self,
        kernel: &mut dyn Kernel,
        devices: &mut Devices,
    ) -> Result<(), KernelError> {
        self.rotation.problem = None;
        devices.events.append(&mut self.rotation.events);
        let (key, firsts) = (self.second_key().clone(), self.firsts());
        for tunnel in &mut self.tunnels[firsts..] {
            tunnel.second_key = Some(key.clone());
        }
        if self.seconds().is_empty() {
            let seconds: Vec<Tunnel> = self.tunnels.iter().map(|first| first.second(key.clone())).collect();
            let mut is_there = false;
            if !std::mem::replace(&mut self.rotation.has_looked_for_second, true) {
                for tunnel in &seconds {
                    let link = kernel.link(tunnel.name).await?;
                    let (kind, other) = (self.chosen.provider.kind(), self.chosen.provider.supersedes());
                    let is_ours = |of: &str| of == kind || Some(of) == other;
                    is_there |= link.is_some_and(|link| link.kind.as_deref().is_some_and(is_ours));
                }
            }
            if is_there || self.rotation.is_any() {
                self.tunnels.extend(seconds);
            }
        } else if self.may_remove_second() {
            if self.is_second_unused(kernel).await? {
                self.remove_second(kernel, devices).await;
            } else {
                self.rotation.removes = Instant::now() + KEPT;
            }
        }
        Ok(())
    }

    /// Whether nobody needs the second devices, as far as the leases say.
    pub(super) fn may_remove_second(&self) -> bool {
        let rotation = &self.rotation;
        let is_time = Instant::now() >= rotation.removes;
        let are_all_back = rotation.known.iter().all(|known| known.way == Way::First);
        !self.seconds().is_empty() && !rotation.is_any() && rotation.is_synced && is_time && are_all_back
    }

    /// Whether no route to a peer goes by a second device: there may be one of a peer whose record is unreadable.
    pub(super) async fn is_second_unused(&self, kernel: &mut dyn Kernel) -> Result<bool, KernelError> {
        for tunnel in self.seconds() {
            let Some(link) = tunnel.link.as_ref().filter(|_| tunnel.is_there) else { continue };
            for family in &tunnel.families {
                let scope = Scope { link: link.index, family: *family, kinds: Kinds::ROUTES };
                let is_ours = |object: &Object| {
                    matches!(object, Object::Route(route)
                        if route.protocol != KERNEL_PROTOCOL && self.in_overlay(route.dst))
                };
                if kernel.objects(scope).await?.iter().any(is_ours) {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }

    /// Removes them all, or keeps each at its place: a second device belongs to the first one at the same place.
    pub(super) async fn remove_second(&mut self, kernel: &mut dyn Kernel, devices: &mut Devices) {
        for tunnel in self.seconds() {
            if let Some(link) = tunnel.link.as_ref().filter(|_| tunnel.is_there)
                && let Err(error) = kernel.change_link(&LinkOp::Delete(link.index)).await
                && error.errno() != Some(libc::ENODEV)
            {
                self.rotation.problem = Some(chain(&error));
                self.rotation.removes = Instant::now() + KEPT;
                return;
            }
        }
        let firsts = self.firsts();
        for tunnel in self.tunnels.split_off(firsts) {
            let (link, detail) =
                (tunnel.name.to_owned(), "removed: no node changes its key any more".to_owned());
            devices.events.push(NetworkEvent::DeviceChanged { link, detail });
        }
        self.rotation.states.clear();
    }

    /// Reads the sessions while there are two devices, and lets packets from a peer arrive on either.
    pub(in crate::driver) async fn look_at_sessions(
        &mut self,
        kernel: &mut dyn Kernel,
        devices: &mut Devices,
    ) {
        if self.seconds().is_empty() {
            return;
        }
        self.read_sessions().await;
        let was_strict = std::mem::take(&mut self.rotation.is_strict);
        for tunnel in self.tunnels.iter().filter(|tunnel| tunnel.families.contains(&Family::V4)) {
            if let Some(link) = tunnel.link.as_ref().filter(|_| tunnel.is_there)
                && let Err(error) = kernel.loosen_source_check(&link.name).await
            {
                let advice = "set net.ipv4.conf.all.rp_filter=2 on this host";
                self.rotation.problem = Some(format!("{}; {advice}", chain(&error)));
                self.rotation.is_strict = true;
            }
        }
        devices.peers_changed |= was_strict != self.rotation.is_strict;
    }

    pub(super) async fn read_sessions(&mut self) {
        self.rotation.states.resize(self.tunnels.len(), None);
        for (tunnel, seen) in self.tunnels.iter().zip(&mut self.rotation.states) {
            let Some(device) = tunnel.device.as_ref().filter(|_| tunnel.is_there) else {
                *seen = None;
                continue;
            };
            // One that can't be read now is as it was; holding it reports the error.
            if let Ok(state) = device.state().await {
                *seen = Some(state);
            }
        }
    }
}
