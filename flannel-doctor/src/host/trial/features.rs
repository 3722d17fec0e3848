//! Trials of single features.

use std::fs::{File, OpenOptions};
use std::io;
use std::net::{IpAddr, Ipv4Addr};

use flannel_core::addr::{Family, IpNetwork, LinkIndex, MacAddr, Mtu, PerFamily, Subnet, Vni};
use flannel_core::dataplane::{Address, NextHop, Object, Op, ROUTE_PROTOCOL, Route, Through};
use flannel_core::error::chain;
use flannel_core::firewall::nft::Nftables;
use flannel_core::firewall::rules::{Ours, Range, Wanted};
use flannel_core::firewall::{FirewallError, RuleManager};
use flannel_core::kernel::{Kernel, KernelError, LinkAttr, LinkKind, LinkOp, VxlanLink};
use flannel_core::netlink::Netlink;
use flannel_core::netns::Netns;

use super::Tried;
use crate::host::sys;

/// A device's name in a namespace where nobody else is.
pub(super) const VXLAN: &str = "vxlan0";
/// The address of this side's VTEP, which is in a range for documentation (RFC 5737).
pub(super) const LOCAL: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);

/// `IFLA_IPTUN_LOCAL` of `linux/if_tunnel.h`.
const IPTUN_LOCAL: u16 = 2;

/// What a step of a trial returns: the reason why the trial ends.
pub(super) type Step<T> = Result<T, Tried>;

/// The trial as such failed: this process may not do it, or the kernel can't.
pub(super) fn failed(what: &str, error: &KernelError) -> Tried {
    let said = format!("{what}: {}", chain(error));
    match error.errno() {
        Some(libc::EPERM | libc::EACCES) => Tried::Untried(format!("{said}; that takes CAP_NET_ADMIN")),
        _ => Tried::Fails(said),
    }
}

pub(super) fn opened(netns: &Netns) -> Step<Netlink> {
    Netlink::open_in(netns).map_err(|error| Tried::Untried(format!("open netlink: {}", chain(&error))))
}

/// Makes a VXLAN device and sets it up.
pub(super) async fn make_vxlan(kernel: &mut Netlink, lower: Option<LinkIndex>) -> Step<LinkIndex> {
    let vni = Vni::new(1).map_err(|error| Tried::Untried(error.to_string()))?;
    let vxlan = VxlanLink {
        vni,
        port: 8472,
        local: Some(LOCAL.into()),
        lower,
        learning: false,
        gbp: false,
        foreign: false,
    };
    let mac = MacAddr([0x02, 0, 0, 0, 0, 1]);
    let what = "make a VXLAN device";
    let create = LinkOp::create_vxlan(VXLAN, mac, Mtu(1450), &vxlan);
    kernel.change_link(&create).await.map_err(|error| failed(what, &error))?;
    let link = kernel.link(VXLAN).await.map_err(|error| failed(what, &error))?;
    let link = link.ok_or_else(|| Tried::Fails("the kernel made no VXLAN device".to_owned()))?;
    kernel.change_link(&LinkOp::SetUp(link.index)).await.map_err(|error| failed(what, &error))?;
    Ok(link.index)
}

/// Does operations, all of which must succeed.
pub(super) async fn execute(kernel: &mut Netlink, what: &str, ops: &[Op]) -> Step<()> {
    let refused = kernel.execute(ops).await.map_err(|error| failed(what, &error))?;
    match refused.first() {
        Some(refusal) => Err(Tried::Fails(format!("{what}: {refusal}"))),
        None => Ok(()),
    }
}

fn done(step: Step<Tried>) -> Tried {
    step.unwrap_or_else(|ended| ended)
}

pub(super) async fn vxlan(netns: &Netns) -> Tried {
    let attempt = async {
        make_vxlan(&mut opened(netns)?, None).await?;
        Ok(Tried::Works("a VXLAN device was made".to_owned()))
    };
    done(attempt.await)
}

