//! Something drops a tunnel's packets between two nodes: they reach each other by `Backend.Fallback` until it lets them through.
//!
//! `DETOUR_TIMES=1` prints for how long packets were lost.

use std::env;
use std::time::Duration;

use flannel_lab::cluster::{Cluster, Families};
use flannel_lab::pod::Pod;
use flannel_lab::sandbox::{DEADLINE, in_sandbox_within};
use flannel_lab::test_name;
use flannel_lab::wait::{eventually, patiently};

use crate::backends::{BackendCase, HOST_GW, UDP, VXLAN, WIREGUARD_USERSPACE, rows};
use crate::harness::{
    Bed, Folder, Monitor, SOON, Store, Traffic, assert_all_reach_all, http_get, new_folder,
};

/// How often pods ping each other.
const INTERVAL: Duration = Duration::from_millis(20);
/// How long a tunnel must let packets through, and some more for a busy machine.
const PROOF: Duration = Duration::from_secs(60 + 30);
/// Only the agents of WireGuard cases look at the last flag.
const FLAGS: [&str; 2] = ["--ready-peers=100%,60s", "--wireguard=userspace"];

rows! {
    of_wireguard_for_vxlan: both_ways(&Stage::new(&VXLAN, &WIREGUARD_USERSPACE));
    of_vxlan_for_udp: both_ways(&Stage::new(&UDP, &VXLAN));
    a_detour_that_is_remembered_is_not_taken_for_encrypted_packets: remembered();
    encrypted_packets_take_none: refused(&WIREGUARD_USERSPACE, "packets that wireguard encrypts would travel by another");
    without_probes_it_is_said: without_probes();
    where_nothing_is_proven_there_is_none: refused(&HOST_GW, "probes can't prove that the way by host-gw is blocked");
}

/// The other stores, with one family each.
#[cfg(all(feature = "etcd", feature = "kube"))]
mod stores {
    use super::*;
    use crate::etcd::start as etcd;
    use crate::kube::kube;

    rows! {
        of_udp_for_vxlan_on_etcd: both_ways(&Stage::of(etcd, Families::V4, &VXLAN, &UDP));
        of_vxlan_for_udp_on_kubernetes: both_ways(&Stage::of(kube, Families::V6, &UDP, &VXLAN));
    }
}

/// Three nodes with a backend and a detour.
struct Stage<S> {
    bed: Bed<S>,
    pods: Vec<Pod>,
    case: &'static BackendCase,
    by: &'static BackendCase,
}

impl Stage<Folder> {
    fn new(case: &'static BackendCase, by: &'static BackendCase) -> Self {
        Self::of(|_| new_folder(), Families::Dual, case, by)
    }
}

