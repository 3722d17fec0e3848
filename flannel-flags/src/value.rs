//! Parsers for values of flags, for clap's `value_parser`, which read numbers and booleans as Go's `flag` package does. An
//! error says what the value should be, in words that continue "it is not", and never the value.

use std::ffi::OsStr;
use std::net::IpAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::builder::{PossibleValue, StringValueParser, TypedValueParser};
use clap::{Arg, Command};

/// A value that is left out or empty. By this name it is one type for clap, which has a meaning of its own for `Option`.
pub type Maybe<T> = Option<T>;

/// A value, or what it should be.
pub type Checked<T> = Result<T, &'static str>;

/// Go's `strconv.ParseBool`.
pub fn boolean(text: &str) -> Checked<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err("true or false"),
    }
}

/// Go's `strconv.ParseInt` with base 0: prefixes `0x`, `0o`, `0b` and `0`, and underscores between digits.
pub fn int(text: &str) -> Checked<i64> {
    parse_int(text).ok_or("a whole number")
}

fn parse_int(text: &str) -> Option<i64> {
    let (sign, digits) = (if text.starts_with('-') { "-" } else { "" }, text.strip_prefix(['+', '-']));
    let lower = digits.unwrap_or(text).to_ascii_lowercase();
    let (radix, digits) = match lower.as_bytes() {
        [b'0', b'x', ..] => (16, &lower[2..]),
        [b'0', b'o', ..] => (8, &lower[2..]),
        [b'0', b'b', ..] => (2, &lower[2..]),
        [b'0', _, ..] => (8, &lower[1..]),
        _ => (10, &lower[..]),
    };
    // After a prefix an underscore may stand before the first digit, too.
    let is_spaced =
        (radix == 10 && digits.starts_with('_')) || digits.ends_with('_') || digits.contains("__");
    if is_spaced || digits.starts_with(['+', '-']) {
        return None;
    }
    i64::from_str_radix(&format!("{sign}{}", digits.replace('_', "")), radix).ok()
}

/// A TCP or UDP port, 0 for none or any.
pub fn port(text: &str) -> Checked<u16> {
    u16::try_from(int(text)?).map_err(|_| "a port, 0 to 65535")
}

/// A number of minutes, less than a day.
pub fn minutes(text: &str) -> Checked<Duration> {
    let minutes = int(text).map(u64::try_from)?.ok().filter(|minutes| (1..=1439).contains(minutes));
    minutes.map(|minutes| Duration::from_secs(60 * minutes)).ok_or("from 1 to 1439 minutes")
}

/// A number of seconds, up to a day.
pub fn seconds(text: &str) -> Checked<Duration> {
    let seconds = int(text).map(u64::try_from)?.ok().filter(|seconds| (1..=86_400).contains(seconds));
    seconds.map(Duration::from_secs).ok_or("from 1 to 86400 seconds")
}

/// How often something rare is done, in whole numbers with units as Go's `time.ParseDuration` has them and `d` for days of 24
/// hours; 0 for never.
pub fn interval(text: &str) -> Checked<Maybe<Duration>> {
    const EXPECTED: &str = "0 for never, or a time of an hour at least, such as 30d or 720h";
    let least = Duration::from_hours(1);
    let time = parse_time(text).ok_or(EXPECTED)?;
    if time.is_zero() { Ok(None) } else { Some(time).filter(|time| *time >= least).map(Some).ok_or(EXPECTED) }
}

fn parse_time(text: &str) -> Option<Duration> {
    if text == "0" {
        return Some(Duration::ZERO);
    }
    let (mut rest, mut sum) = (text, Duration::ZERO);
    while !rest.is_empty() || text.is_empty() {
        let digits = rest.find(|it: char| !it.is_ascii_digit())?;
        let number: u32 = rest[..digits].parse().ok()?;
        let unit = &rest[digits..];
        let end = unit.find(|it: char| it.is_ascii_digit()).unwrap_or(unit.len());
        let unit = match &unit[..end] {
            "s" => Duration::from_secs(1),
            "m" => Duration::from_mins(1),
            "h" => Duration::from_hours(1),
            "d" => Duration::from_hours(24),
            _ => return None,
        };
        sum = sum.checked_add(unit.checked_mul(number)?)?;
        rest = &rest[digits + end..];
    }
    Some(sum)
}

