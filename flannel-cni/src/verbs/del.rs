//! DEL: detach a container.

use std::path::PathBuf;
use std::time::Duration;

use super::{is_of, type_of};
use crate::args::{Attachment, Verb};
use crate::error::{CniError, code};
use crate::netconf::{NetConf, Object};
use crate::records::{Record, Records};
use crate::subnet_env::SubnetEnv;
use crate::{delegate, exec};

/// How long to wait for the delegate of an ADD that was killed.
const PATIENCE: Duration = Duration::from_secs(10);

/// Has the delegate detach what is on record, and forgets it only when that succeeded. Nothing on record is
/// nothing to do: DEL has to be repeatable.
pub(super) fn del(path: &[PathBuf], attachment: &Attachment, conf: &NetConf) -> Result<(), CniError> {
    let records = Records::new(&conf.data_dir);
    if let Some(mut record) = records.open(attachment, PATIENCE)? {
        match record.config() {
            Ok(config) => detach(path, &config, record, None)?,
            Err(damage) if damage.code == code::BAD_RECORD => detach_anew(path, conf, record, damage)?,
            Err(error) => return Err(error),
        }
    } else if let Some(mut record) = records.upstreams(attachment, PATIENCE)? {
        let config = record.config()?;
        if is_of(conf, &config) {
            // It stays, since it may be what the container's eth0 needs.
            let plugin = exec::find(path, type_of(&config))?;
            exec::run(&plugin, Verb::Del, None, record.stdin()?)?;
        }
    }
    records.remove_draft(attachment);
    Ok(())
}

/// Has the delegate detach what a record is about, then removes the record.
pub(super) fn detach(
    path: &[PathBuf],
    config: &Object,
    mut record: Record,
    gone: Option<&Attachment>,
) -> Result<(), CniError> {
    let plugin = exec::find(path, type_of(config))?;
    exec::run(&plugin, Verb::Del, gone, record.stdin()?)?;
    record.remove()
}

/// A damaged record (upstream's plugin didn't write them in one step): the config that ADD would have now
/// has the same name and type, and delegates detach by these and the container.
fn detach_anew(path: &[PathBuf], conf: &NetConf, record: Record, damage: CniError) -> Result<(), CniError> {
    let Ok(env) = SubnetEnv::read(&conf.subnet_file) else { return Err(damage) };
    let config = delegate::config(conf, &env);
    let plugin = exec::find(path, type_of(&config))?;
    exec::run(&plugin, Verb::Del, None, exec::stdin(&config)?)?;
    record.remove()
}
