//! Golden records: what real Go nodes wrote to the store, to `subnet.env` and to the kernel.
//! `golden/README.md` tells how they came about.

use serde_json::Value;

/// Names and texts of all files.
const FILES: [(&str, &str); 10] = [
    ("host-gw", include_str!("../golden/host-gw.json")),
    ("host-gw-dual", include_str!("../golden/host-gw-dual.json")),
    ("kube-vxlan", include_str!("../golden/kube-vxlan.json")),
    ("udp", include_str!("../golden/udp.json")),
    ("vxlan", include_str!("../golden/vxlan.json")),
    ("vxlan-directrouting", include_str!("../golden/vxlan-directrouting.json")),
    ("vxlan-dual", include_str!("../golden/vxlan-dual.json")),
    ("vxlan-dual-nftables", include_str!("../golden/vxlan-dual-nftables.json")),
    ("vxlan-nftables", include_str!("../golden/vxlan-nftables.json")),
    ("vxlan-vni-port-gbp", include_str!("../golden/vxlan-vni-port-gbp.json")),
];

/// One case.
#[derive(Debug, Clone)]
pub struct Golden {
    /// The file's name without its ending.
    pub name: &'static str,
    /// The whole file.
    pub json: Value,
}

impl Golden {
    /// All cases, by name.
    pub fn all() -> Vec<Self> {
        FILES.iter().map(|(name, text)| Self::parse(name, text)).collect()
    }

    /// One case.
    ///
    /// # Panics
    /// If there is none of that name.
    pub fn named(name: &str) -> Self {
        let (name, text) = FILES.iter().find(|(known, _)| *known == name).expect("a case of that name");
        Self::parse(name, text)
    }

    fn parse(name: &'static str, text: &str) -> Self {
        Self { name, json: serde_json::from_str(text).expect("the golden files are JSON") }
    }

    /// The network config as text; `None` for the Kubernetes case.
    pub fn config(&self) -> Option<String> {
        self.json.get("config").map(Value::to_string)
    }

    /// The store's records: the key below `subnets/`, and the value byte for byte.
    pub fn records(&self) -> Vec<(String, String)> {
        let records = self.json["etcd_raw"].as_object().into_iter().flatten();
        records
            .filter_map(|(key, value)| {
                let key = key.rsplit_once("/subnets/")?.1;
                Some((key.to_owned(), value.as_str()?.to_owned()))
            })
            .collect()
    }

    /// `subnet.env` of a node (`node1`, `node2`).
    pub fn subnet_env(&self, node: &str) -> Option<&str> {
        self.json["subnet_env"][node].as_str()
    }

    /// A list of text lines of node 1's kernel state: `routes`, `routes6`, `neighbours`, `fdb`.
    pub fn lines(&self, what: &str) -> Vec<String> {
        let lines = self.json["node1"][what].as_array().into_iter().flatten();
        lines.filter_map(|line| Some(line.as_str()?.trim().to_owned())).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_of_the_folder_is_a_case() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/golden");
        let mut files: Vec<String> = (std::fs::read_dir(folder).unwrap())
            .filter_map(|entry| Some(entry.unwrap().file_name().to_str()?.strip_suffix(".json")?.to_owned()))
            .collect();
        files.sort();
        let cases: Vec<_> = Golden::all().iter().map(|golden| golden.name).collect();
        assert_eq!(files, cases);
    }
}
