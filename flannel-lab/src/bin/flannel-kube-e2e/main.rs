//! The Kubernetes store, from end to end: a real `kube-apiserver` with TLS and RBAC, the manifest that operators
//! apply, and the real agent on nodes that are network namespaces of this machine.
//!
//! `KUBE_APISERVER` names the server to run, of any version. Where it is not set there is nothing to test with,
//! and the program says so.

mod checks;
mod kubelet;
mod manifest;
#[path = "../flannel-demo/preflight.rs"]
mod preflight;
mod report;
mod requests;
mod story;
mod world;

use std::env;
use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Parser;
use flannel_lab::cluster::Families;
use flannel_lab::error::chain;
use flannel_lab::flanneld::{self, Stores};
use flannel_lab::sandbox::{Entered, enter_sandbox, is_inside};

/// Any failure; it ends the program, which shows it with all its causes.
type Fallible<T> = Result<T, Box<dyn Error>>;

/// Names the server.
const KUBE_APISERVER: &str = "KUBE_APISERVER";

/// Runs the manifest's agent against a real API server: `KUBE_APISERVER=/path/to/kube-apiserver`.
///
/// Needs root or user namespaces, etcd and curl, and leaves nothing behind.
#[derive(Debug, Parser)]
#[command(name = "flannel-kube-e2e", version)]
struct Options {
    /// Address families of the underlay and of the pods: v4 or dual
    #[arg(long, value_enum, default_value_t = Families::V4)]
    families: Families,
    /// Run this flanneld instead of building one
    #[arg(long, value_name = "PATH")]
    flanneld: Option<PathBuf>,
    /// Apply this manifest instead of dist/kubernetes/flannel.yaml
    #[arg(long, value_name = "PATH")]
    manifest: Option<PathBuf>,
}

fn main() -> ExitCode {
    let Some(kube_apiserver) = env::var_os(KUBE_APISERVER).filter(|path| !path.is_empty()) else {
        println!("SKIPPED: {KUBE_APISERVER} is not set, so there is no API server to run the agent against.");
        println!("Set it to the path of a kube-apiserver binary; a release's server archive has one.");
        return ExitCode::SUCCESS;
    };
    run(&Options::parse(), Path::new(&kube_apiserver)).unwrap_or_else(|error| {
        eprintln!("FAILED: {}", chain(&*error));
        ExitCode::FAILURE
    })
}

fn run(options: &Options, kube_apiserver: &Path) -> Fallible<ExitCode> {
    let kube_apiserver = kube_apiserver.canonicalize().map_err(|error| {
        format!("{KUBE_APISERVER} names {}, which is no program: {error}", kube_apiserver.display())
    })?;
    if options.families == Families::V6 {
        return Err("an IPv6 cluster needs a manifest with another network; try v4 or dual".into());
    }
    let flanneld = flanneld::path(options.flanneld.as_deref())?;
    if !is_inside() {
        if options.flanneld.is_none() {
            flanneld::build(Stores::All)?;
        }
        preflight::check()?;
    }
    match enter_sandbox()? {
        Entered::Inside => {
            let manifest = manifest::read(options.manifest.as_ref())?;
            story::tell(options.families, &manifest, &kube_apiserver, &flanneld)
        }
        Entered::Outside(code) => Ok(code),
    }
}
