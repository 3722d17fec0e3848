//! A backend that brings a device of a kind that core does not know: what one with `wireguard` or `ipip` would do.

use std::time::Duration;

use async_trait::async_trait;
use flannel_lab::test_name;
use flannel_lab::wait::patiently;
use futures::StreamExt;
use tokio_util::sync::CancellationToken;

use super::super::Netlink;
use super::sandbox::{ip, with_underlay};
use crate::addr::{Family, LinkIndex, Mtu, PerFamily};
use crate::backend::{HostProblem, Underlay};
use crate::dataplane::{Object, Route};
use crate::events::{NetworkEvent, NetworkEvents};
use crate::kernel::{Kernel, KernelError, KernelEvent, Kinds, Link, LinkAttr, LinkKind, LinkOp, Scope};
use crate::lease::{Lease, LeaseAttrs, LeaseUpdate};
use crate::peers::{Claim, Peer, PeerError};
use crate::reconcile::{Devices, Driver, Reconciler};
use crate::state_file::State;

/// `IFLA_BR_AGEING_TIME` of `linux/if_link.h`: hundredths of a second in host order. It can be changed in place.
const AGEING_TIME: u16 = 4;
/// `IFLA_BR_PRIORITY`: 16 bits in host order. This backend takes it for one that can't be changed.
const PRIORITY: u16 = 6;

fn wanted() -> LinkKind {
    let ageing = LinkAttr::new(AGEING_TIME, 7_000_u32.to_ne_bytes());
    LinkKind::new("bridge", [LinkAttr::new(PRIORITY, 4096_u16.to_ne_bytes()), ageing])
}

/// Routes all peers to a bridge of its own.
#[derive(Default)]
struct BridgeDriver {
    link: Option<Link>,
}

#[async_trait]
impl Driver for BridgeDriver {
    async fn ensure_devices(&mut self, kernel: &mut dyn Kernel) -> Result<Devices, KernelError> {
        let mut devices = Devices::default();
        let wanted = wanted();
        let mut found = kernel.link("own0").await?;
        if let Some(link) = &found {
            let index = link.index;
            let is = kernel.link_kind(index).await?;
            let differs = is.as_ref().and_then(|is| wanted.first_difference(is)).map(|attr| attr.number);
            let op = match differs {
                Some(AGEING_TIME) => Some(LinkOp::Change(link.index, wanted.clone())),
                Some(number) => {
                    let (link, reason) = (link.name.clone(), format!("attribute {number} is another one"));
                    devices.events.push(NetworkEvent::DeviceRecreated { link, reason });
                    Some(LinkOp::Delete(index))
                }
                None => None,
            };
            if let Some(op) = &op {
                kernel.change_link(op).await?;
                devices.changed = true;
                found = found.filter(|_| !matches!(op, LinkOp::Delete(_)));
            }
        }
        if found.is_none() {
            let (name, mac, mtu) = ("own0".to_owned(), None, Some(Mtu(1400)));
            kernel.change_link(&LinkOp::Create { name, mac, mtu, kind: wanted }).await?;
            devices.changed = true;
        }
        let link = kernel.link("own0").await?.expect("it was made just now");
        if !link.up {
            kernel.change_link(&LinkOp::SetUp(link.index)).await?;
        }
        self.link = kernel.link("own0").await?;
        devices.links = self.link.iter().map(|link| link.index).collect();
        Ok(devices)
    }

    fn set_lease(&mut self, _: &Lease) {}

    fn set_underlay(&mut self, _: &Underlay) -> Result<(), HostProblem> {
        Ok(())
    }

    fn attrs(&self) -> LeaseAttrs {
        LeaseAttrs::default()
    }

    fn own_objects(&self) -> Vec<Object> {
        Vec::new()
    }

    fn own_claims(&self) -> Vec<Claim> {
        Vec::new()
    }

    fn peer(&self, lease: &Lease) -> Result<Peer, PeerError> {
        let subnet = lease.subnet(Family::V4).ok_or(PeerError::NotOurs("no IPv4".into()))?;
        let link = self.link.as_ref().ok_or(PeerError::NotOurs("no device".into()))?.index;
        let route = Route { via: None, ..Route::by_node(subnet, subnet.base(), link) };
        Ok(Peer {
            objects: vec![Object::Route(route)],
            claims: vec![Claim::Subnet(subnet)],
            ..Peer::default()
        })
    }

