//! Faults of a Kubernetes API server and of the objects in it.

use std::thread::sleep;
use std::time::{Duration, Instant};

use flannel_lab::kube::fake::{Faults, touch_status};
use flannel_lab::node::Node;
use flannel_lab::store::Server as _;

use crate::Fallible;
use crate::action::{Action, Kind};
use crate::lab::{LIMIT, Lab};

/// Between two looks at nodes that must not change.
const GLANCE: Duration = Duration::from_millis(100);
/// From one cut of all watches to the next.
const CUT: Duration = Duration::from_millis(300);

/// Leases change while no agent is connected, and then the history is compacted, so only a list shows the changes.
pub(crate) fn cut_off(lab: &Lab, action: &Action) -> Fallible<()> {
    lab.store.kill()?;
    lab.write(&action.put, &action.del)?;
    heartbeats(lab)?;
    lab.store.compact()?;
    sleep(action.hold);
    Ok(lab.store.restart()?)
}

/// Leases join that a backup lacks, and the server is restored from that. All nodes live, so no agent may take
/// anything away; then the nodes come back.
pub(crate) fn restore(lab: &Lab, action: &Action, calm: &[u8]) -> Fallible<()> {
    let kube = lab.store.kube()?;
    let recent = kube.store.api().snapshot();
    lab.write(&action.put, &action.del)?;
    lab.wait_for_model(calm, Instant::now() + LIMIT)?;
    kube.store.api().restore(if action.is_first_backup { kube.first_backup.clone() } else { recent });
    let end = Instant::now() + action.hold;
    while Instant::now() < end {
        for number in calm {
            if let Some(deviation) = lab.deviation(*number)? {
                return Err(format!("a backup lacks leases of nodes that live, and {deviation}").into());
            }
        }
        sleep(GLANCE);
    }
    lab.write_again()
}

/// Watches end again and again, as agreed or in the middle of a line.
pub(crate) fn cut_watches(lab: &Lab, action: &Action) -> Fallible<()> {
    let (api, end) = (lab.store.kube()?.store.api(), Instant::now() + action.hold);
    for number in 0_u32.. {
        if number % 2 == 0 {
            api.disconnect();
        } else {
            api.end_watches();
        }
        heartbeats(lab)?;
        if Instant::now() > end {
            break;
        }
        sleep(CUT);
    }
    Ok(())
}

/// The server writes nonsense, takes its time or refuses everything while leases change; then it is well.
pub(crate) fn misbehave(lab: &Lab, action: &Action) -> Fallible<()> {
    let api = lab.store.kube()?.store.api();
    let mut faults = Faults::default();
    match action.kind {
        Kind::Garbage => faults.garbage = true,
        Kind::Slow => faults.delay = action.hold / 2,
        _ => faults.fail = Some(action.code),
    }
    api.set_faults(faults);
    if action.kind != Kind::Garbage {
        // What is open goes on as before, so they have to ask again.
        api.end_watches();
    }
    heartbeats(lab)?;
    lab.write(&action.put, &action.del)?;
    sleep(action.hold);
    api.set_faults(Faults::default());
    Ok(())
}

/// Somebody changes annotations of a node.
pub(crate) fn meddle(lab: &Lab, node: &Node, action: &Action) -> Fallible<()> {
    let meddling = action.meddling.ok_or("nothing to do to the annotations")?;
    let is_there = lab.store.kube()?.store.meddle(node.name(), meddling.annotation, meddling.value);
    if is_there { Ok(()) } else { Err(format!("{} has no object", node.name()).into()) }
}

/// A node's object is deleted, and some time later its kubelet registers it anew, with the same subnets.
pub(crate) fn make_anew(lab: &Lab, node: &Node, action: &Action) -> Fallible<()> {
    let store = &lab.store.kube()?.store;
    let object = store.api().node(node.name()).ok_or_else(|| format!("{} has no object", node.name()))?;
    let subnets = object["spec"]["podCIDRs"].as_array().into_iter().flatten();
    let subnets = subnets.filter_map(|subnet| subnet.as_str().map(str::to_owned)).collect::<Vec<_>>();
    store.api().delete_node(node.name());
    sleep(action.hold);
    store.register(node.name(), &subnets);
    Ok(())
}

/// All kubelets report, which means nothing to an agent.
fn heartbeats(lab: &Lab) -> Fallible<()> {
    let api = lab.store.kube()?.store.api();
    for name in api.node_names() {
        let number = api.revision();
        api.edit_node(&name, |node| touch_status(node, number));
    }
    Ok(())
}
