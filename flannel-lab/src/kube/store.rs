//! Kubernetes as the store of a [`Cluster`]: an API server in the underlay with a node object for every node, each
//! with its subnets, as a kubelet and the controller manager would make them, and the network config in a file.
//!
//! Leases can be written and read in the form that they have in etcd: key `10.244.41.0-24&fd00:10:244:29::-64`, value
//! a JSON record. So what is tested on other stores can be tested on this one.

mod lease;

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use serde_json::Value;
use tempfile::TempDir;

use crate::LabError;
use crate::cluster::{Cluster, Families};
use crate::golden::Golden;
use crate::kube::fake::{Faults, KubeApi, KubeApiOptions, kubelet_node};
use crate::node::Node;
use crate::sandbox;
use crate::store::{Server, Store};

/// The size of node objects in bytes, managed fields and all.
const NODE_SIZE: usize = 3000;

/// The subnets of node 1 come after the one of this number.
const BEFORE_FIRST: u8 = 40;

/// An API server and what agents need besides to use it as their store.
#[derive(Debug)]
pub struct KubeStore {
    api: KubeApi,
    families: Families,
    dir: TempDir,
}

impl KubeStore {
    /// Starts a server in the underlay and makes an object of each node that is there.
    pub fn start(cluster: &Cluster) -> Result<Self, LabError> {
        let store = Self::without_nodes(cluster)?;
        cluster.nodes().for_each(|node| store.add_node(node.number(), node.name()));
        Ok(store)
    }

    /// Starts a server in the underlay, for node objects that are yet to come.
    pub fn without_nodes(cluster: &Cluster) -> Result<Self, LabError> {
        let options = KubeApiOptions::at(cluster.fabric(), cluster.fabric_address());
        Self::with_options(cluster, options)
    }

    /// Starts a server with these options, for node objects that are yet to come.
    pub fn with_options(cluster: &Cluster, options: KubeApiOptions) -> Result<Self, LabError> {
        let (api, dir) = (KubeApi::start(options)?, sandbox::state_dir("kube")?);
        Ok(Self { api, families: cluster.families(), dir })
    }

    /// The server.
    pub fn api(&self) -> &KubeApi {
        &self.api
    }

    /// Makes an object of a node that joins: a /24 of `10.244.0.0/16` and a /64 of `fd00:10:244::/56`, in the
    /// families that the underlay has.
    pub fn add_node(&self, number: u8, name: &str) {
        let n = BEFORE_FIRST + number;
        let v4 = self.families.v4().then(|| format!("10.244.{n}.0/24"));
        let v6 = self.families.v6().then(|| format!("fd00:10:244:{n:x}::/64"));
        self.register(name, &v4.into_iter().chain(v6).collect::<Vec<_>>());
    }

    /// Makes the object of a node that joins with these subnets, as CIDRs.
    pub fn register(&self, name: &str, subnets: &[String]) {
        let subnets: Vec<&str> = subnets.iter().map(String::as_str).collect();
        self.api.put_node(kubelet_node(name, &subnets, NODE_SIZE));
    }

    /// Gives a node the subnets that a key names, in an object made anew.
    ///
    /// # Panics
    ///
    /// If the key names none.
    pub fn assign(&self, name: &str, key: &str) {
        let subnets = lease::subnets(key).expect("the key of a lease");
        let subnets: Vec<&str> = subnets.iter().map(String::as_str).collect();
        self.api.put_node(kubelet_node(name, &subnets, NODE_SIZE));
    }

    /// Where the network config is.
    pub fn config_path(&self) -> PathBuf {
        self.dir.path().join("net-conf.json")
    }

    /// Writes a record to a node of its own, whether or not another has its subnets; for many of them.
    pub fn put_foreign(&self, key: &str, value: &str) {
        let subnets = lease::subnets(key).unwrap_or_default();
        let subnets: Vec<&str> = subnets.iter().map(String::as_str).collect();
        let mut node = kubelet_node(&lease::foreign_name(key), &subnets, NODE_SIZE);
        lease::annotate(&mut node, value);
        self.api.put_node(node);
    }

    /// Changes annotations as somebody with `kubectl annotate` could: gives an annotation of flannel's, named without
    /// its prefix, another value, or removes one or all of them.
    pub fn meddle(&self, node: &str, annotation: Option<&str>, value: Option<&str>) -> bool {
        self.api.edit_node(node, |node| match annotation {
            Some(annotation) => lease::set(node, annotation, value),
            None => lease::strip(node),
        })
    }

