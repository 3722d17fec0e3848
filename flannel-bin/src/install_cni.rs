//! `flanneld install-cni`: flags and messages around [`flannel_cni::install`].

use std::io::{self, Write as _};
use std::path::Path;
use std::process::ExitCode;

use flannel_cni::install::{Conflist, Install, InstallError};
use flannel_core::error::chain;

use crate::cli::{InstallOptions, Part};

/// Does it, and tells the operator.
pub(crate) fn main(options: &InstallOptions) -> ExitCode {
    let install = asked(options);
    match if options.undo { install.undo() } else { install.install() } {
        Ok(done) => {
            for done in done {
                let _ = writeln!(io::stdout(), "{done}");
            }
            ExitCode::SUCCESS
        }
        Err(error) => {
            let is_plugin = matches!(&error, InstallError::Read { path, .. } if path.ends_with("flannel"));
            let hint = if is_plugin { "; --plugin=FILE names the plugin that is to be copied" } else { "" };
            let _ = writeln!(io::stderr(), "flanneld install-cni: {}{hint}", chain(&error));
            ExitCode::FAILURE
        }
    }
}

fn asked(options: &InstallOptions) -> Install {
    let InstallOptions { plugin, plugin_dir, conf, conf_dir, conf_name, only, .. } = options;
    let mut install = Install::new().plugin_dir(plugin_dir).conf_dir(conf_dir).conf_name(conf_name);
    if *only != Some(Part::Conf) {
        let program = std::env::current_exe().ok();
        let beside = || program.as_deref().and_then(Path::parent).unwrap_or(Path::new(".")).join("flannel");
        install = install.plugin(plugin.clone().unwrap_or_else(beside));
    }
    if *only != Some(Part::Plugin) {
        install = install.conflist(conf.clone().map_or(Conflist::Usual, Conflist::File));
    }
    install
}
