//! Whatever was done to the kernel by hand or while the agent was away, it is exactly right again.

use std::net::IpAddr;

use flannel_lab::cluster::{Cluster, Families};
use flannel_lab::sandbox::in_sandbox;
use flannel_lab::test_name;
use flannel_lab::wait::eventually;
use serde_json::Value;

use crate::harness::{Bed, LocalFolder, SOON, Store, Traffic, config, env_of};

/// A peer as one family sees it.
struct Remote {
    device: &'static str,
    subnet: String,
    base: String,
    mac: String,
    underlay: String,
}

fn bed() -> Bed<LocalFolder> {
    let cluster = Cluster::builder().nodes(3).families(Families::Dual).build().unwrap();
    let mut bed = Bed::new(cluster, LocalFolder::new(), &config(Families::Dual));
    bed.start_all();
    (1..=3).for_each(|number| bed.wait_for_peers(number, 2));
    bed
}

fn record_of(bed: &Bed<LocalFolder>, number: u8) -> (String, Value) {
    let ip = bed.cluster.node(number).ipv4().unwrap().to_string();
    let records = bed.store.records().into_iter();
    let mut records = records.map(|(key, value)| (key, serde_json::from_str::<Value>(&value).unwrap()));
    records.find(|(_, value)| value["PublicIP"] == ip.as_str()).unwrap()
}

/// Node `number` as node 1 sees it, in both families.
fn remotes(bed: &Bed<LocalFolder>, number: u8) -> Vec<Remote> {
    let (key, value) = record_of(bed, number);
    let names = [("flannel.1", "PublicIP", "BackendData"), ("flannel-v6.1", "PublicIPv6", "BackendV6Data")];
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let pair = names.into_iter().zip(key.split('&'));
    pair.map(|((device, ip, data), subnet)| Remote {
        device,
        subnet: subnet.replace('-', "/"),
        base: subnet.rsplit_once('-').unwrap().0.to_owned(),
        mac: text(&value[data]["VtepMAC"]),
        underlay: text(&value[ip]),
    })
    .collect()
}

/// Every way to damage one family's state on node 1 with a command, in words that say what it is.
fn damages(two: &Remote, three: &Remote, own_base: &str) -> Vec<(String, String)> {
    let Remote { device, subnet, base, mac, underlay } = two;
    let bits = if base.contains(':') { 128 } else { 32 };
    let (unused, unused_subnet) = if base.contains(':') {
        ("fd00:10:244:fe::", "fd00:10:244:fe::/64")
    } else {
        ("10.244.254.0", "10.244.254.0/24")
    };
    let stranger = "0a:00:00:00:00:99";
    let elsewhere = &three.underlay;
    [
        ("route deleted", format!("ip route del {subnet} dev {device}")),
        ("route changed", format!("ip route replace {subnet} via {} dev {device} onlink", three.base)),
        ("leftover route", format!("ip route add {unused_subnet} via {unused} dev {device} onlink")),
        ("neighbour deleted", format!("ip neigh del {base} dev {device}")),
        (
            "neighbour changed",
            format!("ip neigh replace {base} lladdr {stranger} dev {device} nud permanent"),
        ),
        ("neighbour not permanent", format!("ip neigh change {base} lladdr {mac} dev {device} nud stale")),
        ("leftover neighbour", format!("ip neigh add {unused} lladdr {stranger} dev {device} nud permanent")),
        ("FDB entry deleted", format!("bridge fdb del {mac} dev {device} dst {underlay}")),
        (
            "FDB entry changed",
            format!("bridge fdb replace {mac} dev {device} dst {elsewhere} self permanent"),
        ),
        (
            "FDB entry with a second remote",
            format!("bridge fdb append {mac} dev {device} dst {elsewhere} self permanent"),
        ),
        (
            "leftover FDB entry",
            format!("bridge fdb add {stranger} dev {device} dst {elsewhere} self permanent"),
        ),
        ("address deleted", format!("ip address del {own_base}/{bits} dev {device}")),
        ("leftover address", format!("ip address add {unused}/{bits} dev {device}")),
        ("MTU changed", format!("ip link set {device} mtu 1300")),
        ("MAC changed", format!("ip link set {device} address {stranger}")),
        ("learning changed", format!("ip link set {device} type vxlan id 1 learning")),
        ("down", format!("ip link set {device} down")),
        ("flapped", format!("ip link set {device} down; ip link set {device} up")),
        ("deleted", format!("ip link del {device}")),
        ("all routes flushed", format!("ip route flush dev {device} proto 102")),
        ("all neighbours flushed", format!("ip neigh flush dev {device} nud permanent")),
        ("deleted twice", format!("ip link del {device}; sleep 0.02; ip link del {device}")),
    ]
    .map(|(name, command)| (format!("{device}: {name}"), command))
    .into()
}

