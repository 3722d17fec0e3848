//! `flanneld doctor` on whole clusters: a healthy node has nothing to complain about, whatever backend and store it has, and
//! a damaged one is told what.

use std::process::Output;
use std::time::Duration;

use flannel_lab::cluster::Cluster;
use flannel_lab::wait::eventually;
use serde_json::Value;

use crate::backends::{BackendCase, on_every_kind};
use crate::harness::{Bed, FLANNELD, Store, new_folder, subnet_file};

on_every_kind!(a_healthy_node_has_no_complaint);

/// What the lab's nodes have that an operator would want to know: nobody loads `br_netfilter`, and the host's
/// networkd is none of theirs.
const OF_THE_LAB: [&str; 2] = ["bridge-netfilter", "networkd"];

/// How long it may take until an examination has no complaint: a few of them, of which one alone may take 25 s
/// (`Doctor::deadline`) where more than fifty checks at once compete with others for the processor.
const EXAMINED: Duration = Duration::from_secs(90);

fn doctor(bed: &Bed<impl Store>, more: &[&str]) -> Output {
    let mut command = bed.netns(1).command(FLANNELD);
    command.arg("doctor").arg(format!("--subnet-file={}", subnet_file(1).display()));
    // The folder of the host's own configs has nothing to do with this node.
    command.args(["--conf-dir=/run/no-cni", "--output=json"]).args(bed.store.flags()).args(more);
    command.envs(bed.store.env(bed.node(1).name())).output().unwrap()
}

/// The checks of a report that are worse than a note.
fn complaints(output: &Output) -> Vec<Value> {
    let report: Value =
        serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"));
    let is_bad = |check: &&Value| {
        let is_lab = OF_THE_LAB.iter().any(|name| check["check"] == *name);
        (check["verdict"] == "failure" || check["verdict"] == "warning") && !is_lab
    };
    report["checks"].as_array().unwrap().iter().filter(is_bad).cloned().collect()
}

fn names(complaints: &[Value]) -> Vec<&str> {
    complaints.iter().filter_map(|complaint| complaint["check"].as_str()).collect()
}

fn healthy<S: Store>(case: &'static BackendCase, store: impl FnOnce(&Cluster) -> S) -> Bed<S> {
    let cluster = Cluster::builder().nodes(2).families(case.widest()).build().unwrap();
    let store = store(&cluster);
    let mut bed = Bed::new(cluster, store, case, case.widest());
    (1..=2).for_each(|number| bed.spawn(number, &["--ip-masq"]));
    for number in 1..=2 {
        bed.wait_ready(number);
        bed.wait_for_peers(number, 1);
    }
    let _pod = bed.pod(1);
    // Rules, state file and the first packets of the peers come in their own time.
    eventually(EXAMINED, "the doctor to have no complaint", || {
        let complaints = complaints(&doctor(&bed, &[]));
        if complaints.is_empty() { Ok(()) } else { Err(format!("{complaints:#?}")) }
    });
    bed
}

fn a_healthy_node_has_no_complaint(case: &'static BackendCase) {
    let mut bed = healthy(case, |_| new_folder());
    let node = bed.netns(1).clone();
    bed.stop(1);
    let remote = bed.remotes(2).remove(0);
    node.ip(&format!("route del {}", remote.subnet)).unwrap_or_default();
    let output = doctor(&bed, &[]);
    let complaints = complaints(&output);
    let names = names(&complaints);
    assert!(names.contains(&"agents") && names.contains(&"peer-routes"), "{complaints:#?}");
    assert_eq!(output.status.code(), Some(4), "the worst verdict is a failure");
    let one = doctor(&bed, &["--check=agents"]);
    assert_eq!(one.status.code(), Some(3), "{one:?}");
}

#[cfg(feature = "etcd")]
#[test]
fn a_node_with_etcd() {
    use flannel_lab::sandbox::in_sandbox;
    use flannel_lab::test_name;

    in_sandbox(test_name!(), || {
        let bed = healthy(&crate::backends::VXLAN, crate::etcd::start);
        let output = doctor(
            &bed,
            &["--check=store-reachable,store-version,store-latency,store-clock,store-leases,network-config"],
        );
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(!text.contains("skipped"), "etcd answers all of it: {text}");

        let bundle = "/run/bug.tar.gz";
        let output = doctor(&bed, &["--check=agent-problems", "--bundle", bundle]);
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        assert!(
            !String::from_utf8_lossy(&output.stdout).contains("skipped"),
            "the agent is asked: {output:?}"
        );
        let files = std::process::Command::new("tar").args(["tzf", bundle]).output().unwrap();
        let files = String::from_utf8(files.stdout).unwrap();
        for name in ["agent/status.json", "agent/events.jsonl", "store/leases.txt", "network/routes.txt"] {
            assert!(files.contains(name), "{name} in {files}");
        }
    });
}

#[cfg(feature = "kube")]
#[test]
fn a_node_of_kubernetes_with_too_few_rights() {
    use flannel_lab::kube::fake::Faults;
    use flannel_lab::sandbox::in_sandbox;
    use flannel_lab::test_name;

    in_sandbox(test_name!(), || {
        let bed = healthy(&crate::backends::VXLAN, crate::kube::kube);
        bed.store
            .api()
            .set_faults(Faults { deny: vec!["patch nodes/status".to_owned()], ..Faults::default() });
        let output = doctor(&bed, &["--check=kube-rights,kube-pod-cidrs,kube-annotations"]);
        assert_eq!(names(&complaints(&output)), ["kube-rights"], "{output:?}");
        assert!(String::from_utf8_lossy(&output.stdout).contains("patch nodes/status"));
    });
}
