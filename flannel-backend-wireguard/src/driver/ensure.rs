//! Makes the devices or changes them to what they should be, and says what is in the way where that fails.

use std::io;
use std::sync::Arc;

use flannel_core::addr::{Family, Mtu};
use flannel_core::dataplane::{Object, Op, Route, Through};
use flannel_core::error::chain;
use flannel_core::events::NetworkEvent;
use flannel_core::kernel::{Kernel, KernelError, Link, LinkOp};
use flannel_core::netns::Netns;
use flannel_core::port_holder::udp_port_holder;
use flannel_core::reconcile::Devices;
use flannel_core::status::{IPV6_MIN_MTU, Problem};
use tokio::sync::Notify;

use super::WireguardDriver;
use crate::config::OVERHEAD;
use crate::provider::{CreateError, NewDevice, Provider};
use crate::tunnel::{Common, Tunnel};

impl WireguardDriver {
    /// Why IPv6 is out of service.
    fn without_ipv6(&self, lower: &Link) -> Option<Problem> {
        self.sides.v6.as_ref()?;
        let left = self.config.overlay_mtu(lower.mtu).unwrap_or(Mtu(0));
        (left.0 < IPV6_MIN_MTU)
            .then(|| Problem::mtu_without_ipv6(&lower.name, lower.mtu.0, Some(("WireGuard", OVERHEAD))))
    }

    /// The MTU of devices and pods; `None` if the underlay's leaves nothing. With a smaller MTU the kernel would remove
    /// IPv6 from devices, and with it what still works.
    fn mtu(&self, lower: &Link) -> Option<Mtu> {
        let mtu = self.config.overlay_mtu(lower.mtu)?;
        Some(if self.sides.v6.is_some() { mtu.max(Mtu(IPV6_MIN_MTU)) } else { mtu })
    }

    /// What [`Self::ensure_all`] would do to the links.
    pub(super) async fn plan_all(
        &self,
        kernel: &mut dyn Kernel,
        lower: &Link,
    ) -> Result<Vec<LinkOp>, KernelError> {
        let mut ops = Vec::new();
        let Some(mtu) = self.mtu(lower) else { return Ok(ops) };
        for tunnel in &self.tunnels {
            let provider = &self.chosen.provider;
            match find(kernel, tunnel, provider.kind()).await? {
                None => ops.extend(provider.plan(tunnel.name, mtu)),
                Some(link) if link.kind.as_deref() != Some(provider.kind()) => {}
                Some(link) => ops.extend(corrections(&link, mtu)),
            }
        }
        Ok(ops)
    }

    /// Makes or corrects each device.
    pub(super) async fn ensure_all(
        &mut self,
        kernel: &mut dyn Kernel,
        lower: &Link,
        devices: &mut Devices,
    ) -> Result<(), KernelError> {
        let Some(mtu) = self.mtu(lower) else {
            let cause = format!("MTU {} of {} leaves no room for WireGuard", lower.mtu, lower.name);
            devices.problems.add(None, cause);
            return Ok(());
        };
        devices.unserved.extend(self.without_ipv6(lower));
        devices.overlay_mtu = Some(mtu);
        let networks = self.sides.iter().map(|(_, side)| side.network).collect();
        let common = Common { config: &self.config, key: &self.key, networks };
        for tunnel in &mut self.tunnels {
            let provider = &*self.chosen.provider;
            let ensured = Ensure { netns: &self.netns, provider, alarm: &self.alarm, common: &common, mtu };
            let Some(problem) = ensured.run(kernel, tunnel, devices).await? else { continue };
            let problem = format!("device {}: {problem}", tunnel.name);
            if tunnel.second_key.is_some() {
                // Packets flow without it.
                self.rotation.problem = Some(problem);
            } else {
                devices.problems.add(tunnel.family(), problem);
            }
        }
        Ok(())
    }
}

/// What is needed to make a device.
struct Ensure<'a> {
    netns: &'a Netns,
    provider: &'a dyn Provider,
    alarm: &'a Arc<Notify>,
    common: &'a Common<'a>,
    mtu: Mtu,
}

