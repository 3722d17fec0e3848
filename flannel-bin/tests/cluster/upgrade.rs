//! Go flannel's cluster on Kubernetes becomes ours, and Go's again: annotations stay byte for byte, and not a packet is
//! lost. And clusters in which both work side by side.

use flannel_core::addr::{Family, PerFamily};
use flannel_core::lease::{BackendData, LeaseAttrs};
use flannel_lab::cluster::{Cluster, Families};
use flannel_lab::golden::Golden;
use flannel_lab::kube::fake::Request;
use flannel_lab::kube::store::KubeStore;
use flannel_lab::sandbox::in_sandbox;
use flannel_lab::test_name;
use flannel_lab::wait::eventually;
use serde_json::{Map, Value, json};

use crate::backends::{BackendCase, HOST_GW, VXLAN, on_every_kind};
use crate::go::{GoNodes, annotations, sh, stored_mac};
use crate::harness::{Bed, SOON, Store};
use crate::kube::kube;
use crate::takeover::{pod, there_and_back, traffic};

const PREFIX: &str = "flannel.alpha.coreos.com/";

on_every_kind!(there_and_back_without_a_lost_ping);

fn there_and_back_without_a_lost_ping(case: &'static BackendCase) {
    for name in case.takeover {
        let bed = there_and_back(case, &Golden::named(name), kube);
        assert_eq!(bed.store.api().counts().patches, 0, "{name}: there was nothing to say");
    }
}

/// The objects that real Go nodes left, with their conditions.
#[test]
fn real_node_objects_stay_as_they_are() {
    in_sandbox(test_name!(), || {
        let objects = Golden::named("kube-vxlan").json;
        let bed = there_and_back(&VXLAN, &on_kubernetes(&Golden::named("vxlan"), &objects), kube);
        assert_eq!(bed.store.api().counts().patches, 0);
        for (node, object) in [("node1", &objects["n1"]), ("node2", &objects["n2"])] {
            let now = bed.store.api().node(node).unwrap();
            assert_eq!(annotations_of(&now), annotations_of(object));
            assert_eq!(now["spec"], object["spec"]);
            let of_go = |it: &Value| it["status"]["conditions"].as_array().unwrap().last().unwrap().clone();
            for key in ["type", "status", "reason", "message"] {
                assert_eq!(of_go(&now)[key], of_go(object)[key]);
            }
        }
    });
}

/// Go loses its MAC with such a prefix, since it looks for it under another name than it wrote it. Ours keeps it, also
/// over a boot.
#[test]
fn a_prefix_with_a_slash_keeps_the_mac() {
    in_sandbox(test_name!(), || {
        let golden = Golden::named("vxlan-dual");
        let go = GoNodes::of(&golden);
        let mut bed = bed_of(&VXLAN, &golden);
        for number in [1, 2] {
            go.lay_out(&bed, number);
            bed.store.api().edit_node(&format!("node{number}"), |node| {
                let annotations = node["metadata"]["annotations"].as_object_mut().unwrap();
                let rename = |(key, value): (&String, &Value)| {
                    let suffix = key.strip_prefix(PREFIX);
                    let key = suffix.map_or(key.clone(), |it| format!("example.com/pod-net-{it}"));
                    (key, value.clone())
                };
                *annotations = annotations.iter().map(rename).collect();
            });
        }
        let stored = bed.store.everything().unwrap();
        let state = bed.state(1);
        let flag = "--kube-annotation-prefix=example.com/pod-net";
        bed.spawn(1, &[flag, "--nexthop-objects=off"]);
        bed.wait_ready(1);
        bed.wait_for_state(1, "what Go left", &state);
        bed.stop(1);
        for device in ["flannel.1", "flannel-v6.1"] {
            bed.netns(1).ip(&format!("link del {device}")).unwrap();
        }
        std::fs::remove_dir_all("/run/flannel/node1").unwrap();
        bed.spawn(1, &[flag, "--nexthop-objects=off"]);
        bed.wait_ready(1);
        eventually(SOON, "the same MACs after a boot", || {
            let now = bed.state(1);
            if now.links == state.links && now.fdb == state.fdb { Ok(()) } else { Err(now.to_string()) }
        });
        assert_eq!((bed.store.everything().unwrap(), bed.store.api().counts().patches), (stored, 0));
    });
}

