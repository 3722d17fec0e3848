//! GC: remove leftovers that belong to no attachment.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::json;

use super::{del, is_of, shown, type_of};
use crate::args::{Attachment, Verb};
use crate::error::{CniError, code};
use crate::netconf::NetConf;
use crate::records::Records;
use crate::subnet_env::SubnetEnv;
use crate::{delegate, exec, version};

/// The first version that has GC and STATUS, so that a delegate knows them, too.
pub(super) const SINCE: &str = "1.1.0";

/// Detaches all recorded attachments of this network that are not among the valid ones, then runs the delegate's GC.
/// Goes on after failures, and reports all of them.
pub(super) fn gc(path: &[PathBuf], conf: &NetConf) -> Result<(), CniError> {
    // A missing list is a mistake, and does not mean to detach all.
    let Some(valid) = &conf.valid_attachments else {
        let msg = "GC needs cni.dev/valid-attachments in the network config";
        return Err(CniError::new(code::INVALID_CONFIG, msg).with_details("nothing was removed"));
    };
    let records = Records::new(&conf.data_dir);
    let mut failures = Vec::new();
    for attachment in records.list()?.iter().filter(|attachment| !is_valid(valid, attachment)) {
        let collected = collect(path, conf, &records, attachment);
        failures.extend(collected.err().map(|error| error.context(&shown(attachment))));
    }
    if version::is_at_least(conf.version(), SINCE) {
        failures.extend(forward(path, conf, valid).err());
    }
    let mut failures = failures.into_iter();
    let Some(first) = failures.next() else { return Ok(()) };
    Err(failures.fold(first, |first, next| first.with_details(next.to_string())))
}

/// Upstream's plugin has one record for all interfaces of a container, which is needed while any of them is valid.
fn is_valid(valid: &BTreeSet<Attachment>, attachment: &Attachment) -> bool {
    let is_containers = attachment.ifname() == "eth0";
    valid.contains(attachment)
        || is_containers && valid.iter().any(|other| other.container_id() == attachment.container_id())
}

fn collect(
    path: &[PathBuf],
    conf: &NetConf,
    records: &Records,
    attachment: &Attachment,
) -> Result<(), CniError> {
    let record = match records.open(attachment, Duration::ZERO) {
        // A delegate is running with it, so it is not a leftover.
        Err(error) if error.code == code::TRY_AGAIN => return Ok(()),
        opened => opened?,
    };
    if let Some(mut record) = record {
        let config = record.config()?;
        if is_of(conf, &config) {
            del::detach(path, &config, record, Some(attachment))?;
        }
    }
    records.remove_draft(attachment);
    Ok(())
}

/// The delegate's own GC, with the config of its ADD and the list.
fn forward(path: &[PathBuf], conf: &NetConf, valid: &BTreeSet<Attachment>) -> Result<(), CniError> {
    let mut config = delegate::config(conf, &SubnetEnv::read(&conf.subnet_file)?);
    let item = |attachment: &Attachment| json!({ "containerID": attachment.container_id(), "ifname": attachment.ifname() });
    config.insert("cni.dev/valid-attachments".to_owned(), valid.iter().map(item).collect());
    let plugin = exec::find(path, type_of(&config))?;
    exec::run(&plugin, Verb::Gc, None, exec::stdin(&config)?).map(drop)
}
