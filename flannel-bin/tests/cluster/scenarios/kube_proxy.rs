//! What kube-proxy writes, by iptables or nftables, for the few services there are here.
//!
//! Upstream: Kubernetes, `pkg/proxy/iptables/proxier.go` and `pkg/proxy/nftables/proxier.go`, without the chains that
//! stay empty here.

use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};

use flannel_lab::netns::Netns;

/// A service: its cluster IP and port, and where it is served.
pub(super) struct Service {
    pub(super) name: &'static str,
    pub(super) at: SocketAddr,
    pub(super) protocol: &'static str,
    pub(super) endpoints: Vec<SocketAddr>,
}

/// The network of all pods, as `--cluster-cidr` has it.
fn pods(v6: bool) -> &'static str {
    if v6 { "fd00:10:244::/56" } else { "10.244.0.0/16" }
}

/// The chains that are there before any service.
pub(super) fn start(node: &Netns, nftables: bool) {
    serve(node, nftables, &[]);
}

/// Makes a node forward what is for these services.
pub(super) fn serve(node: &Netns, nftables: bool, services: &[Service]) {
    for v6 in [false, true] {
        let of_family = services.iter().filter(|service| service.at.is_ipv6() == v6).collect::<Vec<_>>();
        let (program, script) = match (nftables, v6) {
            (true, _) => ("nft -f -", nft(v6, &of_family)),
            (false, false) => ("iptables-restore -w 5 --noflush", iptables(v6, &of_family)),
            (false, true) => ("ip6tables-restore -w 5 --noflush", iptables(v6, &of_family)),
        };
        super::sh(node, &format!("{program} <<'END'\n{script}END"));
    }
}

