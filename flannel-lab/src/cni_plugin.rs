//! The CNI plugin `flannel` as it is shipped: static and small.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::{LabError, exec};

/// The workspace that the lab was built from.
const WORKSPACE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

/// The C library that a static program has in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Libc {
    /// The small one; Rust's target for it has to be installed (`rustup target add`).
    Musl,
    /// What every Rust on Linux can link, which alone is larger than the plugin.
    Gnu,
}

/// A plugin that was built.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Built {
    /// The program.
    pub program: PathBuf,
    /// What is in it.
    pub libc: Libc,
}

/// Builds it with musl where that target is installed, else with glibc, into the target folder of the program
/// that calls; outside of a sandbox.
pub fn build() -> Result<Built, LabError> {
    let (built, triple, target) = place()?;
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(WORKSPACE).args(["cni", "--locked", "--target", &triple]);
    cargo.arg("--target-dir").arg(target).env("RUSTFLAGS", "-Ctarget-feature=+crt-static");
    exec::output(cargo)?;
    Ok(built)
}

/// Where [`build`] put it, for programs that are in a sandbox by now.
pub fn built() -> Result<Built, LabError> {
    Ok(place()?.0)
}

/// What is built where: also the target's triple, and cargo's target folder.
fn place() -> Result<(Built, String, PathBuf), LabError> {
    let arch = env::consts::ARCH;
    let musl = format!("{arch}-unknown-linux-musl");
    let libc = if is_installed(&musl)? { Libc::Musl } else { Libc::Gnu };
    let triple = if libc == Libc::Musl { musl } else { format!("{arch}-unknown-linux-gnu") };
    let exe = env::current_exe().map_err(LabError::io("the path of this program"))?;
    // Cargo keeps what it knows of the compiler in its target folder.
    let target = exe.ancestors().find(|folder| folder.join(".rustc_info.json").is_file());
    let target =
        target.ok_or_else(|| LabError::Invalid(format!("{} isn't in a target folder", exe.display())))?;
    let program = target.join(&triple).join("small/flannel");
    Ok((Built { program, libc }, triple, target.to_owned()))
}

fn is_installed(triple: &str) -> Result<bool, LabError> {
    let mut rustc = Command::new(env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()));
    rustc.current_dir(WORKSPACE).args(["--print", "target-libdir", "--target", triple]);
    Ok(Path::new(exec::output(rustc)?.trim()).is_dir())
}
