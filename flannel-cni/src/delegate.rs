//! Makes the delegate's config. Pure. Upstream: flannel-io/cni-plugin, `flannel_linux.go`, `doCmdAdd`, and
//! `flannel.go`, `getDelegateIPAM`.

use serde_json::{Value, json};

use crate::cidr::Cidr;
use crate::netconf::{NetConf, Object};
use crate::subnet_env::SubnetEnv;

/// The delegate's config for ADD, and again for DEL. The user's values win for masquerading, MTU and gateway; name,
/// ranges and version are ours.
///
/// ```
/// use flannel_cni::{delegate, netconf::NetConf, subnet_env::SubnetEnv};
/// let conf = NetConf::parse(br#"{"name":"cni-flannel","type":"flannel"}"#).unwrap();
/// let env = SubnetEnv::parse(
///     "FLANNEL_NETWORK=10.1.0.0/16\nFLANNEL_SUBNET=10.1.17.1/24\nFLANNEL_MTU=1472\nFLANNEL_IPMASQ=true\n",
/// );
/// let config = delegate::config(&conf, &env.unwrap());
/// assert_eq!(config["ipam"]["ranges"][0][0]["subnet"], "10.1.17.0/24");
/// ```
pub fn config(conf: &NetConf, env: &SubnetEnv) -> Object {
    let mut config = conf.delegate.clone();
    if let Some(runtime_config) = &conf.runtime_config {
        config.insert("runtimeConfig".to_owned(), Value::Object(runtime_config.clone()));
    }
    config.insert("name".to_owned(), json!(conf.name));
    let mut default = |key: &str, value: Value| {
        config.entry(key).or_insert(value);
    };
    default("type", json!(conf.delegate_type()));
    // One of the two has to masquerade.
    default("ipMasq", json!(!env.ip_masq));
    default("mtu", json!(env.mtu));
    if conf.delegate_type() == "bridge" {
        default("isGateway", json!(true));
    }
    if let Some(version) = &conf.cni_version {
        config.insert("cniVersion".to_owned(), json!(version));
    }
    config.insert("ipam".to_owned(), Value::Object(ipam(conf, env)));
    config
}

/// The `ipam` part: ranges of this node's subnets, and a route to each network of the overlay.
fn ipam(conf: &NetConf, env: &SubnetEnv) -> Object {
    let mut ipam = conf.ipam.clone();
    ipam.insert("type".to_owned(), json!(conf.ipam_type()));
    let range = |subnet: &Cidr| json!([{ "subnet": subnet.to_string() }]);
    ipam.insert("ranges".to_owned(), env.subnets.iter().map(range).collect());
    let own = ipam.get("routes").and_then(Value::as_array).cloned().unwrap_or_default();
    let route = |network: &Cidr| json!({ "dst": network.to_string() });
    let routes = own.into_iter().chain(env.networks.iter().map(route));
    ipam.insert("routes".to_owned(), routes.collect());
    ipam
}

/// The subnets of the ranges in a delegate's config.
pub fn subnets(config: &Object) -> Vec<Cidr> {
    let ranges = config.get("ipam").and_then(|ipam| ipam.get("ranges")).and_then(Value::as_array);
    let subnet = |range: &Value| range.get(0)?.get("subnet")?.as_str()?.parse().ok();
    ranges.into_iter().flatten().filter_map(subnet).collect()
}

#[cfg(test)]
mod tests;
