//! ADD: attach a container.

use std::path::PathBuf;

use serde_json::Value;

use super::find_plugins;
use crate::args::{Attachment, Verb};
use crate::error::{CniError, code};
use crate::netconf::{NetConf, Object};
use crate::records::Records;
use crate::subnet_env::SubnetEnv;
use crate::{bridge, delegate, exec};

/// Runs the delegate's ADD, and returns its result. The record is written before the delegate starts, so that DEL can
/// undo what the delegate did, however this ends.
pub(super) fn add(path: &[PathBuf], attachment: &Attachment, conf: &NetConf) -> Result<Vec<u8>, CniError> {
    let env = SubnetEnv::read(&conf.subnet_file)?;
    let config = delegate::config(conf, &env);
    let plugin = find_plugins(path, &config, conf)?;
    let records = Records::new(&conf.data_dir);
    let was_known = records.peek(attachment)?.is_some();
    let mut record = records.save(attachment, &config)?;
    let failure = match exec::run(&plugin, Verb::Add, None, record.stdin()?) {
        Ok(result) if is_object(&result) => return Ok(result),
        Ok(result) => CniError::new(
            code::DECODING,
            format!(
                "failed to delegate add: the result is no JSON object: {:?}",
                String::from_utf8_lossy(&result)
            ),
        ),
        Err(failure) => failure,
    };
    // The specification demands that the leftovers of a failed delegate are removed. But an attachment of an earlier
    // ADD must stay, if a runtime calls ADD twice.
    if !was_known && (did_nothing(&failure) || exec::run(&plugin, Verb::Del, None, record.stdin()?).is_ok()) {
        record.remove()?;
    }
    Err(match bridge::advice(&config) {
        Some(advice) => CniError { code: code::STALE_BRIDGE, ..failure.with_details(advice) },
        None => with_advice(failure, &config),
    })
}

/// host-local says which range is used up, but not by which containers.
fn with_advice(failure: CniError, config: &Object) -> CniError {
    if !failure.details.is_empty() || !failure.msg.contains("no IP addresses available") {
        return failure;
    }
    let text = |object: &Object, key: &str| object.get(key).and_then(Value::as_str).map(str::to_owned);
    let ipam = config.get("ipam").and_then(Value::as_object);
    let folder =
        ipam.and_then(|ipam| text(ipam, "dataDir")).unwrap_or_else(|| "/var/lib/cni/networks".to_owned());
    let name = text(config, "name").unwrap_or_default();
    let subnets = delegate::subnets(config).iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    failure.with_details(format!(
        "all addresses of this node's subnet {subnets} are taken: {folder}/{name} has a file for each, with the id of its \
         container. Delete the files whose container is gone, and have fewer pods on this node (the kubelet's maxPods), or a \
         shorter SubnetLen in flannel's network config for nodes that join from now on"
    ))
}

/// Whether the delegate did nothing because it does not know the version: then it would refuse DEL, too, and the record
/// would stay for ever.
fn did_nothing(failure: &CniError) -> bool {
    failure.code == code::INCOMPATIBLE_VERSION
}

fn is_object(bytes: &[u8]) -> bool {
    serde_json::from_slice::<Value>(bytes).is_ok_and(|value| value.is_object())
}
