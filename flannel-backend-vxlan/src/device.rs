//! The desired VXLAN device, and the changes of the present one. Pure. Upstream: `pkg/backend/vxlan/device.go`.

use std::net::IpAddr;

use flannel_core::addr::{Family, LinkIndex, MacAddr, Mtu};
use flannel_core::kernel::{Link, LinkOp, VxlanLink};

use crate::config::VxlanConfig;
use crate::overhead::encap_overhead;

/// The name of a family's device.
pub(crate) fn device_name(config: &VxlanConfig, family: Family) -> String {
    match family {
        Family::V4 => format!("flannel.{}", config.vni),
        Family::V6 => format!("flannel-v6.{}", config.vni),
    }
}

/// A desired device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DeviceSpec {
    pub(crate) name: String,
    pub(crate) mac: MacAddr,
    pub(crate) mtu: Mtu,
    pub(crate) vxlan: VxlanLink,
}

impl DeviceSpec {
    pub(crate) fn new(
        config: &VxlanConfig,
        family: Family,
        mac: MacAddr,
        mtu: Mtu,
        local: IpAddr,
        lower: LinkIndex,
    ) -> Self {
        let vxlan = VxlanLink {
            vni: config.vni,
            port: config.port,
            local: Some(local),
            lower: Some(lower),
            learning: config.learning,
            gbp: config.gbp,
            foreign: false,
        };
        Self { name: device_name(config, family), mac, mtu, vxlan }
    }
}

/// The overlay MTU of a family: the underlay's, or a smaller one that the config sets, less the overhead.
/// `None` if nothing is left.
pub(crate) fn overlay_mtu(config: &VxlanConfig, family: Family, underlay: Mtu) -> Option<Mtu> {
    let from = config.underlay_mtu.map_or(underlay, |set| set.min(underlay));
    from.less(encap_overhead(family))
}

/// What to do with a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum LinkPlan {
    /// It is right.
    Keep,
    /// It can be changed in place, and keeps everything on it (but see [`LinkOp::SetMac`]).
    Change(Vec<LinkOp>),
    /// The kernel can't change what is wrong with it.
    Recreate { index: LinkIndex, why: String },
    /// It does not exist.
    Create,
    /// Another link, which is not ours, has its name.
    Foreign { why: String },
}

/// Compares a device with the desired one.
pub(crate) fn plan_link(want: &DeviceSpec, have: Option<&Link>) -> LinkPlan {
    let Some(link) = have else { return LinkPlan::Create };
    let Some(vxlan) = &link.vxlan else {
        let kind = link.kind.as_deref().unwrap_or("hardware");
        let why = format!("link {} is there but is no VXLAN device ({kind}); remove or rename it", want.name);
        return LinkPlan::Foreign { why };
    };
    if let Some(why) = fixed_difference(&want.vxlan, vxlan) {
        return LinkPlan::Recreate { index: link.index, why };
    }
    let mut ops = Vec::new();
    if (vxlan.learning, vxlan.local) != (want.vxlan.learning, want.vxlan.local) {
        ops.push(LinkOp::Change(link.index, want.vxlan.to_change()));
    }
    if link.mac != Some(want.mac) {
        ops.push(LinkOp::SetMac(link.index, want.mac));
    }
    if link.mtu != want.mtu {
        ops.push(LinkOp::SetMtu(link.index, want.mtu));
    }
    if !link.up {
        ops.push(LinkOp::SetUp(link.index));
    }
    if ops.is_empty() { LinkPlan::Keep } else { LinkPlan::Change(ops) }
}

/// The first difference that the kernel can't change on an existing device.
fn fixed_difference(want: &VxlanLink, have: &VxlanLink) -> Option<String> {
    let differs = |what: &str, have: &dyn std::fmt::Debug, want: &dyn std::fmt::Debug| {
        Some(format!("{what} is {have:?}, should be {want:?}"))
    };
    if have.vni != want.vni {
        return differs("VNI", &have.vni.get(), &want.vni.get());
    }
    if have.port != want.port {
        return differs("port", &have.port, &want.port);
    }
    if have.gbp != want.gbp {
        return differs("GBP", &have.gbp, &want.gbp);
    }
    if have.lower != want.lower {
        return differs("underlay link", &have.lower.map(|link| link.0), &want.lower.map(|link| link.0));
    }
    if have.local.map(Family::of) != want.local.map(Family::of) {
        return differs("local address", &have.local, &want.local);
    }
    have.foreign.then(|| "it has attributes that this agent never sets".to_owned())
}

#[cfg(test)]
mod tests {
    use flannel_core::addr::Vni;

    use super::*;

