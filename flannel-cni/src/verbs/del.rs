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

/// Runs the delegate's DEL with the record, and removes the record only if that succeeded. Without a record there is
/// nothing to do: DEL must be repeatable.
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
            // The record stays, since the container's eth0 may need it.
            let plugin = exec::find(path, type_of(&config))?;
            exec::run(&plugin, Verb::Del, None, record.stdin()?)?;
        }
    }
    records.remove_draft(attachment);
    Ok(())
}

/// Runs the delegate's DEL with a record, then removes the record.
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

/// Detaches with a damaged record (upstream's plugin does not write records atomically): the config that ADD would make
/// now has the same name and type, and delegates need only these and the container to detach.
fn detach_anew(path: &[PathBuf], conf: &NetConf, record: Record, damage: CniError) -> Result<(), CniError> {
    let Ok(env) = SubnetEnv::read(&conf.subnet_file) else { return Err(damage) };
    let config = delegate::config(conf, &env);
    let plugin = exec::find(path, type_of(&config))?;
    exec::run(&plugin, Verb::Del, None, exec::stdin(&config)?)?;
    record.remove()
}