impl<S: Store> Stage<S> {
    fn of(
        store: impl FnOnce(&Cluster) -> S,
        families: Families,
        case: &'static BackendCase,
        by: &'static BackendCase,
    ) -> Self {
        let cluster = Cluster::builder().nodes(3).families(families).build().unwrap();
        let config = case.config_with(families, &format!(r#","Fallback":["{}"]"#, by.kind));
        let store = store(&cluster);
        let mut bed = Bed::with_config(cluster, store, case, &config);
        (1..=3).for_each(|number| bed.spawn(number, &FLAGS));
        for number in 1..=3 {
            bed.wait_ready(number);
            bed.wait_for_peers(number, 2);
        }
        eventually(SOON, "all nodes to say that they receive by the other backend, too", || {
            let records = bed.store.records().unwrap();
            let offers = |value: &String| value.contains(&format!(r#""Receives":[{{"Type":"{}""#, by.kind));
            if records.values().all(offers) { Ok(()) } else { Err(format!("{records:#?}")) }
        });
        let pods = (1..=3).map(|number| bed.pod(number)).collect();
        Self { bed, pods, case, by }
    }

    fn traffic(&self) -> Traffic {
        let [one, two, three] = &self.pods[..] else { unreachable!("there are three") };
        let to = |from, to: &Pod| {
            Traffic::to(from, to.addresses().iter().map(ipnetwork::IpNetwork::ip), patiently(INTERVAL))
        };
        to(one, two).and(to(two, three))
    }

    /// Drops the tunnel's packets that come to node 2 from node 1, and the others, too, if that is asked for.
    fn block(&self, both_ways: bool) {
        let port = match self.case.kind {
            "udp" => 8285,
            _ => 8472,
        };
        let mut batch = vec![
            "add table inet fault".to_owned(),
            "add chain inet fault input { type filter hook input priority -300; }".to_owned(),
            "add chain inet fault output { type filter hook output priority -300; }".to_owned(),
        ];
        for (family, one) in [("ip", "192.168.77.11"), ("ip6", "fd00:77::11")] {
            batch.push(format!("add rule inet fault input udp dport {port} {family} saddr {one} drop"));
            if both_ways {
                batch.push(format!("add rule inet fault output udp dport {port} {family} daddr {one} drop"));
            }
        }
        self.bed.netns(2).run("nft", &[&batch.join("; ")]).unwrap();
    }

    fn unblock(&self) {
        self.bed.netns(2).run("nft", &["delete table inet fault"]).unwrap();
    }

    /// By which of the two backends a node sends to the pods of another one, in all families.
    fn sends(&self, from: u8, to: u8) -> Result<&'static str, String> {
        let devices: Vec<String> = self.pods[usize::from(to) - 1]
            .addresses()
            .iter()
            .map(|addr| self.bed.netns(from).ip(&format!("route get {}", addr.ip())).unwrap())
            .collect();
        let is_by = |case: &BackendCase| {
            devices.iter().all(|route| {
                case.sides().iter().any(|(device, ..)| route.contains(&format!("dev {device} ")))
            })
        };
        [self.case, self.by]
            .into_iter()
            .find(|case| is_by(case))
            .map(|case| case.kind)
            .ok_or(devices.concat())
    }

    #[track_caller]
    fn wait_until_sends(&self, from: u8, to: u8, by: &BackendCase, within: Duration) {
        eventually(within, &format!("node {from} to send to node {to} by {}", by.kind), || {
            match self.sends(from, to) {
                Ok(kind) if kind == by.kind => Ok(()),
                other => Err(format!("{other:?}\n{}", self.bed.agent(from).last_lines())),
            }
        });
    }

    /// Waits until the status of a node says that this bridges something, or nothing any more.
    #[track_caller]
    fn wait_until_told(&self, number: u8, is_bridged: bool) {
        let said = format!("packets travel by {} meanwhile", self.by.kind);
        eventually(SOON, "the detour in the status", || {
            let answer = http_get(self.bed.netns(number), 8471, "/readyz");
            if answer.contains(&said) == is_bridged { Ok(()) } else { Err(answer) }
        });
    }

    /// Waits until all reach all, and returns traffic of which nothing is lost from now on.
    fn settled(&self) -> Traffic {
        assert_all_reach_all(&self.pods, self.mtu());
        self.traffic()
    }

    /// Pods have the smaller MTU.
    fn mtu(&self) -> u32 {
        let families = self.bed.cluster.families();
        self.case.mtu(families, 1500).min(self.by.mtu(families, 1500))
    }
}

/// Tells for how long packets of traffic were lost.
fn tell(traffic: Traffic) {
    for (dst, report) in traffic.stop() {
        if env::var_os("DETOUR_TIMES").is_some() {
            println!("{dst}: {} pings lost, one each {INTERVAL:?}", report.lost);
        }
    }
}

/// A filter in one direction moves that direction alone. The detour outlives a restart of the agent, and ends without a loss.
#[test]
fn of_udp_for_vxlan_in_one_direction() {
    in_sandbox_within(3 * DEADLINE, test_name!(), || {
        let mut stage = Stage::new(&VXLAN, &UDP);
        let traffic = stage.traffic();
        stage.block(false);
        stage.wait_until_sends(1, 2, &UDP, SOON);
        stage.wait_until_told(1, true);
        tell(traffic);

        let traffic = stage.settled();
        assert_eq!(stage.sends(2, 1).as_deref(), Ok("vxlan"), "what node 2 sends arrives");
        assert_eq!(stage.sends(1, 3).as_deref(), Ok("vxlan"));
        traffic.go_on(25);
        traffic.assert_no_loss();
        for end in [Bed::stop, Bed::kill] {
            // The detour itself is in user space, so packets wait for the next agent, and no longer.
            end(&mut stage.bed, 1);
            stage.bed.spawn(1, &FLAGS);
            stage.bed.wait_ready(1);
            stage.wait_until_told(1, true);
            assert_eq!(stage.sends(1, 2).as_deref(), Ok("udp"));
            let log = stage.bed.agent(1).log();
            assert!(
                !log.contains("peer is not reached"),
                "the detour was taken from the first moment: {log}"
            );
        }
        let traffic = stage.settled();
        stage.unblock();
        stage.wait_until_sends(1, 2, &VXLAN, PROOF);
        stage.wait_until_told(1, false);
        traffic.go_on(25);
        traffic.assert_no_loss();
        assert!(!stage.bed.agent(2).log().contains("by a detour"), "node 2 had no need of one");
    });
}

/// While an agent is down its peer changes to wireguard, and still says that it receives by the detour: the agent, which
/// remembers that, sends encrypted from the first moment on.
fn remembered() {
    let mut stage = Stage::new(&VXLAN, &UDP);
    stage.block(false);
    stage.wait_until_sends(1, 2, &UDP, SOON);
    stage.bed.stop(1);
    let next =
        WIREGUARD_USERSPACE.config_with(Families::Dual, r#","SwitchAfter":1,"Accept":["vxlan","udp"]"#);
    stage.bed.store.put_config(&next).unwrap();
    let of_two = stage.bed.record_of(2).0;
    eventually(SOON, "node 2 to change, and to receive by the detour still", || {
        let record = stage.bed.store.records().unwrap().remove(&of_two).unwrap();
        let is_so = record.contains(r#""BackendType":"wireguard""#) && record.contains(r#"{"Type":"udp""#);
        if is_so { Ok(()) } else { Err(record) }
    });
    let routes = Monitor::start(stage.bed.netns(1));
    stage.bed.spawn(1, &FLAGS);
    stage.bed.wait_ready(1);
    stage.by = &WIREGUARD_USERSPACE;
    stage.wait_until_sends(1, 2, &WIREGUARD_USERSPACE, SOON);
    let subnet = of_two.split('-').next().unwrap().to_owned();
    let plain = |line: &&String| line.contains(&format!("{subnet}/24 ")) && !line.contains("flannel-wg");
    let seen = routes.seen();
    assert_eq!(seen.iter().find(plain), None, "{seen:#?}");
}

/// Both nodes take the detour, and go on by it while the operator takes it out of the config and puts it back.
fn both_ways<S: Store>(stage: &Stage<S>) {
    let (case, by) = (stage.case, stage.by);
    let traffic = stage.traffic();
    stage.block(true);
    for (from, to) in [(1, 2), (2, 1)] {
        stage.wait_until_sends(from, to, by, SOON);
        stage.wait_until_told(from, true);
    }
    tell(traffic);
    let traffic = stage.settled();
    traffic.go_on(50);
    traffic.assert_no_loss();
    assert_eq!(stage.sends(3, 2).as_deref(), Ok(case.kind));
    // Without a detour the tunnel's fault is what pods get.
    stage.bed.store.put_config(&case.config(stage.bed.cluster.families())).unwrap();
    stage.wait_until_sends(1, 2, case, SOON);
    stage.unblock();
    assert_all_reach_all(&stage.pods, stage.mtu());
}

fn without_probes() {
    let cluster = Cluster::builder().nodes(1).families(Families::Dual).build().unwrap();
    let config = VXLAN.config_with(Families::Dual, r#","Fallback":["udp"]"#);
    let mut bed = Bed::with_config(cluster, new_folder(), &VXLAN, &config);
    bed.spawn(1, &["--probe=off"]);
    bed.wait_ready(1);
    let answer = http_get(bed.netns(1), 8471, "/readyz");
    assert!(answer.contains("Backend.Fallback has no effect on what this node sends"), "{answer}");
}

fn refused(case: &'static BackendCase, why: &str) {
    let cluster = Cluster::builder().nodes(1).families(Families::Dual).build().unwrap();
    let config = case.config_with(Families::Dual, r#","Fallback":["udp"]"#);
    let mut bed = Bed::with_config(cluster, new_folder(), case, &config);
    bed.spawn(1, &FLAGS);
    eventually(SOON, "the config to be refused", || {
        let log = bed.agent(1).log();
        if log.contains("Backend.Fallback[0]") && log.contains(why) { Ok(()) } else { Err(log) }
    });
}
