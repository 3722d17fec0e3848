//! A node with a Go agent, by hand: what such an agent leaves behind, and what it does to what it finds when it starts.
//!
//! Upstream: `pkg/backend/vxlan/{device,vxlan_network}.go`, `pkg/backend/route_network.go`, `pkg/trafficmngr`; its
//! calls are made with the operators' commands that send the same requests.

use flannel_lab::golden::Golden;
use flannel_lab::netns::Netns;
use flannel_lab::subnet_env::SubnetEnv;
use serde_json::{Value, json};

use crate::backends::{BackendCase, Own, Remote};
use crate::harness::{Bed, Store, is_flannels, sides, subnet_file};

/// The two nodes of a golden case on the nodes of a cluster.
pub(crate) struct GoNodes<'a> {
    golden: &'a Golden,
    /// Key and value of each.
    pub(crate) records: [(String, Value); 2],
}

impl<'a> GoNodes<'a> {
    pub(crate) fn of(golden: &'a Golden) -> Self {
        let records = golden.records();
        let records = ["node1", "node2"].map(|node| {
            let (key, value) = records.iter().find(|(key, _)| key.starts_with(&base(golden, node))).unwrap();
            (key.clone(), serde_json::from_str(value).unwrap())
        });
        Self { golden, records }
    }

    /// What a node wrote for the CNI plugin.
    pub(crate) fn subnet_env(&self, number: u8) -> SubnetEnv {
        self.golden.subnet_env(&name(number)).unwrap().parse().unwrap()
    }

    /// The other node as this one sees it, in each family.
    pub(crate) fn peer_of(&self, case: &BackendCase, number: u8) -> Vec<Remote> {
        let (key, value) = &self.records[2 - usize::from(number)];
        sides(case, key, value).into_iter().map(|(_, remote)| remote).collect()
    }

    /// This node's own side, at the addresses that it really has, whatever it publishes.
    fn own<S: Store>(&self, bed: &Bed<S>, number: u8) -> Vec<Own> {
        let (key, value) = &self.records[usize::from(number) - 1];
        let node = bed.cluster.node(number);
        let own = sides(bed.case, key, value).into_iter().map(|(own, _)| own);
        own.map(|own| {
            let at = if own.base.contains(':') { node.ipv6() } else { node.ipv4() };
            Own { underlay: at.unwrap().to_string(), ..own }
        })
        .collect()
    }

    /// Makes everything that the agent of a node left: record, kernel state, rules, `subnet.env`.
    pub(crate) fn lay_out<S: Store>(&self, bed: &Bed<S>, number: u8) {
        let (key, _) = &self.records[usize::from(number) - 1];
        let records = self.golden.records();
        let (_, value) = records.iter().find(|(known, _)| known == key).unwrap();
        bed.store.put_of(bed.cluster.node(number), key, value).unwrap();
        self.lay_out_on_host(bed, number);
    }

    /// The same without the record.
    pub(crate) fn lay_out_on_host<S: Store>(&self, bed: &Bed<S>, number: u8) {
        for (own, peer) in self.own(bed, number).iter().zip(&self.peer_of(bed.case, number)) {
            for command in (bed.case.as_go_leaves_it)(own, peer) {
                sh(bed.netns(number), &command);
            }
        }
        for program in ["iptables", "ip6tables"] {
            // As kube-proxy has it. It also keeps connections tracked while Go's chains are flushed at its start:
            // without any rule that needs it, the kernel stops that, and open connections lose their address.
            let rule = "FORWARD -m conntrack --ctstate INVALID -j DROP";
            sh(bed.netns(number), &format!("{program} -C {rule} 2>/dev/null || {program} -A {rule}"));
        }
        self.write_rules(bed.netns(number), number);
        std::fs::create_dir_all(subnet_file(number).parent().unwrap()).unwrap();
        std::fs::write(subnet_file(number), self.golden.subnet_env(&name(number)).unwrap()).unwrap();
        let _ = std::fs::remove_file(subnet_file(number).with_extension("env.state"));
        assert!(bed.state(number).routes.iter().all(|line| is_flannels(line)));
    }