pub(super) async fn next_hops(netns: &Netns) -> Tried {
    let attempt = async {
        let mut kernel = opened(netns)?;
        let link = make_vxlan(&mut kernel, None).await?;
        let (gateway, dst) = (IpAddr::V4(Ipv4Addr::new(198, 51, 100, 0)), "198.51.100.0/24");
        let dst = dst.parse().map_err(|error| Tried::Untried(format!("{error}")))?;
        let route = Route {
            dst,
            metric: Route::default_metric(Family::V4),
            via: Some(gateway),
            link: Some(link),
            onlink: true,
            through: Through::Object,
            protocol: ROUTE_PROTOCOL,
            mtu: None,
            plain: true,
        };
        // Without any address the kernel knows no kinds of addresses, and refuses every gateway.
        let addr = IpNetwork::new(LOCAL.into(), 32).map_err(|error| Tried::Untried(error.to_string()))?;
        let objects = [
            Object::Address(Address { link, addr }),
            Object::NextHop(NextHop { link, gateway, spare: None }),
            Object::Route(route),
        ];
        execute(&mut kernel, "put a route through a next-hop object", &objects.map(Op::Create)).await?;
        Ok(Tried::Works("a route through a next-hop object was put".to_owned()))
    };
    done(attempt.await)
}

/// Opens a TUN in a namespace.
pub(super) fn open_tun(netns: &Netns, name: &str) -> Step<File> {
    const NODE: &str = "/dev/net/tun";
    let open = || {
        let file = OpenOptions::new().read(true).write(true).open(NODE)?;
        sys::attach_tun(&file, name)?;
        Ok(file)
    };
    let opened = netns.run(open).map_err(|error| Tried::Untried(chain(&error)))?;
    opened.map_err(|error: io::Error| match error.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => Tried::Untried(format!(
            "open {NODE}: {error}; that takes CAP_NET_ADMIN and the right to the file"
        )),
        _ => Tried::Fails(format!("open {NODE}: {error}")),
    })
}

pub(super) fn tun(netns: &Netns) -> Tried {
    done(open_tun(netns, "tun0").map(|_| Tried::Works("a TUN device was made".to_owned())))
}

pub(super) async fn ipip(netns: &Netns) -> Tried {
    let attempt = async {
        let create = LinkOp::Create {
            name: "ipip9".to_owned(),
            mac: None,
            mtu: None,
            kind: LinkKind::new("ipip", [LinkAttr::new(IPTUN_LOCAL, LOCAL.octets())]),
        };
        let made = opened(netns)?.change_link(&create).await;
        made.map_err(|error| failed("make an IPIP device", &error))?;
        Ok(Tried::Works("an IPIP device was made".to_owned()))
    };
    done(attempt.await)
}

pub(super) async fn wireguard(netns: &Netns) -> Tried {
    let attempt = async {
        let create = LinkOp::Create {
            name: "wg0".to_owned(),
            mac: None,
            mtu: None,
            kind: LinkKind::new("wireguard", []),
        };
        let made = opened(netns)?.change_link(&create).await;
        made.map_err(|error| failed("make a WireGuard device", &error))?;
        Ok(Tried::Works("a WireGuard device was made".to_owned()))
    };
    done(attempt.await)
}

/// Puts the agent's own rules by which pods of a network get another source.
pub(super) async fn masquerade(netns: &Netns, network: &str) -> Step<()> {
    let network: Subnet = network.parse().map_err(|_| Tried::Untried(format!("{network} is no network")))?;
    let range = Range::new(network, network);
    let ranges = PerFamily::from_fn(|family| (family == network.family()).then_some(range));
    let wanted = Wanted::of(ranges).masquerading(true);
    let put = async {
        for step in Nftables::open(netns).plan(&wanted, &Ours::Of(Vec::new())).await?.steps {
            step.run(netns).await?;
        }
        Ok(())
    };
    put.await.map_err(|error: FirewallError| match error {
        FirewallError::NotPermitted(_) => Tried::Untried(chain(&error)),
        error => Tried::Fails(chain(&error)),
    })
}

pub(super) async fn nf_tables(netns: &Netns) -> Tried {
    let rules = masquerade(netns, "203.0.113.0/24").await;
    done(rules.map(|()| Tried::Works("a table with a masquerade rule was made".to_owned())))
}
