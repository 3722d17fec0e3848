//! `cargo demo`: builds the demo and the agent that it shows by one call of cargo, so that what both need is compiled once, and
//! runs the demo beside that agent. Arguments are the demo's.

use std::env;
use std::error::Error;
use std::ffi::OsString;
use std::io::Write as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, ExitCode};

const WORKSPACE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../Cargo.toml");

fn main() -> ExitCode {
    match run(env::args_os().skip(1).collect()) {
        Ok(code) => code,
        Err(error) => {
            // A closed stderr must not crash the program.
            let _ = writeln!(std::io::stderr(), "cargo demo: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Returns if cargo fails, which has said why; otherwise this process becomes the demo.
fn run(args: Vec<OsString>) -> Result<ExitCode, Box<dyn Error>> {
    let this = env::current_exe()?;
    let (folder, target, profile) = place(&this).ok_or("this program isn't in a target folder of cargo")?;
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args(["build", "--profile", profile, "--manifest-path", WORKSPACE]).arg("--target-dir").arg(target);
    // The store of the demo is a folder: an agent with no other needs nothing but Rust.
    cargo.args([
        "--package",
        "flannel-lab",
        "--bin",
        "flannel-demo",
        "--package",
        "flannel-bin",
        "--bin",
        "flanneld",
    ]);
    cargo.arg("--no-default-features");
    if !cargo.status().map_err(|error| format!("cargo can't be run: {error}"))?.success() {
        return Ok(ExitCode::FAILURE);
    }
    let demo = folder.join("flannel-demo");
    let error = Command::new(&demo).args(args).exec();
    Err(format!("{} can't be run: {error}", demo.display()).into())
}

/// The folder of a program in `<target>/<profile>/`, its target folder, and its profile.
fn place(program: &Path) -> Option<(&Path, &Path, &str)> {
    let folder = program.parent()?;
    let profile = match folder.file_name()?.to_str()? {
        "debug" => "dev",
        other => other,
    };
    Some((folder, folder.parent()?, profile))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_built_is_beside_this_program() {
        let path = Path::new;
        let beside = |program| {
            place(path(program))
                .map(|(folder, target, profile)| (folder.to_owned(), target.to_owned(), profile))
        };
        let want = |folder, profile| Some((path(folder).to_owned(), path("/w/target").to_owned(), profile));
        assert_eq!(beside("/w/target/demo/start-demo"), want("/w/target/demo", "demo"));
        assert_eq!(beside("/w/target/debug/start-demo"), want("/w/target/debug", "dev"));
        assert_eq!(beside("start-demo"), None);
    }
}
