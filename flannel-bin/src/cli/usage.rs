//! The texts that are made from the table of flags.

use std::fmt::Write as _;

use super::flags::{FLAGS, Flag};
use super::subcommands::{SUBCOMMANDS, Subcommand};

/// How flags are written.
const SYNTAX: &str = "Flags take one dash or two, and their value after \"=\" or a space; true and false only \
     after \"=\".\nA flag that is not given is read from FLANNELD_ and its name in capitals, such as\n\
     FLANNELD_ETCD_PREFIX";

/// The name and version of this program.
pub(crate) fn version() -> String {
    concat!("flanneld ", env!("CARGO_PKG_VERSION")).to_owned()
}

/// The text of `--help`.
pub(crate) fn usage() -> String {
    let mut text = String::from(
        "flanneld: the agent of a container overlay network\n\n\
         Usage: flanneld [flags]\n       flanneld COMMAND [flags]\n\nCommands:\n",
    );
    for subcommand in SUBCOMMANDS {
        writeln!(text, "  {}\n        {}", subcommand.name, subcommand.summary)
            .expect("writing to a string can't fail");
    }
    write!(text, "\n{SYNTAX}.\n\nFlags:\n").expect("writing to a string can't fail");
    list(&mut text, FLAGS.iter());
    text
}

/// The text of a command's `--help`.
pub(crate) fn usage_of(subcommand: &Subcommand) -> String {
    let Subcommand { name, summary, about, .. } = subcommand;
    let mut text = format!(
        "flanneld {name}: {summary}\n\nUsage: flanneld {name} [flags]\n\n{about}\n\
         {SYNTAX}, unless only this command has it.\n\nFlags:\n"
    );
    list(&mut text, subcommand.flags().into_iter());
    text
}

fn list(text: &mut String, flags: impl Iterator<Item = &'static Flag>) {
    for flag in flags {
        let value = if flag.value.is_empty() { String::new() } else { format!(" {}", flag.value) };
        let mut notes = Vec::new();
        notes.extend((!flag.default.is_empty()).then(|| format!("default {}", flag.default)));
        notes.extend(flag.missing.map(|_| "not supported by this version".to_owned()));
        let notes = if notes.is_empty() { String::new() } else { format!(" ({})", notes.join("; ")) };
        writeln!(text, "  --{}{value}\n        {}{notes}", flag.name, flag.help)
            .expect("writing to a string can't fail");
    }
    text.push_str("  --help\n        print this text\n");
}

/// A table of `docs/flags.md`.
#[cfg(test)]
pub(crate) fn table<'a>(flags: impl IntoIterator<Item = &'a Flag>) -> String {
    let mut text = String::from("| flag | default | variable | meaning |\n| --- | --- | --- | --- |\n");
    for flag in flags {
        writeln!(text, "{}", row(flag)).expect("writing to a string can't fail");
    }
    text
}

#[cfg(test)]
fn row(flag: &Flag) -> String {
    use super::flags::Kind;

    let code = |text: &str| if text.is_empty() { String::new() } else { format!("`{text}`") };
    let value = match (flag.kind, flag.value) {
        (Kind::Bool, _) => String::new(),
        (_, value) => format!(" {}", value.replace('|', "\\|")),
    };
    let variable = flag.variable().map_or_else(String::new, |name| code(&name));
    let missing = flag.missing.map_or_else(String::new, |what| format!(" *Not yet: {what}.*"));
    format!("| `--{}`{value} | {} | {variable} | {}.{missing} |", flag.name, code(flag.default), flag.help)
}
