//! Tables in plain text, and how times are written in them.

use std::time::Duration;

/// How a column stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Align {
    /// Words.
    Left,
    /// Numbers.
    Right,
}

/// Lays out rows below a header. Two blanks between columns, none at the end of a line.
pub(crate) fn table(header: &[(&str, Align)], rows: &[Vec<String>]) -> String {
    let titles = header.iter().map(|(title, _)| (*title).to_owned()).collect::<Vec<_>>();
    let lines = || std::iter::once(&titles).chain(rows);
    let width = |column: usize| {
        let cells = lines().filter_map(|row| row.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or_default()
    };
    let widths = (0..header.len()).map(width).collect::<Vec<_>>();
    let line = |row: &Vec<String>| {
        let cells = row.iter().zip(header).zip(&widths).map(|((cell, (_, align)), width)| match align {
            Align::Left => format!("{cell:<width$}"),
            Align::Right => format!("{cell:>width$}"),
        });
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    lines().map(line).collect::<Vec<_>>().join("\n")
}

/// A time in the unit that suits it, three digits or so.
pub(crate) fn time(time: Duration) -> String {
    let us = time.as_secs_f64() * 1e6;
    match us {
        ..999.5 => format!("{us:.0} µs"),
        ..9_995.0 => format!("{:.2} ms", us / 1e3),
        ..99_950.0 => format!("{:.1} ms", us / 1e3),
        ..999_500.0 => format!("{:.0} ms", us / 1e3),
        _ => format!("{:.2} s", us / 1e6),
    }
}

/// The middle one; the lower of two. Zero of none.
pub(crate) fn median(times: &[Duration]) -> Duration {
    let mut sorted = times.to_vec();
    sorted.sort_unstable();
    sorted.get(sorted.len().saturating_sub(1) / 2).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let rows = [["a", "1"], ["bcd", "23"]].map(|row| row.map(str::to_owned).to_vec());
        let text = table(&[("x", Align::Left), ("n", Align::Right)], &rows);
        assert_eq!(text, "x     n\na     1\nbcd  23");
        assert_eq!(table(&[("µs", Align::Left)], &[]), "µs");
    }

    #[test]
    fn times_have_three_digits() {
        for (us, want) in [
            (0, "0 µs"),
            (999, "999 µs"),
            (1_000, "1.00 ms"),
            (12_340, "12.3 ms"),
            (123_400, "123 ms"),
            (1_234_000, "1.23 s"),
        ] {
            assert_eq!(time(Duration::from_micros(us)), want);
        }
    }

    #[test]
    fn the_median_is_the_lower_middle() {
        let ms = |all: &[u64]| all.iter().map(|ms| Duration::from_millis(*ms)).collect::<Vec<_>>();
        for (times, want) in [(&[][..], 0), (&[5], 5), (&[9, 1], 1), (&[3, 9, 1], 3)] {
            assert_eq!(median(&ms(times)), Duration::from_millis(want));
        }
    }
}