    fn scopes(&self) -> Vec<Scope> {
        let scope = |link: &Link| Scope { link: link.index, family: Family::V4, kinds: Kinds::ALL };
        self.link.iter().map(scope).collect()
    }

    fn owns(&self, object: &Object) -> bool {
        self.link.as_ref().is_some_and(|link| object.link() == Some(link.index))
    }

    fn concerns(&self, event: &KernelEvent) -> bool {
        match event {
            KernelEvent::Link(link) => link.name == "own0",
            KernelEvent::LinkGone(_, name) => name == "own0",
            _ => false,
        }
    }
}

/// Waits until a device was repaired.
async fn repaired(events: &mut NetworkEvents) -> Vec<NetworkEvent> {
    let mut seen = Vec::new();
    loop {
        let next = tokio::time::timeout(patiently(Duration::from_secs(20)), events.recv()).await;
        let next = next.unwrap_or_else(|_| panic!("no repair, but {seen:?}")).unwrap();
        let is_repaired = matches!(next, NetworkEvent::Repaired { device: true, .. });
        seen.push(next);
        if is_repaired {
            return seen;
        }
    }
}

#[test]
fn a_backend_brings_a_kind_of_device_that_core_does_not_know() {
    with_underlay(test_name!(), || async {
        let lease = Lease { key: "10.5.2.0-24".parse().unwrap(), attrs: LeaseAttrs::default(), created: 1 };
        let networks = PerFamily { v4: "10.5.0.0/16".parse().ok(), v6: None };
        let (kernel, own) = (Box::new(Netlink::open().unwrap()), "10.5.1.0-24".parse().unwrap());
        let state = State { networks, ..State::default() };
        let reconciler = Reconciler::new(BridgeDriver::default(), kernel, own, state, None);
        let (mut events, cancel) = (reconciler.events(), CancellationToken::new());
        let snapshot = LeaseUpdate::Snapshot { leases: vec![lease], unreadable: Vec::new().into() };
        let leases = futures::stream::iter([Ok(snapshot)]).chain(futures::stream::pending()).boxed();
        let mut status = reconciler.status();
        let task = tokio::spawn(reconciler.run(leases, cancel.clone()));
        status.wait_for(|status| status.synced).await.unwrap();
        let is_right = || {
            let shown = ip("-d link show dev own0");
            let route = ip("route show 10.5.2.0/24");
            let is = shown.contains("ageing_time 7000") && shown.contains("priority 4096");
            assert!(is && route.contains("dev own0"), "{shown}\n{route}");
        };
        is_right();
        // Changed in place, with everything on it.
        ip("link set own0 type bridge ageing_time 100");
        let seen = repaired(&mut events).await;
        assert!(!seen.iter().any(|event| matches!(event, NetworkEvent::DeviceRecreated { .. })), "{seen:?}");
        is_right();
        ip("link set own0 type bridge priority 8192");
        let seen = repaired(&mut events).await;
        assert!(seen.iter().any(|event| matches!(event, NetworkEvent::DeviceRecreated { .. })), "{seen:?}");
        is_right();
        ip("link delete own0");
        repaired(&mut events).await;
        is_right();
        cancel.cancel();
        task.await.unwrap().unwrap();
    });
}

#[test]
fn a_kind_without_attributes_is_made_and_hardware_has_none() {
    with_underlay(test_name!(), || async {
        let mut kernel = Netlink::open().unwrap();
        let kind = LinkKind::new("bridge", []);
        let create = LinkOp::Create { name: "own1".into(), mac: None, mtu: None, kind: kind.clone() };
        kernel.change_link(&create).await.unwrap();
        let link = kernel.link("own1").await.unwrap().unwrap();
        let found = kernel.link_kind(link.index).await.unwrap().unwrap();
        assert!(found.name == "bridge" && found.get(AGEING_TIME).is_some(), "{found:?}");
        assert_eq!(kind.first_difference(&found), None);
        assert_eq!(kernel.link_kind(LinkIndex(1)).await.unwrap(), None, "loopback");
        assert_eq!(kernel.link_kind(LinkIndex(9999)).await.unwrap(), None);
        let unknown =
            LinkOp::Create { name: "own2".into(), mac: None, mtu: None, kind: LinkKind::new("nosuch", []) };
        assert_eq!(kernel.change_link(&unknown).await.unwrap_err().errno(), Some(libc::EOPNOTSUPP));
    });
}
