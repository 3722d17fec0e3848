//! Records that every node must refuse, in all their shapes. Pure.

use std::net::IpAddr;

use flannel_lab::cluster::Families;
use ipnetwork::IpNetwork;
use serde_json::{Value, json};

use crate::model::{Backend, Lease, Side};
use crate::phantom::Phantom;

/// A record: any bytes, where the store takes them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Record {
    pub(super) key: String,
    pub(super) value: Vec<u8>,
    /// Whether a Kubernetes node can say it, whose key is made of subnets and whose value is text.
    pub(super) in_kube: bool,
}

/// The subnets of hostile records, which neither phantoms nor nodes nor beats have, and one of their hosts.
const SUBNET: u8 = 190;
const HOST: u8 = 250;

/// Makes records for a cluster.
#[derive(Debug, Clone, Copy)]
pub(super) struct Shapes<'a> {
    pub(super) backend: Backend,
    pub(super) families: Families,
    /// The leases of honest nodes.
    pub(super) nodes: &'a [Lease],
}

impl Shapes<'_> {
    /// All of them, but for the giants.
    pub(super) fn all(self) -> Vec<Record> {
        let mut all = self.keys();
        all.extend(self.covering());
        all.extend(self.contradicting());
        all.extend(self.values());
        if self.backend.identity().is_some() {
            all.extend(self.identities());
        }
        all
    }

    /// One of many values as large as etcd takes.
    pub(super) fn giant(self, number: usize) -> Record {
        let mut value = self.good_value();
        value["BackendType"] = "x".repeat(1_400_000).into();
        Record { key: format!("giant-{number}"), value: value.to_string().into_bytes(), in_kube: true }
    }

    fn good(self) -> Lease {
        Phantom { subnet: SUBNET, host: HOST, mac: 0xbad0 }.lease(self.backend, self.families)
    }

    fn good_value(self) -> Value {
        serde_json::from_str(&self.good().value(self.backend)).expect("a lease's value is JSON")
    }

    fn record(self, lease: &Lease) -> Record {
        Record { key: lease.key(), value: lease.value(self.backend).into_bytes(), in_kube: true }
    }

    /// Names that are no subnet's.
    fn keys(self) -> Vec<Record> {
        let long = "9".repeat(230);
        let keys = [
            "junk",
            "config",
            "10.42.300.0-24",
            "10.42.190.0-33",
            "10.42.190.0",
            "10.42.190.7-24",
            "10.42.190.0-24 ",
            "10.42.190.0-24\nlevel=error all is lost",
            "10.42.190.0-24&10.42.191.0-24",
            "fd00:42:0:be::-64",
            "\u{202e}42-0.091.24.01",
            &long,
        ];
        let value = self.good_value().to_string().into_bytes();
        keys.map(|key| Record { key: key.to_owned(), value: value.clone(), in_kube: key == "junk" }).into()
    }

    /// Subnets that hold those of others, or all.
    fn covering(self) -> Vec<Record> {
        let v4 = ["10.42.0.0/17", "10.42.128.0/17", "10.42.0.0/16", "10.0.0.0/8", "10.99.1.0/24"];
        let v6 = ["fd00:42::/57", "fd00:42:0:80::/57", "fd00:42::/48", "fd00::/16", "fd00:99::/64"];
        let subnets = v4.iter().chain(&v6).map(|subnet| subnet.parse::<IpNetwork>().expect("it is a subnet"));
        let with = |subnet: IpNetwork| {
            let mut lease = self.good();
            let side = lease.0.iter_mut().find(|side| side.subnet.is_ipv6() == subnet.is_ipv6())?;
            side.subnet = subnet;
            Some(self.record(&lease))
        };
        subnets.filter_map(with).collect()
    }

    /// Underlay addresses that are another's, or nobody's.
    fn contradicting(self) -> Vec<Record> {
        let nodes = self.nodes.iter().flat_map(|lease| &lease.0).map(|side| side.underlay);
        let pods = self.nodes.iter().flat_map(|lease| &lease.0).map(Side::base);
        let nobodys = ["224.0.0.1", "127.0.0.1", "255.255.255.255", "0.1.2.3", "ff02::1", "::1"];
        let broadcast = ["192.168.77.255", "192.168.77.0"];
        let nobodys =
            nobodys.iter().chain(&broadcast).map(|text| text.parse::<IpAddr>().expect("an address"));
        let with = |underlay: IpAddr| {
            let mut lease = self.good();
            let side = lease.0.iter_mut().find(|side| side.subnet.is_ipv6() == underlay.is_ipv6())?;
            side.underlay = underlay;
            Some(self.record(&lease))
        };
        nodes.chain(pods).chain(nobodys).filter_map(with).collect()
    }

    /// Values that are no lease's.
    fn values(self) -> Vec<Record> {
        let good = self.good_value();
        let address = if self.families.v4() { "PublicIP" } else { "PublicIPv6" };
        let with = |member: &str, value: Value| {
            let mut all = good.clone();
            all[member] = value;
            all.to_string()
        };
        let another = if self.backend == Backend::Wireguard { Backend::Vxlan } else { Backend::Wireguard };
        let whole = good.to_string();
        let texts = [
            String::new(),
            "null".to_owned(),
            "[]".to_owned(),
            "no JSON".to_owned(),
            whole[..whole.len() / 2].to_owned(),
            "[".repeat(30_000),
            with(address, json!(7)),
            with(address, json!("here")),
            with("BackendType", json!({})),
            with("BackendType", json!(another.name())),
            with("BackendType", json!("x".repeat(60_000))),
        ];
        let key = self.good().key();
        let record = |value: Vec<u8>, in_kube| Record { key: key.clone(), value, in_kube };
        let texts = texts.into_iter().map(|text| record(text.into_bytes(), true));
        texts.chain([record(vec![0xff, 0xfe, b'{', b'}'], false)]).collect()
    }

    /// VTEP MACs or public keys that are another's, or nobody's.
    fn identities(self) -> Vec<Record> {
        let nodes = self.nodes.iter().flat_map(|lease| &lease.0).filter_map(|side| side.mac.clone());
        let zeros = format!("{}=", "A".repeat(43));
        let nobodys = match self.backend {
            Backend::Wireguard => [&zeros, "c2hvcnQ=", "x", ""],
            _ => ["01:00:5e:00:00:01", "00:00:00:00:00:00", "x", ""],
        };
        let nobodys = nobodys.map(str::to_owned);
        let with = |mac: String| {
            let mut lease = self.good();
            lease.0[0].mac = Some(mac);
            self.record(&lease)
        };
        nodes.chain(nobodys).map(with).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_shape_differs_from_a_good_record() {
        for backend in [Backend::Vxlan, Backend::HostGw, Backend::Udp, Backend::Wireguard] {
            for families in [Families::V4, Families::V6, Families::Dual] {
                let node = Phantom { subnet: 200, host: 11, mac: 7 }.lease(backend, families);
                let shapes = Shapes { backend, families, nodes: &[node] };
                let (all, good) = (shapes.all(), shapes.record(&shapes.good()));
                assert!(all.len() >= 30, "{backend:?} {families:?}: {}", all.len());
                assert!(!all.contains(&good));
                let has =
                    |text: &str| all.iter().any(|one| String::from_utf8_lossy(&one.value).contains(text));
                assert!(!families.v4() || has("192.168.77.11") && has("192.168.77.255"));
                assert!(!families.v6() || has("fd00:77::11"));
                assert!(shapes.giant(1).value.len() > 1_400_000);
            }
        }
    }
}
