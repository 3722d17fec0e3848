//! Text in columns: cells, and how lines become as wide as the terminal.

use super::Look;
use super::paint::Style;

/// One cell: its text, and what it means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Cell {
    pub(super) text: String,
    pub(super) style: Style,
}

impl Cell {
    pub(super) fn new(text: impl Into<String>, style: Style) -> Self {
        // A line break or an escape sequence in what others wrote must not reach the terminal.
        let text: String = text.into();
        let text = if text.contains(char::is_control) { text.replace(char::is_control, " ") } else { text };
        Self { text, style }
    }

    pub(super) fn width(&self) -> usize {
        width(&self.text)
    }
}

impl<T: Into<String>> From<T> for Cell {
    fn from(text: T) -> Self {
        Self::new(text, Style::Plain)
    }
}

/// How many columns a text takes. Names, addresses and reasons are Latin text, a character a column.
fn width(text: &str) -> usize {
    if text.is_ascii() { text.len() } else { text.chars().count() }
}

/// The text, or its beginning if it is wider than that.
pub(super) fn cut(text: &str, room: usize) -> String {
    if width(text) <= room {
        return text.to_owned();
    }
    let mut short: String = text.chars().take(room.saturating_sub(1)).collect();
    if room > 0 {
        short.push('…');
    }
    short
}

/// The text in lines of so many columns, broken between words, and within those that are longer. Without a width it is one
/// line.
pub(super) fn wrap(text: &str, room: Option<usize>) -> Vec<String> {
    let Some(room) = room.map(|room| room.max(1)) else { return vec![text.to_owned()] };
    let mut lines = Vec::new();
    let mut line = String::new();
    for word in text.split(' ') {
        if !line.is_empty() && width(&line) + 1 + width(word) > room {
            lines.push(std::mem::take(&mut line));
        } else if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(word);
        while width(&line) > room {
            let at = line.char_indices().nth(room).map_or(line.len(), |(at, _)| at);
            let rest = line.split_off(at);
            lines.push(std::mem::replace(&mut line, rest));
        }
    }
    lines.push(line);
    lines
}

/// A line of cells that begin at these columns, cut at the width of the terminal. It has no spaces at its end.
pub(super) fn line<'a>(cells: impl IntoIterator<Item = (usize, &'a Cell)>, look: Look) -> String {
    let (mut text, mut column) = (String::new(), 0);
    for (at, cell) in cells {
        let room = look.width.map_or(usize::MAX, |width| width.saturating_sub(at.max(column)));
        if cell.text.is_empty() || room == 0 {
            continue;
        }
        let gap = at.saturating_sub(column);
        let shown = cut(&cell.text, room);
        text.extend(std::iter::repeat_n(' ', gap));
        column += gap + width(&shown);
        text.push_str(&cell.style.paint(&shown, look.colour));
    }
    text.push('\n');
    text
}

/// Cells one after the other, two spaces apart, in as many lines as they take.
pub(super) fn flow(cells: &[Cell], look: Look) -> Vec<String> {
    let most = look.width.unwrap_or(usize::MAX);
    let mut lines: Vec<Vec<(usize, &Cell)>> = vec![Vec::new()];
    let mut column = 0;
    for cell in cells {
        if column > 0 && column + cell.width() > most {
            lines.push(Vec::new());
            column = 2;
        }
        lines.last_mut().expect("there is a line").push((column, cell));
        column += cell.width() + 2;
    }
    lines.into_iter().map(|cells| line(cells, look)).collect()
}

/// Lines of rows whose columns are as wide as their widest cell and two spaces apart. What is wider than the terminal is
/// cut.
pub(super) fn table(rows: &[Vec<Cell>], look: Look) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or_default();
    let mut widths = vec![0; columns];
    for row in rows {
        for (widest, cell) in widths.iter_mut().zip(row) {
            *widest = (*widest).max(cell.width());
        }
    }
    let starts = starts(&widths);
    rows.iter().map(|row| line(starts.iter().copied().zip(row), look)).collect()
}

/// Where columns of these widths begin; they are two spaces apart.
pub(super) fn starts(widths: &[usize]) -> Vec<usize> {
    let mut at = 0;
    let next = |width: &usize| {
        let start = at;
        at += width + 2;
        start
    };
    widths.iter().map(next).collect()
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;

    fn look() -> Look {
        Look::plain(SystemTime::UNIX_EPOCH)
    }

    #[test]
    fn columns_line_up_and_long_lines_are_cut() {
        let rows = [
            vec!["SUBNET".into(), "WHY".into()],
            vec!["10.0.0.0/24".into(), Cell::new("a\nlong\x1b[31m reason", Style::Bad)],
            vec!["µ".into(), "".into()],
        ];
        assert_eq!(table(&rows, look()), "SUBNET       WHY\n10.0.0.0/24  a long [31m reason\nµ\n");
        assert_eq!(table(&rows, look().sized(20, None)), "SUBNET       WHY\n10.0.0.0/24  a long…\nµ\n");
        assert_eq!(table(&rows, look().sized(5, None)), "SUBN…\n10.0…\nµ\n");
        let coloured = table(&rows, look().sized(20, None).coloured(true));
        assert!(coloured.contains("\x1b[1;31ma long…\x1b[0m\n"), "{coloured:?}");
    }

    #[test]
    fn words_stay_whole_where_they_can() {
        for (text, room, want) in [
            ("one two three", Some(7), &["one two", "three"][..]),
            ("one two three", None, &["one two three"]),
            ("http://192.0.2.1:2379/x is away", Some(12), &["http://192.0", ".2.1:2379/x", "is away"]),
            ("", Some(5), &[""]),
            ("µµ µµ", Some(2), &["µµ", "µµ"]),
        ] {
            assert_eq!(wrap(text, room), want, "{text:?} in {room:?}");
        }
    }

    #[test]
    fn cells_flow_into_lines() {
        let cells = ["34 peers", "29 programmed", "1 refused"].map(Cell::from);
        assert_eq!(flow(&cells, look()), ["34 peers  29 programmed  1 refused\n"]);
        assert_eq!(flow(&cells, look().sized(24, None)), ["34 peers  29 programmed\n", "  1 refused\n"]);
    }
}
