//! `flanneld cleanup`: removes what agents left on this host, and prints the equivalent commands first.

use std::io::{self, Write};
use std::process::ExitCode;

use flannel_core::agent::LockError;
use flannel_core::agent::leave::Removal;
use flannel_core::dataplane::command::word;
use flannel_core::error::chain;
use flannel_core::kernel::KernelError;
use flannel_core::lease::LeaseKey;
use flannel_core::secret::ServerUrl;
use tracing::{error, info, warn};

use crate::cli::{CleanupOptions, KubeFlags, Options, StoreChoice};
use crate::store::{self, StoreError};
use crate::{logs, registry};

/// Why cleanup could not begin.
#[derive(Debug, thiserror::Error)]
enum CleanupError {
    /// The runtime.
    #[error("can't set up the process")]
    Process(#[from] io::Error),
    /// An agent runs.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// The kernel could not be reached by netlink.
    #[error("can't speak to the kernel; that takes root")]
    Kernel(#[from] KernelError),
    /// The store's options can't be used.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Cleans up, or prints what it would do.
pub(crate) fn run(options: &CleanupOptions) -> ExitCode {
    logs::set_up(&options.agent);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let result = runtime.map_err(CleanupError::Process).and_then(|runtime| {
        let result = runtime.block_on(clean_up(options));
        // A request to a store that hangs must not keep the process from ending.
        runtime.shutdown_background();
        result
    });
    match result {
        Ok(failures) if failures.is_empty() => ExitCode::SUCCESS,
        Ok(failures) => {
            for failure in &failures {
                error!("{failure}");
            }
            ExitCode::FAILURE
        }
        Err(error) => {
            error!(error = chain(&error), "cleanup failed");
            ExitCode::FAILURE
        }
    }
}

/// Returns what could not be removed, with the reasons.
async fn clean_up(options: &CleanupOptions) -> Result<Vec<String>, CleanupError> {
    let agent = &options.agent;
    let store = store::open(agent)?;
    let (place, builder) = (store.place(), registry::agent(agent, store));
    let mut plan = if options.lease { builder.plan_leave().await? } else { builder.plan_cleanup().await? };
    for removal in &mut plan.removals {
        if let Some(key) = removal.lease() {
            removal.commands = vec![command(agent, &place, key)];
        }
    }
    match plan.refused() {
        Some(error) if options.dry_run => {
            warn!(error = chain(error), "without --dry-run this would be refused");
        }
        // Carrying it out returns that error, before anything is printed.
        Some(_) => return Ok(plan.carry_out().await?),
        None => {}
    }
    for note in &plan.notes {
        info!("{note}");
    }
    print(&plan.removals);
    if options.dry_run { Ok(plan.problems) } else { Ok(plan.carry_out().await?) }
}

/// Prints a script that does the same. A closed stdout does not stop cleanup.
fn print(removals: &[Removal]) {
    let mut out = io::stdout().lock();
    let mut last = "";
    for removal in removals {
        if removal.what != last {
            let _ = writeln!(out, "# {}", removal.what);
            last = &removal.what;
        }
        for command in &removal.commands {
            let _ = writeln!(out, "{command}");
        }
    }
}

/// The command that takes a node out of the network, by removing its annotations.
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
