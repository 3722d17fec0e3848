//! Rows of text in columns.

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

/// Lines of rows whose columns are as wide as their widest cell and two spaces apart. What is wider than the terminal is
/// cut. A line has no spaces at its end.
pub(super) fn table(rows: &[Vec<Cell>], look: Look) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or_default();
    let mut widths = vec![0; columns];
    for row in rows {
        for (widest, cell) in widths.iter_mut().zip(row) {
            *widest = (*widest).max(width(&cell.text));
        }
    }
    let mut text = String::new();
    for row in rows {
        let last = row.iter().rposition(|cell| !cell.text.is_empty());
        let mut room = look.width.unwrap_or(usize::MAX);
        for (column, cell) in row.iter().enumerate().take(last.map_or(0, |last| last + 1)) {
            let shown = cut(&cell.text, room);
            let used = width(&shown);
            text.push_str(&cell.style.paint(&shown, look.colour));
            room -= used;
            if Some(column) != last && room > 0 {
                let gap = (widths[column] - used + 2).min(room);
                text.extend(std::iter::repeat_n(' ', gap));
                room -= gap;
            }
            if room == 0 {
                break;
            }
        }
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;

    #[test]
    fn columns_line_up_and_long_lines_are_cut() {
        let rows = [
            vec!["SUBNET".into(), "WHY".into()],
            vec!["10.0.0.0/24".into(), Cell::new("a\nlong\x1b[31m reason", Style::Bad)],
            vec!["µ".into(), "".into()],
        ];
        let look = Look::plain(SystemTime::UNIX_EPOCH);
        assert_eq!(table(&rows, look), "SUBNET       WHY\n10.0.0.0/24  a long [31m reason\nµ\n");
        assert_eq!(table(&rows, look.sized(20, None)), "SUBNET       WHY\n10.0.0.0/24  a long…\nµ\n");
        assert_eq!(table(&rows, look.sized(5, None)), "SUBN…\n10.0…\nµ\n");
        let coloured = table(&rows, look.sized(20, None).coloured(true));
        assert!(coloured.contains("\x1b[1;31ma long…\x1b[0m\n"), "{coloured:?}");
    }
}
