//! Servers, managers and nodes for the tests.

use std::time::Duration;

use flannel_core::addr::PerFamily;
use flannel_core::lease::{BackendData, LeaseAttrs};
use flannel_core::subnet::LeaseStream;
pub(crate) use flannel_core::testing::waiting::{SOON, next, renew, soon, until};
use flannel_lab::etcd::{Etcd, EtcdOptions as LabOptions, KeyValue};
use flannel_store_etcd::{EtcdOptions, EtcdSubnetManager};
use futures::StreamExt;

/// Nodes get one of 10.5.100.0 to 10.5.199.0 at random, so the keys that tests write by hand lie outside of that.
pub(crate) const V4: &str = r#"{"Network":"10.5.0.0/16","SubnetMin":"10.5.100.0","SubnetMax":"10.5.199.0","Backend":{"Type":"vxlan"}}"#;
pub(crate) const DUAL: &str = r#"{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:5::/48"}"#;
pub(crate) const V6: &str = r#"{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd00:5::/48"}"#;
pub(crate) const PREFIX: &str = "/coreos.com/network";

/// A server that elects itself quickly; anything may be given beside that.
pub(crate) fn quick(options: LabOptions) -> LabOptions {
    let times = ["--heartbeat-interval=20", "--election-timeout=200"].map(str::to_owned);
    LabOptions { args: times.into_iter().chain(options.args).collect(), ..options }
}

pub(crate) fn start(config: &str) -> Etcd {
    let etcd = Etcd::start(quick(LabOptions::default())).unwrap();
    etcd.put(&format!("{PREFIX}/config"), config).unwrap();
    etcd
}

pub(crate) fn options(etcd: &Etcd) -> EtcdOptions {
    EtcdOptions::new([etcd.endpoint()])
}

pub(crate) fn manager(etcd: &Etcd) -> EtcdSubnetManager {
    EtcdSubnetManager::new(options(etcd)).unwrap()
}

pub(crate) fn attrs(node: u16) -> LeaseAttrs {
    let [high, low] = node.to_be_bytes();
    let mac = format!("0a:00:00:00:{high:02x}:{low:02x}");
    let data = |mac: &str| BackendData::encode(&serde_json::json!({"VNI": 1, "VtepMAC": mac})).ok();
    LeaseAttrs {
        public_ips: PerFamily { v4: Some([198, 18, high, low].into()), v6: None },
        backend_type: "vxlan".to_owned(),
        backend_data: PerFamily { v4: data(&mac), v6: None },
        ..LeaseAttrs::default()
    }
}

pub(crate) fn dual_attrs(node: u16) -> LeaseAttrs {
    let mut attrs = attrs(node);
    attrs.public_ips.v6 = Some([0xfd77, 0, 0, 0, 0, 0, 0, node].into());
    attrs
}

/// The name of a record in the store.
pub(crate) fn path(key: impl std::fmt::Display) -> String {
    format!("{PREFIX}/subnets/{key}")
}

/// All records, also those that only begin like one.
pub(crate) fn records(etcd: &Etcd) -> Vec<KeyValue> {
    etcd.list(&format!("{PREFIX}/subnets")).unwrap()
}

pub(crate) async fn is_quiet(watch: &mut LeaseStream, time: Duration) -> bool {
    tokio::time::timeout(time, watch.next()).await.is_err()
}