impl Ensure<'_> {
    /// Returns what is wrong with the device.
    async fn run(
        &self,
        kernel: &mut dyn Kernel,
        tunnel: &mut Tunnel,
        devices: &mut Devices,
    ) -> Result<Option<String>, KernelError> {
        if tunnel.device.as_ref().is_some_and(|device| device.has_ended()) {
            close(tunnel);
        }
        let mut found = find(kernel, tunnel, self.provider.kind()).await?;
        tunnel.is_there = false;
        let mut was_superseded = false;
        let superseded = self.provider.supersedes();
        let is_superseded = |link: &&Link| superseded.is_some() && link.kind.as_deref() == superseded;
        if let Some(link) = found.as_ref().filter(is_superseded) {
            if let Err(problem) = self.supersede(kernel, link).await? {
                return Ok(Some(problem));
            }
            (found, was_superseded) = (None, true);
        }
        let is_new = found.is_none();
        if is_new {
            // One in this process without its link still has the port.
            close(tunnel);
            let port = tunnel.port(self.common.config);
            let new = NewDevice::new(self.netns, tunnel.name, self.mtu, port).alarm(Arc::clone(self.alarm));
            match self.provider.create(kernel, &new).await {
                Ok(device) => tunnel.device = device,
                Err(CreateError::Kernel(error)) => return Ok(Some(no_device(&error))),
                Err(error) => return Ok(Some(explain(&error, self.common, tunnel, self.netns))),
            }
            found = kernel.link(tunnel.name).await?;
        }
        let Some(link) = found else { return Ok(Some("it went away again".to_owned())) };
        if link.kind.as_deref() != Some(self.provider.kind()) {
            let kind = link.kind.as_deref().unwrap_or("link of the hardware");
            return Ok(Some(format!(
                "there is a {kind} of this name, which is not ours; rename or remove it"
            )));
        }
        let before = tunnel.link.as_ref().map(|link| link.index);
        if is_new && tunnel.device.is_some() {
            tunnel.forget();
        } else if before != Some(link.index) || tunnel.device.is_none() {
            tunnel.forget();
            match self.provider.open(self.netns, &link).await {
                Ok(device) => tunnel.device = Some(device),
                Err(error) => return Ok(Some(chain(&error))),
            }
        }
        if is_new {
            devices.events.push(match before {
                _ if was_superseded => NetworkEvent::DeviceRecreated {
                    link: tunnel.name.to_owned(),
                    reason: format!("it is in {} from now on", self.provider.name()),
                },
                Some(_) => NetworkEvent::DeviceRecreated {
                    link: tunnel.name.to_owned(),
                    reason: "it was deleted or had stopped, and with it all sessions ended".to_owned(),
                },
                None => NetworkEvent::DeviceCreated {
                    link: tunnel.name.to_owned(),
                    mtu: self.mtu,
                    detail: format!("public key {}", tunnel.key(self.common).public()),
                },
            });
        }
        devices.changed |= is_new || before != Some(link.index);
        // Key and port come before the link is up, which otherwise receives on a random port.
        if !link.up
            && let Err(error) = tunnel.prepare(self.common).await
        {
            return Ok(Some(explain(&error, self.common, tunnel, self.netns)));
        }
        let ops = corrections(&link, self.mtu);
        for op in &ops {
            if let Err(error) = kernel.change_link(op).await {
                (tunnel.is_there, tunnel.link) = (true, Some(link.clone()));
                return Ok(Some(explain(&error, self.common, tunnel, self.netns)));
            }
        }
        if !ops.is_empty() {
            devices.changed = true;
            if !is_new {
                let done: Vec<String> = ops.iter().map(ToString::to_string).collect();
                let detail = done.join(", ");
                devices.events.push(NetworkEvent::DeviceChanged { link: tunnel.name.to_owned(), detail });
            }
        }
        if let Some(device) = &tunnel.device {
            device.set_mtu(self.mtu);
        }
        let link = if ops.is_empty() { Some(link) } else { kernel.link_at(link.index).await? };
        tunnel.is_there = link.is_some();
        let renamed = link.as_ref().filter(|link| link.name != tunnel.name).map(|link| {
            let (is, was) = (&link.name, tunnel.name);
            format!("it is called {is} now; name it back (ip link set {is} name {was}) before the next start")
        });
        tunnel.link = link.or(tunnel.link.take());
        Ok(renamed)
    }

    /// Deletes a link that the other provider made, and that stays when its maker ends. Go flannel leaves no blackhole, so
    /// those come first: what is for pods must not leave by a default route once the link's routes are gone.
    async fn supersede(
        &self,
        kernel: &mut dyn Kernel,
        link: &Link,
    ) -> Result<Result<(), String>, KernelError> {
        for network in &self.common.networks {
            let blackhole = Route::blackhole(*network);
            let key = Object::Route(blackhole).key();
            let there = kernel.routes_at(network.family(), &[key].into()).await?;
            // Whosever it is: of several routes with one key the kernel uses the first.
            if there.first().is_some_and(|route| route.through == Through::Nowhere) {
                continue;
            }
            if let Some(refusal) = kernel.execute(&[Op::Create(Object::Route(blackhole))]).await?.first() {
                return Ok(Err(format!(
                    "it is a {} of the kernel and stays: a blackhole for {network} must come first, and the kernel refused it \
                     ({})",
                    link.kind.as_deref().unwrap_or("link"),
                    io::Error::from_raw_os_error(refusal.errno)
                )));
            }
        }
        kernel.change_link(&LinkOp::Delete(link.index)).await.map(Ok)
    }
}

