//! Examines this host and prints the report: `cargo run -p flannel-doctor --example examine [CHECK..]`.

use std::error::Error;
use std::process::ExitCode;

use flannel_core::netns::Netns;
use flannel_doctor::{Doctor, Host};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<ExitCode, Box<dyn Error>> {
    let checks: Vec<String> = std::env::args().skip(1).collect();
    let doctor = Doctor::new(Host::new(Netns::current()?)).only(checks.iter().map(String::as_str))?;
    let report = doctor.examine().await;
    print!("{report}");
    Ok(report.verdict().exit_code().into())
}
