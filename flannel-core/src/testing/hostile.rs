//! Records that every node must refuse by name and without effect on others: one table for all backends and
//! both layers, the pure tables and whole clusters.

use std::net::IpAddr;

use serde_json::{Value, json};

use crate::addr::{Family, PerFamily, Subnet};
use crate::lease::{Lease, LeaseKey, LeaseTable, LeaseUpdate, UnreadableRecords};
use crate::peers::{Claim, Peer, PeerError, PeerTable, Segments};

/// The good records of a cluster, of which the bad ones are made: key below `subnets/`, and value.
#[derive(Debug, Clone)]
pub struct Scene {
    /// The kind of the backend.
    pub kind: &'static str,
    /// The record of the node that judges.
    pub own: (String, String),
    /// The record of a peer.
    pub peer: (String, String),
    /// What another node would publish, which is not there.
    pub stranger: (String, String),
}

/// A record that must be refused.
#[derive(Debug, Clone)]
pub struct Hostile {
    /// What it is.
    pub name: &'static str,
    /// The key below `subnets/`.
    pub key: String,
    /// The value.
    pub value: Vec<u8>,
    /// What the reason must contain.
    pub says: String,
    /// Whether it is used once the peer's record is gone.
    pub rival: bool,
}

impl Scene {
    fn subnet_of(record: &(String, String)) -> Subnet {
        let key: LeaseKey = record.0.parse().expect("a good record has a good key");
        key.subnet(Family::V4).expect("a scene has IPv4")
    }

    /// The underlay's subnets: the /24 and the /64 around the node that judges.
    fn segments(&self) -> Segments {
        let own = Self::value(&self.own);
        let addr = |member: &str| own[member].as_str().and_then(|addr| addr.parse::<IpAddr>().ok());
        let prefix = |addr: IpAddr| if addr.is_ipv4() { 24 } else { 64 };
        let addresses = ["PublicIP", "PublicIPv6"].into_iter().filter_map(addr);
        Segments::new(addresses.filter_map(|addr| ipnetwork::IpNetwork::new(addr, prefix(addr)).ok()))
    }

    fn value(record: &(String, String)) -> Value {
        serde_json::from_str(&record.1).expect("a good record has a good value")
    }

    /// The stranger's key with another IPv4 part.
    fn key(&self, v4: &str) -> String {
        match self.stranger.0.split_once('&') {
            Some((_, v6)) => format!("{v4}&{v6}"),
            None => v4.to_owned(),
        }
    }

    /// The stranger's value with one member changed.
    fn value_with(&self, member: &str, value: Value) -> String {
        let mut all = Self::value(&self.stranger);
        all[member] = value;
        all.to_string()
    }

    /// All records that must be refused.
    pub fn cases(&self) -> Vec<Hostile> {
        let mut cases = self.keys();
        cases.extend(self.addresses());
        cases.extend(self.values());
        if self.kind == "vxlan" {
            cases.extend(self.macs());
        }
        cases
    }

    /// Subnets that can't be a node's.
    fn keys(&self) -> Vec<Hostile> {
        let (own, peer) = (Self::subnet_of(&self.own), Self::subnet_of(&self.peer));
        let half = |subnet: Subnet| format!("{}-{}", subnet.base(), subnet.prefix() + 1);
        let wide = |subnet: Subnet| {
            let wide = Subnet::containing(subnet.base(), subnet.prefix() - 1).expect("still a prefix");
            format!("{}-{}", wide.base(), wide.prefix())
        };
        let v4 = self.stranger.0.split('&').next().expect("split yields something").to_owned();
        let base = v4.split('-').next().expect("split yields something");
        let case = |name, key: String, says: &str| Self::case(name, key, &self.stranger.1, says);
        let no_part = "is no part of the network";
        let form = "has not the form";
        let mut cases = vec![
            case("outside of the network", self.key("10.99.1.0-24"), &format!("10.99.1.0/24 {no_part}")),
            case("around the underlay", self.key("192.168.77.0-24"), &format!("192.168.77.0/24 {no_part}")),
            case("the whole network", self.key("10.244.0.0-16"), &format!("10.244.0.0/16 {no_part}")),
            case("wider than the network", self.key("10.0.0.0-8"), &format!("10.0.0.0/8 {no_part}")),
            case("half of ours", self.key(&half(own)), &format!("overlaps {own} of this node; ")),
            case("twice ours", self.key(&wide(own)), &format!("overlaps {own} of this node; ")),
            case("half of a peer's", self.key(&half(peer)), &format!("overlaps {peer} of lease ")),
            case("a length that is none", format!("{base}-33"), form),
            case("a single address", format!("{base}-32"), form),
            case("no length", base.to_owned(), form),
            case("another spelling", v4.replace(".0-", ".7-"), &format!("should be written \"{v4}\"")),
            case("two subnets of one family", format!("{v4}&10.244.9.0-24"), form),
            case("IPv6 in the place of IPv4", "fd00:10:244:9::-64".to_owned(), form),
            case("a key of another thing", "config".to_owned(), form),
            case("an absurdly long key", format!("{v4}{}", "9".repeat(230)), form),
            case("a key that would break a line", format!("{v4}\nerror: all is lost"), "\\nerror"),
        ];
        cases[6].rival = true;
        if self.stranger.0.contains('&') {
            let key = format!("{v4}&fd00:99::-64");
            cases.push(case("IPv6 outside of the network", key, &format!("fd00:99::/64 {no_part}")));
        }
        cases
    }

