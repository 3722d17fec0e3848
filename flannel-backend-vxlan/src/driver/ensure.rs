//! Creates the devices or changes them to what they should be, and says what is in the way where that fails.

use flannel_core::addr::{Family, Mtu, PerFamily};
use flannel_core::events::NetworkEvent;
use flannel_core::inspect::{Difference, DifferenceKind, Differences};
use flannel_core::kernel::{Kernel, KernelError, Link, LinkOp};
use flannel_core::port_holder::PortHolder;
use flannel_core::reconcile::Devices;
use flannel_core::status::{IPV6_MIN_MTU, Problem};

use super::VxlanDriver;
use crate::device::{DeviceSpec, LinkPlan, device_name, overlay_mtu, plan_link};
use crate::overhead::encap_overhead;

impl VxlanDriver {
    /// Why IPv6 is out of service.
    fn without_ipv6(&self, family: Family, lower: &Link) -> Option<Problem> {
        let left = overlay_mtu(&self.config, family, lower.mtu).unwrap_or(Mtu(0));
        let tunnel = ("VXLAN", encap_overhead(family));
        (family == Family::V6 && left.0 < IPV6_MIN_MTU)
            .then(|| Problem::mtu_without_ipv6(&lower.name, lower.mtu.0, Some(tunnel)))
    }

    /// One family's device as it should be, and as it is; `None` if the underlay's MTU leaves no room for it.
    async fn compare(
        &self,
        kernel: &mut dyn Kernel,
        family: Family,
        lower: &Link,
    ) -> Result<Option<(DeviceSpec, Option<Link>)>, KernelError> {
        let side = self.sides.get(family).expect("only enabled families are asked for");
        let Some(mtu) = overlay_mtu(&self.config, family, lower.mtu) else { return Ok(None) };
        let have = self.find_device(kernel, family, &device_name(&self.config, family)).await?;
        let served = self.without_ipv6(family, lower).is_none();
        // With a smaller MTU the kernel would remove IPv6 from the device, and with it what still works.
        let mtu = have.as_ref().filter(|_| !served).map_or(mtu, |have| have.mtu);
        Ok(Some((DeviceSpec::new(&self.config, family, side.mac, mtu, side.local, lower.index), have)))
    }

    /// What [`Self::ensure_all`] would do to the devices.
    pub(super) async fn plan_all(
        &self,
        kernel: &mut dyn Kernel,
        lower: &Link,
    ) -> Result<Vec<LinkOp>, KernelError> {
        let mut ops = Vec::new();
        for family in self.sides.families() {
            let Some((want, have)) = self.compare(kernel, family, lower).await? else { continue };
            let plan = plan_link(&want, have.as_ref());
            let is_new = !matches!(plan, LinkPlan::Keep | LinkPlan::Change(_));
            if !is_new || self.without_ipv6(family, lower).is_none() {
                ops.extend(ops_of(&plan, &want));
            }
        }
        Ok(ops)
    }

    /// Creates one family's device, or changes it to what it should be.
    async fn ensure(
        &self,
        kernel: &mut dyn Kernel,
        family: Family,
        lower: &Link,
        events: &mut Vec<NetworkEvent>,
    ) -> Result<Outcome, KernelError> {
        let Some((want, have)) = self.compare(kernel, family, lower).await? else {
            let why = format!("MTU {} of {} leaves no room for VXLAN", lower.mtu, lower.name);
            return Ok(Outcome::Unusable(why));
        };
        let (served, mtu) = (self.without_ipv6(family, lower).is_none(), want.mtu);
        // The device is kept under another name, too.
        let renamed = have.as_ref().filter(|link| link.name != want.name).map(|link| {
            let (is, was) = (&link.name, &want.name);
            format!("device {was} is called {is} now; name it back (ip link set {is} name {was}) before the next start")
        });
        let name = have.as_ref().map_or_else(|| want.name.clone(), |link| link.name.clone());
        let plan = plan_link(&want, have.as_ref());
        if !served && !matches!(plan, LinkPlan::Keep | LinkPlan::Change(_)) {
            return Ok(Outcome::OutOfService);
        }
        if let LinkPlan::Foreign { why } = &plan {
            return Ok(Outcome::Unusable(why.clone()));
        }
        for op in &ops_of(&plan, &want) {
            if let Err(error) = kernel.change_link(op).await {
                let problem = explain(kernel, &want, &error).await?;
                let there = kernel.link(&name).await?;
                let there = there.filter(|link| link.up && matches!(plan, LinkPlan::Change(_)));
                // The device is not as it should be, but objects on it still carry packets.
                return Ok(match there {
                    Some(link) => Outcome::Usable(Ensured {
                        changed: have.as_ref() != Some(&link),
                        mtu: link.mtu,
                        link,
                        problem: Some(problem),
                    }),
                    None => Outcome::Unusable(problem),
                });
            }
        }
        events.extend(event(&plan, &name, &want, self.links.get(family).is_some()));
        let name = if matches!(plan, LinkPlan::Recreate { .. }) { want.name.clone() } else { name };
        let Some(mut link) = kernel.link(&name).await? else {
            return Ok(Outcome::Unusable(format!("device {name} went away again")));
        };
        if matches!(plan, LinkPlan::Create | LinkPlan::Recreate { .. }) {
            quiet_router_advertisements(kernel, &want.name).await;
            if link.mac != Some(want.mac) {
                // A MAC policy of the host (such as systemd's) has changed it; the MAC of the spec is the published
                // one.
                let found = link.mac.map(|mac| mac.to_string()).unwrap_or_default();
                let detail = format!("MAC {found} set back to {}", want.mac);
                events.push(NetworkEvent::DeviceChanged { link: want.name.clone(), detail });
            }
        }
        // A new device must still be set up, and what the host has changed since must be set back.
        if let LinkPlan::Change(rest) = plan_link(&want, Some(&link)) {
            for op in &rest {
                if let Err(error) = kernel.change_link(op).await {
                    return Ok(Outcome::Unusable(explain(kernel, &want, &error).await?));
                }
            }
            link = kernel.link(&name).await?.unwrap_or(link);
        }
        let problem = renamed.filter(|_| link.name != want.name);
        Ok(Outcome::Usable(Ensured { link, changed: plan != LinkPlan::Keep, mtu, problem }))
    }

