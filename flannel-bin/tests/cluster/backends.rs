//! The table of backends: one row each, and every test of the matrix runs for every row.

mod damages;

use flannel_lab::cluster::Families;
use flannel_lab::kernel_state::KernelState;
use serde_json::{Value, json};

use self::damages::{
    host_gw_damages, ipip_damages, udp_damages, vxlan_damages, vxlan_direct_damages, vxlan_object_damages,
    wireguard_damages,
};

/// What tests need to know about a backend.
pub(crate) struct BackendCase {
    /// The name in the network config.
    pub(crate) kind: &'static str,
    /// The keys of `Backend` besides `Type`.
    pub(crate) keys: &'static str,
    /// The flags that its agents are started with besides.
    pub(crate) flags: &'static [&'static str],
    /// The overlay families it can carry, the widest first.
    pub(crate) families: &'static [Families],
    /// The bytes it adds over an underlay of each family.
    pub(crate) overhead: [u32; 2],
    /// The golden cases whose kernel state is ours, but for the route protocol.
    pub(crate) golden: &'static [&'static str],
    /// The golden cases from which a node is taken over.
    pub(crate) takeover: &'static [&'static str],
    /// Whether the kernel carries packets, so that traffic needs no agent.
    pub(crate) in_kernel: bool,
    /// Whether the kernel has a route to each peer.
    pub(crate) routes_peers: bool,
    /// How often a take-over writes to the kernel in each family.
    pub(crate) adoptions: usize,
    /// What a take-over makes of the state that Go left.
    pub(crate) adopt: fn(&mut KernelState, &[Remote]),
    /// Whether a line of the kernel's routes is the one of a peer.
    pub(crate) is_peer_route: fn(&str) -> bool,
    /// What node `n` publishes besides its addresses.
    data: fn(u8) -> Value,
    /// Every way to damage one family's state on node 1 with a command, in words that say what it is: from
    /// nodes 2 and 3 as node 1 sees them, and its own base address.
    pub(crate) damages: fn(&Remote, &Remote, &str) -> Vec<(&'static str, String)>,
    /// Commands after which the kernel has nothing of the backend, as after a boot.
    #[cfg_attr(not(feature = "etcd"), expect(dead_code, reason = "only tests on etcd take it all away"))]
    pub(crate) wipe: &'static [&'static str],
    /// Commands that make objects of somebody else on the backend's own devices.
    pub(crate) foreign: &'static [&'static str],
    /// The commands that lay out one family's state as Go leaves it.
    pub(crate) as_go_leaves_it: fn(&Own, &Remote) -> Vec<String>,
}

/// A peer as one family sees it.
#[derive(Clone)]
pub(crate) struct Remote {
    /// The link that leads there.
    pub(crate) device: &'static str,
    pub(crate) subnet: String,
    pub(crate) base: String,
    /// The VTEP's MAC; empty for backends without.
    pub(crate) mac: String,
    pub(crate) underlay: String,
}

/// A node's own side of one family.
pub(crate) struct Own {
    pub(crate) base: String,
    pub(crate) mac: String,
    pub(crate) underlay: String,
}

impl BackendCase {
    /// The overlay families of tests that want all there is.
    pub(crate) fn widest(&self) -> Families {
        self.families[0]
    }

