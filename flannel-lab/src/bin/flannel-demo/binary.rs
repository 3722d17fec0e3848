//! Where flanneld comes from: built next to the demo, in the same target folder and profile.

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use crate::Fallible;
use crate::options::Options;
use crate::screen::Screen;

/// The workspace that the demo was built from.
const WORKSPACE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

/// The flanneld to run: the one asked for, or the one beside this program.
pub(crate) fn path(options: &Options) -> Fallible<PathBuf> {
    match &options.flanneld {
        Some(path) if path.is_file() => Ok(path.canonicalize()?),
        Some(path) => Err(format!("--flanneld {}: no such file", path.display()).into()),
        None => Ok(env::current_exe()?.with_file_name("flanneld")),
    }
}

/// Builds it, without the stores that need more than a Rust toolchain. Cargo's progress is shown.
pub(crate) fn build(screen: &Screen) -> Fallible<()> {
    let manifest = Path::new(WORKSPACE).join("Cargo.toml");
    if !manifest.is_file() {
        let why = "the workspace this demo was built from is gone";
        return Err(format!("{why} ({WORKSPACE}); name a flanneld with --flanneld PATH").into());
    }
    let exe = env::current_exe()?;
    let (target, profile) =
        place(&exe).ok_or_else(|| format!("{} isn't in a target folder; use --flanneld", exe.display()))?;
    screen.line(&format!("building flanneld ({profile}, without default features)"));
    let start = Instant::now();
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo")));
    cargo.args(["build", "--package", "flannel-bin", "--no-default-features", "--profile", profile]);
    cargo.arg("--target-dir").arg(target).arg("--manifest-path").arg(manifest);
    let status = cargo.status().map_err(|error| format!("cargo can't be started: {error}"))?;
    if !status.success() {
        return Err(format!("cargo build ended with {status}").into());
    }
    screen.line(&format!("built in {:.1} s\n", start.elapsed().as_secs_f64()));
    Ok(())
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
    fn profile_and_target_folder_are_those_of_the_demo() {
        let place = |exe: &'static str| place(Path::new(exe));
        assert_eq!(place("/w/target/release/flannel-demo"), Some((Path::new("/w/target"), "release")));
        assert_eq!(place("/w/target/debug/flannel-demo"), Some((Path::new("/w/target"), "dev")));
        assert_eq!(place("flannel-demo"), None);
    }
}
