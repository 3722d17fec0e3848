//! Where answers are shown: a terminal, or a pipe in its place.

use std::ffi::OsString;
use std::fmt;
use std::io::{self, IsTerminal as _, Write};
use std::os::fd::AsFd;
use std::time::SystemTime;

use rustix::termios::tcgetwinsize;

use crate::screen::{Detail, Look};

/// Asks a terminal for its columns and lines.
type Size<W> = fn(&W) -> Option<(usize, usize)>;

/// A writer, and what is known of the terminal behind it.
pub struct Terminal<W> {
    out: W,
    /// `None` if this is no terminal.
    size: Option<Size<W>>,
    /// The columns of what is no terminal.
    columns: Option<usize>,
    colour: bool,
}

impl<W> fmt::Debug for Terminal<W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { size, columns, colour, .. } = self;
        let mut all = f.debug_struct("Terminal");
        all.field("is_terminal", &size.is_some()).field("columns", columns).field("colour", colour);
        all.finish_non_exhaustive()
    }
}

impl<W: Write + AsFd> Terminal<W> {
    /// Finds out what a writer is, such as stdout. `variable` reads the environment: colours are for terminals, unless
    /// `NO_COLOR` is set (<https://no-color.org>) or `TERM` is `dumb`, and for pipes if `CLICOLOR_FORCE` is set; `COLUMNS`
    /// is the width of a pipe.
    pub fn of(out: W, variable: impl Fn(&str) -> Option<OsString>) -> Self {
        let is_terminal = out.as_fd().is_terminal();
        let is_set = |name| variable(name).is_some_and(|value| !value.is_empty() && value != "0");
        let unable = variable("TERM").is_none_or(|term| term == "dumb");
        let colour = (is_terminal && !unable || is_set("CLICOLOR_FORCE")) && !is_set("NO_COLOR");
        let columns = variable("COLUMNS").and_then(|columns| columns.to_str()?.parse().ok());
        Self { out, size: is_terminal.then_some(size_of::<W> as Size<W>), columns, colour }
    }
}

impl<W: Write> Terminal<W> {
    /// Text without colours, as wide and as long as it gets, for any writer.
    pub fn plain(out: W) -> Self {
        Self { out, size: None, columns: None, colour: false }
    }

    /// Whether it is a terminal, on which text can be shown in place of older text.
    pub fn is_terminal(&self) -> bool {
        self.size.is_some()
    }

    /// For text that scrolls: a table is cut at the width of the terminal or pipe; all else is as wide as it gets.
    pub(super) fn look(&self, detail: Detail) -> Look {
        let look = Look::plain(SystemTime::now()).coloured(self.colour);
        let columns = self.size().map(|(columns, _)| columns).or(self.columns);
        match columns.filter(|_| detail == Detail::Table) {
            Some(columns) => look.sized(columns, None),
            None => look,
        }
    }

    /// For text that fills the terminal and must not scroll.
    pub(super) fn whole_look(&self) -> Look {
        let look = Look::plain(SystemTime::now()).coloured(self.colour);
        // The cursor stays in the last line.
        self.size().map_or(look, |(columns, lines)| look.sized(columns, Some(lines.saturating_sub(1))))
    }

    fn size(&self) -> Option<(usize, usize)> {
        (self.size?)(&self.out)
    }

    pub(super) fn print(&mut self, text: &str) -> io::Result<()> {
        self.out.write_all(text.as_bytes())?;
        self.out.flush()
    }

    /// Draws the text in place of the last one: each line over the old one and clear to its end, then clear what is below
    /// (ECMA-48: CUP, EL, ED).
    pub(super) fn redraw(&mut self, text: &str) -> io::Result<()> {
        let lines: String = text.lines().flat_map(|line| [line, "\x1b[K\n"]).collect();
        self.print(&format!("\x1b[H{lines}\x1b[J"))
    }
}

/// Columns and lines of a terminal.
fn size_of<W: AsFd>(terminal: &W) -> Option<(usize, usize)> {
    let size = tcgetwinsize(terminal).ok()?;
    (size.ws_col > 0 && size.ws_row > 0).then(|| (size.ws_col.into(), size.ws_row.into()))
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::OwnedFd;

    use nix::pty::{Winsize, openpty};

    use super::*;

    /// A terminal of 40 columns and 10 lines, and what holds it open.
    fn terminal() -> (File, OwnedFd) {
        let size = Winsize { ws_row: 10, ws_col: 40, ws_xpixel: 0, ws_ypixel: 0 };
        let pair = openpty(Some(&size), None).unwrap();
        (pair.slave.into(), pair.master)
    }

    fn pipe() -> File {
        File::options().write(true).open("/dev/null").unwrap()
    }

    #[test]
    fn colours_are_for_terminals_unless_somebody_says_otherwise() {
        for (is_terminal, variables, colour) in [
            (true, &[("TERM", "xterm")][..], true),
            (true, &[("TERM", "dumb")], false),
            (true, &[], false),
            (true, &[("TERM", "xterm"), ("NO_COLOR", "1")], false),
            (true, &[("TERM", "xterm"), ("NO_COLOR", "")], true),
            (false, &[("TERM", "xterm")], false),
            (false, &[("CLICOLOR_FORCE", "1")], true),
            (false, &[("CLICOLOR_FORCE", "0")], false),
            (false, &[("CLICOLOR_FORCE", "1"), ("NO_COLOR", "1")], false),
        ] {
            let (slave, _master) = terminal();
            let out = if is_terminal { slave } else { pipe() };
            let variable = |name: &str| Some(variables.iter().find(|(key, _)| *key == name)?.1.into());
            let made = Terminal::of(out, variable);
            assert_eq!((made.is_terminal(), made.colour), (is_terminal, colour), "{variables:?}");
        }
    }

    #[test]
    fn a_table_is_as_wide_as_the_terminal_or_as_the_pipe_is_said_to_be() {
        let columns = |name: &str| (name == "COLUMNS").then(|| OsString::from("70"));
        let (slave, _master) = terminal();
        let terminal = Terminal::of(slave, columns);
        let sizes = |look: Look| (look.width, look.height);
        assert_eq!(sizes(terminal.look(Detail::Table)), (Some(40), None));
        assert_eq!(sizes(terminal.look(Detail::Wide)), (None, None));
        assert_eq!(sizes(terminal.whole_look()), (Some(40), Some(9)), "the cursor needs a line");
        assert_eq!(sizes(Terminal::of(pipe(), columns).look(Detail::Table)), (Some(70), None));
        assert_eq!(sizes(Terminal::of(pipe(), |_| None).look(Detail::Table)), (None, None));
        assert_eq!(sizes(Terminal::plain(Vec::new()).look(Detail::Table)), (None, None));
    }

    #[test]
    fn a_screen_is_drawn_over_the_last_one() {
        let mut terminal = Terminal::plain(Vec::new());
        terminal.redraw("a\nb\n").unwrap();
        assert_eq!(terminal.out, b"\x1b[Ha\x1b[K\nb\x1b[K\n\x1b[J");
    }
}
