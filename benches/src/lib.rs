//! What the benches share: statistics, the share of the processor that others use, and the agent under test.
//!
//! Absolute figures drift with the machine, so every bench runs what it compares side by side, interleaved, and
//! reports ratios with their spread.

pub mod batch;
pub mod flood;
pub mod leases;
pub mod machine;
pub mod proc;
pub mod stats;
pub mod sys;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use flannel_lab::netns::Netns;

/// Any failure ends a bench.
pub type Fallible<T> = Result<T, Box<dyn std::error::Error>>;

/// Which stores an agent is built with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stores {
    /// The folder: needs nothing but Rust.
    Local,
    /// All, etcd among them: building it takes `protoc`.
    All,
}

/// Builds `flanneld` in this program's own profile and returns its path. Call it outside of the sandbox.
pub fn build_flanneld(stores: Stores) -> Fallible<PathBuf> {
    let exe = std::env::current_exe()?;
    let profile = exe.parent().ok_or("this program is nowhere")?;
    let target = profile.parent().ok_or("this program is in no target folder")?;
    let manifest = concat!(env!("CARGO_MANIFEST_DIR"), "/../Cargo.toml");
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args(["build", "--quiet", "--package", "flannel-bin", "--manifest-path", manifest]);
    if stores == Stores::Local {
        cargo.arg("--no-default-features");
    }
    cargo.arg("--target-dir").arg(target);
    if profile.ends_with("release") {
        cargo.arg("--release");
    } else {
        eprintln!("warning: this is no release build");
    }
    if !cargo.status()?.success() {
        return Err("cargo could not build flanneld".into());
    }
    Ok(flanneld_beside(&exe))
}

/// The `flanneld` beside a program.
pub fn flanneld_beside(exe: &Path) -> PathBuf {
    exe.with_file_name("flanneld")
}

/// The port at which agents of the benches tell their readiness.
pub const HEALTH_PORT: u16 = 8471;

/// Whether the agent in a namespace says that its network is complete.
pub fn is_ready(netns: &Netns) -> bool {
    let ask = || -> std::io::Result<bool> {
        let mut stream = TcpStream::connect(("127.0.0.1", HEALTH_PORT))?;
        stream.set_read_timeout(Some(Duration::from_secs(1)))?;
        stream.write_all(b"GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer.starts_with("HTTP/1.1 200"))
    };
    netns.enter(ask).is_ok_and(|answer| answer.unwrap_or(false))
}
