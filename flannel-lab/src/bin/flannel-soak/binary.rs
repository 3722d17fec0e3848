//! Where flanneld comes from: built next to the soak, in the same target folder and profile.

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::Fallible;
use crate::options::Options;

/// The workspace that the soak was built from.
const MANIFEST: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../Cargo.toml");

/// The flanneld to run: the one asked for, or the one beside this program.
pub(crate) fn path(options: &Options) -> Fallible<PathBuf> {
    match &options.flanneld {
        Some(path) if path.is_file() => Ok(path.canonicalize()?),
        Some(path) => Err(format!("--flanneld {}: no such file", path.display()).into()),
        None => Ok(env::current_exe()?.with_file_name("flanneld")),
    }
}

/// Builds it with all its stores. Cargo's progress is shown.
pub(crate) fn build() -> Fallible<()> {
    let exe = env::current_exe()?;
    let (target, profile) =
        place(&exe).ok_or_else(|| format!("{} isn't in a target folder; use --flanneld", exe.display()))?;
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo")));
    cargo.args(["build", "--package", "flannel-bin", "--all-features", "--profile", profile, "--target-dir"]);
    let status = cargo.arg(target).args(["--manifest-path", MANIFEST]).status();
    let status = status.map_err(|error| format!("cargo can't be started: {error}"))?;
    if status.success() { Ok(()) } else { Err(format!("cargo build ended with {status}").into()) }
}

/// The target folder and the profile of a program in `<target>/<profile>/`.
fn place(exe: &Path) -> Option<(&Path, &str)> {
    let dir = exe.parent()?;
    let profile = match dir.file_name()?.to_str()? {
        "debug" => "dev",
        other => other,
    };
    Some((dir.parent()?, profile))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn profile_and_target_folder_are_those_of_the_soak() {
        let place = |exe: &'static str| place(Path::new(exe));
        assert_eq!(place("/w/target/release/flannel-soak"), Some((Path::new("/w/target"), "release")));
        assert_eq!(place("/w/target/debug/flannel-soak"), Some((Path::new("/w/target"), "dev")));
        assert_eq!(place("flannel-soak"), None);
    }
}