#[test]
fn every_damage_by_hand_is_repaired() {
    in_sandbox(test_name!(), || {
        let bed = bed();
        let netns = bed.netns(1);
        let want = bed.state(1);
        let env = env_of(1);
        let own: Vec<String> =
            env.families().iter().map(|family| family.gateway.network().to_string()).collect();
        for ((two, three), own) in remotes(&bed, 2).iter().zip(&remotes(&bed, 3)).zip(&own) {
            for (name, command) in damages(two, three, own) {
                let v6 = if two.base.contains(':') {
                    command.replace("ip route", "ip -6 route")
                } else {
                    command.clone()
                };
                netns.run("sh", &["-c", &v6]).unwrap_or_else(|error| panic!("{name}: {error}"));
                bed.wait_for_state(1, &name, &want);
            }
        }
        // What the agent would prevent if it were quicker than the next command.
        for device in ["flannel.1", "flannel-v6.1"] {
            bed.agent(1).pause().unwrap();
            netns.ip(&format!("link del {device}")).unwrap();
            netns.ip(&format!("link add {device} type vxlan id 77 dstport 4789 dev eth0")).unwrap();
            bed.agent(1).resume().unwrap();
            bed.wait_for_state(1, "replaced by another VNI", &want);
        }
        let pods = [bed.pod(1), bed.pod(2)];
        Traffic::between(&pods[0], &pods[1]).assert_no_loss();
    });
}

#[test]
fn what_is_not_ours_stays() {
    in_sandbox(test_name!(), || {
        let mut bed = bed();
        let netns = bed.netns(1).clone();
        for command in [
            "address add 172.31.0.1/32 dev flannel.1",
            "neigh add 172.31.0.2 lladdr 0a:00:00:00:00:98 dev flannel.1 nud permanent",
            "route add 172.31.9.0/24 via 172.31.0.2 dev flannel.1 onlink",
            "address add fd00:99::1/128 dev flannel-v6.1 nodad",
            "route add fd00:98::/64 dev flannel-v6.1",
            // In our network and on a link of another: a stale bridge, say.
            "route add 10.244.201.0/24 dev eth0",
            "route add 10.244.202.0/24 dev eth0 metric 50",
        ] {
            netns.ip(command).unwrap();
        }
        netns.bridge("fdb append 00:00:00:00:00:00 dev flannel.1 dst 192.168.77.99 self permanent").unwrap();
        let state = bed.state(1);
        let whole = flannel_lab::kernel_state::KernelState::of(&netns).unwrap();
        // A peer arrives whose subnet somebody else's route holds.
        bed.store.put(
            "10.244.201.0-24&fd00:10:244:c9::-64",
            r#"{"PublicIP":"192.168.77.99","PublicIPv6":"fd00:77::99","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"0a:00:00:00:00:01"},"BackendV6Data":{"VNI":1,"VtepMAC":"0e:00:00:00:00:01"}}"#,
        );
        eventually(SOON, "the peer's IPv6 side", || {
            netns.ip("-6 route show").unwrap().contains("fd00:10:244:c9::/64")
        });
        eventually(SOON, "a word about the holder", || {
            bed.agent(1).log().contains("10.244.201.0/24 is in the way")
        });
        assert!(netns.ip("route show 10.244.201.0/24").unwrap().contains("dev eth0"));
        bed.store.delete("10.244.201.0-24&fd00:10:244:c9::-64");
        bed.wait_for_state(1, "the peer to be gone", &state);
        bed.kill(1);
        bed.start(1);
        std::thread::sleep(std::time::Duration::from_millis(500));
        assert_eq!(flannel_lab::kernel_state::KernelState::of(&netns).unwrap(), whole);
    });
}

