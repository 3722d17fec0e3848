//! What `dist/` gives to operators: manifest, chart, image, unit and package. Each is read as its consumer would read
//! it, and held against the program and against what Go flannel's are called.

mod chart;
mod documents;
mod generated;
mod host;
mod image;
mod manifest;
mod objects;
mod package;
mod policy;
mod prometheus;
mod publishing;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// The program under test.
const FLANNELD: &str = env!("CARGO_BIN_EXE_flanneld");

/// A path of the workspace.
fn path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(name)
}

/// A file of the workspace.
fn file(name: &str) -> String {
    std::fs::read_to_string(path(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// A run of the program with a clean environment.
fn flanneld<S: AsRef<std::ffi::OsStr>>(args: &[S]) -> Output {
    Command::new(FLANNELD).env_clear().args(args).output().unwrap()
}

/// What it printed, if it succeeded.
fn success(output: &Output) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{}", text(&output.stderr));
    text(&output.stdout)
}

/// The flags of the agent, from its own usage text, with the variables that set them.
fn flags() -> Vec<(String, String)> {
    let usage = success(&flanneld(&["--help"]));
    // What is further in is help.
    let names = usage.lines().filter_map(|line| line.strip_prefix("      --"));
    let names = names.map(|line| line.split([' ', '[']).next().unwrap_or_default().to_owned());
    let variable = |name: &str| format!("FLANNELD_{}", name.to_ascii_uppercase().replace('-', "_"));
    names.map(|name| (name.clone(), variable(&name))).collect()
}