    /// Keeps the devices from completing checksums, where that is held.
    pub(super) async fn hold_checksums(
        &mut self,
        kernel: &mut dyn Kernel,
        devices: &mut Devices,
    ) -> Result<(), KernelError> {
        self.shown_checksums = PerFamily::default();
        let Some(why) = self.checksums.why_off() else { return Ok(()) };
        for family in self.sides.families().collect::<Vec<_>>() {
            let Some(link) = self.links.get(family).filter(|link| self.is_there(link)) else { continue };
            if kernel.tx_checksum(&link.name).await? == Some(true) {
                kernel.set_tx_checksum(&link.name, false).await?;
                let detail = format!("tx-checksum-ip-generic off ({why})");
                devices.events.push(NetworkEvent::DeviceChanged { link: link.name.clone(), detail });
            }
            *self.shown_checksums.get_mut(family) = kernel.tx_checksum(&link.name).await?;
        }
        Ok(())
    }

    /// The devices that complete checksums although they should not.
    pub(super) async fn checksum_differences(
        &self,
        kernel: &mut dyn Kernel,
    ) -> Result<Differences, KernelError> {
        let mut found = Differences::default();
        if self.checksums.why_off().is_none() {
            return Ok(found);
        }
        for (_, link) in self.links.iter().filter(|(_, link)| self.is_there(link)) {
            if kernel.tx_checksum(&link.name).await? == Some(true) {
                let command = format!("ethtool -K {} tx off", link.name);
                found.differences.push(Difference::new(DifferenceKind::Different, vec![command]));
            }
        }
        Ok(found)
    }

    /// The device of a family by its name, else the one that had that name before.
    async fn find_device(
        &self,
        kernel: &mut dyn Kernel,
        family: Family,
        name: &str,
    ) -> Result<Option<Link>, KernelError> {
        let named = kernel.link(name).await?;
        let Some(last) = self.links.get(family).filter(|_| named.is_none()) else { return Ok(named) };
        Ok(kernel.link_at(last.index).await?.filter(|link| link.vxlan.is_some()))
    }

    /// Creates or corrects each family's device.
    pub(super) async fn ensure_all(
        &mut self,
        kernel: &mut dyn Kernel,
        lower: &Link,
        devices: &mut Devices,
    ) -> Result<(), KernelError> {
        for family in self.sides.families().collect::<Vec<_>>() {
            match self.ensure(kernel, family, lower, &mut devices.events).await? {
                Outcome::Usable(Ensured { link, changed, mtu, problem }) => {
                    if let Some(problem) = problem {
                        devices.problems.add(Some(family), problem);
                    }
                    let moved = self.links.get(family).is_none_or(|old| old.index != link.index);
                    devices.changed |= changed || moved;
                    if self.without_ipv6(family, lower).is_none() {
                        devices.overlay_mtu =
                            Some(devices.overlay_mtu.map_or(mtu, |smallest| smallest.min(mtu)));
                    }
                    *self.links.get_mut(family) = Some(link);
                }
                Outcome::Unusable(problem) => devices.problems.add(Some(family), problem),
                Outcome::OutOfService => {}
            }
            devices.unserved.extend(self.without_ipv6(family, lower));
        }
        if !devices.unserved.is_empty() {
            // On links with a smaller MTU pods can't have IPv6 addresses, and without those they don't start.
            let least = Mtu(IPV6_MIN_MTU);
            devices.overlay_mtu = Some(devices.overlay_mtu.map_or(least, |mtu| mtu.max(least)));
        }
        if !lower.up {
            devices.problems.add(None, format!("underlay link {} is down", lower.name));
        }
        Ok(())
    }
}

