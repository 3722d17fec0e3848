//! What is said about one thing after the other: a name, and texts that are wrapped beside it.

use super::Look;
use super::paint::Style;
use super::table::{Cell, cut, line, wrap};

/// The least room for a text beside its name.
const LEAST_ROOM: usize = 16;

/// How much an entry matters where there is not room for all. The first kinds stay longest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Weight {
    /// It is never left out.
    Head,
    /// Why the node is not ready.
    Reason,
    /// What is wrong.
    Trouble,
    /// What may be wrong.
    Note,
    /// What explains the rest.
    Useful,
    /// It is as it should be.
    Fine,
    /// Numbers.
    Figures,
}

/// A name with a text.
#[derive(Debug)]
struct Entry {
    name: Cell,
    /// Whether it goes on with what the entry before is about, so that its name is shown only without that one.
    is_more: bool,
    text: Cell,
    weight: Weight,
}

/// Entries, in the order in which they are shown.
#[derive(Debug, Default)]
pub(super) struct Sheet {
    entries: Vec<Entry>,
}

/// An entry whose text is in lines.
struct Block<'a> {
    entry: &'a Entry,
    lines: Vec<String>,
}

impl<'a> Block<'a> {
    fn of(entry: &'a Entry, room: Option<usize>) -> Self {
        Self { entry, lines: wrap(&entry.text.text, room) }
    }
}

impl Sheet {
    /// Adds an entry.
    pub(super) fn add(&mut self, weight: Weight, name: &str, text: impl Into<Cell>) {
        self.entries.push(Entry {
            name: Cell::new(name, Style::Strong),
            is_more: false,
            text: text.into(),
            weight,
        });
    }

    /// Adds a further text under the name of the last entry.
    pub(super) fn more(&mut self, weight: Weight, text: impl Into<Cell>) {
        let name = self.entries.last().map_or_else(|| "".into(), |last| last.name.clone());
        self.entries.push(Entry { name, is_more: true, text: text.into(), weight });
    }

    /// The lines of all entries; with a height those of the entries that matter most.
    pub(super) fn lines(&self, look: Look) -> Vec<String> {
        let names = self.entries.iter().map(|entry| entry.name.width()).max().unwrap_or_default();
        let indent = look.width.map_or(names + 2, |width| (names + 2).min(width.saturating_sub(LEAST_ROOM)));
        let room = look.width.map(|width| width - indent);
        let block = |entry| Block::of(entry, room);
        let mut blocks: Vec<_> = self.entries.iter().map(block).collect();
        while look.height.is_some_and(|height| count(&blocks) > height) {
            shorten(&mut blocks, look.height.unwrap_or_default(), room);
        }
        let (mut lines, mut last) = (Vec::new(), None);
        for Block { entry, lines: texts } in blocks {
            let has_name = !entry.is_more || last != Some(&entry.name);
            last = Some(&entry.name);
            for (number, text) in texts.into_iter().enumerate() {
                let text = Cell { text, style: entry.text.style };
                let name = (number == 0 && has_name).then_some((0, &entry.name));
                lines.push(line(name.into_iter().chain([(indent, &text)]), look));
            }
        }
        lines
    }
}

fn count(blocks: &[Block<'_>]) -> usize {
    blocks.iter().map(|block| block.lines.len()).sum()
}

/// Leaves out the last of the entries that matter least, or its last lines if what stays would leave room.
fn shorten(blocks: &mut Vec<Block<'_>>, height: usize, room: Option<usize>) {
    let least = blocks.iter().map(|block| block.entry.weight).max();
    let Some(at) = blocks.iter().rposition(|block| Some(block.entry.weight) == least) else { return };
    let others = count(blocks) - blocks[at].lines.len();
    let matters = least.is_some_and(|least| least <= Weight::Note);
    if !matters || others >= height {
        blocks.remove(at);
        return;
    }
    let lines = &mut blocks[at].lines;
    lines.truncate(height - others);
    if let Some(last) = lines.last_mut() {
        *last = match room {
            Some(room) => cut(&format!("{last} …"), room),
            None => format!("{last} …"),
        };
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;

    fn sheet() -> Sheet {
        let mut sheet = Sheet::default();
        sheet.add(Weight::Head, "agent", "ready");
        sheet.add(Weight::Fine, "backend", "vxlan");
        sheet.add(Weight::Trouble, "note", "one two three four five six seven");
        sheet.add(Weight::Figures, "repairs", "0");
        sheet
    }

    #[test]
    fn texts_are_wrapped_beside_their_names() {
        let look = Look::plain(SystemTime::UNIX_EPOCH);
        let lines = sheet().lines(look.sized(28, None));
        assert_eq!(
            lines.concat(),
            "agent    ready\nbackend  vxlan\nnote     one two three four\n         five six seven\nrepairs  0\n"
        );
        assert_eq!(sheet().lines(look).len(), 4, "a line each where lines have no end");
    }

    #[test]
    fn what_matters_stays() {
        let look = Look::plain(SystemTime::UNIX_EPOCH);
        for (height, want) in [
            (4, "agent    ready\nbackend  vxlan\nnote     one two three four\n         five six seven\n"),
            (3, "agent    ready\nnote     one two three four\n         five six seven\n"),
            (2, "agent    ready\nnote     one two three four…\n"),
            (1, "agent    ready\n"),
            (0, ""),
        ] {
            assert_eq!(sheet().lines(look.sized(28, Some(height))).concat(), want, "{height}");
        }
    }
    #[test]
    fn a_further_text_has_its_name_where_the_first_one_is_left_out() {
        let mut sheet = Sheet::default();
        sheet.add(Weight::Fine, "probes", "1 reachable");
        sheet.more(Weight::Note, "no echoes");
        let look = Look::plain(SystemTime::UNIX_EPOCH);
        assert_eq!(sheet.lines(look).concat(), "probes  1 reachable\n        no echoes\n");
        assert_eq!(sheet.lines(look.sized(60, Some(1))).concat(), "probes  no echoes\n");
    }
}