    fn config() -> VxlanConfig {
        VxlanConfig {
            vni: Vni::new(1).unwrap(),
            port: 8472,
            underlay_mtu: None,
            learning: false,
            gbp: false,
            direct_routing: false,
        }
    }

    fn spec() -> DeviceSpec {
        let mac = MacAddr([2, 0, 0, 0, 0, 1]);
        DeviceSpec::new(&config(), Family::V4, mac, Mtu(1450), [192, 0, 2, 1].into(), LinkIndex(2))
    }

    fn fitting() -> Link {
        let spec = spec();
        Link {
            index: LinkIndex(9),
            name: spec.name,
            altnames: Vec::new(),
            master: None,
            kind: Some("vxlan".into()),
            mac: Some(spec.mac),
            mtu: spec.mtu,
            up: true,
            carrier: true,
            loopback: false,
            vxlan: Some(spec.vxlan),
        }
    }

    fn edited(edit: impl FnOnce(&mut Link)) -> LinkPlan {
        let mut link = fitting();
        edit(&mut link);
        plan_link(&spec(), Some(&link))
    }

    #[test]
    fn keeps_what_fits_and_creates_what_is_missing() {
        assert_eq!(edited(|_| {}), LinkPlan::Keep);
        assert_eq!(plan_link(&spec(), None), LinkPlan::Create);
    }

    #[test]
    fn changes_in_place_what_the_kernel_lets_change() {
        let (index, want) = (LinkIndex(9), spec());
        let mac = edited(|link| link.mac = Some(MacAddr([2, 0, 0, 0, 0, 7])));
        assert_eq!(mac, LinkPlan::Change(vec![LinkOp::SetMac(index, want.mac)]));
        assert_eq!(
            edited(|link| link.mtu = Mtu(1300)),
            LinkPlan::Change(vec![LinkOp::SetMtu(index, want.mtu)])
        );
        assert_eq!(edited(|link| link.up = false), LinkPlan::Change(vec![LinkOp::SetUp(index)]));
        let change = LinkPlan::Change(vec![LinkOp::Change(index, want.vxlan.to_change())]);
        assert_eq!(edited(|link| link.vxlan.as_mut().unwrap().learning = true), change);
        assert_eq!(edited(|link| link.vxlan.as_mut().unwrap().local = Some([192, 0, 2, 9].into())), change);
        assert_eq!(
            edited(|link| link.vxlan.as_mut().unwrap().local = None),
            recreate("local address is None, should be Some(192.0.2.1)")
        );
    }

    fn recreate(why: &str) -> LinkPlan {
        LinkPlan::Recreate { index: LinkIndex(9), why: why.into() }
    }

    #[test]
    fn recreates_what_the_kernel_does_not_let_change() {
        let edit = |edit: fn(&mut VxlanLink)| edited(|link| edit(link.vxlan.as_mut().unwrap()));
        assert_eq!(edit(|vxlan| vxlan.vni = Vni::new(2).unwrap()), recreate("VNI is 2, should be 1"));
        assert_eq!(edit(|vxlan| vxlan.port = 4789), recreate("port is 4789, should be 8472"));
        assert_eq!(edit(|vxlan| vxlan.gbp = true), recreate("GBP is true, should be false"));
        assert!(matches!(edit(|vxlan| vxlan.lower = Some(LinkIndex(5))), LinkPlan::Recreate { .. }));
        assert!(matches!(edit(|vxlan| vxlan.foreign = true), LinkPlan::Recreate { .. }));
    }

    #[test]
    fn never_touches_a_link_of_another_kind() {
        let plan = edited(|link| (link.kind, link.vxlan) = (Some("bridge".into()), None));
        assert!(
            matches!(plan, LinkPlan::Foreign { why } if why.contains("flannel.1") && why.contains("bridge"))
        );
    }

    #[test]
    fn overhead_is_50_and_70_bytes() {
        assert_eq!(overlay_mtu(&config(), Family::V4, Mtu(1500)), Some(Mtu(1450)));
        assert_eq!(overlay_mtu(&config(), Family::V6, Mtu(1500)), Some(Mtu(1430)));
        let smaller = VxlanConfig { underlay_mtu: Some(Mtu(1400)), ..config() };
        assert_eq!(overlay_mtu(&smaller, Family::V4, Mtu(1500)), Some(Mtu(1350)));
        assert_eq!(
            overlay_mtu(&smaller, Family::V4, Mtu(1300)),
            Some(Mtu(1250)),
            "never above the underlay's"
        );
        assert_eq!(overlay_mtu(&config(), Family::V4, Mtu(40)), None);
    }
}
