//! Lines on stdout: steps with the time since the start, in colour where that helps.

use std::env;
use std::error::Error;
use std::io::{IsTerminal, Stdout, Write, stderr, stdout};
use std::process;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use flannel_lab::error::chain;

/// What a piece of text means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Style {
    /// A step or a heading.
    Strong,
    /// Beside the point.
    Dim,
    /// As it should be.
    Good,
    /// Not as it should be.
    Bad,
}

/// The terminal, or the pipe in its place.
#[derive(Debug)]
pub(crate) struct Screen {
    start: Instant,
    out: Stdout,
    is_terminal: bool,
    colour: bool,
    /// The lines below all others, which are drawn again in place.
    panel: Mutex<String>,
}

impl Screen {
    /// The clock starts now.
    pub(crate) fn new(no_colour: bool) -> Self {
        let unwanted = env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let unable = env::var_os("TERM").is_none_or(|term| term == "dumb");
        let is_terminal = stdout().is_terminal();
        let colour = !(no_colour || unwanted || unable) && is_terminal;
        Self { start: Instant::now(), out: stdout(), is_terminal, colour, panel: Mutex::default() }
    }

    /// A step: its name and what came out of it.
    pub(crate) fn step(&self, name: &str, text: &str) {
        let time = format!("[{:6.2} s]", self.start.elapsed().as_secs_f64());
        let name = self.paint(Style::Strong, &format!("{name:<9}"));
        self.line(format!("{} {name} {text}", self.paint(Style::Dim, &time)).trim_end());
    }

    /// Whether colours are used.
    pub(crate) fn has_colours(&self) -> bool {
        self.colour
    }

    /// Whether lines can be drawn again in place.
    pub(crate) fn is_terminal(&self) -> bool {
        self.is_terminal
    }

    /// A line, or several.
    pub(crate) fn line(&self, text: &str) {
        self.draw(&format!("{text}\n"), None);
    }

    /// Draws other lines below all others; none if the text is empty.
    pub(crate) fn panel(&self, text: String) {
        self.draw("", Some(text));
    }

    /// Takes the panel away, adds lines, and draws the panel again (ECMA-48: CPL, ED).
    fn draw(&self, lines: &str, panel: Option<String>) {
        let mut out = self.out.lock();
        let mut shown = self.panel.lock().unwrap_or_else(PoisonError::into_inner);
        let height = shown.lines().count();
        let erase = if height > 0 { format!("\x1b[{height}F\x1b[J") } else { String::new() };
        if let Some(panel) = panel {
            *shown = panel;
        }
        if write!(out, "{erase}{lines}{}", *shown).and_then(|()| out.flush()).is_err() {
            // Nobody reads any more. The sandbox takes down what there is.
            process::exit(1);
        }
    }

    /// Lines that belong to the step above.
    pub(crate) fn block(&self, text: &str) {
        let lines = text.trim_end().lines().map(|line| format!("    {line}").trim_end().to_owned());
        self.line(&lines.collect::<Vec<_>>().join("\n"));
    }

    /// An error with its causes, on stderr.
    pub(crate) fn error(&self, error: &dyn Error) {
        let _ = writeln!(stderr(), "{} {}", self.paint(Style::Bad, "error:"), chain(error));
    }

    /// The text in the colour of its meaning.
    pub(crate) fn paint(&self, style: Style, text: &str) -> String {
        if !self.colour {
            return text.to_owned();
        }
        let code = match style {
            Style::Strong => "1",
            Style::Dim => "2",
            Style::Good => "32",
            Style::Bad => "1;31",
        };
        format!("\x1b[{code}m{text}\x1b[0m")
    }
}
