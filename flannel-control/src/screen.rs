//! Answers as text for people: `flanneld status`, `flanneld events`, `flanneld status --diff`. Pure: the same value, time
//! and [`Look`] make the same text.

mod diff;
mod events;
mod overview;
mod paint;
mod peer;
mod peers;
mod reach;
mod shell;
mod table;
#[cfg(test)]
mod tests;
mod units;

use std::time::SystemTime;

pub use diff::diff;
pub use events::event;
pub use paint::Style;
pub use peer::{find, peer};

use crate::wire::Status;

/// What the text is made for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Look {
    /// The present time, from which ages are counted.
    pub now: SystemTime,
    /// The columns of the terminal; longer lines are cut. `None` where lines have no end, as in a pipe.
    pub width: Option<usize>,
    /// The lines of the terminal; rows of peers that don't fit are counted instead. `None` for all rows.
    pub height: Option<usize>,
    /// Whether to use colours.
    pub colour: bool,
}

impl Look {
    /// Text without colours, as wide and as long as it gets.
    pub fn plain(now: SystemTime) -> Self {
        Self { now, width: None, height: None, colour: false }
    }

    /// The same for a terminal of this size.
    #[must_use]
    pub fn sized(self, width: usize, height: Option<usize>) -> Self {
        Self { width: Some(width), height, ..self }
    }

    /// The same with or without colours.
    #[must_use]
    pub fn coloured(self, colour: bool) -> Self {
        Self { colour, ..self }
    }
}

/// How much a status shows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Detail {
    /// What fits a terminal.
    #[default]
    Table,
    /// All columns.
    Wide,
}

/// The status with a row for each peer, those in trouble first.
pub fn status(status: &Status, detail: Detail, look: Look) -> String {
    let mut text = overview::overview(status, detail, look);
    if let Some(network) = &status.network {
        let used = text.lines().count();
        text.push('\n');
        let room = look.height.map(|height| height.saturating_sub(used + 1));
        let probes = reach::by_lease(status.probes.as_ref());
        text.push_str(&peers::peers(network, &probes, detail, Look { height: room, ..look }));
    }
    text
}
