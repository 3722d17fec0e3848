//! `cargo demo`: builds the demo and the agent that it shows by one call of cargo, so that what both need is compiled once, and
//! runs the demo beside that agent. Arguments are the demo's.

use std::env;
use std::error::Error;
use std::ffi::OsString;
use std::io::Write as _;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, ExitCode};

/// How both are built: see Cargo.toml.
const PROFILE: &str = "demo";
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
    let target = this.ancestors().nth(2).ok_or("this program isn't in a target folder of cargo")?;
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args(["build", "--profile", PROFILE, "--manifest-path", WORKSPACE]).arg("--target-dir").arg(target);
    cargo.args(["--package", "flannel-lab", "--bin", "flannel-demo"]);
    // The store of the demo is a folder: an agent with no other needs nothing but Rust.
    cargo.args(["--package", "flannel-bin", "--bin", "flanneld", "--no-default-features"]);
    if !cargo.status().map_err(|error| format!("cargo can't be run: {error}"))?.success() {
        return Ok(ExitCode::FAILURE);
    }
    let demo = target.join(PROFILE).join("flannel-demo");
    let error = Command::new(&demo).args(args).exec();
    Err(format!("{} can't be run: {error}", demo.display()).into())
}