/// The result of creating or correcting a family's device.
enum Outcome {
    /// It can carry packets.
    Usable(Ensured),
    /// It can't be made or used for this reason.
    Unusable(String),
    /// The underlay's MTU is too small for the family, so its device is left alone.
    OutOfService,
}

/// A device that can carry packets.
struct Ensured {
    link: Link,
    changed: bool,
    mtu: Mtu,
    /// What the kernel refused to change.
    problem: Option<String>,
}

/// What was done to a device, which this run had before or not.
fn event(plan: &LinkPlan, name: &str, want: &DeviceSpec, was_there: bool) -> Option<NetworkEvent> {
    match plan {
        LinkPlan::Change(ops) => {
            let done: Vec<String> = ops.iter().map(ToString::to_string).collect();
            Some(NetworkEvent::DeviceChanged { link: name.to_owned(), detail: done.join(", ") })
        }
        LinkPlan::Recreate { why, .. } => {
            Some(NetworkEvent::DeviceRecreated { link: want.name.clone(), reason: why.clone() })
        }
        LinkPlan::Create if was_there => {
            let reason = "it was deleted".to_owned();
            Some(NetworkEvent::DeviceRecreated { link: want.name.clone(), reason })
        }
        LinkPlan::Create => {
            let detail = format!("VNI {}, VTEP MAC {}", want.vxlan.vni, want.mac);
            Some(NetworkEvent::DeviceCreated { link: want.name.clone(), mtu: want.mtu, detail })
        }
        LinkPlan::Keep | LinkPlan::Foreign { .. } => None,
    }
}

/// The operations of a plan. A new device must still be set up.
fn ops_of(plan: &LinkPlan, want: &DeviceSpec) -> Vec<LinkOp> {
    match plan {
        LinkPlan::Keep | LinkPlan::Foreign { .. } => Vec::new(),
        LinkPlan::Change(ops) => ops.clone(),
        LinkPlan::Recreate { index, .. } => vec![LinkOp::Delete(*index), create(want)],
        LinkPlan::Create => vec![create(want)],
    }
}

fn create(want: &DeviceSpec) -> LinkOp {
    LinkOp::create_vxlan(&want.name, want.mac, want.mtu, &want.vxlan)
}

/// The kernel's answer with what an operator can do about it.
async fn explain(
    kernel: &mut dyn Kernel,
    want: &DeviceSpec,
    error: &KernelError,
) -> Result<String, KernelError> {
    let name = &want.name;
    let source = std::error::Error::source(error).map(|source| format!(": {source}")).unwrap_or_default();
    let hint = match error.errno() {
        Some(libc::EEXIST | libc::EADDRINUSE) => {
            let (links, holder) = (kernel.links().await?, kernel.udp_port_holder(want.vxlan.port).await);
            format!("; {}", who_is_in_the_way(want, &links, holder))
        }
        Some(libc::EOPNOTSUPP | libc::ENODEV) => {
            "; is the kernel built with VXLAN (modprobe vxlan)?".to_owned()
        }
        Some(libc::EPERM) => "; the agent needs CAP_NET_ADMIN".to_owned(),
        _ => String::new(),
    };
    Ok(format!("device {name}: {error}{source}{hint}"))
}

/// Which device or process has the port, or the VNI on it. `holder` is who has the port.
fn who_is_in_the_way(want: &DeviceSpec, links: &[Link], holder: Option<PortHolder>) -> String {
    let (vni, port) = (want.vxlan.vni, want.vxlan.port);
    // Each family has a socket of its own, so our own device of the other family does not conflict.
    let shares_family = |link: &Link| {
        let local = link.vxlan.as_ref().and_then(|vxlan| vxlan.local);
        local.zip(want.vxlan.local).is_none_or(|(a, b)| Family::of(a) == Family::of(b))
    };
    let others = || {
        let others = links.iter().filter(|link| link.name != want.name && shares_family(link));
        others.filter_map(|link| Some((link, link.vxlan.as_ref()?))).filter(|(_, it)| it.port == port)
    };
    // A device that is down has no port, so a process may have it.
    let is_kernel = matches!(holder, Some(PortHolder::Kernel | PortHolder::Unseen));
    let remedy = "remove it, or choose another VNI or Backend.Port on all nodes";
    if let Some((other, _)) = others().find(|(_, it)| it.vni == vni) {
        format!("device {} has VNI {vni} on UDP port {port}: {remedy}", other.name)
    } else if let Some((other, _)) = others().find(|(other, _)| other.up && is_kernel) {
        format!("device {} has UDP port {port}: {remedy}", other.name)
    } else {
        let holder = holder.map_or_else(|| "somebody".to_owned(), |holder| holder.to_string());
        format!(
            "{holder} has UDP port {port}, or its VNI: stop it, or choose another Backend.Port on all nodes"
        )
    }
}

