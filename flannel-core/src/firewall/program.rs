//! Runs the programs that keep rules.

use std::io;
use std::process::Stdio;

use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use super::error::{DEADLINE, FirewallError};
use crate::netns::Netns;

/// Runs a program in a network namespace to its end and returns what it printed.
pub(super) async fn run(
    netns: &Netns,
    program: &str,
    args: &[impl AsRef<str>],
    input: &str,
) -> Result<String, FirewallError> {
    let args: Vec<_> = args.iter().map(AsRef::as_ref).collect();
    let command = || std::iter::once(program).chain(args.iter().copied()).collect::<Vec<_>>().join(" ");
    let spawn_error = |source: io::Error| match source.kind() {
        io::ErrorKind::NotFound => {
            FirewallError::Missing { program: program.to_owned(), package: package_of(program) }
        }
        _ => FirewallError::Run { command: command(), source },
    };
    let mut child = Command::new(program);
    child
        .args(&args)
        // Some messages are parsed, so they must not be translated.
        .env("LC_ALL", "C")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    let mut child = netns.run(|| child.spawn())?.map_err(spawn_error)?;
    let mut stdin = child.stdin.take().expect("it was asked for");
    let feed = async {
        // A program that ends without reading reports the reason by its status and error output.
        _ = stdin.write_all(input.as_bytes()).await;
        drop(stdin);
    };
    let whole = async { tokio::join!(feed, child.wait_with_output()).1 };
    let output = tokio::time::timeout(DEADLINE, whole)
        .await
        .map_err(|_| FirewallError::TimedOut { command: command() })?
        .map_err(|source| FirewallError::Run { command: command(), source })?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().replace('\n', "; ");
    Err(FirewallError::Failed { command: command(), status: output.status, said })
}

/// The package that contains a program.
fn package_of(program: &str) -> &'static str {
    if program == "nft" { "nftables" } else { "iptables" }
}
