//! The fake as a [`Kernel`]: what it answers and announces.

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;

use async_trait::async_trait;

use super::{FakeKernel, link_of};
use crate::addr::{Family, LinkIndex};
use crate::dataplane::{Object, ObjectKey, Op, Route};
use crate::kernel::{
    ConfOf, Exit, Forwarding, Kernel, KernelError, KernelEvent, Link, LinkAddress, LinkKind, LinkOp, Refusal,
    RouteLookup, Scope,
};

#[async_trait]
impl Kernel for FakeKernel {
    async fn links(&mut self) -> Result<Vec<Link>, KernelError> {
        let mut state = self.lock();
        state.wait_for_changes();
        Ok(state.links.values().cloned().collect())
    }

    async fn loosen_source_check(&mut self, link: &str) -> Result<(), KernelError> {
        let name = format!("ipv4/conf/{link}/rp_filter");
        if self.lock().keeps_sysctls {
            return Err(KernelError::Sysctl { name, source: std::io::Error::from_raw_os_error(libc::EROFS) });
        }
        Ok(())
    }

    async fn link(&mut self, name: &str) -> Result<Option<Link>, KernelError> {
        self.lock().wait_for_changes();
        Ok(self.link_named(name))
    }

    async fn link_at(&mut self, index: LinkIndex) -> Result<Option<Link>, KernelError> {
        let mut state = self.lock();
        state.wait_for_changes();
        Ok(state.links.get(&index).cloned())
    }

    async fn link_kind(&mut self, index: LinkIndex) -> Result<Option<LinkKind>, KernelError> {
        let state = self.lock();
        Ok(state.links.contains_key(&index).then(|| state.kinds.get(&index).cloned()).flatten())
    }

    async fn addresses(&mut self) -> Result<Vec<LinkAddress>, KernelError> {
        Ok(self.lock().addresses.clone())
    }

    async fn default_routes(&mut self, family: Family) -> Result<Vec<RouteLookup>, KernelError> {
        let state = self.lock();
        let default = |object: Object| match object {
            Object::Route(route) if route.dst.prefix() == 0 && route.dst.family() == family => {
                Some(lookup_of(&route))
            }
            _ => None,
        };
        Ok(state.objects.iter().filter_map(default).collect())
    }

    async fn lookup(&mut self, dst: IpAddr) -> Result<Option<RouteLookup>, KernelError> {
        let state = self.lock();
        let routes = state.objects.iter().filter_map(|object| match object {
            Object::Route(route) if route.dst.contains(dst) => Some(route),
            _ => None,
        });
        let best = routes.max_by_key(|route| route.dst.prefix());
        Ok(best.map(|route| lookup_of(&route)))
    }

    async fn objects(&mut self, scope: Scope) -> Result<Vec<Object>, KernelError> {
        let hook = self.lock().before_objects.take();
        if let Some(hook) = hook {
            hook(self);
        }
        let mut state = self.lock();
        state.dumps += 1;
        if let Some(errno) = state.dump_error {
            return Err(refused(format!("read the objects of link {}", scope.link), errno));
        }
        Ok(state.objects.iter().filter(|object| in_scope(object, scope)).collect())
    }

    async fn routes_by(&mut self, family: Family, protocol: u8) -> Result<Vec<Object>, KernelError> {
        let mut state = self.lock();
        state.dumps += 1;
        if let Some(errno) = state.dump_error {
            return Err(refused(format!("read {family} routes of protocol {protocol}"), errno));
        }
        let by = |object: &Object| matches!(object, Object::Route(route) if route.protocol == protocol && route.dst.family() == family);
        Ok(state.objects.iter().filter(by).collect())
    }

    async fn forwarding(&mut self, family: Family) -> Result<Vec<Forwarding>, KernelError> {
        let state = self.lock();
        let of_links = state.links.keys().map(|link| ConfOf::Link(*link));
        let each = [ConfOf::All, ConfOf::Default].into_iter().chain(of_links);
        let all = state.forwarding.get(&(family, ConfOf::All)).copied().unwrap_or(true);
        let on = |of| state.forwarding.get(&(family, of)).copied().unwrap_or(all);
        Ok(each.map(|of| Forwarding { family, of, on: on(of) }).collect())
    }

    async fn routes_at(
        &mut self,
        family: Family,
        keys: &BTreeSet<ObjectKey>,
    ) -> Result<Vec<Route>, KernelError> {
        let mut state = self.lock();
        state.dumps += 1;
        if let Some(errno) = state.dump_error {
            return Err(refused("read routes by destination".to_owned(), errno));
        }
        let at = |key: &ObjectKey| match state.objects.get(key) {
            Some(Object::Route(route)) if route.dst.family() == family => Some(route),
            _ => None,
        };
        Ok(keys.iter().filter_map(at).collect())
    }

    async fn tx_checksum(&mut self, link: &str) -> Result<Option<bool>, KernelError> {
        Ok(self.checksum_offload(link))
    }

    async fn set_tx_checksum(&mut self, link: &str, on: bool) -> Result<(), KernelError> {
        self.set_checksum_offload(link, on);
        Ok(())
    }

    async fn change_link(&mut self, op: &LinkOp) -> Result<(), KernelError> {
        let mut state = self.lock();
        state.link_ops.push(op.clone());
        state.wait_for_changes();
        let hooked = state.refuse_link.as_mut().and_then(|hook| hook(op));
        let result = hooked.map_or_else(|| state.change_link(op), Err);
        drop(state);
        self.news.notify_one();
        result.map_err(|errno| refused(format!("{op:?}"), errno))
    }

    async fn execute(&mut self, ops: &[Op]) -> Result<Vec<Refusal>, KernelError> {
        let mut state = self.lock();
        state.wait_for_changes();
        let mut refusals = Vec::new();
        for op in ops {
            state.ops.push(*op);
            let hooked = state.refuse.as_mut().and_then(|hook| hook(op));
            if let Some(errno) = hooked.or_else(|| if hooked.is_none() { state.execute(op) } else { None }) {
                refusals.push(Refusal { op: *op, errno, reason: String::new() });
            }
        }
        drop(state);
        self.news.notify_one();
        Ok(refusals)
    }

    async fn events(&mut self) -> Vec<KernelEvent> {
        loop {
            let events = self.lock().take_events();
            if !events.is_empty() {
                return events;
            }
            self.news.notified().await;
        }
    }
}

fn in_scope(object: &Object, scope: Scope) -> bool {
    let kinds = scope.kinds;
    link_of(object) == Some(scope.link)
        && match object {
            Object::Address(address) => kinds.addresses && Family::of(address.addr.ip()) == scope.family,
            Object::Neighbour(neighbour) => kinds.neighbours && Family::of(neighbour.addr) == scope.family,
            Object::Fdb(_) => kinds.fdb,
            Object::NextHop(next_hop) => kinds.next_hops && Family::of(next_hop.gateway) == scope.family,
            Object::Route(route) => kinds.routes && route.dst.family() == scope.family,
        }
}

fn lookup_of(route: &Route) -> RouteLookup {
    RouteLookup { exit: Exit::of(route.link), via: route.via, source: None, metric: route.metric }
}

fn refused(what: String, errno: i32) -> KernelError {
    KernelError::Refused { what, reason: String::new(), errno: io::Error::from_raw_os_error(errno) }
}
