//! Creates the device or changes it to what it should be, and says what is in the way where that fails.

use flannel_core::error::chain;
use flannel_core::events::NetworkEvent;
use flannel_core::kernel::{Kernel, KernelError, Link, LinkKind, LinkOp};
use flannel_core::reconcile::Devices;

use super::{IpipDriver, Way};
use crate::device::{DeviceSpec, LINK_KIND, LinkPlan, NAME, OVERHEAD, local_of, plan_link};

/// The device with its kind, if there is one.
type Found = Option<(Link, Option<LinkKind>)>;

impl IpipDriver {
    /// The desired device; `None` if the underlay's MTU leaves no room for it.
    fn spec(&self, lower: &Link) -> Option<DeviceSpec> {
        Some(DeviceSpec { local: self.local, mtu: lower.mtu.less(OVERHEAD)? })
    }

    /// The device by its name, else the one that had that name before.
    async fn find_device(&self, kernel: &mut dyn Kernel) -> Result<Found, KernelError> {
        let mut link = kernel.link(NAME).await?;
        if let Some(last) = self.device.as_ref().filter(|_| link.is_none()) {
            let same = kernel.link_at(last.index()).await?;
            link = same.filter(|link| link.kind.as_deref() == Some(LINK_KIND));
        }
        let Some(link) = link else { return Ok(None) };
        let kind = kernel.link_kind(link.index).await?;
        Ok(Some((link, kind)))
    }

    /// Reads the device again without changing it.
    pub(super) async fn look_at_device(&mut self, kernel: &mut dyn Kernel) -> Result<(), KernelError> {
        let Some(last) = &self.device else { return Ok(()) };
        let found = kernel.link_at(last.index()).await?;
        self.device = Way::now(found, self.device.take());
        Ok(())
    }

    /// What [`Self::ensure`] would do to the device.
    pub(super) async fn plan(
        &self,
        kernel: &mut dyn Kernel,
        lower: &Link,
    ) -> Result<Vec<LinkOp>, KernelError> {
        let Some(want) = self.spec(lower) else { return Ok(Vec::new()) };
        let have = self.find_device(kernel).await?;
        Ok(plan_link(&want, have.as_ref()).ops(&want))
    }

    /// Creates the device, or changes it to what it should be. Adds what is wrong to `problems`.
    pub(super) async fn ensure(
        &mut self,
        kernel: &mut dyn Kernel,
        lower: &Link,
        devices: &mut Devices,
        problems: &mut Vec<String>,
    ) -> Result<(), KernelError> {
        let before = self.device.as_ref().map(Way::index);
        if let Some(want) = self.spec(lower) {
            problems.extend(self.make(kernel, &want, devices).await?);
        } else {
            problems.push(format!("MTU {} of {} leaves no room for IPIP", lower.mtu, lower.name));
            self.look_at_device(kernel).await?;
        }
        devices.changed |= self.device.as_ref().map(Way::index) != before;
        if !lower.up {
            problems.push(format!("underlay link {} is down", lower.name));
        }
        Ok(())
    }

    /// Makes the device as it should be. Returns what is wrong with it afterwards.
    async fn make(
        &mut self,
        kernel: &mut dyn Kernel,
        want: &DeviceSpec,
        devices: &mut Devices,
    ) -> Result<Option<String>, KernelError> {
        let have = self.find_device(kernel).await?;
        let plan = plan_link(want, have.as_ref());
        if let LinkPlan::Foreign { why } = plan {
            // It has the name of ours, which may still be there under another one.
            self.look_at_device(kernel).await?;
            return Ok(Some(why));
        }
        let name = match &have {
            Some((link, _)) if !matches!(plan, LinkPlan::Recreate { .. }) => link.name.clone(),
            _ => NAME.to_owned(),
        };
        let mut problem = self.carry_out(kernel, want, &plan.ops(want)).await?;
        if problem.is_none() {
            devices.events.extend(event(&plan, &name, want, self.device.is_some()));
            // A new device must still be set up.
            let now = self.found(kernel, &name).await?;
            if let LinkPlan::Change(rest) = plan_link(want, now.as_ref()) {
                problem = self.carry_out(kernel, want, &rest).await?;
            }
        }
        devices.changed |= plan != LinkPlan::Keep;
        let now = kernel.link(&name).await?;
        if now.is_none() && problem.is_none() {
            problem = Some(format!("device {name} went away again"));
        }
        // Objects on a device that could not be changed still carry packets.
        devices.overlay_mtu = now.as_ref().map(|link| link.mtu);
        self.device = Way::now(now, self.device.take());
        Ok(problem.or_else(|| {
            (name != NAME).then(|| {
                format!("device {NAME} is called {name} now; name it back (ip link set {name} name {NAME}) before the next start")
            })
        }))
    }

