//! Standard output: a terminal, or a pipe in its place.

use std::env;
use std::io::{self, IsTerminal as _, Write as _};
use std::time::SystemTime;

use flannel_control::screen::{Detail, Look};
use rustix::termios::tcgetwinsize;

/// Where answers are shown.
#[derive(Debug, Clone, Copy)]
pub(super) struct Terminal {
    is_terminal: bool,
    colour: bool,
}

impl Terminal {
    /// What stdout is. Colours are for terminals, unless `NO_COLOR` is set (<https://no-color.org>), and for pipes if
    /// `CLICOLOR_FORCE` is.
    pub(super) fn of_stdout() -> Self {
        let is_terminal = io::stdout().is_terminal();
        let is_set = |name| env::var_os(name).is_some_and(|value| !value.is_empty() && value != "0");
        let unable = env::var_os("TERM").is_none_or(|term| term == "dumb");
        let colour = (is_terminal && !unable || is_set("CLICOLOR_FORCE")) && !is_set("NO_COLOR");
        Self { is_terminal, colour }
    }

    pub(super) fn is_terminal(self) -> bool {
        self.is_terminal
    }

    /// For text that scrolls: a table is cut at the width of the terminal, or in a pipe at `COLUMNS`; all else is as wide as
    /// it gets.
    pub(super) fn look(self, detail: Detail) -> Look {
        let look = Look::plain(SystemTime::now()).coloured(self.colour);
        let columns = match size().filter(|_| self.is_terminal) {
            Some((columns, _)) => Some(columns),
            None => env::var("COLUMNS").ok().and_then(|columns| columns.parse().ok()),
        };
        match columns.filter(|_| detail == Detail::Table) {
            Some(columns) => look.sized(columns, None),
            None => look,
        }
    }

    /// For text that fills the terminal and must not scroll.
    pub(super) fn whole_look(self) -> Look {
        let look = Look::plain(SystemTime::now()).coloured(self.colour);
        // The cursor stays in the last line.
        size().map_or(look, |(columns, lines)| look.sized(columns, Some(lines.saturating_sub(1))))
    }

    pub(super) fn print(text: &str) -> io::Result<()> {
        let mut out = io::stdout().lock();
        out.write_all(text.as_bytes())?;
        out.flush()
    }

    /// Draws the text in place of the last one: each line over the old one and clear to its end, then clear what is below
    /// (ECMA-48: CUP, EL, ED).
    pub(super) fn redraw(text: &str) -> io::Result<()> {
        let lines: String = text.lines().flat_map(|line| [line, "\x1b[K\n"]).collect();
        Self::print(&format!("\x1b[H{lines}\x1b[J"))
    }
}

/// Columns and lines of the terminal.
fn size() -> Option<(usize, usize)> {
    let size = tcgetwinsize(io::stdout()).ok()?;
    (size.ws_col > 0 && size.ws_row > 0).then(|| (size.ws_col.into(), size.ws_row.into()))
}