/// The operator's address is published, by Go and by us; the device has the one that the node has.
#[test]
fn an_overwritten_address_stays_and_carries_traffic() {
    in_sandbox(test_name!(), || {
        let public = "203.0.113.7";
        let text = Golden::named("vxlan").json["etcd_raw"].to_string();
        let mut golden = Golden::named("vxlan");
        golden.json["etcd_raw"] = serde_json::from_str(&text.replace("192.168.77.11", public)).unwrap();
        let go = GoNodes::of(&golden);
        let mut bed = bed_of(&VXLAN, &golden);
        // Somebody in front of node 1 knows what is meant.
        bed.netns(1).ip(&format!("address add {public}/32 dev lo")).unwrap();
        bed.cluster.fabric().ip(&format!("route add {public} via 192.168.77.11")).unwrap();
        let pods = [1, 2].map(|number| {
            go.lay_out(&bed, number);
            pod(&bed, &go, number)
        });
        let overwrite = |node: &mut Value| {
            node["metadata"]["annotations"][format!("{PREFIX}public-ip-overwrite")] = json!(public);
        };
        bed.store.api().edit_node("node1", overwrite);
        let stored = bed.store.everything().unwrap();
        assert!(stored[0].contains(&format!("public-ip\":\"{public}\"")), "{}", stored[0]);
        let (links, fdb) = (bed.state(1).links, bed.state(2).fdb);
        let traffic = traffic(&bed, &pods);
        for number in [1, 2] {
            bed.spawn(number, &["--ip-masq"]);
            bed.wait_ready(number);
            traffic.go_on(300);
        }
        for number in [1, 2] {
            bed.stop(number);
            traffic.go_on(100);
        }
        traffic.assert_no_loss();
        for number in [1, 2] {
            go.start(&bed, number);
        }
        assert_eq!((bed.state(1).links, bed.state(2).fdb), (links, fdb));
        assert_eq!((bed.store.everything().unwrap(), bed.store.api().counts().patches), (stored, 0));
    });
}

/// A node of ours among Go's: it follows one that boots and has another MAC, and says of itself what Go would.
#[test]
fn a_mixed_cluster_understands_each_other() {
    in_sandbox(test_name!(), || {
        for (case, name) in [(&VXLAN, "vxlan"), (&VXLAN, "vxlan-dual"), (&HOST_GW, "host-gw-dual")] {
            // Each case is a cluster of its own, whose nodes never had another backend.
            let _ = std::fs::remove_dir_all("/run/flannel");
            mixed(case, &Golden::named(name));
        }
    });
}

fn mixed(case: &'static BackendCase, golden: &Golden) {
    let go = GoNodes::of(golden);
    let mut bed = bed_of(case, golden);
    // Node 1 is new and has never published anything; node 2 is Go's.
    let api = bed.store.api();
    bed.store.assign("node1", &go.records[0].0);
    let before = api.node("node1").unwrap();
    go.lay_out(&bed, 2);
    bed.spawn(1, &["--ip-masq"]);
    bed.wait_ready(1);
    bed.wait_for_peers(1, 1);

    let said =
        |bed: &Bed<KubeStore>| bed.store.api().node("node1").unwrap()["metadata"]["annotations"].clone();
    let mut record = go.records[0].1.clone();
    for (device, data) in [("flannel.1", "BackendData"), ("flannel-v6.1", "BackendV6Data")] {
        if !record[data].is_null() {
            let link = bed.netns(1).ip_json(&format!("link show dev {device}")).unwrap();
            record[data]["VtepMAC"] = link[0]["address"].clone();
        }
    }
    let mut want = before["metadata"]["annotations"].clone();
    want.as_object_mut().unwrap().extend(annotations(PREFIX, &record));
    assert_eq!(said(&bed), want, "what Go would say, and not a word more");
    assert_eq!(decode(&said(&bed)).to_json(), golden_form(&record));
    if case.kind == "vxlan" {
        let data = said(&bed)[format!("{PREFIX}backend-data")].clone();
        assert_eq!(stored_mac(data.as_str().unwrap()), record["BackendData"]["VtepMAC"]);
    }

    // Node 2 learns of node 1, as its agent would, and boots with another MAC.
    let mut theirs = go.records.clone();
    theirs[0].1 = record;
    let boot = |bed: &Bed<KubeStore>, theirs: &[(String, Value); 2]| {
        for device in ["flannel.1", "flannel-v6.1"] {
            sh(bed.netns(2), &format!("ip link del {device} 2>/dev/null || true"));
        }
        let mut golden = golden.clone();
        golden.json["etcd_raw"] = theirs
            .iter()
            .map(|(key, value)| (format!("/subnets/{key}"), json!(value.to_string())))
            .collect::<Map<_, _>>()
            .into();
        // Its agent has the object of the node changed, not made anew.
        let (key, value) = &theirs[1];
        GoNodes::of(&golden).lay_out_on_host(bed, 2);
        bed.store.put(key, &value.to_string()).unwrap();
    };
    boot(&bed, &theirs);
    let pods = [1, 2].map(|number| pod(&bed, &go, number));
    traffic(&bed, &pods).assert_no_loss();
    if case.kind == "vxlan" {
        for (data, mac) in [("BackendData", "be:00:00:00:00:04"), ("BackendV6Data", "be:00:00:00:00:06")] {
            if !theirs[1].1[data].is_null() {
                theirs[1].1[data]["VtepMAC"] = json!(mac);
            }
        }
        boot(&bed, &theirs);
        eventually(SOON, "only the new MAC of node 2", || {
            let state = bed.state(1);
            let lines = || state.neighbours.iter().chain(&state.fdb);
            let is_new = lines().all(|line| line.contains("be:00:00:00:00:0")) && lines().count() > 1;
            if is_new { Ok(()) } else { Err(state.to_string()) }
        });
        traffic(&bed, &pods).assert_no_loss();
    }
    assert_eq!(said(&bed), want);
    // The annotations, and the condition.
    let path = "PATCH /api/v1/nodes/node1/status application/strategic-merge-patch+json";
    eventually(SOON, "two patches", || {
        let patches = bed.store.api().requests().into_iter().filter(|it| it.method == "PATCH");
        let text = |it: Request| format!("{} {} {}", it.method, it.path, it.content_type.unwrap_or_default());
        let patches: Vec<_> = patches.map(text).collect();
        if patches == [path; 2] { Ok(()) } else { Err(format!("{patches:#?}")) }
    });
}

