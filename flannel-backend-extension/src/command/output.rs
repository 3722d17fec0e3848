//! What a command prints, bounded.

use tokio::io::{AsyncRead, AsyncReadExt};

/// The most bytes that are kept from the beginning.
pub(super) const MOST: usize = 16 << 10;

/// The most bytes that are kept from the end.
const TAIL: usize = 2 << 10;

/// How many of the last lines an error has, and the most characters of all of them.
const LINES: usize = 4;
const CHARACTERS: usize = 500;

/// The beginning and the end of a text.
#[derive(Debug, Default)]
pub(super) struct Output {
    head: Vec<u8>,
    tail: Vec<u8>,
    /// Whether there was more than the head.
    is_cut: bool,
}

impl Output {
    /// Reads to the end, however much there is, so that the command is not held up.
    pub(super) async fn fill(&mut self, mut from: impl AsyncRead + Unpin) {
        let mut buffer = [0; 4096];
        while let Ok(count @ 1..) = from.read(&mut buffer).await {
            self.add(&buffer[..count]);
        }
    }

    fn add(&mut self, bytes: &[u8]) {
        let room = MOST - self.head.len();
        self.is_cut |= bytes.len() > room;
        self.head.extend(&bytes[..bytes.len().min(room)]);
        self.tail.extend(bytes);
        self.tail.drain(..self.tail.len().saturating_sub(TAIL));
    }

    /// All of it, without white space around it; `None` if it is not all there.
    pub(super) fn text(&self) -> Option<String> {
        (!self.is_cut).then(|| String::from_utf8_lossy(&self.head).trim().to_owned())
    }
}

/// The last lines that a command printed, for an error about it; of its standard error if there are any.
pub(super) fn said(stdout: &Output, stderr: &Output) -> String {
    let last = [stderr, stdout].into_iter().map(|output| last_lines(&output.tail));
    last.into_iter().find(|text| !text.is_empty()).map(|text| format!(": {text}")).unwrap_or_default()
}

fn last_lines(tail: &[u8]) -> String {
    let text = String::from_utf8_lossy(tail);
    let is_plain = |symbol: &char| !symbol.is_control();
    let lines = text.lines().map(|line| line.chars().filter(is_plain).collect::<String>().trim().to_owned());
    let lines: Vec<String> = lines.filter(|line| !line.is_empty()).collect();
    let text = lines[lines.len().saturating_sub(LINES)..].join("; ");
    let left_out = text.chars().count().saturating_sub(CHARACTERS);
    if left_out == 0 { text } else { format!("..{}", text.chars().skip(left_out).collect::<String>()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(parts: &[&str]) -> Output {
        let mut output = Output::default();
        for part in parts {
            output.add(part.as_bytes());
        }
        output
    }

    #[test]
    fn beginning_and_end_are_kept_and_the_rest_is_not() {
        assert_eq!(of(&["", " a\n", "b \n"]).text().as_deref(), Some("a\nb"));
        let long = of(&[&"x".repeat(MOST), "yz"]);
        assert_eq!((long.text(), long.head.len(), long.tail.len()), (None, MOST, TAIL));
        assert!(long.tail.ends_with(b"yz"));
    }

    #[test]
    fn an_error_has_the_last_lines_without_control_characters() {
        let many = of(&["1\n2\n3\n\n4\r\n5\u{1b}[31m\n"]);
        assert_eq!(said(&many, &Output::default()), ": 2; 3; 4; 5[31m");
        assert_eq!(said(&many, &of(&["no\n"])), ": no");
        assert_eq!(said(&Output::default(), &Output::default()), "");
        let long = said(&of(&[&"é".repeat(1000)]), &Output::default());
        assert_eq!(long.chars().count(), CHARACTERS + ": ..".len());
    }
}
