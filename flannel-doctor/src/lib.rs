//! Examines a node of a container overlay network: more than fifty [`CHECKS`] of kernel, firewall, tunnel, MTU, CNI,
//! files, other programs of the host, store and Kubernetes, each with what was seen, a [`Verdict`], and the fix in one line.
//!
//! It works without a running agent and without a store, and uses what either says if it is given. It changes nothing:
//! what must be tried is tried in a network namespace that lives no longer than the trial. [`bundle`] packs what a bug
//! report needs, without secrets.
//!
//! ```no_run
//! use flannel_core::netns::Netns;
//! use flannel_doctor::{Doctor, Host};
//!
//! # async fn examine() -> Result<std::process::ExitCode, Box<dyn std::error::Error>> {
//! let doctor = Doctor::new(Host::new(Netns::current()?)).only(["mtu-path", "tunnel-reach"])?;
//! let report = doctor.examine().await;
//! print!("{report}");
//! Ok(report.verdict().exit_code().into())
//! # }
//! ```
//!
//! The library reads no environment, sets up no logger, ends no process and keeps no globals.

pub mod bundle;
mod checks;
mod doctor;
mod facts;
mod finding;
mod host;
mod places;
pub mod redact;
mod report;

pub use checks::{CHECKS, Check};
pub use doctor::{Doctor, UnknownCheck};
pub use facts::StoreToAsk;
pub use finding::{Finding, Verdict};
pub use host::{Host, RealTrials, Trial, Trials, Tried};
pub use places::Places;
pub use report::{Examined, Report, ReportForm};

/// Compiles the code in the README.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
