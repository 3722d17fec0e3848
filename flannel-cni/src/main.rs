//! The program that a container runtime executes. Only it reads the environment and ends the process.

use std::env;
use std::io::{self, Read as _, Write as _};
use std::process::ExitCode;

use flannel_cni::args::Args;
use flannel_cni::error::CniError;
use flannel_cni::{netconf, verbs, version};

fn main() -> ExitCode {
    if env::var_os("CNI_COMMAND").is_none_or(|verb| verb.is_empty()) {
        return introduce();
    }
    let mut input = Vec::new();
    let read = io::stdin().read_to_end(&mut input).map_err(|error| {
        CniError::new(
            flannel_cni::error::code::IO,
            format!("failed to read the network config on stdin: {error}"),
        )
    });
    let done = read.and_then(|_| verbs::run(&Args::read(|name| env::var_os(name))?, &input));
    let (output, code) = match done {
        Ok(output) => (output, ExitCode::SUCCESS),
        Err(error) => {
            let object = error.to_json(netconf::version_of(&input));
            (format!("{object}\n").into_bytes(), ExitCode::FAILURE)
        }
    };
    match io::stdout().write_all(&output) {
        Ok(()) => code,
        // Stdout is closed, so the error can't be reported.
        Err(_) => ExitCode::FAILURE,
    }
}

/// Explains the program to somebody who runs it by hand.
fn introduce() -> ExitCode {
    let (version, os, arch) = (env!("CARGO_PKG_VERSION"), env::consts::OS, env::consts::ARCH);
    let text = format!(
        "CNI Plugin flannel version {version} ({os}/{arch})\nCNI protocol versions supported: {}\n",
        version::SUPPORTED.join(", ")
    );
    let _ = io::stderr().write_all(text.as_bytes());
    ExitCode::SUCCESS
}