/// An address, such as one of [`Ipv4Addr`](std::net::Ipv4Addr) only; none if the text is empty. `expected` says what it
/// should be.
pub fn address<T>(text: &str, expected: &'static str) -> Checked<Maybe<IpAddr>>
where
    T: FromStr + Into<IpAddr>,
{
    let address = (!text.is_empty()).then(|| text.parse::<T>().map(Into::into));
    address.transpose().map_err(|_| expected)
}

/// A folder.
pub fn folder(text: &str) -> Checked<PathBuf> {
    match text {
        "" => Err("a path"),
        _ if is_content(text) => Err(CONTENT),
        _ => Ok(text.into()),
    }
}

/// A file, which need not exist yet.
pub fn file(text: &str) -> Checked<PathBuf> {
    let path = folder(text)?;
    // `file_name` of `a/.` is `a`.
    let is_folder = path.file_name().is_none() || text.ends_with(['/']) || text.ends_with("/.");
    if is_folder { Err("the path of a file, but that of a folder") } else { Ok(path) }
}

/// Likewise, if it is there.
pub fn maybe_file(text: &str) -> Checked<Maybe<PathBuf>> {
    (!text.is_empty()).then(|| file(text)).transpose()
}

const CONTENT: &str =
    "a path, but seems to be the content of a file; save that to a file, and give the path of this";

/// The longest path (`PATH_MAX` of the kernel's limits.h, with a zero at its end).
const LONGEST_PATH: usize = 4095;

/// Whether a value can only be what somebody read out of a file: a key, a certificate or a kubeconfig, as text or in
/// base64. Its like is not repeated anywhere, since there are secrets in such files.
pub(crate) fn is_content(text: &str) -> bool {
    let begins = ["{", "-----BEGIN", "LS0tLS1CRUdJTi", "apiVersion:", "YXBpVmVyc2lvbj"];
    text.len() > LONGEST_PATH
        || text.contains(char::is_control)
        || begins.iter().any(|begin| text.trim_start().starts_with(begin))
}

/// The name of a file in a folder that another flag names.
pub fn file_name(text: &str) -> Checked<String> {
    let is_name = !text.is_empty() && !text.contains('/');
    if is_name { Ok(text.to_owned()) } else { Err("the name of a file, such as 10-flannel.conflist") }
}

/// The name of a variable, as shells have them.
pub fn variable(text: &str) -> Checked<String> {
    let is_word = text.chars().all(|it| it.is_ascii_alphanumeric() || it == '_');
    let is_name = is_word && !text.is_empty() && !text.starts_with(|first: char| first.is_ascii_digit());
    if is_name { Ok(text.to_owned()) } else { Err("the name of a variable") }
}

/// One of some words. Completions and man pages list them.
#[derive(Debug, Clone)]
pub struct OneOf<T: 'static> {
    /// The words and what they mean. An empty one is not listed.
    pub words: &'static [(&'static str, T)],
    /// What the value should be, such as `auto or off`.
    pub expected: &'static str,
}

impl<T: Clone + Send + Sync> TypedValueParser for OneOf<T> {
    type Value = T;

    fn parse_ref(&self, command: &Command, arg: Option<&Arg>, value: &OsStr) -> Result<T, clap::Error> {
        let Self { words, expected } = *self;
        let find = move |text: String| {
            let found = words.iter().find(|(word, _)| *word == text);
            found.map(|(_, value)| value.clone()).ok_or(expected)
        };
        StringValueParser::new().try_map(find).parse_ref(command, arg, value)
    }