    /// The name of the node that a record is about.
    fn owner_of(&self, key: &str) -> Option<String> {
        let subnets = lease::subnets(key);
        let is_it = |node: &Value| match &subnets {
            Some(subnets) => node["spec"]["podCIDRs"].as_array().is_some_and(|cidrs| {
                cidrs.len() >= subnets.len()
                    && subnets.iter().all(|subnet| cidrs.contains(&Value::from(subnet.as_str())))
            }),
            None => node["metadata"]["name"] == lease::foreign_name(key),
        };
        self.api.node_names().into_iter().find(|name| self.api.node(name).is_some_and(|node| is_it(&node)))
    }
}

impl Store for KubeStore {
    fn flags(&self) -> Vec<String> {
        vec![
            "--kube-subnet-mgr".to_owned(),
            format!("--kube-api-url={}", self.api.url()),
            format!("--net-config-path={}", self.config_path().display()),
        ]
    }

    fn env(&self, node: &str) -> Vec<(&'static str, String)> {
        vec![("NODE_NAME", node.to_owned())]
    }

    fn put_config(&self, config: &str) -> Result<(), LabError> {
        let beside = self.dir.path().join(".net-conf.json");
        let what = || LabError::io(format!("writing {}", self.config_path().display()));
        fs::write(&beside, config).map_err(what())?;
        fs::rename(beside, self.config_path()).map_err(what())
    }

    /// Writes a record: to the node that has its subnets, or else to a new one. A key that names no subnets makes a
    /// node without any, and a value that is no record is put into the annotations as it is.
    fn put(&self, key: &str, value: &str) -> Result<(), LabError> {
        match self.owner_of(key) {
            Some(name) => _ = self.api.edit_node(&name, |node| lease::annotate(node, value)),
            None => self.put_foreign(key, value),
        }
        Ok(())
    }

    fn put_bytes(&self, key: &str, value: &[u8]) -> Result<(), LabError> {
        self.put(key, &String::from_utf8_lossy(value))
    }

    /// The object of the node gets these subnets, and the condition that the network is available.
    fn put_of(&self, node: &Node, key: &str, value: &str) -> Result<(), LabError> {
        self.assign(node.name(), key);
        self.put(key, value)?;
        let condition = &Golden::named("kube-vxlan").json["n1"]["status"]["conditions"][0];
        self.api.edit_node(node.name(), |node| {
            if let Some(conditions) = node["status"]["conditions"].as_array_mut() {
                conditions.push(condition.clone());
            }
        });
        Ok(())
    }

    /// Deletes a record. With it goes its node, unless that is one of the cluster's.
    fn delete(&self, key: &str) -> Result<(), LabError> {
        if !self.api.delete_node(&lease::foreign_name(key))
            && let Some(name) = self.owner_of(key)
        {
            self.api.edit_node(&name, lease::strip);
        }
        Ok(())
    }

    /// The records of all nodes that carry one.
    fn records(&self) -> Result<BTreeMap<String, String>, LabError> {
        let nodes = self.api.node_names().into_iter().filter_map(|name| self.api.node(&name));
        Ok(nodes.filter_map(|node| lease::record(&node)).collect())
    }

    fn everything(&self) -> Result<Vec<String>, LabError> {
        let nodes = self.api.node_names().into_iter().filter_map(|name| self.api.node(&name));
        Ok(nodes.map(|node| node.to_string()).collect())
    }
}

impl Server for KubeStore {
    fn pause(&self) -> Result<(), LabError> {
        self.api.set_faults(Faults { stall: true, ..Faults::default() });
        Ok(())
    }

    fn resume(&self) -> Result<(), LabError> {
        self.api.set_faults(Faults::default());
        Ok(())
    }

    /// The server's process dies: connections are cut and new ones refused. Its objects are in etcd.
    fn kill(&self) -> Result<(), LabError> {
        self.api.stop_listening();
        self.api.disconnect();
        Ok(())
    }

    fn restart(&self) -> Result<(), LabError> {
        self.api.listen_again()
    }

    fn compact(&self) -> Result<(), LabError> {
        self.api.compact();
        Ok(())
    }
}
