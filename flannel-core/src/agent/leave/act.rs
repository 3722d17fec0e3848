//! Carries out a plan, and goes on after a failure.

use std::collections::BTreeMap;
use std::fs;
use std::io;

use super::removal::{Action, Removal};
use super::rules;
use crate::atomic_file;
use crate::dataplane::{Object, Op};
use crate::error::chain;
use crate::firewall::gate;
use crate::kernel::{Kernel, LinkOp};
use crate::netns::Netns;
use crate::subnet::SubnetManager;

/// Removes everything, and adds what could not be removed to `failures`. Files stay once something failed:
/// they prove to the next run that the rest is ours.
pub(super) async fn carry_out(
    removals: &[Removal],
    netns: &Netns,
    kernel: &mut dyn Kernel,
    store: &dyn SubnetManager,
    failures: &mut Vec<String>,
) {
    let told = |removal: &Removal| removal.commands.join("; ");
    let mut routes = BTreeMap::new();
    for removal in removals {
        if let Action::Route(route) = removal.action {
            routes.insert(Object::Route(route), told(removal));
        }
    }
    failures.extend(remove_routes(&routes, kernel).await);
    for removal in removals {
        let result = match &removal.action {
            Action::Route(_) => continue,
            Action::Link(link) => {
                kernel.change_link(&LinkOp::Delete(*link)).await.map_err(|error| chain(&error))
            }
            Action::Gate(vni) => gate::remove(netns, *vni).await.map_err(|error| chain(&error)),
            Action::Rules(step, ours) => {
                rules::remove(netns, step, ours).await.map_err(|error| chain(&error))
            }
            Action::Lease(lease) => store.release_lease(lease).await.map_err(|error| chain(&error)),
            Action::File(_) if !failures.is_empty() => {
                Err("it stays, since it proves to the next run that the rest is ours".to_owned())
            }
            Action::File(path) => match fs::remove_file(path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error.to_string()),
                _ => atomic_file::remove_abandoned_drafts(path).map_err(|error| error.to_string()),
            },
        };
        failures.extend(result.err().map(|why| format!("not done: {}: {why}", told(removal))));
    }
}

/// Removes all routes in one batch, since there may be thousands.
async fn remove_routes(routes: &BTreeMap<Object, String>, kernel: &mut dyn Kernel) -> Vec<String> {
    let ops: Vec<Op> = routes.keys().map(|route| Op::Delete(*route)).collect();
    match kernel.execute(&ops).await {
        Ok(refusals) => {
            let told = |object| routes.get(object).map_or("", String::as_str);
            refusals
                .iter()
                .map(|refusal| format!("not done: {}: {refusal}", told(refusal.op.object())))
                .collect()
        }
        Err(error) => vec![format!("routes are not removed: {}", chain(&error))],
    }
}
