//! Command lines with the syntax of Go's `flag` package, and the environment behind them.

use super::flags::{Flag, Kind};
use super::{CliError, Origin, shown, subcommands};

/// A flag that was given, with its value as it was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Given {
    /// The flag.
    pub(crate) flag: &'static Flag,
    /// Its value.
    pub(crate) value: String,
    /// Where it was given.
    pub(crate) origin: Origin,
}

/// What a command line says.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Line {
    /// `-h` or `-help`: nothing after it was read.
    Help,
    /// The flags, in their order.
    Flags(Vec<Given>),
}

/// Reads a command line of these flags, without the program's name and a command.
///
/// One or two dashes; `-name=value` or `-name value`; a boolean takes a value only after `=`. Flags end at
/// `--` or the first argument that is none. Upstream ignores what follows, which hides `--ip-masq false`;
/// here it is an error.
pub(crate) fn parse(args: &[String], flags: &[&'static Flag]) -> Result<Line, CliError> {
    let mut given = Vec::new();
    let mut rest = args.iter();
    while let Some(arg) = rest.next() {
        let text = match arg.strip_prefix('-') {
            None | Some("") => return leftover(arg, given.last()),
            Some("-") => match rest.next() {
                // Nothing says what it is, so it may be a password.
                Some(_) => return leftover(shown::HIDDEN, None),
                None => break,
            },
            Some(text) => text.strip_prefix('-').unwrap_or(text),
        };
        if text.starts_with(['-', '=']) {
            // Not its value, which may be a password.
            return Err(CliError::Syntax(shown::argument(arg)));
        }
        let (name, value) = match text.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (text, None),
        };
        let Some(flag) = flags.iter().find(|flag| flag.name == name) else {
            if matches!(name, "h" | "help") {
                return Ok(Line::Help);
            }
            return Err(CliError::Unknown {
                name: shown::argument(name),
                nearest: nearest(name, flags.iter().map(|flag| flag.name)),
            });
        };
        let origin = Origin::Flag(flag.name);
        let value = match value {
            Some(value) => value,
            None if flag.kind == Kind::Bool => "true".to_owned(),
            None => rest.next().cloned().ok_or(CliError::NeedsValue(flag.name))?,
        };
        check(flag, &value, &origin)?;
        given.push(Given { flag, value, origin });
    }
    Ok(Line::Flags(given))
}

/// Takes apart what `getopts` of a shell takes together: `-ic` is `-i -c`, `-kKEY` is `-k KEY`, and `-?` asks for help.
pub(crate) fn letters(args: &[String], flags: &[&'static Flag]) -> Vec<String> {
    let kind_of =
        |letter: char| flags.iter().find(|flag| flag.name.chars().eq([letter])).map(|flag| flag.kind);
    let mut apart = Vec::new();
    let mut rest = args.iter();
    while let Some(arg) = rest.next() {
        let letters =
            arg.strip_prefix('-').filter(|letters| !letters.is_empty() && !letters.starts_with('-'));
        let Some(letters) = letters.filter(|letters| letters.chars().next().and_then(kind_of).is_some())
        else {
            apart.push(if arg == "-?" { "-h".to_owned() } else { arg.clone() });
            continue;
        };
        let mut letters = letters.chars();
        while let Some(letter) = letters.next() {
            apart.push(format!("-{letter}"));
            let value = letters.as_str();
            match kind_of(letter) {
                Some(Kind::Bool) if !value.starts_with('=') => {}
                Some(Kind::Text | Kind::List | Kind::Int) if value.is_empty() => {
                    apart.extend(rest.next().cloned());
                }
                _ => {
                    let last = apart.pop().unwrap_or_default();
                    apart.push(format!("{last}={}", value.strip_prefix('=').unwrap_or(value)));
                    break;
                }
            }
        }
    }
    apart
}

/// Adds what the environment says of flags that were not given. An empty variable counts as unset.
pub(crate) fn add_environment(
    given: &mut Vec<Given>,
    flags: &[&'static Flag],
    variable: impl Fn(&str) -> Option<String>,
) -> Result<(), CliError> {
    for flag in flags {
        let Some(name) = flag.variable() else { continue };
        if given.iter().any(|given| given.flag == *flag) {
            continue;
        }
        let Some(value) = variable(&name).filter(|value| !value.is_empty()) else { continue };
        let origin = Origin::Variable(name);
        check(flag, &value, &origin)?;
        given.push(Given { flag, value, origin });
    }
    Ok(())
}

fn check(flag: &Flag, value: &str, origin: &Origin) -> Result<(), CliError> {
    let expected = match flag.kind {
        Kind::Int if parse_int(value).is_none() => "a whole number",
        Kind::Bool if parse_bool(value).is_none() => "true or false",
        _ => return Ok(()),
    };
    let value = shown::value(flag, value);
    Err(CliError::BadValue { origin: origin.clone(), value, expected: expected.to_owned() })
}

fn leftover<T>(arg: &str, before: Option<&Given>) -> Result<T, CliError> {
    let meant = before.filter(|before| before.flag.kind == Kind::Bool && parse_bool(arg).is_some());
    let is_delicate = before.is_some_and(|before| before.flag.is_delicate());
    if !is_delicate && let Some(subcommand) = subcommands::find(arg) {
        return Err(CliError::Misplaced(subcommand.name));
    }
    // What follows a secret may be a part of it.
    let arg = if is_delicate { shown::HIDDEN.to_owned() } else { shown::argument(arg) };
    Err(CliError::Leftover { arg, boolean: meant.map(|before| before.flag.name) })
}

/// Go's `strconv.ParseBool`.
pub(crate) fn parse_bool(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

/// Go's `strconv.ParseInt` with base 0: prefixes `0x`, `0o`, `0b` and `0`, and underscores between digits.
pub(crate) fn parse_int(text: &str) -> Option<i64> {
    let (negative, digits) = match text.as_bytes().first()? {
        b'-' => (true, &text[1..]),
        b'+' => (false, &text[1..]),
        _ => (false, text),
    };
    let lower = digits.to_ascii_lowercase();
    let (radix, digits) = match lower.as_bytes() {
        [b'0', b'x', ..] => (16, &lower[2..]),
        [b'0', b'o', ..] => (8, &lower[2..]),
        [b'0', b'b', ..] => (2, &lower[2..]),
        [b'0', _, ..] => (8, &lower[1..]),
        _ => (10, &lower[..]),
    };
    // After a prefix an underscore may stand before the first digit, too.
    let first_ok = radix != 10 || !digits.starts_with('_');
    if !first_ok || digits.ends_with('_') || digits.contains("__") || digits.starts_with(['+', '-']) {
        return None;
    }
    let number = i128::from_str_radix(&digits.replace('_', ""), radix).ok()?;
    i64::try_from(if negative { -number } else { number }).ok()
}

/// The name that is nearest to a wrong one, if one is near.
pub(super) fn nearest(name: &str, names: impl Iterator<Item = &'static str>) -> Option<&'static str> {
    let name = name.to_ascii_lowercase().replace('_', "-");
    let best = names.map(|known| (distance(&name, known), known)).min()?;
    (best.0 <= 1 + name.len() / 4).then_some(best.1)
}

/// Edits (insert, delete, replace a character) between two words.
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.chars().count()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, to) in b.chars().enumerate() {
            let replace = diagonal + usize::from(from != to);
            diagonal = row[j + 1];
            row[j + 1] = replace.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.chars().count()]
}
