//! CHECK: is an attachment right?

use std::path::PathBuf;

use serde_json::{Value, json};

use super::{shown, type_of};
use crate::args::{Attachment, Verb};
use crate::error::{CniError, code};
use crate::netconf::NetConf;
use crate::records::Records;
use crate::subnet_env::SubnetEnv;
use crate::{delegate, exec, version};

/// The first version that has CHECK.
const SINCE: &str = "0.4.0";

/// Checks that the attachment has a record with this node's present subnets, and that the delegate's CHECK succeeds.
pub(super) fn check(path: &[PathBuf], attachment: &Attachment, conf: &NetConf) -> Result<(), CniError> {
    if !version::is_at_least(conf.version(), SINCE) {
        let msg = format!("config version {:?} does not allow CHECK", conf.version());
        let details = format!("CHECK came with {SINCE}");
        return Err(CniError::new(code::INCOMPATIBLE_VERSION, msg).with_details(details));
    }
    let Some(result) = &conf.prev_result else {
        let error = CniError::new(code::INVALID_CONFIG, "CHECK needs prevResult in the network config");
        return Err(error.with_details("it is the runtime that puts the result of ADD there"));
    };
    let records = Records::new(&conf.data_dir);
    let record = match records.peek(attachment)? {
        Some(record) => Some(record),
        None => records.upstreams(attachment, std::time::Duration::ZERO)?,
    };
    let Some(mut record) = record else {
        let msg = format!("there is no record of {} in {}", shown(attachment), conf.data_dir.display());
        let details = "it was not attached by this plugin, or the record was removed; make the pod anew";
        return Err(CniError::new(code::NO_RECORD, msg).with_details(details));
    };
    let mut config = record.config()?;
    if let Ok(env) = SubnetEnv::read(&conf.subnet_file) {
        check_subnets(&delegate::subnets(&config), &env.subnets, attachment)?;
    }
    let plugin = exec::find(path, type_of(&config))?;
    // The config may have a newer version than the record by now.
    config.insert("cniVersion".to_owned(), json!(conf.version()));
    config.insert("prevResult".to_owned(), with_gateways(result));
    exec::run(&plugin, Verb::Check, None, exec::stdin(&config)?).map(drop)
}

type Subnets = [crate::cidr::Cidr];

/// Peers send packets only to this node's present subnet.
fn check_subnets(had: &Subnets, has: &Subnets, attachment: &Attachment) -> Result<(), CniError> {
    let Some(old) = had.iter().find(|subnet| !has.contains(subnet)) else { return Ok(()) };
    let text = has.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let msg = format!("{} has an address of {old}, and this node's subnet is now {text}", shown(attachment));
    let details = "other nodes do not reach it there; make the pod anew";
    Err(CniError::new(code::OLD_SUBNET, msg).with_details(details))
}

/// The result with the gateways that its routes have in the kernel. Our routes have no gateway; the standard plugins
/// then use the gateway of the family's address, but their CHECK looks for a route without a gateway
/// (containernetworking/plugins 1.1.1, `ConfigureIface` and `ValidateExpectedRoute`).
fn with_gateways(result: &Value) -> Value {
    let mut result = result.clone();
    let is_v6 = |address: &Value| address.as_str().is_some_and(|text| text.contains(':'));
    let ips = result.get("ips").and_then(Value::as_array).cloned().unwrap_or_default();
    let gateway = |v6: bool| {
        let gateways = ips.iter().filter_map(|ip| ip.get("gateway")).filter(|gateway| gateway.is_string());
        gateways.clone().find(|gateway| is_v6(gateway) == v6).cloned()
    };
    for route in result.get_mut("routes").and_then(Value::as_array_mut).into_iter().flatten() {
        let wanted = route.get("dst").map(is_v6).and_then(gateway);
        if let (Some(route), Some(wanted)) = (route.as_object_mut(), wanted) {
            route.entry("gw").or_insert(wanted);
        }
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn routes_get_the_gateway_of_their_family_unless_they_have_one() {
        let result = json!({
            "ips": [{"address": "10.1.17.2/24", "gateway": "10.1.17.1"}, {"address": "10.9.0.2/24", "gateway": "10.9.0.1"},
                    {"address": "fd00::2/64", "gateway": "fd00::1"}],
            "routes": [{"dst": "10.1.0.0/16"}, {"dst": "fd00::/48"}, {"dst": "0.0.0.0/0", "gw": "10.1.17.9"}, 7],
            "interfaces": [],
        });
        let routes = json!([{"dst": "10.1.0.0/16", "gw": "10.1.17.1"}, {"dst": "fd00::/48", "gw": "fd00::1"},
                            {"dst": "0.0.0.0/0", "gw": "10.1.17.9"}, 7]);
        assert_eq!(with_gateways(&result)["routes"], routes);
        for other in [
            json!({"ips": [{"address": "10.1.17.2/24"}], "routes": [{"dst": "10.0.0.0/8"}]}),
            json!({"routes": 7}),
        ] {
            assert_eq!(with_gateways(&other), other);
        }
        assert_eq!(with_gateways(&json!("nonsense")), json!("nonsense"));
    }
}
