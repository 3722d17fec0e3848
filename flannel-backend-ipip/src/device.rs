//! The desired device, and the changes of the present one. Pure. Upstream: `pkg/backend/ipip/ipip.go`.

use std::net::{IpAddr, Ipv4Addr};

use flannel_core::addr::{LinkIndex, Mtu};
use flannel_core::kernel::{Link, LinkAttr, LinkKind, LinkOp};

/// The name of the device.
pub(crate) const NAME: &str = "flannel.ipip";

/// The kernel's name of the kind.
pub(crate) const LINK_KIND: &str = "ipip";

/// Bytes that the tunnel adds: the outer IPv4 header (RFC 2003).
pub(crate) const OVERHEAD: u32 = 20;

/// `IFLA_IPTUN_*` of `linux/if_tunnel.h`.
const LOWER: u16 = 1;
const LOCAL: u16 = 2;
const REMOTE: u16 = 3;
const TTL: u16 = 4;
const TOS: u16 = 5;
const PROTO: u16 = 9;
const PMTUDISC: u16 = 10;
const ENCAP_TYPE: u16 = 15;
const COLLECT_METADATA: u16 = 19;

/// `IPPROTO_IPIP`: the tunnel carries IPv4 only, as `ip link add` has it. 0, as upstream has it, lets MPLS in, too.
const IPV4_ONLY: u8 = 4;
const ANYTHING: u8 = 0;

/// The desired device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct DeviceSpec {
    /// The source address of outer packets; only packets to it belong to the device.
    pub(crate) local: IpAddr,
    pub(crate) mtu: Mtu,
}

impl DeviceSpec {
    /// All attributes that the kernel can change in place. A change must name each: what it does not name the kernel
    /// sets to its default.
    ///
    /// Without a remote address the kernel sends each packet to the gateway of its route. A TTL of 0 means that of the
    /// inner packet, and without `PMTUDISC` the outer packet has the inner one's *don't fragment*.
    fn kind(&self) -> LinkKind {
        LinkKind::new(
            LINK_KIND,
            [
                LinkAttr::new(LOWER, 0_u32.to_ne_bytes()),
                LinkAttr::new(LOCAL, octets(self.local)),
                LinkAttr::new(REMOTE, [0; 4]),
                LinkAttr::new(TTL, [0]),
                LinkAttr::new(TOS, [0]),
                LinkAttr::new(PMTUDISC, [0]),
                LinkAttr::new(ENCAP_TYPE, 0_u16.to_ne_bytes()),
            ],
        )
    }

    /// The operation that creates it.
    pub(crate) fn create(&self) -> LinkOp {
        let mut kind = self.kind();
        kind.attrs.push(LinkAttr::new(PROTO, [ANYTHING]));
        LinkOp::Create { name: NAME.to_owned(), mac: None, mtu: Some(self.mtu), kind }
    }
}

/// What to do with the device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum LinkPlan {
    /// It is right.
    Keep,
    /// It can be changed in place, and keeps everything on it.
    Change(Vec<LinkOp>),
    /// The kernel can't change what is wrong with it.
    Recreate { index: LinkIndex, why: String },
    /// It does not exist.
    Create,
    /// Another link, which is not ours, has its name.
    Foreign { why: String },
}

impl LinkPlan {
    /// The operations that carry it out.
    pub(crate) fn ops(&self, want: &DeviceSpec) -> Vec<LinkOp> {
        match self {
            Self::Keep | Self::Foreign { .. } => Vec::new(),
            Self::Change(ops) => ops.clone(),
            Self::Recreate { index, .. } => vec![LinkOp::Delete(*index), want.create()],
            Self::Create => vec![want.create()],
        }
    }
}

/// Compares the device with the desired one.
pub(crate) fn plan_link(want: &DeviceSpec, have: Option<&(Link, Option<LinkKind>)>) -> LinkPlan {
    let Some((link, kind)) = have else { return LinkPlan::Create };
    let Some(kind) = kind.as_ref().filter(|kind| kind.name == LINK_KIND) else {
        let (name, kind) = (&link.name, link.kind.as_deref().unwrap_or("hardware"));
        let why = format!(
            "link {name} is there but is no IPIP tunnel ({kind}), so it stays; rename it (ip link set {name} name OTHER) \
             or remove it (ip link del {name}), and the agent makes its own"
        );
        return LinkPlan::Foreign { why };
    };
    if let Some(why) = fixed_difference(kind) {
        return LinkPlan::Recreate { index: link.index, why };
    }
    let mut ops = Vec::new();
    let desired = want.kind();
    if desired.first_difference(kind).is_some() {
        ops.push(LinkOp::Change(link.index, desired));
    }
    if link.mtu != want.mtu {
        ops.push(LinkOp::SetMtu(link.index, want.mtu));
    }
    if !link.up {
        ops.push(LinkOp::SetUp(link.index));
    }
    if ops.is_empty() { LinkPlan::Keep } else { LinkPlan::Change(ops) }
}

fn octets(addr: IpAddr) -> Vec<u8> {
    match addr {
        IpAddr::V4(addr) => addr.octets().to_vec(),
        IpAddr::V6(addr) => addr.octets().to_vec(),
    }
}

