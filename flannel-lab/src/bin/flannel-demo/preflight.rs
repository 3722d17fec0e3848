//! Tries whether this machine allows a sandbox at all, before anything else, so that the error helps.

use std::process::{Command, Stdio};

use crate::Fallible;

/// What the demo does first in its sandbox; each line fails for a reason of its own.
const TRIAL: &str = "set -e
PATH=$PATH:/usr/sbin:/sbin
mount -t tmpfs tmpfs /run
ip link set lo up
ip netns add trial
ip link add trial0 type veth peer name trial1 netns trial
ip link add trial2 type bridge";

/// Fails with advice if no sandbox can be made.
pub(crate) fn check() -> Fallible<()> {
    let is_root = nix::unistd::geteuid().is_root();
    let mut unshare = Command::new("unshare");
    unshare.args(["--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"]);
    if !is_root {
        unshare.args(["--user", "--map-root-user"]);
    }
    unshare.args(["--", "sh", "-c", TRIAL]).stdin(Stdio::null());
    let output = unshare.output();
    let output = output.map_err(|error| format!("unshare (Debian package util-linux): {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(format!("this machine refuses the sandbox: {said}\n{}", advice(is_root)).into())
}

fn advice(is_root: bool) -> &'static str {
    if is_root {
        "Root needs CAP_SYS_ADMIN and CAP_NET_ADMIN here, and the kernel veth, bridge and tmpfs.\n\
         In a container, start it with --privileged."
    } else {
        "An ordinary user needs user namespaces. Either run the demo as root, or permit them:\n\
         \x20 Ubuntu 24.04 and later: sysctl -w kernel.apparmor_restrict_unprivileged_userns=0\n\
         \x20 older Debian:           sysctl -w kernel.unprivileged_userns_clone=1\n\
         \x20 elsewhere:              sysctl -w user.max_user_namespaces=10000\n\
         \x20 in a container:         start it with --privileged"
    }
}
