//! Prints the status of an agent by its control socket, as `flanneld status` does.
//!
//! `cargo run -p flannel-control --example status -- /run/flannel/subnet.env`

use std::error::Error;
use std::path::Path;
use std::time::SystemTime;

use flannel_control::protocol::Request;
use flannel_control::screen::{self, Detail, Look};
use flannel_control::{Client, socket_of, wire};

fn main() -> Result<(), Box<dyn Error>> {
    let subnet_file = std::env::args_os().nth(1).ok_or("usage: status SUBNET_FILE")?;
    print!("{}", show(Path::new(&subnet_file))?);
    Ok(())
}

/// The screen of the agent with this subnet file.
pub fn show(subnet_file: &Path) -> Result<String, Box<dyn Error>> {
    let answer = Client::new(socket_of(subnet_file)).ask(&Request::new("status"))?;
    let status: wire::Status = serde_json::from_str(answer.get())?;
    Ok(screen::status(&status, Detail::Table, Look::plain(SystemTime::now())))
}