    /// Does what the agent does when it starts; whatever it would be refused or find in its way fails the test.
    pub(crate) fn start<S: Store>(&self, bed: &Bed<S>, number: u8) {
        let netns = bed.netns(number);
        for (own, peer) in self.own(bed, number).iter().zip(&self.peer_of(bed.case, number)) {
            if bed.case.kind == "vxlan" {
                assert_is_reused(netns, own, peer.device);
                sh(netns, &format!("ip link set {} up", peer.device));
            }
            if bed.case.kind == "host-gw" {
                assert_counts_as_equal(netns, peer);
                continue;
            }
            let mut commands = (bed.case.as_go_leaves_it)(own, peer);
            commands.retain(|it| !it.starts_with("ip link") && !it.starts_with("ip address"));
            for command in &commands {
                sh(netns, command);
            }
        }
        self.write_rules(netns, number);
        std::fs::write(subnet_file(number), self.golden.subnet_env(&name(number)).unwrap()).unwrap();
    }

    /// Does what the agent does when the other node leaves.
    pub(crate) fn remove_peer<S: Store>(&self, bed: &Bed<S>, number: u8) {
        for Remote { device, subnet, base, mac, underlay } in &self.peer_of(bed.case, number) {
            let netns = bed.netns(number);
            if bed.case.kind == "host-gw" || bed.case.keys.contains("DirectRouting") {
                sh(netns, &format!("ip route del {subnet} via {underlay}"));
            } else {
                sh(netns, &format!("ip neigh del {base} dev {device} lladdr {mac}"));
                sh(netns, &format!("bridge fdb del {mac} dev {device} dst {underlay} self"));
                sh(netns, &format!("ip route del {subnet} via {base} dev {device}"));
            }
        }
    }

    /// Writes the rules for `--ip-masq` over those that are there: own chains are flushed, and the rules that lead to
    /// them are deleted and appended.
    fn write_rules(&self, netns: &Netns, number: u8) {
        for family in ["iptables", "ip6tables"] {
            let lines = self.rules(family, number);
            if lines.is_empty() {
                continue;
            }
            for (table, chain) in [("nat", "FLANNEL-POSTRTG"), ("filter", "FLANNEL-FWD")] {
                sh(netns, &format!("{family} -t {table} -N {chain} || {family} -t {table} -F {chain}"));
                let jump = lines.iter().find(|line| line.ends_with(&format!("-j {chain}"))).unwrap();
                let check = jump.replacen("-A", "-C", 1);
                let is_there = sh(netns, &format!("{family} -t {table} {check} && echo yes || true"));
                let before = (!is_there.is_empty()).then(|| jump.replacen("-A", "-D", 1));
                let rules = lines.iter().filter(|line| line.starts_with(&format!("-A {chain} ")));
                let rules = before.iter().chain([jump]).chain(rules).map(String::as_str);
                let script = rules.collect::<Vec<_>>().join("\n");
                sh(netns, &format!("{family}-restore --noflush <<'END'\n*{table}\n{script}\nCOMMIT\nEND"));
            }
        }
        let listed = self.rules("nft", number);
        if listed.iter().any(|line| line.starts_with("table ip flannel-ipv4")) {
            let flush = [("ip", "flannel-ipv4"), ("ip6", "flannel-ipv6")]
                .map(|(family, table)| format!("add table {family} {table}\nflush table {family} {table}\n"));
            sh(netns, &format!("nft -f - <<'END'\n{}{}\nEND", flush.concat(), listed.join("\n")));
        }
    }

    /// The rules of a node; the golden files have those of the first.
    fn rules(&self, what: &str, number: u8) -> Vec<String> {
        let subnets = |key: &str| key.split('&').map(|it| it.replace('-', "/")).collect::<Vec<_>>();
        let theirs = subnets(&self.records[0].0);
        let own = subnets(&self.records[usize::from(number) - 1].0);
        let mut lines = self.golden.lines(what);
        for line in &mut lines {
            for (theirs, own) in theirs.iter().zip(&own) {
                *line = line.replace(theirs, own);
            }
        }
        lines
    }
}

