//! The leases as they are in the store.

use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::Fallible;
use crate::table::{Align, table};

/// A lease in one family.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Lease {
    /// The pods' addresses on the node.
    pub(crate) subnet: String,
    /// The node's address on the underlay.
    pub(crate) node: String,
    /// The inner MAC of the node's tunnel end; a dash for backends that have none.
    pub(crate) vtep_mac: String,
}

/// Reads the folder of a local store.
pub(crate) fn read(store: &Path) -> Fallible<Vec<Lease>> {
    let mut leases = Vec::new();
    for entry in fs::read_dir(store.join("subnets"))? {
        let entry = entry?;
        let record = serde_json::from_str(&fs::read_to_string(entry.path())?)?;
        leases.extend(parse(&entry.file_name().to_string_lossy(), &record));
    }
    Ok(leases)
}

/// The lease of a record in each family. Key and value are those of upstream's etcd records.
fn parse(key: &str, record: &Value) -> Vec<Lease> {
    let (v4, v6) = key.split_once('&').unwrap_or((key, ""));
    let families = [(v4, "PublicIP", "BackendData"), (v6, "PublicIPv6", "BackendV6Data")];
    let leases = families.into_iter().filter_map(|(subnet, address, data)| {
        // IPv6 alone has an empty IPv4 part.
        let (base, length) = subnet.rsplit_once('-').filter(|(_, length)| *length != "0")?;
        Some(Lease {
            subnet: format!("{base}/{length}"),
            node: record[address].as_str().unwrap_or("-").to_owned(),
            vtep_mac: record[data]["VtepMAC"].as_str().unwrap_or("-").to_owned(),
        })
    });
    leases.collect()
}

/// The leases as a table, `names` giving the node of an underlay address; a long one is cut.
pub(crate) fn show(leases: &[Lease], names: impl Fn(&str) -> Option<u8>) -> String {
    const MOST: usize = 20;
    let mut sorted = leases.to_vec();
    sorted.sort_by_key(|lease| (names(&lease.node), lease.node.contains(':')));
    let header = ["node", "subnet", "node address", "VTEP MAC"].map(|title| (title, Align::Left));
    let rows = sorted.iter().take(MOST).map(|lease| {
        let name = names(&lease.node).map_or_else(|| "?".to_owned(), |number| format!("node{number}"));
        vec![name, lease.subnet.clone(), lease.node.clone(), lease.vtep_mac.clone()]
    });
    let text = table(&header, &rows.collect::<Vec<_>>());
    match sorted.len().saturating_sub(MOST) {
        0 => text,
        more => format!("{text}\n... and {more} more"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn records_have_a_lease_in_each_family() {
        let record = json!({
            "PublicIP": "192.168.77.11", "PublicIPv6": "fd00:77::11", "BackendType": "vxlan",
            "BackendData": { "VNI": 1, "VtepMAC": "02:00:00:00:00:01" },
            "BackendV6Data": { "VNI": 1, "VtepMAC": "02:00:00:00:00:02" },
        });
        let leases = parse("10.42.5.0-24&fd00:42:0:5::-64", &record);
        assert_eq!(leases[0].subnet, "10.42.5.0/24");
        assert_eq!(leases[1].subnet, "fd00:42:0:5::/64");
        assert_eq!(
            (leases[1].node.as_str(), leases[1].vtep_mac.as_str()),
            ("fd00:77::11", "02:00:00:00:00:02")
        );
        assert_eq!(parse("0.0.0.0-0&fd00:42:0:5::-64", &record).len(), 1);
        let plain = parse("10.42.5.0-24", &json!({ "PublicIP": "192.168.77.11", "BackendType": "host-gw" }));
        assert_eq!((plain.len(), plain[0].vtep_mac.as_str()), (1, "-"));
    }

    #[test]
    fn the_table_is_in_the_order_of_nodes() {
        let lease = |node: &str| Lease { subnet: "s".into(), node: node.into(), vtep_mac: "m".into() };
        let names = |node: &str| node.parse().ok();
        let text = show(&[lease("3"), lease("x"), lease("2")], names);
        let first = text.lines().map(|line| line.split(' ').next().unwrap()).collect::<Vec<_>>();
        assert_eq!(first, ["node", "?", "node2", "node3"]);
        let many = (0..30).map(|number| lease(&number.to_string())).collect::<Vec<_>>();
        assert!(show(&many, names).ends_with("... and 10 more"));
    }
}