    /// Underlay addresses that can't be a node's.
    fn addresses(&self) -> Vec<Hostile> {
        let inside = |record: &(String, String)| match Self::subnet_of(record).base() {
            IpAddr::V4(base) => (base | std::net::Ipv4Addr::new(0, 0, 0, 7)).to_string(),
            IpAddr::V6(_) => unreachable!("asked for IPv4"),
        };
        let case = |name, member: &str, addr: &str, says: String| {
            Self::case(name, self.stranger.0.clone(), &self.value_with(member, addr.into()), &says)
        };
        let v4 =
            |name, addr: &str, says: &str| case(name, "PublicIP", addr, format!("PublicIP {addr} {says}"));
        let own_ip = Self::value(&self.own)["PublicIP"].as_str().unwrap_or_default().to_owned();
        let peers = Self::subnet_of(&self.peer);
        let mut cases = vec![
            v4("multicast", "224.0.0.1", "is a multicast address"),
            v4("loopback", "127.0.0.1", "is a loopback address"),
            v4("broadcast", "255.255.255.255", "is the broadcast address"),
            v4("this network", "0.1.2.3", "is a reserved address"),
            v4("class E", "245.1.2.3", "is a reserved address"),
            v4(
                "underlay's broadcast",
                "192.168.77.255",
                "is the broadcast address of the underlay 192.168.77.0/24",
            ),
            v4(
                "underlay's network",
                "192.168.77.0",
                "is the network address of the underlay 192.168.77.0/24",
            ),
            case("unspecified", "PublicIP", "0.0.0.0", "PublicIP is missing".to_owned()),
            v4("our own address", &own_ip, "is the underlay address of this node"),
            v4("in its own subnet", &inside(&self.stranger), "lies in its own subnet"),
            v4("in our subnet", &inside(&self.own), "lies in the subnet"),
            v4("in a peer's subnet", &inside(&self.peer), &format!("lies in the subnet {peers} of lease")),
            case("an address of the other family", "PublicIP", "fd00::1", "PublicIP of the value".to_owned()),
            case("no address", "PublicIP", "here", "PublicIP of the value can't be used".to_owned()),
        ];
        let rival = cases.iter_mut().find(|case| case.name == "in a peer's subnet");
        rival.expect("it is above").rival = true;
        if self.stranger.0.contains('&') {
            for (name, addr, says) in [
                ("IPv6 multicast", "ff02::1", "is a multicast address"),
                ("IPv6 loopback", "::1", "is a loopback address"),
                (
                    "underlay's IPv6 network",
                    "fd00:77::",
                    "is the network address of the underlay fd00:77::/64",
                ),
                ("IPv4 in IPv6", "::ffff:192.0.2.1", "is an IPv4-mapped address"),
            ] {
                cases.push(case(name, "PublicIPv6", addr, format!("PublicIPv6 {addr} {says}")));
            }
        }
        cases
    }

