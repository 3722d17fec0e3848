//! CHECK: is an attachment as it should be?

use std::path::PathBuf;

use serde_json::json;

use super::{shown, type_of};
use crate::args::{Attachment, Verb};
use crate::error::{CniError, code};
use crate::netconf::NetConf;
use crate::records::Records;
use crate::subnet_env::SubnetEnv;
use crate::{delegate, exec, version};

/// The first version that has CHECK.
const SINCE: &str = "0.4.0";

/// The attachment has to be on record, with addresses of this node's present subnets, and right in the eyes of
/// the delegate.
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
    // The config may have come to a newer version than the record's since.
    config.insert("cniVersion".to_owned(), json!(conf.version()));
    config.insert("prevResult".to_owned(), result.clone());
    exec::run(&plugin, Verb::Check, None, exec::stdin(&config)?).map(drop)
}

type Subnets = [crate::cidr::Cidr];

/// Peers send packets to this node's present subnet alone.
fn check_subnets(had: &Subnets, has: &Subnets, attachment: &Attachment) -> Result<(), CniError> {
    let Some(old) = had.iter().find(|subnet| !has.contains(subnet)) else { return Ok(()) };
    let text = has.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let msg = format!("{} has an address of {old}, and this node's subnet is now {text}", shown(attachment));
    let details = "other nodes do not reach it there; make the pod anew";
    Err(CniError::new(code::OLD_SUBNET, msg).with_details(details))
}
