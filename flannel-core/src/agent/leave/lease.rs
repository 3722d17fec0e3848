//! The lease of this node in the store.

use std::net::IpAddr;
use std::time::Duration;

use futures::StreamExt;

use super::known::Known;
use super::removal::{Action, Plan, Removal};
use super::seen::Seen;
use crate::addr::PerFamily;
use crate::error::chain;
use crate::lease::{Lease, LeaseKey, LeaseUpdate};
use crate::state_file::{HostIdentity, StoredOn};
use crate::subnet::allocate::holder;
use crate::subnet::{Identity, SubnetManager};

/// How long a store may take to list all leases.
const PATIENCE: Duration = Duration::from_secs(10);

/// Finds the lease that the files name, if it is there and this node's.
pub(super) async fn removals(
    store: &dyn SubnetManager,
    public_ips: &PerFamily<IpAddr>,
    known: &Known,
    seen: &Seen,
) -> Plan {
    let note = |note: String| Plan { notes: vec![note], ..Plan::default() };
    let Some(key) = known.key() else {
        return note(
            "the lease stays, if there is one: neither subnet file nor state file names it".to_owned(),
        );
    };
    let lease = match tokio::time::timeout(PATIENCE, find(store, key)).await {
        Ok(Ok(Some(lease))) => lease,
        Ok(Ok(None)) => return Plan::default(),
        Ok(Err(why)) => return problem(key, &why),
        Err(_) => {
            let why = store.status().borrow().problem.clone();
            return problem(key, &why);
        }
    };
    if !store.knows_node_by_name() && !is_ours(&lease, public_ips, known, seen) {
        return note(format!("lease {key} stays: it is that of {}", holder(&lease.attrs)));
    }
    let told = || format!("# release {key} in the store {}", store.place());
    let command = store.release_command(key).unwrap_or_else(told);
    let removal = Removal {
        what: "the lease of this node".to_owned(),
        commands: vec![command],
        action: Action::Lease(lease),
    };
    Plan { removals: vec![removal], ..Plan::default() }
}

fn problem(key: LeaseKey, why: &str) -> Plan {
    Plan { problems: vec![format!("lease {key} can't be looked at: {why}")], ..Plan::default() }
}

async fn find(store: &dyn SubnetManager, key: LeaseKey) -> Result<Option<Lease>, String> {
    match store.watch_leases().next().await {
        Some(Ok(LeaseUpdate::Snapshot { leases, unreadable })) => {
            if let Some(bad) = unreadable.named().find(|bad| bad.key == key.to_string()) {
                return Err(bad.to_string());
            }
            Ok(leases.into_iter().find(|lease| lease.key == key))
        }
        Some(Err(error)) => Err(chain(&error)),
        Some(Ok(_)) | None => Err("the store does not list its leases".to_owned()),
    }
}

/// Whether this node published a lease: it equals the stored one, or it has an address of this host. A state file of
/// another machine proves nothing.
fn is_ours(lease: &Lease, public_ips: &PerFamily<IpAddr>, known: &Known, seen: &Seen) -> bool {
    let host = HostIdentity::of(&seen.links, &seen.addresses, &PerFamily::default());
    let stored = known.state.as_ref().filter(|state| state.stored_on(&host.macs) != StoredOn::AnotherHost);
    if let Some((state, own)) = stored.and_then(|state| Some((state, state.own.as_ref()?))) {
        return Identity::of_state(state, &state.store, StoredOn::ThisHost).proves(lease, &own.attrs);
    }
    let is_here = |addr: &IpAddr| {
        seen.addresses.iter().any(|address| address.addr.ip() == *addr)
            || public_ips.iter().any(|(_, given)| given == addr)
    };
    lease.attrs.public_ips.iter().any(|(_, addr)| is_here(addr))
}