    /// Values that are no lease's.
    fn values(&self) -> Vec<Hostile> {
        let key = || self.stranger.0.clone();
        let case = |name, value: &str, says: &str| Self::case(name, key(), value, says);
        let twice = self.stranger.1.replacen('{', r#"{"PublicIP":"192.168.77.240","#, 1);
        let twice = twice[..twice.len() - 1].to_owned() + r#","publicip":"224.0.0.9"}"#;
        let deep = "[".repeat(30_000);
        let long = "x".repeat(60_000);
        let no_object = "the value is not a JSON object";
        vec![
            case("nothing", "", no_object),
            case("null", "null", no_object),
            case("no JSON", "PublicIP=192.0.2.1", no_object),
            case("a list", "[]", no_object),
            case("half an object", &self.stranger.1[..self.stranger.1.len() / 2], no_object),
            case("deep nesting", &deep, no_object),
            case(
                "deep nesting in a member",
                &format!(r#"{{"PublicIP":{deep}{}}}"#, deep.replace('[', "]")),
                "PublicIP of",
            ),
            case(
                "a number for an address",
                &self.value_with("PublicIP", json!(7)),
                "PublicIP of the value can't",
            ),
            case(
                "a backend type that is none",
                &self.value_with("BackendType", json!({})),
                "BackendType of the",
            ),
            case(
                "another backend",
                &self.value_with("BackendType", json!("ipsec")),
                "its backend is \"ipsec\"",
            ),
            case("an absurdly long member", &self.value_with("BackendType", json!(long)), "xxx.. ("),
            case("a megabyte", &self.value_with("Junk", json!("x".repeat(1 << 20))), "larger|bytes"),
            case("a name twice, the last one bad", &twice, "224.0.0.9 is a multicast"),
            Hostile { value: vec![0xff, 0xfe, b'{', b'}'], ..case("not UTF-8", "", "the value is not text") },
        ]
    }

    /// VTEP MACs that can't be a node's.
    fn macs(&self) -> Vec<Hostile> {
        let mac_of = |record: &(String, String)| Self::value(record)["BackendData"]["VtepMAC"].clone();
        let with = |mac: Value| {
            let mut data = Self::value(&self.stranger)["BackendData"].clone();
            data["VtepMAC"] = mac;
            self.value_with("BackendData", data)
        };
        let case = |name, mac: Value, says: &str| Self::case(name, self.stranger.0.clone(), &with(mac), says);
        let mut cases = vec![
            case("our VTEP MAC", mac_of(&self.own), "is that of this node"),
            case("a peer's VTEP MAC", mac_of(&self.peer), "is that of lease"),
            case("a group's MAC", json!("01:00:5e:00:00:01"), "is no station's"),
            case("no MAC at all", json!("00:00:00:00:00:00"), "is no station's"),
            case("unreadable MAC", json!("x"), "VtepMAC"),
            case("missing MAC", Value::Null, "VtepMAC is missing"),
        ];
        cases[1].rival = true;
        let data = self.value_with("BackendData", json!("text"));
        cases.push(Self::case("data of another form", self.stranger.0.clone(), &data, "BackendData"));
        cases
    }

    fn case(name: &'static str, key: String, value: &str, says: &str) -> Hostile {
        Hostile { name, key, value: value.as_bytes().to_vec(), says: says.to_owned(), rival: false }
    }
}

impl Hostile {
    /// Whether a text names the record and says why it is refused.
    pub fn is_named_by(&self, text: &str) -> bool {
        let key: String = self.key.escape_debug().take(40).collect();
        text.contains(&key) && self.says.split('|').any(|says| text.contains(says))
    }
}

/// Runs all cases through the tables of leases and peers, as the loop does. `peer` is what the backend makes of
/// a lease.
///
/// # Panics
/// If one is not refused by name, or changes what the others ask for.
pub fn judge(
    scene: &Scene,
    networks: PerFamily<Subnet>,
    own: Vec<Claim>,
    peer: impl Fn(&Lease) -> Result<Peer, PeerError>,
) {
    let mut bench = Bench { leases: LeaseTable::default(), peers: PeerTable::new(Vec::new(), own), peer };
    bench.peers.confine(networks);
    bench.peers.place(scene.segments());
    let good = Lease::decode(&scene.peer.0, scene.peer.1.as_bytes(), 1).expect("a good record");
    let stranger = Lease::decode(&scene.stranger.0, scene.stranger.1.as_bytes(), 2).expect("a good record");
    bench.apply(LeaseUpdate::Snapshot {
        leases: vec![good.clone()],
        unreadable: UnreadableRecords::default(),
    });
    let want = bench.peers.want().clone();
    bench.apply(LeaseUpdate::Put(stranger));
    assert_eq!((bench.rejected(), bench.peers.programmed()), (Vec::new(), 2), "the stranger itself is good");
    bench.apply(LeaseUpdate::Removed(scene.stranger.0.clone()));
    assert_eq!(*bench.peers.want(), want);
    for case in scene.cases() {
        let name = case.name;
        bench.apply(match Lease::decode(&case.key, &case.value, 3) {
            Ok(lease) => LeaseUpdate::Put(lease),
            Err(bad) => LeaseUpdate::Unreadable(bad),
        });
        let said = bench.rejected();
        assert!(said.len() == 1 && case.is_named_by(&said[0]), "{name}: {said:?} instead of {:?}", case.says);
        assert!(said[0].len() < 1000 && !said[0].contains('\n'), "{name}: fits no log: {said:?}");
        let advises = ["delete", "put it right"].iter().any(|word| said[0].contains(word));
        assert!(advises || name == "another backend" || case.says.starts_with("xxx"), "{said:?}");
        assert_eq!((bench.peers.want(), bench.peers.programmed()), (&want, 1), "{name}");
        if case.rival {
            bench.apply(LeaseUpdate::Removed(scene.peer.0.clone()));
            assert_eq!((bench.rejected(), bench.peers.programmed()), (Vec::new(), 1), "{name}: used at last");
            bench.apply(LeaseUpdate::Put(good.clone()));
        }
        bench.apply(LeaseUpdate::Removed(case.key.clone()));
        assert_eq!((bench.rejected(), bench.peers.want()), (Vec::new(), &want), "{name}");
    }
}

struct Bench<F> {
    leases: LeaseTable,
    peers: PeerTable,
    peer: F,
}

impl<F: Fn(&Lease) -> Result<Peer, PeerError>> Bench<F> {
    fn apply(&mut self, update: LeaseUpdate) {
        for change in self.leases.apply(update) {
            match change.after {
                Some(lease) => self.peers.put(change.key, (&*lease).into(), (self.peer)(&lease)),
                None => self.peers.remove(&change.key),
            };
        }
    }

    fn rejected(&self) -> Vec<String> {
        let bad = self.leases.unreadable().named().map(|record| record.to_string());
        bad.chain(self.peers.problems().map(|(key, why)| format!("lease {key}: {why}"))).collect()
    }
}