#[test]
fn peers_that_left_joined_or_changed_while_the_agent_was_down() {
    in_sandbox(test_name!(), || {
        let mut bed = bed();
        let pods = [bed.pod(1), bed.pod(2)];
        let traffic = Traffic::between(&pods[0], &pods[1]);
        bed.kill(1);
        bed.stop(3);
        let (key, mut value) = record_of(&bed, 3);
        let (mac, mac6) = ("0a:00:00:00:00:33", "0e:00:00:00:00:33");
        value["BackendData"]["VtepMAC"] = mac.into();
        value["BackendV6Data"]["VtepMAC"] = mac6.into();
        bed.store.put(&key, &value.to_string());
        let joined = |n: u8| {
            format!(
                r#"{{"PublicIP":"192.168.77.{n}","PublicIPv6":"fd00:77::{n}","BackendType":"vxlan","BackendData":{{"VNI":1,"VtepMAC":"0a:00:00:00:01:{n}"}},"BackendV6Data":{{"VNI":1,"VtepMAC":"0e:00:00:00:01:{n}"}}}}"#
            )
        };
        bed.store.put("10.244.240.0-24&fd00:10:244:f0::-64", &joined(40));
        bed.start(1);
        bed.wait_for_peers(1, 3);
        let state = bed.state(1);
        let has = |lines: &[String], text: &str| lines.iter().filter(|line| line.contains(text)).count();
        assert_eq!((has(&state.fdb, mac), has(&state.neighbours, mac)), (1, 1), "{state}");
        assert_eq!((has(&state.fdb, mac6), has(&state.neighbours, mac6)), (1, 1), "{state}");
        assert_eq!(has(&state.fdb, "192.168.77.13"), 1, "the old MAC's entry is gone: {state}");

        bed.kill(1);
        bed.store.delete("10.244.240.0-24&fd00:10:244:f0::-64");
        bed.store.delete(&key);
        bed.start(1);
        bed.wait_for_peers(1, 1);
        let state = bed.state(1);
        for gone in ["192.168.77.13", "192.168.77.40", "10.244.240.0", mac, mac6] {
            assert_eq!(
                has(&state.fdb, gone) + has(&state.neighbours, gone) + has(&state.routes, gone),
                0,
                "{state}"
            );
        }
        traffic.assert_no_loss();
    });
}

#[test]
fn the_underlay_nic_goes_and_comes_back() {
    in_sandbox(test_name!(), || {
        let bed = bed();
        let pods = [bed.pod(1), bed.pod(2)];
        let want = bed.state(1);
        let node = bed.cluster.node(1);
        node.delete_nic("eth0").unwrap();
        eventually(SOON, "not ready without the underlay", || {
            let answer = crate::harness::http_get(bed.netns(1), 8471, "/readyz");
            answer.starts_with("HTTP/1.1 503") && answer.contains("eth0")
        });
        node.restore_nic("eth0").unwrap();
        bed.wait_ready(1);
        bed.wait_for_state(1, "all back on new devices", &want);
        let to: Vec<IpAddr> = pods[1].addresses().iter().map(ipnetwork::IpNetwork::ip).collect();
        for dst in to {
            eventually(SOON, "pods to reach each other", || {
                flannel_lab::ping::reaches(pods[0].netns(), dst).unwrap()
            });
        }
    });
}

#[test]
fn the_mtu_follows_the_underlay() {
    in_sandbox(test_name!(), || {
        let bed = bed();
        let want = bed.state(1);
        let node = bed.cluster.node(1);
        node.set_mtu("eth0", 1400).unwrap();
        eventually(SOON, "the devices and the subnet file to follow", || {
            let links = bed.state(1).links.join("\n");
            links.contains("mtu 1350") && links.contains("mtu 1330") && env_of(1).mtu == 1330
        });
        node.set_mtu("eth0", 1500).unwrap();
        bed.wait_for_state(1, "the devices to come back", &want);
        eventually(SOON, "the subnet file to come back", || env_of(1).mtu == 1430);
    });
}