    fn possible_values(&self) -> Option<Box<dyn Iterator<Item = PossibleValue> + '_>> {
        let words = self.words.iter().map(|(word, _)| *word).filter(|word| !word.is_empty());
        Some(Box::new(words.map(PossibleValue::new)))
    }
}

/// A whole number as [`int`] reads it, or a word for one, of which completions and man pages know; none if the text is
/// empty.
#[derive(Debug, Clone)]
pub struct NumberOr(pub OneOf<i64>);

impl TypedValueParser for NumberOr {
    type Value = Maybe<i64>;

    fn parse_ref(
        &self,
        command: &Command,
        arg: Option<&Arg>,
        value: &OsStr,
    ) -> Result<Self::Value, clap::Error> {
        let number = value.to_str().and_then(parse_int);
        if value.is_empty() || number.is_some() {
            return Ok(number);
        }
        self.0.parse_ref(command, arg, value).map(Some)
    }

    fn possible_values(&self) -> Option<Box<dyn Iterator<Item = PossibleValue> + '_>> {
        self.0.possible_values()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn booleans_and_numbers_are_those_of_go() {
        for (text, want) in
            [("10", 10), ("+1", 1), ("0x1f", 31), ("0b11", 3), ("017", 15), ("1_0", 10), ("0x_1f", 31)]
        {
            assert_eq!(int(text), Ok(want), "{text}");
        }
        for text in ["", "x", "1_", "_1", "1__0", "0x", "--1", "99999999999999999999"] {
            assert_eq!(int(text), Err("a whole number"), "{text}");
        }
        assert_eq!((boolean("T"), boolean("0"), boolean("yes")), (Ok(true), Ok(false), Err("true or false")));
        assert_eq!((port("0x50"), port("65536")), (Ok(80), Err("a port, 0 to 65535")));
    }

    #[test]
    fn intervals_have_days_too_and_may_be_none() {
        let hours = |n| Ok(Some(Duration::from_hours(n)));
        for (text, want) in [
            ("0", Ok(None)),
            ("0s", Ok(None)),
            ("1h", hours(1)),
            ("30d", hours(720)),
            ("1d12h", hours(36)),
            ("90m", Ok(Some(Duration::from_mins(90)))),
        ] {
            assert_eq!(interval(text), want, "{text}");
        }
        for text in
            ["", "30", "59m", "d", "-1d", "1.5d", "30d ", "1y", "99999999999d", "4294967295d4294967295d1"]
        {
            let expected = "0 for never, or a time of an hour at least, such as 30d or 720h";
            assert_eq!(interval(text), Err(expected), "{text}");
        }
    }

    #[test]
    fn a_path_is_no_content_and_a_file_no_folder() {
        assert_eq!(file("/run/x"), Ok("/run/x".into()));
        assert_eq!(maybe_file(""), Ok(None));
        for folder in ["/run/", "/", "..", "/run/."] {
            assert_eq!(file(folder), Err("the path of a file, but that of a folder"), "{folder}");
        }
        for content in ["{}", " -----BEGIN X", "apiVersion: v1", "a\tb", &"x/".repeat(2048)] {
            assert_eq!(folder(content), Err(CONTENT), "{content}");
        }
        assert!(file_name("a/b").is_err() && file_name("").is_err() && file_name("a").is_ok());
    }

    #[test]
    fn a_variable_has_a_name_of_letters_digits_and_underscores() {
        assert_eq!(variable("DOCKER_OPTS2"), Ok("DOCKER_OPTS2".to_owned()));
        for text in ["", "2A", "A B", "A=", "Ä"] {
            assert_eq!(variable(text), Err("the name of a variable"), "{text}");
        }
    }

    proptest! {
        #[test]
        fn numbers_are_those_of_go(number: i64) {
            prop_assert_eq!(int(&number.to_string()), Ok(number));
            let sign = if number < 0 { "-" } else { "" };
            prop_assert_eq!(int(&format!("{sign}{:#x}", number.unsigned_abs())), Ok(number));
        }
    }
}