/// The annotations that a Go agent has on its node, for a record.
#[cfg(feature = "kube")]
pub(crate) fn annotations(prefix: &str, record: &Value) -> serde_json::Map<String, Value> {
    let mut all = serde_json::Map::new();
    let mut add = |suffix: &str, value: Value| all.insert(format!("{prefix}{suffix}"), value);
    add("kube-subnet-manager", json!("true"));
    add("backend-type", record["BackendType"].clone());
    for (ip, ip_suffix, data, data_suffix) in [
        ("PublicIP", "public-ip", "BackendData", "backend-data"),
        ("PublicIPv6", "public-ipv6", "BackendV6Data", "backend-v6-data"),
    ] {
        if !record[ip].is_null() {
            add(ip_suffix, record[ip].clone());
            add(data_suffix, json!(record[data].to_string()));
        }
    }
    all
}

/// What Go makes of an annotation when it starts: the MAC is the text after the last `:"`.
#[cfg(feature = "kube")]
pub(crate) fn stored_mac(data: &str) -> &str {
    data.rsplit_once(":\"").unwrap().1.trim_end_matches("\"}")
}

/// That Go keeps the device that it finds, as `vxlanLinksIncompat` decides, and has nothing to do to its addresses.
fn assert_is_reused(netns: &Netns, own: &Own, device: &str) {
    let error = netns.ip(&format!("link add {device} type vxlan id 1 dev eth0 dstport 8472")).unwrap_err();
    assert!(error.to_string().contains("File exists"), "{error}");
    let link = netns.ip_json(&format!("link show dev {device}")).unwrap()[0].clone();
    let (local, family, bits) =
        if own.base.contains(':') { ("local6", "inet6", 128) } else { ("local", "inet", 32) };
    let data = &link["linkinfo"]["info_data"];
    assert_eq!(link["linkinfo"]["info_kind"], "vxlan");
    assert_eq!((&data["id"], &data["port"]), (&json!(1), &json!(8472)), "{data}");
    assert_eq!((&data["link"], &data[local]), (&json!("eth0"), &json!(own.underlay)), "{data}");
    for absent in ["group", "group6", "l2miss", "gbp"] {
        assert!(matches!(&data[absent], Value::Null | Value::Bool(false)), "{absent}: {data}");
    }
    assert_eq!(link["address"], own.mac, "the MAC that it published");
    let addresses = netns.ip_json(&format!("address show dev {device}")).unwrap()[0]["addr_info"].clone();
    let global = addresses.as_array().unwrap().iter().filter(|it| it["scope"] != "link");
    let global: Vec<_> = global.map(|it| [&it["family"], &it["local"], &it["prefixlen"]]).collect();
    assert_eq!(global, [[&json!(family), &json!(own.base), &json!(bits)]]);
}

/// That Go takes the route that it finds for its own: by destination, gateway and link.
fn assert_counts_as_equal(netns: &Netns, Remote { device, subnet, underlay, .. }: &Remote) {
    let family = if subnet.contains(':') { "-6" } else { "-4" };
    let routes = netns.ip_json(&format!("{family} route show exact {subnet}")).unwrap();
    let routes = routes.as_array().unwrap();
    assert_eq!(routes.len(), 1, "{routes:?}");
    assert_eq!((&routes[0]["gateway"], &routes[0]["dev"]), (&json!(underlay), &json!(device)));
}

fn name(number: u8) -> String {
    format!("node{number}")
}

/// The first address of a node's first subnet.
fn base(golden: &Golden, node: &str) -> String {
    let env: SubnetEnv = golden.subnet_env(node).unwrap().parse().unwrap();
    format!("{}-", env.families()[0].gateway.network())
}

/// Runs a line of shell.
pub(crate) fn sh(netns: &Netns, line: &str) -> String {
    netns.run("sh", &["-c", line]).unwrap()
}
