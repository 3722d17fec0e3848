//! A thousand leases that no node stands behind: what is true with three peers has to be with all of these.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use flannel_lab::cluster::Cluster;
use flannel_lab::kernel_state::KernelState;
use flannel_lab::wait::eventually;
use serde_json::{Value, json};

use crate::backends::BackendCase;
use crate::harness::{Bed, Folder, Store, new_folder};

/// How many leases.
const CROWD: u16 = 1_000;

/// Three nodes with agents, and the crowd. Subnets are small, so that all fit into the networks of the tests.
pub(crate) fn crowded(case: &'static BackendCase) -> Bed<Folder> {
    let cluster = Cluster::builder().nodes(3).families(case.widest()).build().unwrap();
    let config = format!(
        r#"{{"Network":"10.244.0.0/16","SubnetLen":28,"SubnetMin":"10.244.240.0","SubnetMax":"10.244.253.0",
            "EnableIPv6":true,"IPv6Network":"fd00:10:244::/56","IPv6SubnetLen":72,"IPv6SubnetMin":"fd00:10:244:f0::",
            "IPv6SubnetMax":"fd00:10:244:fd::","Backend":{{"Type":"{}"{}}}}}"#,
        case.kind, case.keys
    );
    let mut bed = Bed::with_config(cluster, new_folder(), case, &config);
    for n in 0..CROWD {
        let (key, value) = record(case, n);
        bed.store.put(&key, &value).unwrap();
    }
    for node in bed.cluster.nodes() {
        // Gateways have to be on the link.
        join_the_crowd(&bed, node.number());
    }
    bed.start_all();
    (1..=3).for_each(|number| bed.wait_for_peers(number, usize::from(CROWD) + 2));
    bed
}

/// Puts the crowd on the link of a node's NIC, as it needs again when that was down or made anew.
pub(crate) fn join_the_crowd(bed: &Bed<Folder>, number: u8) {
    for net in ["172.30.0.0/16", "fd00:30::/64"] {
        bed.netns(number).ip(&format!("route replace {net} dev eth0")).unwrap();
    }
}

fn record(case: &BackendCase, n: u16) -> (String, String) {
    let v4 = Ipv4Addr::from(0x0af4_0000 + u32::from(n) * 16);
    let v6 = Ipv6Addr::new(0xfd00, 0x10, 0x244, n >> 8, n << 8, 0, 0, 0);
    let key = format!("{v4}-28&{v6}-72");
    let [high, low] = n.to_be_bytes();
    let mut value = json!({
        "PublicIP": format!("172.30.{high}.{}", low), "PublicIPv6": format!("fd00:30::{:x}", n + 1), "BackendType": case.kind,
    });
    let (_, other): (_, String) = case.record(1);
    let other: Value = serde_json::from_str(&other).unwrap();
    for name in ["BackendData", "BackendV6Data"] {
        if !other[name].is_null() {
            value[name] = other[name].clone();
            if !other[name]["VtepMAC"].is_null() {
                let prefix = if name == "BackendData" { "0a" } else { "0e" };
                value[name]["VtepMAC"] = json!(format!("{prefix}:00:00:01:{high:02x}:{low:02x}"));
            }
        }
    }
    (key, value.to_string())
}

/// Waits until a node's state is this one again; says only what differs, since a thousand leases fill pages.
#[track_caller]
pub(crate) fn wait_for_state<S: Store>(bed: &Bed<S>, number: u8, what: &str, want: &KernelState) {
    let lines = |state: &KernelState| {
        state.to_string().lines().map(str::to_owned).collect::<std::collections::BTreeSet<_>>()
    };
    let right = lines(want);
    eventually(Duration::from_secs(40), what, || {
        let state = bed.state(number);
        if state == *want {
            return Ok(());
        }
        let have = lines(&state);
        let missing: Vec<_> = right.difference(&have).take(20).collect();
        let surplus: Vec<_> = have.difference(&right).take(20).collect();
        Err(format!("missing {missing:#?}\nsurplus {surplus:#?}"))
    });
}
