//! The CNI verbs.

mod add;
mod check;
mod del;
mod gc;
mod status;

use std::path::PathBuf;

use serde_json::Value;

use crate::args::{Args, Attachment, Verb};
use crate::error::{CniError, code};
use crate::netconf::{NetConf, Object};
use crate::{exec, version};

/// Carries out a verb with the network config from stdin. Returns the output for stdout, which may be empty.
///
/// Delegates inherit the environment of this process and its stderr.
pub fn run(args: &Args, input: &[u8]) -> Result<Vec<u8>, CniError> {
    if args.verb == Verb::Version {
        return Ok(version::answer(input).to_string().into_bytes());
    }
    let conf = NetConf::parse(input)?;
    match (args.verb, &args.attachment) {
        (Verb::Add, Some(attachment)) => return add::add(&args.path, attachment, &conf),
        (Verb::Del, Some(attachment)) => del::del(&args.path, attachment, &conf)?,
        (Verb::Check, Some(attachment)) => check::check(&args.path, attachment, &conf)?,
        (Verb::Gc, _) => gc::gc(&args.path, &conf)?,
        (Verb::Status, _) => status::status(&args.path, &conf)?,
        (Verb::Version | Verb::Add | Verb::Del | Verb::Check, _) => {
            return Err(CniError::new(code::INVALID_ENVIRONMENT, "no attachment is named"));
        }
    }
    Ok(Vec::new())
}

/// The type of a delegate, which [`crate::records::parse`] and [`crate::delegate::config`] both guarantee.
fn type_of(config: &Object) -> &str {
    config.get("type").and_then(Value::as_str).unwrap_or_default()
}

/// Whether a record belongs to the config's network: several networks may share a folder.
fn is_of(conf: &NetConf, record: &Object) -> bool {
    record.get("name").and_then(Value::as_str) == Some(&conf.name)
}

/// An attachment as text for a message.
fn shown(attachment: &Attachment) -> String {
    format!("{} of container {}", attachment.ifname(), attachment.container_id())
}

/// Finds the delegate and, if it will surely run one, its `ipam` plugin, so that a missing one is an error before
/// anything is done.
fn find_plugins(path: &[PathBuf], config: &Object, conf: &NetConf) -> Result<PathBuf, CniError> {
    let name = type_of(config);
    let plugin = exec::find(path, name)?;
    if ["bridge", "ipvlan", "macvlan", "ptp", "vlan"].contains(&name) {
        exec::find(path, conf.ipam_type())?;
    }
    Ok(plugin)
}
