//! The agent that a lab is for: where it comes from, and whether it is ready.

use std::env;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::LabError;
use crate::netns::Netns;
use crate::wait::patiently;

/// The workspace that the lab was built from.
const MANIFEST: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../Cargo.toml");

/// Which stores an agent is built with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stores {
    /// The folder: needs nothing but Rust.
    Local,
    /// All, etcd among them: building it takes `protoc`.
    All,
}

/// The flanneld to run: the one asked for, or the one beside this program.
pub fn path(given: Option<&Path>) -> Result<PathBuf, LabError> {
    match given {
        Some(path) if path.is_file() => {
            path.canonicalize().map_err(LabError::io(format!("the path of {}", path.display())))
        }
        Some(path) => Err(LabError::Invalid(format!("flanneld {}: no such file", path.display()))),
        None => Ok(this_program()?.with_file_name("flanneld")),
    }
}

/// Builds flanneld beside this program, in its target folder and profile; call it outside of the sandbox.
/// Cargo's progress is shown.
pub fn build(stores: Stores) -> Result<(), LabError> {
    if !Path::new(MANIFEST).is_file() {
        let why = "the workspace this program was built from is gone";
        return Err(LabError::Invalid(format!("{why} ({MANIFEST}); name a flanneld that is there")));
    }
    let exe = this_program()?;
    let (target, profile) = place(&exe).ok_or_else(|| {
        LabError::Invalid(format!("{} isn't in a target folder; name a flanneld", exe.display()))
    })?;
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args(["build", "--package", "flannel-bin", "--profile", profile, "--manifest-path", MANIFEST]);
    cargo.arg("--target-dir").arg(target);
    if stores == Stores::Local {
        cargo.arg("--no-default-features");
    }
    let status = cargo.status().map_err(LabError::io("starting cargo"))?;
    if status.success() { Ok(()) } else { Err(LabError::Invalid(format!("cargo build ended with {status}"))) }
}

/// A GET of an agent's health server over loopback: the whole answer.
pub fn get(netns: &Netns, port: u16, path: &str) -> Result<String, LabError> {
    let ask = || -> std::io::Result<String> {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let mut stream = TcpStream::connect_timeout(&address, patiently(Duration::from_secs(1)))?;
        stream.set_read_timeout(Some(patiently(Duration::from_secs(2))))?;
        write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    };
    netns.enter(ask)?.map_err(LabError::io(format!("asking {} for {path}", netns.name())))
}

/// Asks an agent's health server whether its network is complete; an error is what it says instead.
pub fn ready(netns: &Netns, port: u16) -> Result<(), String> {
    let answer = get(netns, port, "/readyz").map_err(|error| error.to_string())?;
    let is_ready = answer.lines().next().is_some_and(|line| line.contains(" 200 "));
    if is_ready { Ok(()) } else { Err(answer) }
}

fn this_program() -> Result<PathBuf, LabError> {
    env::current_exe().map_err(LabError::io("the path of this program"))
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
    fn profile_and_target_folder_are_those_of_the_program() {
        let place = |exe: &'static str| place(Path::new(exe));
        assert_eq!(place("/w/target/release/flannel-demo"), Some((Path::new("/w/target"), "release")));
        assert_eq!(place("/w/target/debug/flannel-demo"), Some((Path::new("/w/target"), "dev")));
        assert_eq!(place("flannel-demo"), None);
    }

    #[test]
    fn a_flanneld_that_is_not_there_is_named() {
        let error = path(Some(Path::new("/no/flanneld"))).unwrap_err();
        assert_eq!(error.to_string(), "flanneld /no/flanneld: no such file");
        assert!(path(None).unwrap().ends_with("flanneld"));
    }
}
