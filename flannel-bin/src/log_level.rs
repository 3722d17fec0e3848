//! `flanneld log-level` and `flanneld rotate-key`: flags around [`flannel_control::log`] and [`flannel_control::show`].

use std::io::{stderr, stdout};
use std::process::ExitCode;

use flannel_control::{Client, log, show, socket_of};

use crate::cli::{LogLevelOptions, RotateKeyOptions};

/// Asks the agent of this host, and prints what it logs now.
pub(crate) fn run(options: &LogLevelOptions) -> ExitCode {
    let LogLevelOptions { level, modules, subnet_file, sets_modules } = options;
    let modules = sets_modules.then_some(modules.as_slice());
    let answer = log::ask(&Client::new(socket_of(subnet_file)), *level, modules);
    let status = show::answer("flanneld log-level", answer.map_err(Into::into), &mut stdout(), &mut stderr());
    // It has always been 2.
    status.min(2).into()
}

/// Tells the agent of this host to change its key, and prints what it does.
pub(crate) fn rotate_key(options: &RotateKeyOptions) -> ExitCode {
    let answer = show::command(&Client::new(socket_of(&options.subnet_file)), "rotate-key");
    show::answer("flanneld rotate-key", answer, &mut stdout(), &mut stderr()).into()
}