    async fn found(&self, kernel: &mut dyn Kernel, name: &str) -> Result<Found, KernelError> {
        let Some(link) = kernel.link(name).await? else { return Ok(None) };
        let kind = kernel.link_kind(link.index).await?;
        Ok(Some((link, kind)))
    }

    /// Carries out operations on the device up to one that fails. Returns why that one did.
    async fn carry_out(
        &self,
        kernel: &mut dyn Kernel,
        want: &DeviceSpec,
        ops: &[LinkOp],
    ) -> Result<Option<String>, KernelError> {
        for op in ops {
            if let Err(error) = kernel.change_link(op).await {
                return Ok(Some(explain(kernel, want, &error).await?));
            }
        }
        Ok(None)
    }
}

/// What was done to the device, which this run had before or not.
fn event(plan: &LinkPlan, name: &str, want: &DeviceSpec, was_there: bool) -> Option<NetworkEvent> {
    let link = name.to_owned();
    match plan {
        LinkPlan::Change(ops) => {
            let done: Vec<String> = ops.iter().map(ToString::to_string).collect();
            Some(NetworkEvent::DeviceChanged { link, detail: done.join(", ") })
        }
        LinkPlan::Recreate { why, .. } => Some(NetworkEvent::DeviceRecreated { link, reason: why.clone() }),
        LinkPlan::Create if was_there => {
            Some(NetworkEvent::DeviceRecreated { link, reason: "it was deleted".to_owned() })
        }
        LinkPlan::Create => {
            let detail = format!("local address {}", want.local);
            Some(NetworkEvent::DeviceCreated { link, mtu: want.mtu, detail })
        }
        LinkPlan::Keep | LinkPlan::Foreign { .. } => None,
    }
}

/// The kernel's answer with what an operator can do about it.
async fn explain(
    kernel: &mut dyn Kernel,
    want: &DeviceSpec,
    error: &KernelError,
) -> Result<String, KernelError> {
    let hint = match error.errno() {
        Some(libc::EEXIST) => match rival(kernel, want).await? {
            Some(rival) => format!(
                "; tunnel {rival} has the local address {} and no remote one, too: remove it (ip link del {rival}), or give \
                 it other addresses",
                want.local
            ),
            None => format!("; another link has the name {NAME}, or another tunnel its addresses"),
        },
        Some(libc::EOPNOTSUPP | libc::ENODEV) => {
            "; is the kernel built with IPIP (modprobe ipip)?".to_owned()
        }
        Some(libc::EPERM) => "; the agent needs CAP_NET_ADMIN".to_owned(),
        _ => String::new(),
    };
    Ok(format!("device {NAME}: {}{hint}", chain(error)))
}

/// Another tunnel with the addresses of ours.
async fn rival(kernel: &mut dyn Kernel, want: &DeviceSpec) -> Result<Option<String>, KernelError> {
    let links = kernel.links().await?;
    for link in links.into_iter().filter(|link| link.kind.as_deref() == Some(LINK_KIND) && link.name != NAME)
    {
        let kind = kernel.link_kind(link.index).await?;
        if kind.and_then(|kind| local_of(&kind)) == Some(want.local) {
            return Ok(Some(link.name));
        }
    }
    Ok(None)
}
