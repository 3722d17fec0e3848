//! A world of its own for each test: what happens in it can't outlive it.
//!
//! A sandbox is a new mount, network and pid namespace, and a user namespace with root mapped
//! where the caller isn't root. The current executable runs again in it, as the pid namespace's
//! first process. When that one ends, by whatever cause, the kernel kills every other process in
//! there and frees every namespace they held. The chain holds from the outside in: `setpriv
//! --pdeathsig` ends `unshare` when the caller dies, and `unshare --kill-child` passes it on.
//!
//! Inside, `/run` is a fresh tmpfs, so that the names `ip netns` makes are private, and `lo` is up.
//!
//! [`in_sandbox`] is for tests, [`enter_sandbox`] for whole programs.

mod program;
mod test;

use std::env;
use std::ffi::OsStr;
use std::path::PathBuf;
use std::process::{self, Command};
use std::sync::Mutex;

use nix::mount::{MsFlags, mount};
use nix::sys::stat::{Mode, umask};
use tempfile::TempDir;

pub use self::program::{Entered, enter_sandbox};
pub use self::test::{DEADLINE, in_sandbox, in_sandbox_within};
use crate::{LabError, exec};

/// Says for which test, or program, the sandbox around this process was made.
const MARKER: &str = "FLANNEL_LAB_SANDBOX";

/// Says in the sandbox which process outside holds it.
const HOLDER: &str = "FLANNEL_LAB_HOLDER";
/// Becomes the program that it is given, whose pid is then known in the sandbox.
const EXEC: &str = "export FLANNEL_LAB_HOLDER=$$; exec \"$@\"";

/// Whether this process is the first one of a sandbox.
///
/// The pid is checked as well as the marker: a stray variable must not make us mount over the
/// host's `/run`.
pub fn is_inside() -> bool {
    process::id() == 1 && env::var_os(MARKER).is_some()
}

/// The process that holds this sandbox's namespaces for as long as it lasts: its pid outside.
///
/// It is in the mount, network and user namespace itself, so `nsenter --target` can look into a sandbox by
/// it; the pid namespace is its `/proc/<pid>/ns/pid_for_children`. `None` outside a sandbox.
pub fn holder_pid() -> Option<u32> {
    let pid = env::var(HOLDER).ok().filter(|_| is_inside());
    pid.and_then(|pid| pid.parse().ok())
}

fn is_inside_for(name: &str) -> bool {
    is_inside() && env::var_os(MARKER).as_deref() == Some(OsStr::new(name))
}

/// The current executable, to be run in a sandbox marked with `name`.
fn command(name: &str) -> Result<Command, LabError> {
    let mut command = exec::command("sh")?;
    command.args(["-c", EXEC, "sh"]).arg(exec::find("setpriv")?);
    command.args(["--pdeathsig", "KILL"]).arg(exec::find("unshare")?);
    command.args(["--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"]);
    if !nix::unistd::geteuid().is_root() {
        command.args(["--user", "--map-root-user"]);
    }
    let program = env::current_exe().map_err(LabError::io("the current executable's path"))?;
    command.arg("--").arg(program).env(MARKER, name);
    Ok(command)
}

/// What every sandbox needs before anything else runs in it. Does it once.
fn prepare() -> Result<(), LabError> {
    static PREPARED: Mutex<bool> = Mutex::new(false);
    let mut prepared = PREPARED.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if !*prepared {
        mount(Some("tmpfs"), "/run", Some("tmpfs"), MsFlags::empty(), Some("mode=755"))
            .map_err(LabError::io("mounting a tmpfs on the sandbox's /run"))?;
        let mut ip = exec::command("ip")?;
        ip.args(["link", "set", "lo", "up"]);
        exec::output(ip)?;
        // Folders are as root makes them, whoever runs the tests: an agent refuses one that a group can write to.
        umask(Mode::S_IWGRP | Mode::S_IWOTH);
        *prepared = true;
    }
    Ok(())
}

/// A directory for one process's files: in the sandbox's `/run`, or else in the temporary
/// directory. Goes when dropped.
pub(crate) fn state_dir(name: &str) -> Result<TempDir, LabError> {
    let base = if is_inside() { PathBuf::from("/run/flannel-lab") } else { env::temp_dir() };
    let what = || format!("a directory for {name} in {}", base.display());
    std::fs::create_dir_all(&base).map_err(LabError::io(what()))?;
    let mut builder = tempfile::Builder::new();
    builder.prefix(&format!("{name}-")).tempdir_in(&base).map_err(LabError::io(what()))
}