/// The jumps in built-in chains: table, chain and the rest.
const JUMPS: [(&str, &str, &str); 7] = [
    (
        "filter",
        "FORWARD",
        r#"-m conntrack --ctstate NEW -m comment --comment "kubernetes load balancer firewall" -j KUBE-PROXY-FIREWALL"#,
    ),
    ("filter", "FORWARD", r#"-m comment --comment "kubernetes forwarding rules" -j KUBE-FORWARD"#),
    (
        "filter",
        "FORWARD",
        r#"-m conntrack --ctstate NEW -m comment --comment "kubernetes service portals" -j KUBE-SERVICES"#,
    ),
    (
        "filter",
        "FORWARD",
        r#"-m conntrack --ctstate NEW -m comment --comment "kubernetes externally-visible service portals" -j KUBE-EXTERNAL-SERVICES"#,
    ),
    ("nat", "PREROUTING", r#"-m comment --comment "kubernetes service portals" -j KUBE-SERVICES"#),
    ("nat", "OUTPUT", r#"-m comment --comment "kubernetes service portals" -j KUBE-SERVICES"#),
    ("nat", "POSTROUTING", r#"-m comment --comment "kubernetes postrouting rules" -j KUBE-POSTROUTING"#),
];

/// The jumps of a chain, as `iptables -S` lists them.
pub(super) fn jumps(table: &str, chain: &str) -> Vec<String> {
    let of_chain = JUMPS.iter().filter(|(in_table, from, _)| (*in_table, *from) == (table, chain));
    of_chain.map(|(_, _, rule)| format!("-A {chain} {rule}")).collect()
}

fn iptables(v6: bool, services: &[&Service]) -> String {
    let mut nat = String::new();
    let mut chains = String::new();
    for Service { name, at, protocol, endpoints } in services {
        let (name, ip, port) = (name.to_uppercase(), at.ip(), at.port());
        let to_it = format!("-d {ip} -p {protocol} -m {protocol} --dport {port}");
        writeln!(chains, ":KUBE-SVC-{name} - [0:0]").unwrap();
        writeln!(nat, "-A KUBE-SERVICES {to_it} -j KUBE-SVC-{name}").unwrap();
        writeln!(nat, "-A KUBE-SVC-{name} ! -s {} {to_it} -j KUBE-MARK-MASQ", pods(v6)).unwrap();
        for (number, endpoint) in endpoints.iter().enumerate() {
            let chain = format!("KUBE-SEP-{name}-{number}");
            let left = endpoints.len() - number;
            let some = if left > 1 {
                format!("-m statistic --mode random --probability {:.10} ", 1.0 / left as f64)
            } else {
                String::new()
            };
            writeln!(chains, ":{chain} - [0:0]").unwrap();
            writeln!(nat, "-A KUBE-SVC-{name} {some}-j {chain}").unwrap();
            writeln!(nat, "-A {chain} -s {} -j KUBE-MARK-MASQ", endpoint.ip()).unwrap();
            writeln!(nat, "-A {chain} -p {protocol} -m {protocol} -j DNAT --to-destination {endpoint}")
                .unwrap();
        }
    }
    // Those of built-in chains are there after the first time.
    let jumps = |of: &str| {
        let jumps = JUMPS.iter().filter(|(table, ..)| *table == of && services.is_empty());
        jumps.fold(String::new(), |text, (_, chain, rule)| format!("{text}-A {chain} {rule}\n"))
    };
    format!(
        "*filter\n:KUBE-PROXY-FIREWALL - [0:0]\n:KUBE-FORWARD - [0:0]\n:KUBE-SERVICES - [0:0]\n\
         :KUBE-EXTERNAL-SERVICES - [0:0]\n{}\
         -A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP\n\
         -A KUBE-FORWARD -m mark --mark 0x4000/0x4000 -j ACCEPT\n\
         -A KUBE-FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\nCOMMIT\n\
         *nat\n:KUBE-SERVICES - [0:0]\n:KUBE-POSTROUTING - [0:0]\n:KUBE-MARK-MASQ - [0:0]\n{chains}{}\
         -A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN\n\
         -A KUBE-POSTROUTING -j MARK --xor-mark 0x4000\n\
         -A KUBE-POSTROUTING -j MASQUERADE --random-fully\n\
         -A KUBE-MARK-MASQ -j MARK --or-mark 0x4000\n{nat}COMMIT\n",
        jumps("filter"),
        jumps("nat"),
    )
}

fn nft(v6: bool, services: &[&Service]) -> String {
    let family = if v6 { "ip6" } else { "ip" };
    let (mut map, mut chains) = (String::new(), String::new());
    for Service { name, at, protocol, endpoints } in services {
        writeln!(
            map,
            "add element {family} kube-proxy service-ips {{ {} . {protocol} . {} : goto service-{name} }}",
            at.ip(),
            at.port()
        )
        .unwrap();
        writeln!(chains, "add chain {family} kube-proxy service-{name}").unwrap();
        writeln!(
            chains,
            "add rule {family} kube-proxy service-{name} {family} daddr {} {protocol} dport {} {family} saddr != {} jump mark-for-masquerade",
            at.ip(),
            at.port(),
            pods(v6)
        )
        .unwrap();
        let mut ways = Vec::new();
        for (number, endpoint) in endpoints.iter().enumerate() {
            let chain = format!("endpoint-{name}-{number}");
            writeln!(chains, "add chain {family} kube-proxy {chain}").unwrap();
            writeln!(
                chains,
                "add rule {family} kube-proxy {chain} {family} saddr {} jump mark-for-masquerade",
                endpoint.ip()
            )
            .unwrap();
            writeln!(
                chains,
                "add rule {family} kube-proxy {chain} meta l4proto {protocol} dnat to {endpoint}"
            )
            .unwrap();
            ways.push(format!("{number} : goto {chain}"));
        }
        let (count, ways) = (endpoints.len(), ways.join(", "));
        writeln!(
            chains,
            "add rule {family} kube-proxy service-{name} numgen random mod {count} vmap {{ {ways} }}"
        )
        .unwrap();
    }
    let address = if v6 { "ipv6_addr" } else { "ipv4_addr" };
    format!(
        "add table {family} kube-proxy\n\
         delete table {family} kube-proxy\n\
         table {family} kube-proxy {{\n\
         map service-ips {{ type {address} . inet_proto . inet_service : verdict; }}\n\
         chain mark-for-masquerade {{ meta mark set meta mark or 0x4000; }}\n\
         chain masquerading {{\n\
         meta mark & 0x4000 == 0 return\n\
         meta mark set meta mark xor 0x4000\n\
         masquerade fully-random\n}}\n\
         chain services {{ {family} daddr . meta l4proto . th dport vmap @service-ips; }}\n\
         chain nat-prerouting {{ type nat hook prerouting priority dstnat; jump services; }}\n\
         chain nat-output {{ type nat hook output priority -100; jump services; }}\n\
         chain nat-postrouting {{ type nat hook postrouting priority srcnat; jump masquerading; }}\n\
         }}\n{chains}{map}"
    )
}

/// A service in one family, at the same port on each endpoint.
pub(super) fn service(
    name: &'static str,
    at: IpAddr,
    (port, target): (u16, u16),
    protocol: &'static str,
    endpoints: impl IntoIterator<Item = IpAddr>,
) -> Service {
    let endpoints = endpoints.into_iter().map(|ip| SocketAddr::new(ip, target)).collect();
    Service { name, at: SocketAddr::new(at, port), protocol, endpoints }
}
