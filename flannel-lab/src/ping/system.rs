//! The machine's own `ping`, as a second opinion on ours.

use std::net::IpAddr;
use std::time::Duration;

use crate::netns::Netns;
use crate::wait::patiently;
use crate::{LabError, exec};

/// What the `ping` program reported.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SystemPing {
    /// Echoes sent.
    pub sent: u64,
    /// Echoes answered.
    pub received: u64,
    /// All it printed.
    pub output: String,
}

/// Runs `ping -M do`: `count` unfragmented echoes of `size` payload bytes, all at once.
///
/// That nothing comes back is no error. Once one reply has come `ping` waits for the others no longer than an interval
/// (iputils, `schedule_exit`), so that is a second, which nobody waits for where all are answered.
pub fn system_ping(netns: &Netns, dst: IpAddr, size: u32, count: u32) -> Result<SystemPing, LabError> {
    exec::find("ping")?;
    let mut command = netns.command("ping");
    let timeout = patiently(Duration::from_secs(1)).as_secs().to_string();
    let (size, count) = (size.to_string(), count.to_string());
    command.args(["-n", "-q", "-M", "do", "-i", &timeout, "-W", &timeout]);
    command.args(["-s", &size, "-l", &count, "-c", &count, &dst.to_string()]);
    let line = exec::describe(&command);
    let output = command.output().map_err(|source| LabError::Spawn { command: line, source })?;
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text).into_owned();
    parse(&text).ok_or_else(|| LabError::unexpected("ping", text))
}

/// `5 packets transmitted, 4 received, +1 errors, 20% packet loss, time 80ms`
fn parse(output: &str) -> Option<SystemPing> {
    let line = output.lines().find(|line| line.contains("packets transmitted"))?;
    let mut numbers = line.split(',').map(|part| part.split_whitespace().next()?.parse().ok());
    let (sent, received) = (numbers.next()??, numbers.next()??);
    Some(SystemPing { sent, received, output: output.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_summary_is_read() {
        let output = "PING x\n\n5 packets transmitted, 4 received, +1 errors, 20% packet loss\n";
        let read = parse(output).unwrap();
        assert_eq!((read.sent, read.received), (5, 4));
        assert_eq!(parse("ping: unknown host"), None);
    }
}