/// Switches off router advertisements on our IPv6 device. It fails where /proc/sys is read-only, as in unprivileged
/// pods, where Go flannel can't do it either.
async fn quiet_router_advertisements(kernel: &mut dyn Kernel, name: &str) {
    if let Err(error) = kernel.ignore_router_advertisements(name).await {
        let cause = std::error::Error::source(&error).map(ToString::to_string);
        tracing::debug!(%error, cause, "accept_ra could not be switched off");
    }
}

#[cfg(test)]
mod tests {
    use flannel_core::addr::{LinkIndex, MacAddr, Vni};
    use flannel_core::backend::Underlay;
    use flannel_core::testing::FakeKernel;

    use super::*;
    use crate::config::VxlanConfig;
    use crate::next_hops::NextHopObjects;
    use crate::tunnel::{Checksums, TxChecksum};

    fn config(vni: u32) -> VxlanConfig {
        let vni = Vni::new(vni).unwrap();
        let (underlay_mtu, learning, gbp, direct_routing) = (None, false, false, false);
        VxlanConfig { vni, port: 8472, underlay_mtu, learning, gbp, direct_routing }
    }

    fn spec(vni: u32) -> DeviceSpec {
        let (mac, local) = (MacAddr([2, 0, 0, 0, 0, 1]), [192, 0, 2, 1].into());
        DeviceSpec::new(&config(vni), Family::V4, mac, Mtu(1450), local, LinkIndex(2))
    }

    #[tokio::test]
    async fn a_device_that_completes_checksums_differs_where_it_should_not() {
        let mut kernel = FakeKernel::default();
        let underlay = Underlay::new("eth0", kernel.add_link("eth0", 1500), Mtu(1500), PerFamily::default());
        kernel.change_link(&create(&spec(1))).await.unwrap();
        let mut driver = VxlanDriver::new(config(1), underlay, PerFamily::default(), NextHopObjects::Auto);
        driver.links.v4 = kernel.link_named("flannel.1");
        assert!(driver.links.v4.is_some());
        for (held, offload, want) in [
            (TxChecksum::Keep, true, &[][..]),
            (TxChecksum::Auto, true, &[]),
            (TxChecksum::Off, false, &[]),
            (TxChecksum::Off, true, &["ethtool -K flannel.1 tx off"]),
        ] {
            driver.checksums = Checksums::new(held);
            kernel.set_checksum_offload("flannel.1", offload);
            let found = driver.checksum_differences(&mut kernel).await.unwrap();
            let commands: Vec<&String> = found.differences.iter().flat_map(|it| &it.commands).collect();
            assert_eq!(commands, want, "{held:?} {offload}");
        }
    }

    /// Somebody's device on our port.
    fn other(vni: u32, up: bool) -> Link {
        let DeviceSpec { vxlan, mtu, mac, .. } = spec(vni);
        Link {
            index: LinkIndex(9),
            name: "other".to_owned(),
            altnames: Vec::new(),
            master: None,
            kind: Some("vxlan".into()),
            mac: Some(mac),
            mtu,
            up,
            carrier: up,
            loopback: false,
            vxlan: Some(vxlan),
        }
    }

    #[test]
    fn who_has_the_port_is_named() {
        let process = || Some(PortHolder::Process { name: "dnsmasq".to_owned(), pid: 77 });
        let (kernel, unseen) = (Some(PortHolder::Kernel), Some(PortHolder::Unseen));
        for (what, link, holder, want) in [
            ("a process", None, process(), "process dnsmasq (pid 77) has UDP port 8472"),
            ("our VNI", Some(other(1, false)), process(), "device other has VNI 1 on UDP port 8472"),
            ("a device", Some(other(7, true)), kernel.clone(), "device other has UDP port 8472"),
            ("a device, or somebody", Some(other(7, true)), unseen.clone(), "device other has UDP port 8472"),
            ("a process beside a device that is down", Some(other(7, false)), process(), "process dnsmasq"),
            ("an unseen one beside it", Some(other(7, false)), unseen, "a tunnel device of the kernel (see"),
            (
                "a device of another kind",
                None,
                kernel,
                "a tunnel device of the kernel (see ip -d link) has UDP",
            ),
            ("nobody any more", None, None, "somebody has UDP port 8472, or its VNI"),
        ] {
            let links: Vec<Link> = link.into_iter().collect();
            let text = who_is_in_the_way(&spec(1), &links, holder);
            assert!(text.starts_with(want), "{what}: {text}");
        }
    }
}
