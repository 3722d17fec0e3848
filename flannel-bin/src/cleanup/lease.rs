//! The lease of this node in the store.

use std::net::IpAddr;
use std::time::Duration;

use flannel_core::addr::PerFamily;
use flannel_core::dataplane::command::word;
use flannel_core::lease::{Lease, LeaseKey, LeaseUpdate};
use flannel_core::secret::ServerUrl;
use flannel_core::state_file::{Host, StoredOn};
use flannel_core::subnet::allocate::holder;
use flannel_core::subnet::{Identity, SubnetManager};
use futures::StreamExt;

use super::known::Known;
use super::plan::{Action, Plan, Removal};
use super::seen::Seen;
use crate::cli::{KubeFlags, Options, StoreChoice};
use crate::report::chain;

/// How long a store may take to list all leases.
const PATIENCE: Duration = Duration::from_secs(10);

/// Finds the lease that the files name, if it is there and this node's.
pub(super) async fn removals(
    options: &Options,
    store: &dyn SubnetManager,
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
    // The API server knows a node by its name, and nothing is removed but from our own.
    let is_named = matches!(options.store, StoreChoice::Kube(_));
    if !is_named && !is_ours(&lease, options, known, seen) {
        return note(format!("lease {key} stays: it is that of {}", holder(&lease.attrs)));
    }
    let removal = Removal {
        what: "the lease of this node".to_owned(),
        commands: vec![command(options, &store.place(), key)],
        action: Action::Lease(lease),
    };
    Plan { removals: vec![removal], ..Plan::default() }
}

fn problem(key: LeaseKey, why: &str) -> Plan {
    Plan { problems: vec![format!("lease {key} can't be looked at: {why}")], ..Plan::default() }
}

async fn find(store: &dyn SubnetManager, key: LeaseKey) -> Result<Option<Lease>, String> {
    match store.watch_leases().next().await {
        Some(Ok(LeaseUpdate::Snapshot { leases, undecodable })) => {
            if let Some(bad) = undecodable.named().find(|bad| bad.key == key.to_string()) {
                return Err(bad.to_string());
            }
            Ok(leases.into_iter().find(|lease| lease.key == key))
        }
        Some(Err(error)) => Err(chain(&error)),
        Some(Ok(_)) | None => Err("the store does not list its leases".to_owned()),
    }
}

/// Whether this node published a lease: it is as it was stored here, or it has an address of this host. What came with
/// the disk of another machine proves nothing.
fn is_ours(lease: &Lease, options: &Options, known: &Known, seen: &Seen) -> bool {
    let host = Host::of(&seen.links, &seen.addresses, &PerFamily::default());
    let stored = known.state.as_ref().filter(|state| state.stored_on(&host.macs) != StoredOn::AnotherHost);
    if let Some((state, own)) = stored.and_then(|state| Some((state, state.own.as_ref()?))) {
        return Identity::of_state(state, &state.store, StoredOn::ThisHost).proves(lease, &own.attrs);
    }
    let is_here = |addr: &IpAddr| {
        seen.addresses.iter().any(|address| address.addr.ip() == *addr)
            || options.public_ips.iter().any(|(_, given)| given == addr)
    };
    lease.attrs.public_ips.iter().any(|(_, addr)| is_here(addr))
}

/// The command that removes what makes a node one of the network.
fn kube_command(flags: &KubeFlags, place: &str) -> String {
    let node = place.strip_prefix("kube:").unwrap_or("$NODE_NAME");
    let annotation = match flags.annotation_prefix.as_str() {
        prefix if prefix.ends_with(['/', '-']) => format!("{prefix}kube-subnet-manager-"),
        prefix if prefix.contains('/') => format!("{prefix}-kube-subnet-manager-"),
        prefix => format!("{prefix}/kube-subnet-manager-"),
    };
    format!("kubectl annotate node {node} {annotation}")
}

/// The command that deletes a lease. Passwords are left to the environment of `etcdctl`.
fn command(options: &Options, place: &str, key: LeaseKey) -> String {
    if let StoreChoice::Local(flags) = &options.store {
        let file = flags.dir.join("subnets").join(key.to_string());
        return format!("rm -f {}", word(&file.to_string_lossy()));
    }
    if let StoreChoice::Kube(flags) = &options.store {
        return kube_command(flags, place);
    }
    let etcd = &options.etcd;
    let mut words = vec!["etcdctl".to_owned()];
    if !etcd.endpoints.iter().any(ServerUrl::hides) {
        let endpoints: Vec<String> = etcd.endpoints.iter().map(ToString::to_string).collect();
        words.push(format!("--endpoints={}", endpoints.join(",")));
    }
    words.extend(etcd.ca_file.iter().map(|file| format!("--cacert={}", file.display())));
    if let Some((cert, key)) = &etcd.identity {
        words.extend([format!("--cert={}", cert.display()), format!("--key={}", key.display())]);
    }
    words.extend(etcd.user.iter().map(|(name, _)| format!("--user={name}")));
    let config = place.strip_prefix("etcd:").unwrap_or(place);
    let prefix = config.strip_suffix("config").unwrap_or(config);
    words.extend(["del".to_owned(), format!("{prefix}subnets/{key}")]);
    words.iter().map(|text| word(text)).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli;

    fn command_with(flags: &[&str], place: &str) -> String {
        let args: Vec<String> = ["cleanup"].iter().chain(flags).map(|text| (*text).to_owned()).collect();
        match cli::command(&args, |_| None) {
            Ok(cli::Command::Cleanup(options)) => {
                command(&options.agent, place, "10.5.1.0-24&fd00:1::-64".parse().unwrap())
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_lease_is_deleted_where_it_is_and_secrets_are_not_told() {
        assert_eq!(
            command_with(&["--store=local:/var/lib/store"], "local:/var/lib/store"),
            "rm -f '/var/lib/store/subnets/10.5.1.0-24&fd00:1::-64'"
        );
        assert_eq!(
            command_with(&["--etcd-endpoints=https://a:1", "--etcd-cafile=/ca"], "etcd:/x/config"),
            "etcdctl --endpoints=https://a:1 --cacert=/ca del '/x/subnets/10.5.1.0-24&fd00:1::-64'"
        );
        assert_eq!(
            command_with(&["--kube-subnet-mgr"], "kube:n1"),
            "kubectl annotate node n1 flannel.alpha.coreos.com/kube-subnet-manager-"
        );
        let secret = command_with(
            &["--etcd-endpoints=http://me:hunter2@a:1", "--etcd-username=me", "--etcd-password=hunter2"],
            "etcd:/x/config",
        );
        assert!(secret.starts_with("etcdctl --user=me del ") && !secret.contains("hunter2"), "{secret}");
    }
}
