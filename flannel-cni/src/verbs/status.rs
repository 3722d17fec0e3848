//! STATUS: would an ADD succeed?

use std::path::PathBuf;

use super::find_plugins;
use super::gc::SINCE;
use crate::args::Verb;
use crate::error::{CniError, code};
use crate::netconf::NetConf;
use crate::subnet_env::SubnetEnv;
use crate::{bridge, delegate, exec, version};

/// Checks what ADD needs: the agent's file, the plugins, and a bridge without an earlier subnet.
pub(super) fn status(path: &[PathBuf], conf: &NetConf) -> Result<(), CniError> {
    let unavailable = |error: CniError| CniError { code: code::NOT_AVAILABLE, ..error };
    let env = SubnetEnv::read(&conf.subnet_file).map_err(unavailable)?;
    let config = delegate::config(conf, &env);
    let plugin = find_plugins(path, &config, conf).map_err(unavailable)?;
    if let Some(advice) = bridge::advice(&config) {
        let error =
            CniError::new(code::NOT_AVAILABLE_LIMITED, "the bridge has the address of an earlier subnet");
        return Err(error.with_details(advice));
    }
    // A delegate of an older version does not have the verb.
    if version::is_at_least(conf.version(), SINCE) {
        exec::run(&plugin, Verb::Status, None, exec::stdin(&config)?)?;
    }
    Ok(())
}