/// Lets go of a device, which ends if it is in this process.
fn close(tunnel: &mut Tunnel) {
    tunnel.device = None;
    tunnel.forget();
}

/// What must be changed of a link that is there.
fn corrections(link: &Link, mtu: Mtu) -> Vec<LinkOp> {
    let mut ops = Vec::new();
    if link.mtu != mtu {
        ops.push(LinkOp::SetMtu(link.index, mtu));
    }
    if !link.up {
        ops.push(LinkOp::SetUp(link.index));
    }
    ops
}

/// A device by its name, else the one that had that name before.
async fn find(kernel: &mut dyn Kernel, tunnel: &Tunnel, kind: &str) -> Result<Option<Link>, KernelError> {
    let named = kernel.link(tunnel.name).await?;
    let Some(last) = tunnel.link.as_ref().filter(|_| named.is_none()) else { return Ok(named) };
    let last = kernel.link_at(last.index).await?;
    Ok(last.filter(|link| link.kind.as_deref() == Some(kind)))
}

fn no_device(error: &KernelError) -> String {
    let hint = match error.errno() {
        Some(libc::EOPNOTSUPP | libc::ENODEV) => {
            "; this kernel has no WireGuard: load its module (modprobe wireguard; Linux 5.6 or newer has it), or use \
             WireGuard in user space (--wireguard=userspace)"
        }
        Some(libc::EPERM) => "; the agent needs CAP_NET_ADMIN",
        _ => "",
    };
    format!("{}{hint}", chain(error))
}

/// An error with who has the port, if that is what is wrong.
pub(super) fn explain(
    error: &(impl std::error::Error + 'static),
    common: &Common<'_>,
    tunnel: &Tunnel,
    netns: &Netns,
) -> String {
    let text = chain(error);
    let is_taken = text.contains(&io::Error::from_raw_os_error(libc::EADDRINUSE).to_string());
    let port = tunnel.port(common.config);
    let key = if tunnel.families == [Family::V6] { "ListenPortV6" } else { "ListenPort" };
    let holder = is_taken.then(|| udp_port_holder(netns, port)).flatten();
    let hint =
        holder.map(|holder| format!("; {holder} has UDP port {port}: stop it, or set another Backend.{key}"));
    text + &hint.unwrap_or_default()
}