/// What the kernel can't change on an existing device, if that is wrong.
fn fixed_difference(have: &LinkKind) -> Option<String> {
    let remote = have.get(REMOTE).and_then(|remote| <[u8; 4]>::try_from(remote).ok()).map(Ipv4Addr::from);
    if let Some(remote) = remote.filter(|remote| !remote.is_unspecified()) {
        return Some(format!("it has the remote address {remote}, should have none"));
    }
    if have.get(COLLECT_METADATA).is_some() {
        return Some("it takes its addresses from metadata (external)".to_owned());
    }
    match have.get(PROTO) {
        None | Some([IPV4_ONLY | ANYTHING]) => None,
        Some(other) => Some(format!("it carries protocol {other:?} and no IPv4")),
    }
}

/// The source address of an IPIP tunnel's packets; unspecified for one that takes those that no other takes.
pub(crate) fn local_of(kind: &LinkKind) -> Option<IpAddr> {
    let local = kind.get(LOCAL).filter(|_| kind.name == LINK_KIND)?;
    <[u8; 4]>::try_from(local).ok().map(IpAddr::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    const INDEX: LinkIndex = LinkIndex(9);
    const WANT: DeviceSpec = DeviceSpec { local: IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), mtu: Mtu(1480) };

    fn link() -> Link {
        Link {
            index: INDEX,
            name: NAME.to_owned(),
            altnames: Vec::new(),
            master: None,
            kind: Some(LINK_KIND.to_owned()),
            mac: None,
            mtu: Mtu(1480),
            up: true,
            carrier: true,
            loopback: false,
            vxlan: None,
        }
    }

    /// As the kernel shows the device that upstream makes: with attributes that nobody set.
    fn shown() -> LinkKind {
        let mut kind = WANT.kind();
        kind.attrs.extend([
            LinkAttr::new(PROTO, [ANYTHING]),
            LinkAttr::new(20, [0; 4]),
            LinkAttr::new(16, [0; 2]),
        ]);
        kind
    }

    fn with(number: u16, value: &[u8]) -> LinkPlan {
        let mut kind = shown();
        kind.merge(&LinkKind::new(LINK_KIND, [LinkAttr::new(number, value)]));
        plan_link(&WANT, Some(&(link(), Some(kind))))
    }

    #[test]
    fn what_upstream_makes_is_kept_as_it_is() {
        assert_eq!(plan_link(&WANT, Some(&(link(), Some(shown())))), LinkPlan::Keep);
        assert_eq!(with(PROTO, &[IPV4_ONLY]), LinkPlan::Keep, "as iproute2 makes it");
        assert_eq!(plan_link(&WANT, None), LinkPlan::Create);
        let LinkOp::Create { name, mac: None, mtu: Some(Mtu(1480)), kind } = WANT.create() else { panic!() };
        assert_eq!((name.as_str(), kind.name.as_str(), kind.get(PROTO)), (NAME, "ipip", Some(&[0][..])));
    }

    #[test]
    fn what_the_kernel_can_change_is_changed_in_place() {
        let change = LinkPlan::Change(vec![LinkOp::Change(INDEX, WANT.kind())]);
        for (number, value) in [
            (LOCAL, &[192, 0, 2, 9][..]),
            (LOCAL, &[0; 4]),
            (LOWER, &[2, 0, 0, 0]),
            (TTL, &[64]),
            (TOS, &[1]),
            (PMTUDISC, &[1]),
            (ENCAP_TYPE, &[1, 0]),
        ] {
            assert_eq!(with(number, value), change, "{number} {value:?}");
        }
        let other = Link { mtu: Mtu(1300), up: false, ..link() };
        let ops = vec![LinkOp::SetMtu(INDEX, Mtu(1480)), LinkOp::SetUp(INDEX)];
        assert_eq!(plan_link(&WANT, Some(&(other, Some(shown())))), LinkPlan::Change(ops));
    }

    #[test]
    fn what_the_kernel_can_not_change_is_made_again() {
        for (number, value) in [(REMOTE, &[192, 0, 2, 2][..]), (COLLECT_METADATA, &[]), (PROTO, &[137])] {
            assert!(matches!(with(number, value), LinkPlan::Recreate { index: INDEX, .. }), "{number}");
        }
        let recreate = with(REMOTE, &[192, 0, 2, 2]);
        assert_eq!(recreate.ops(&WANT), [LinkOp::Delete(INDEX), WANT.create()]);
    }

    #[test]
    fn a_link_of_another_kind_is_never_touched() {
        let dummy = Link { kind: Some("dummy".to_owned()), ..link() };
        for kind in [Some(LinkKind::new("dummy", [])), None] {
            let plan = plan_link(&WANT, Some(&(dummy.clone(), kind)));
            let LinkPlan::Foreign { why } = &plan else { panic!("{plan:?}") };
            assert!(why.contains("ip link set flannel.ipip name") && why.contains("dummy"), "{why}");
            assert!(plan.ops(&WANT).is_empty());
        }
    }

    #[test]
    fn the_address_of_a_tunnel_is_known() {
        assert_eq!(local_of(&shown()), Some(WANT.local));
        assert_eq!(local_of(&LinkKind::new("gre", shown().attrs)), None);
    }
}
