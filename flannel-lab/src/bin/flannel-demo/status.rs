//! What node1's agent says of itself: `flanneld status`, as an operator would ask.

use std::path::{Path, PathBuf};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

use flannel_lab::netns::Netns;
use serde_json::Value;
use terminal_size::terminal_size;

use crate::screen::Screen;

/// Between two looks.
const EVERY: Duration = Duration::from_millis(250);
/// Where stdout has no size.
const COLUMNS: usize = 100;
/// The most lines that are shown live, so that the steps above stay in sight.
const LINES: usize = 18;

/// Asks one agent.
#[derive(Debug, Clone)]
pub(crate) struct Status {
    flanneld: PathBuf,
    netns: Netns,
    file: String,
}

impl Status {
    /// Asks the agent with this subnet file.
    pub(crate) fn of(flanneld: &Path, netns: &Netns, subnet_file: &Path) -> Self {
        let file = format!("--subnet-file={}", subnet_file.display());
        Self { flanneld: flanneld.to_owned(), netns: netns.clone(), file }
    }

    /// The table, or why there is none.
    pub(crate) fn table(&self) -> String {
        self.ask(&["status"], &[])
    }

    /// How many peers are programmed; none without an agent.
    pub(crate) fn peers(&self) -> u64 {
        let status: Value =
            serde_json::from_str(&self.ask(&["status", "--output=json"], &[])).unwrap_or_default();
        status["network"]["peers"].as_u64().unwrap_or_default()
    }

    fn ask(&self, args: &[&str], env: &[(&str, String)]) -> String {
        let mut flanneld = self.netns.command(&self.flanneld);
        let output = flanneld.args(args).arg(&self.file).envs(env.iter().cloned()).output();
        match output {
            Ok(output) if output.stdout.is_empty() => String::from_utf8_lossy(&output.stderr).into_owned(),
            Ok(output) => String::from_utf8_lossy(&output.stdout).into_owned(),
            Err(error) => format!("flanneld status: {error}\n"),
        }
    }

    /// Does some work, with the table below it, live, if stdout is a terminal.
    pub(crate) fn show_while<T>(&self, screen: &Screen, work: impl FnOnce() -> T) -> T {
        if !screen.is_terminal() {
            return work();
        }
        thread::scope(|scope| {
            let (done, is_done) = channel::<()>();
            let show = scope.spawn(move || {
                while is_done.recv_timeout(EVERY) == Err(RecvTimeoutError::Timeout) {
                    // A line that wraps could not be drawn again in place.
                    let mut env = vec![("COLUMNS", columns().saturating_sub(1).to_string())];
                    env.extend(screen.has_colours().then(|| ("CLICOLOR_FORCE", "1".to_owned())));
                    screen.panel(panel(&self.ask(&["status"], &env)));
                }
                screen.panel(String::new());
            });
            let result = work();
            drop(done);
            // It has nothing to say but what it showed.
            let _ = show.join();
            result
        })
    }
}

fn columns() -> usize {
    terminal_size().map_or(COLUMNS, |(width, _)| width.0.into())
}

/// An empty line, and those that fit.
fn panel(table: &str) -> String {
    std::iter::once("").chain(table.lines()).take(LINES).flat_map(|line| [line, "\n"]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panel_has_not_too_many_lines() {
        assert_eq!(panel("one\ntwo\n"), "\none\ntwo\n");
        assert_eq!(panel(&"line\n".repeat(100)).lines().count(), LINES);
    }
}