/// A golden case with the subnets and MACs of node objects: all that two clusters of one kind differ in.
fn on_kubernetes(golden: &Golden, objects: &Value) -> Golden {
    let (mut text, go) = (golden.json.to_string(), GoNodes::of(golden));
    for ((key, value), node) in go.records.iter().zip(["n1", "n2"]) {
        let base = key.rsplit_once(".0-24").unwrap().0;
        let data = annotations_of(&objects[node])["backend-data"].clone();
        let cidr = objects[node]["spec"]["podCIDR"].as_str().unwrap();
        text = text.replace(&format!("{base}."), cidr.strip_suffix("0/24").unwrap());
        let mac = value["BackendData"]["VtepMAC"].as_str().unwrap();
        text = text.replace(mac, stored_mac(data.as_str().unwrap()));
    }
    Golden { json: serde_json::from_str(&text).unwrap(), ..golden.clone() }
}

/// Flannel's annotations of a node, without the prefix.
fn annotations_of(node: &Value) -> Map<String, Value> {
    let all = node["metadata"]["annotations"].as_object().unwrap().iter();
    all.filter_map(|(key, value)| Some((key.strip_prefix(PREFIX)?.to_owned(), value.clone()))).collect()
}

fn bed_of(case: &'static BackendCase, golden: &Golden) -> Bed<KubeStore> {
    let cluster = Cluster::builder().nodes(2).families(Families::Dual).build().unwrap();
    let store = kube(&cluster);
    Bed::with_config(cluster, store, case, &golden.config().unwrap())
}

/// The lease that annotations tell of, as Go reads it: addresses as text, data as JSON in text.
fn decode(annotations: &Value) -> LeaseAttrs {
    let get = |suffix: &str| annotations[format!("{PREFIX}{suffix}")].as_str();
    assert_eq!(get("kube-subnet-manager"), Some("true"));
    let of = |v4, v6| PerFamily { v4: get(v4), v6: get(v6) };
    let (ips, data) = (of("public-ip", "public-ipv6"), of("backend-data", "backend-v6-data"));
    let data = |family: Family| data.get(family).and_then(|text| BackendData::parse(text).unwrap());
    LeaseAttrs {
        public_ips: PerFamily {
            v4: ips.v4.map(|ip| ip.parse().unwrap()),
            v6: ips.v6.map(|ip| ip.parse().unwrap()),
        },
        backend_type: get("backend-type").unwrap().to_owned(),
        backend_data: PerFamily { v4: data(Family::V4), v6: data(Family::V6) },
        ..LeaseAttrs::default()
    }
}

/// The text that Go stores in etcd for a record.
fn golden_form(record: &Value) -> String {
    LeaseAttrs::from_json(&record.to_string()).unwrap().to_json()
}
