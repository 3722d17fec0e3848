//! Numbers, times and sizes as people read them.

use std::time::Duration;

/// A duration in its largest unit: `3 s`, `5 min`, `2 h`, `4 d`.
pub(super) fn age(time: Duration) -> String {
    match time.as_secs() {
        seconds @ 0..60 => format!("{seconds} s"),
        seconds @ 60..3600 => format!("{} min", seconds / 60),
        seconds @ 3600..86_400 => format!("{} h", seconds / 3600),
        seconds => format!("{} d", seconds / 86_400),
    }
}

/// A duration in its two largest units, where the second one matters: `23 h 57 min`.
pub(super) fn left(time: Duration) -> String {
    let (seconds, rest) = (time.as_secs(), |unit: u64, smaller: u64| time.as_secs() % unit / smaller);
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min", seconds / 60),
        3600..86_400 => format!("{} h {} min", seconds / 3600, rest(3600, 60)),
        _ => format!("{} d {} h", seconds / 86_400, rest(86_400, 3600)),
    }
}

/// A short duration, given in microseconds.
pub(super) fn micros(us: u64) -> String {
    match us {
        0..1000 => format!("{us} µs"),
        1000..1_000_000 => format!("{:.1} ms", us as f64 / 1e3),
        _ => format!("{:.1} s", us as f64 / 1e6),
    }
}

/// A count with its thousands apart.
pub(super) fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A count with its noun.
pub(super) fn plural(number: u64, one: &str, many: &str) -> String {
    format!("{} {}", count(number), if number == 1 { one } else { many })
}

/// A number of bytes in decimal units.
pub(super) fn bytes(bytes: u64) -> String {
    let mut value = bytes as f64;
    for unit in ["B", "kB", "MB", "GB", "TB"] {
        if value < 1000.0 {
            return if unit == "B" { format!("{bytes} B") } else { format!("{value:.1} {unit}") };
        }
        value /= 1000.0;
    }
    format!("{value:.1} PB")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_has_its_unit() {
        let ages = |seconds| (age(Duration::from_secs(seconds)), left(Duration::from_secs(seconds)));
        for (seconds, short, long) in [
            (0, "0 s", "0 s"),
            (59, "59 s", "59 s"),
            (3599, "59 min", "59 min"),
            (86_220, "23 h", "23 h 57 min"),
            (100_000, "1 d", "1 d 3 h"),
        ] {
            assert_eq!(ages(seconds), (short.to_owned(), long.to_owned()));
        }
        assert_eq!((micros(999), micros(1_200), micros(2_500_000)).2, "2.5 s");
        assert_eq!([0, 999, 1000, 1_234_567].map(count), ["0", "999", "1,000", "1,234,567"]);
        assert_eq!(
            [0, 1, 1000].map(|number| plural(number, "peer", "peers")),
            ["0 peers", "1 peer", "1,000 peers"]
        );
        assert_eq!([7, 1500, 3_400_000_000].map(bytes), ["7 B", "1.5 kB", "3.4 GB"]);
    }
}
