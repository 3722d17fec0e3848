//! `flanneld docker-opts`: flags and messages around [`flannel_core::docker_opts`], in place of `mk-docker-opts.sh`.

use std::collections::BTreeMap;
use std::error::Error;
use std::io::{self, Write as _};
use std::process::ExitCode;

use flannel_core::atomic_file;
use flannel_core::docker_opts::{DockerOptions, read, subnet_elsewhere};
use flannel_core::error::chain;
use flannel_core::netlink::Netlink;
use tokio::runtime::Builder;

use crate::{cli, runtime};

/// Writes the file, and tells the operator what went wrong.
pub(crate) fn main(options: &cli::DockerOptions) -> ExitCode {
    let written = runtime::block_on(Builder::new_current_thread(), write(options));
    let Err(error) = written else { return ExitCode::SUCCESS };
    let _ = writeln!(io::stderr(), "flanneld docker-opts: {error}");
    ExitCode::FAILURE
}

/// Writes the file, in one step, and then checks that the subnet is not reached through another node.
async fn write(options: &cli::DockerOptions) -> Result<(), Box<dyn Error>> {
    let cli::DockerOptions { f: subnet_file, d: output, i, c, k: key, m: without_ip_masq } = options;
    let file = read(subnet_file)
        .map_err(|error| format!("can't read the subnet file {}: {error}", subnet_file.display()))?;
    let parse = if *without_ip_masq { DockerOptions::parse_without_ip_masq } else { DockerOptions::parse };
    let environment: BTreeMap<String, String> = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect();
    let docker = parse(&file)?.with(&environment);
    let mut text = if *i || !*c { docker.individual() } else { String::new() };
    if *c || !*i {
        text += &docker.combined(key, environment.get(key).map_or("", String::as_str));
    }
    // Also a link to one, such as /dev/stdout, which would be replaced.
    if std::fs::metadata(output).is_ok_and(|found| !found.is_file()) {
        return Err(format!("{} is no regular file, so it stays as it is", output.display()).into());
    }
    atomic_file::replace(output, text.as_bytes(), 0o644)
        .map_err(|error| format!("can't write {}: {error}", output.display()))?;
    let kernel = Netlink::open();
    let mut kernel = kernel.map_err(|error| format!("can't ask the kernel for routes: {}", chain(&error)))?;
    let Some((subnet, via)) = subnet_elsewhere(&file, &mut kernel).await else { return Ok(()) };
    let what = format!("subnet {subnet} is reached through {via}, so it is another node's");
    Err(format!("{what}; start flanneld before, or delete {}", subnet_file.display()).into())
}
