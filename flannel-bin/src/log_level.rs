//! `flanneld log-level`: flags around [`flannel_control::log`].

use std::io::{self, Write as _};
use std::process::ExitCode;

use flannel_control::{Client, log, socket_of};
use flannel_core::error::chain;

use crate::cli::LogLevelOptions;

/// Asks the agent of this host, and prints what it logs now.
pub(crate) fn run(options: &LogLevelOptions) -> ExitCode {
    let LogLevelOptions { level, modules, subnet_file, sets_modules } = options;
    let modules = sets_modules.then_some(modules.as_slice());
    match log::ask(&Client::new(socket_of(subnet_file)), *level, modules) {
        Ok(text) => {
            // A closed stdout is no failure.
            let _ = writeln!(io::stdout(), "{text}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            let _ = writeln!(io::stderr(), "flanneld log-level: {}", chain(&error));
            ExitCode::from(2)
        }
    }
}
