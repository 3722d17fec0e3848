//! Answers as text for people: `flanneld status`, `flanneld events`, `flanneld status --diff`. Pure: the same value, time
//! and [`Look`] make the same text.

mod columns;
mod diff;
mod events;
mod overview;
mod paint;
mod peer;
mod peers;
mod reach;
mod sessions;
mod sheet;
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
    /// The columns of the terminal. Longer texts are wrapped, and a table has the columns that fit. `None` where lines have
    /// no end, as in a pipe.
    pub width: Option<usize>,
    /// The lines of the terminal. What matters least is left out, and peers whose rows don't fit are counted instead.
    /// `None` for everything.
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

/// What is shown of an agent that does not answer any more, while the next one is awaited.
pub fn gone(why: &str, since: SystemTime, look: Look) -> String {
    let mut sheet = sheet::Sheet::default();
    let age = units::age(look.now.duration_since(since).unwrap_or_default());
    sheet.add(sheet::Weight::Head, "agent", table::Cell::new(format!("gone for {age}: {why}"), Style::Bad));
    sheet.more(sheet::Weight::Note, "waiting for the next one; Ctrl-C ends this");
    sheet.lines(look).concat()
}

/// Below this many lines there is no empty line between node and peers.
const SPACIOUS: usize = 12;

/// The least lines for the node itself where there are few: whether it is ready, and why not.
const LEAST: usize = 2;

/// The status with a row for each peer, those in trouble first.
pub fn status(status: &Status, detail: Detail, look: Look) -> String {
    let sheet = overview::overview(status, detail, look);
    let Some(network) = &status.network else { return sheet.lines(look).concat() };
    let probes = reach::by_lease(status.probes.as_ref());
    let peers = peers::Peers::of(network, &probes, detail, look);
    let Some(height) = look.height else {
        let (node, peers) = (sheet.lines(look).concat(), peers.lines(None).concat());
        return format!("{node}\n{peers}");
    };
    let gap = if height < SPACIOUS { "" } else { "\n" };
    let height = height - gap.len();
    let all = sheet.lines(Look { height: None, ..look }).len();
    // What is wrong with peers comes first, as long as a third is left for the node.
    let least = if gap.is_empty() { LEAST } else { height / 3 };
    let room = height.saturating_sub(all).max(peers.needs().min(height.saturating_sub(least)));
    let peers = peers.lines(Some(room));
    let node = sheet.lines(Look { height: Some(height.saturating_sub(peers.len())), ..look });
    format!("{}{gap}{}", node.concat(), peers.concat())
}