    /// The network config of a cluster. Its nodes take subnets 40 to 99; the others are for records of nodes
    /// that don't exist.
    pub(crate) fn config(&self, families: Families) -> String {
        let v4 = r#""Network":"10.244.0.0/16","SubnetMin":"10.244.40.0","SubnetMax":"10.244.99.0""#;
        let v6 = r#""EnableIPv6":true,"IPv6Network":"fd00:10:244::/56","IPv6SubnetMin":"fd00:10:244:28::","IPv6SubnetMax":"fd00:10:244:63::""#;
        let networks = match families {
            Families::V4 => v4.to_owned(),
            Families::V6 => format!(r#""EnableIPv4":false,{v6}"#),
            Families::Dual => format!("{v4},{v6}"),
        };
        format!(r#"{{{networks},"Backend":{{"Type":"{}"{}}}}}"#, self.kind, self.keys)
    }

    /// The same with further keys of `Backend`, each after a comma.
    pub(crate) fn config_with(&self, families: Families, keys: &str) -> String {
        let config = self.config(families);
        let Some(before) = config.strip_suffix("}}") else { panic!("{config}") };
        format!("{before}{keys}}}}}")
    }

    /// The pods' MTU on an underlay of this MTU.
    pub(crate) fn mtu(&self, families: Families, underlay: u32) -> u32 {
        underlay - self.overhead[usize::from(families.v6())]
    }

    /// A record of node `n`, which need not exist.
    pub(crate) fn record(&self, n: u8) -> (String, String) {
        let v4_alone = self.widest() == Families::V4;
        let key = if v4_alone {
            format!("10.244.{n}.0-24")
        } else {
            format!("10.244.{n}.0-24&fd00:10:244:{n:x}::-64")
        };
        let v6 = if v4_alone { Value::Null } else { json!(format!("fd00:77::{n}")) };
        let mut value =
            json!({ "PublicIP": format!("192.168.77.{n}"), "PublicIPv6": v6, "BackendType": self.kind });
        for (name, data) in (self.data)(n).as_object().unwrap() {
            value[name] = data.clone();
        }
        (key, value.to_string())
    }

    /// The link to peers and the names of a record's members, in each family.
    pub(crate) fn sides(&self) -> [(&'static str, &'static str, &'static str); 2] {
        let [v4, v6] = match self.kind {
            "vxlan" => ["flannel.1", "flannel-v6.1"],
            "udp" => ["flannel0", "flannel0"],
            "ipip" => ["flannel.ipip", "flannel.ipip"],
            "wireguard" => ["flannel-wg", "flannel-wg-v6"],
            _ => ["eth0", "eth0"],
        };
        [(v4, "PublicIP", "BackendData"), (v6, "PublicIPv6", "BackendV6Data")]
    }
}

/// Makes one test a row of each function that takes a [`BackendCase`]: every backend in every form of its routes.
macro_rules! on_every_backend {
    ($($test:ident),+ $(,)?) => {
        $crate::backends::on_every_kind!($($test),+);
        $crate::backends::row!(vxlan_plain VXLAN_PLAIN: $($test),+);
        $crate::backends::row!(vxlan_direct VXLAN_DIRECT: $($test),+);
    };
}
pub(crate) use on_every_backend;

/// The same for each kind of backend: for tests of what comes before routes, such as which address, lease or config an
/// agent takes, whose course is the same whatever form the routes have.
macro_rules! on_every_kind {
    ($($test:ident),+ $(,)?) => {
        $crate::backends::row!(vxlan VXLAN: $($test),+);
        $crate::backends::row!(host_gw HOST_GW: $($test),+);
        $crate::backends::row!(udp UDP: $($test),+);
    };
}
pub(crate) use on_every_kind;

/// The same for functions that take the start of a store as well, by the names that their tests get. A store tells an
/// agent leases whatever form the routes have.
#[cfg(any(feature = "etcd", feature = "kube"))]
macro_rules! on_store {
    ($start:path; $($test:ident: $function:path),+ $(,)?) => {
        $(
            fn $test(case: &'static $crate::backends::BackendCase) {
                $function(case, $start);
            }
        )+
        $crate::backends::on_every_kind!($($test),+);
    };
}
#[cfg(any(feature = "etcd", feature = "kube"))]
pub(crate) use on_store;

/// Makes one test of each expression, by the name before it. An attribute in front of all says why a machine may not be able to
/// run them.
macro_rules! rows {
    (#[$why:meta] $($name:ident: $run:expr;)+) => {
        $(
            #[test]
            #[$why]
            fn $name() {
                flannel_lab::sandbox::in_sandbox(flannel_lab::test_name!(), || $run);
            }
        )+
    };
    ($($name:ident: $run:expr;)+) => {
        $(
            #[test]
            fn $name() {
                flannel_lab::sandbox::in_sandbox(flannel_lab::test_name!(), || $run);
            }
        )+
    };
}
pub(crate) use rows;

/// Makes one test of each function with one case.
macro_rules! row {
    ($name:ident $case:ident: $($test:ident),+) => {
        mod $name {
            $(
                #[test]
                fn $test() {
                    flannel_lab::sandbox::in_sandbox(flannel_lab::test_name!(), || {
                        super::$test(&$crate::backends::$case);
                    });
                }
            )+
        }
    };
}
pub(crate) use row;

pub(crate) const VXLAN: BackendCase = BackendCase {
    kind: "vxlan",
    keys: "",
    flags: &[],
    families: &[Families::Dual, Families::V4, Families::V6],
    overhead: [50, 70],
    golden: &["vxlan", "vxlan-dual", "vxlan-dual-nftables", "vxlan-nftables", "vxlan-vni-port-gbp"],
    takeover: &["vxlan", "vxlan-dual", "vxlan-dual-nftables"],
    in_kernel: true,
    routes_peers: true,
    // The object that is tried, twice; the object and the route through it.
    adoptions: 4,
    adopt: |state, _| {
        let routes = state.routes.iter_mut().chain(&mut state.routes6);
        for line in routes.filter(|line| line.contains(" via ")) {
            let [subnet, via, rest] =
                ["unicast ", " via ", " proto boot"].map(|word| line.find(word).unwrap());
            let (subnet, hop, rest) =
                (&line[subnet..via], &line[via..rest], &line[rest + " proto boot".len()..]);
            state.next_hops.push(format!("id N{hop} scope link proto 102 onlink "));
            *line = format!("{subnet} nhid N{hop} proto 102{rest}");
        }
    },
    is_peer_route: |line| line.contains("flannel") && line.contains("onlink"),
    data: |n| {
        let data = |prefix: &str| json!({ "VNI": 1, "VtepMAC": format!("{prefix}:00:00:00:02:{n:02x}") });
        json!({ "BackendData": data("0a"), "BackendV6Data": data("0e") })
    },
    damages: vxlan_object_damages,
    wipe: &["ip link del flannel.1", "ip link del flannel-v6.1"],
    foreign: &[
        "ip address add 172.31.0.1/32 dev flannel.1",
        "ip neigh add 172.31.0.2 lladdr 0a:00:00:00:00:98 dev flannel.1 nud permanent",
        "ip route add 172.31.9.0/24 via 172.31.0.2 dev flannel.1 onlink",
        "ip address add fd00:99::1/128 dev flannel-v6.1 nodad",
        "ip route add fd00:98::/64 dev flannel-v6.1",
        "bridge fdb append 00:00:00:00:00:00 dev flannel.1 dst 192.168.77.99 self permanent",
    ],
    as_go_leaves_it: |own, peer| {
        let Remote { device, subnet, base, mac, underlay } = peer;
        let (mtu, bits) = if base.contains(':') { (1430, 128) } else { (1450, 32) };
        vec![
            format!(
                "ip link add {device} address {} mtu {mtu} type vxlan id 1 dev eth0 local {} dstport 8472 nolearning",
                own.mac, own.underlay
            ),
            format!("ip link set {device} txqueuelen 0 up"),
            format!("ip address add {}/{bits} dev {device}", own.base),
            format!("ip neigh replace {base} dev {device} lladdr {mac} nud permanent"),
            format!("ip route replace {subnet} via {base} dev {device} onlink proto boot"),
            format!("bridge fdb replace {mac} dev {device} dst {underlay} self permanent"),
        ]
    },
};

/// Without next-hop objects: an old kernel, or as the operator wants it.
pub(crate) const VXLAN_PLAIN: BackendCase = BackendCase {
    flags: &["--nexthop-objects=off"],
    adoptions: 0,
    adopt: |_, _| (),
    damages: vxlan_damages,
    ..VXLAN
};

/// All nodes are on-link. What VXLAN needs is there, too, but for the route: on purpose, so that a peer that
/// leaves the link is reached by replacing that alone.
pub(crate) const VXLAN_DIRECT: BackendCase = BackendCase {
    keys: r#","DirectRouting":true"#,
    golden: &["vxlan-directrouting"],
    takeover: &["vxlan-directrouting"],
    // The object that is tried, twice; neighbour, FDB entry, next-hop object; the mark.
    adoptions: 6,
    adopt: |state, peers| {
        for line in &mut state.routes {
            *line = line.replace("proto boot", "proto 102");
        }
        for Remote { device, base, mac, underlay, .. } in peers {
            state.next_hops.push(format!("id N via {base} dev {device} scope link proto 102 onlink "));
            state.neighbours.push(format!("{base} dev {device} lladdr {mac} PERMANENT "));
            state.fdb.push(format!("{mac} dev {device} dst {underlay} self permanent"));
        }
    },
    is_peer_route: HOST_GW.is_peer_route,
    wipe: &[
        "ip link del flannel.1",
        "ip link del flannel-v6.1",
        "ip route flush proto 102",
        "ip -6 route flush proto 102",
    ],
    damages: vxlan_direct_damages,
    as_go_leaves_it: |own, peer| {
        let mut commands = (VXLAN.as_go_leaves_it)(own, peer);
        commands.retain(|command| command.starts_with("ip link") || command.starts_with("ip address"));
        commands.extend((HOST_GW.as_go_leaves_it)(own, peer));
        commands
    },
    ..VXLAN
};

/// Direct, and the others by plain routes.
pub(crate) const VXLAN_DIRECT_PLAIN: BackendCase =
    BackendCase { flags: &["--nexthop-objects=off"], ..VXLAN_DIRECT };

pub(crate) const HOST_GW: BackendCase = BackendCase {
    kind: "host-gw",
    keys: "",
    flags: &[],
    families: &[Families::Dual, Families::V4, Families::V6],
    overhead: [0, 0],
    golden: &["host-gw", "host-gw-dual"],
    takeover: &["host-gw", "host-gw-dual"],
    in_kernel: true,
    routes_peers: true,
    // The mark, put on in place.
    adoptions: 1,
    adopt: |state, _| {
        for line in state.routes.iter_mut().chain(&mut state.routes6) {
            *line = line.replace("proto boot", "proto 102");
        }
    },
    is_peer_route: |line| line.contains(" via ") && line.contains("dev eth0"),
    data: |_| json!({}),
    damages: host_gw_damages,
    wipe: &["ip route flush proto 102", "ip -6 route flush proto 102"],
    foreign: &[],
    as_go_leaves_it: |_, peer| {
        vec![format!("ip route replace {} via {} dev eth0 proto boot", peer.subnet, peer.underlay)]
    },
};

pub(crate) const UDP: BackendCase = BackendCase {
    kind: "udp",
    keys: "",
    flags: &[],
    families: &[Families::Dual, Families::V4, Families::V6],
    overhead: [28, 48],
    golden: &["udp"],
    takeover: &["udp"],
    in_kernel: false,
    routes_peers: false,
    adoptions: 0,
    adopt: |_, _| (),
    // Peers have no routes of their own: see `Bed::wait_for_peers`.
    is_peer_route: |_| false,
    data: |_| json!({ "BackendV6Data": { "Port": 8285 } }),
    damages: udp_damages,
    wipe: &[],
    foreign: &[
        "ip address add 172.31.0.1/32 dev flannel0",
        "ip route add 172.31.9.0/24 dev flannel0",
        "ip address add fd00:99::1/128 dev flannel0 nodad",
        "ip route add fd00:98::/64 dev flannel0",
    ],
    // The TUN goes with the process, and everything with the TUN.
    as_go_leaves_it: |_, _| Vec::new(),
};

/// Only for kernels with the module `wireguard`, so in the VM.
pub(crate) const WIREGUARD: BackendCase = BackendCase {
    kind: "wireguard",
    keys: "",
    flags: &["--wireguard=kernel"],
    families: &[Families::Dual, Families::V4, Families::V6],
    overhead: [80, 80],
    // No Go node of that kind was recorded; the row of a take-over lays out what it leaves.
    golden: &[],
    takeover: &[],
    in_kernel: true,
    routes_peers: true,
    adoptions: 0,
    adopt: |_, _| (),
    is_peer_route: |line| line.contains("dev flannel-wg") && line.contains("proto 102"),
    data: |n| {
        let letter = |n: u8| char::from(b'A' + n % 26);
        let key = format!("{}{}{}=", letter(n / 26 + 1), letter(n), "A".repeat(41));
        json!({
            "BackendData": { "PublicKey": key, "Port": 51820 },
            "BackendV6Data": { "PublicKey": key, "Port": 51821 },
        })
    },
    damages: wireguard_damages,
    wipe: &["ip link del flannel-wg", "ip link del flannel-wg-v6"],
    foreign: &[
        "ip address add 172.31.0.1/32 dev flannel-wg",
        "ip route add 172.31.9.0/24 dev flannel-wg",
        "ip address add fd00:99::1/128 dev flannel-wg-v6 nodad",
        "ip route add fd00:98::/64 dev flannel-wg-v6",
    ],
    as_go_leaves_it: |own, peer| {
        let Remote { device, .. } = peer;
        let (network, bits) =
            if own.base.contains(':') { ("fd00:10:244::/56", 128) } else { ("10.244.0.0/16", 32) };
        vec![
            format!("ip address add {}/{bits} dev {device}", own.base),
            format!("ip link set {device} mtu 1420 up"),
            format!("ip route replace {network} dev {device} scope link proto boot"),
        ]
    },
};

/// One device for both families.
pub(crate) const WIREGUARD_SINGLE: BackendCase = BackendCase { keys: r#","Mode":"ipv6""#, ..WIREGUARD };

/// The same in the agent's process.
pub(crate) const WIREGUARD_USERSPACE: BackendCase =
    BackendCase { flags: &["--wireguard=userspace"], in_kernel: false, wipe: &[], ..WIREGUARD };

/// One device for both families, in the agent's process.
pub(crate) const WIREGUARD_USERSPACE_SINGLE: BackendCase =
    BackendCase { keys: WIREGUARD_SINGLE.keys, ..WIREGUARD_USERSPACE };

/// Only for kernels with the module `ipip`, so in the VM.
pub(crate) const IPIP: BackendCase = BackendCase {
    kind: "ipip",
    keys: "",
    flags: &[],
    families: &[Families::V4],
    overhead: [20, 20],
    // No Go node of that kind was recorded; what it leaves is in `as_go_leaves_it`.
    golden: &[],
    takeover: &[],
    in_kernel: true,
    routes_peers: true,
    adoptions: 0,
    adopt: |_, _| (),
    is_peer_route: |line| line.contains("dev flannel.ipip") && line.contains("onlink"),
    data: |_| json!({}),
    damages: ipip_damages,
    wipe: &["ip link del flannel.ipip"],
    foreign: &[
        "ip address add 172.31.0.1/32 dev flannel.ipip",
        "ip route add 172.31.9.0/24 dev flannel.ipip",
    ],
    as_go_leaves_it: |own, peer| {
        let Remote { device, subnet, underlay, .. } = peer;
        vec![
            format!("ip link add {device} type ipip mode any local {} nopmtudisc", own.underlay),
            format!("ip link set {device} mtu 1480 up"),
            format!("ip address add {}/32 dev {device}", own.base),
            format!("ip route replace {subnet} via {underlay} dev {device} onlink proto boot"),
        ]
    },
};

/// All nodes are on-link, and routed directly. The device is there, too, for those that leave the link.
pub(crate) const IPIP_DIRECT: BackendCase = BackendCase {
    keys: r#","DirectRouting":true"#,
    is_peer_route: HOST_GW.is_peer_route,
    damages: |two, three, own| {
        let on_link = |remote: &Remote| Remote { device: "eth0", ..remote.clone() };
        let damages = ipip_damages(&on_link(two), &on_link(three), own);
        damages.into_iter().filter(|(name, _)| name.contains("route")).collect()
    },
    ..IPIP
};

/// Its commands do what host-gw does.
pub(crate) const EXTENSION: BackendCase = BackendCase {
    kind: "extension",
    keys: r#","PreStartupCommand":"hostname","SubnetAddCommand":"ip route replace $SUBNET via ${PUBLIC_IP}",
        "SubnetRemoveCommand":["sh","-c","cat >>/run/removed; ip route del \"$$SUBNET\""]"#,
    families: &[Families::V4],
    ..HOST_GW
};

/// Others route to the nodes.
pub(crate) const ALLOC: BackendCase =
    BackendCase { kind: "alloc", keys: "", families: &[Families::V4], ..HOST_GW };
