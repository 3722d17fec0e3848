//! The texts that are made from the table of flags.

use std::fmt::Write as _;

use super::flags::FLAGS;

/// The name and version of this program.
pub(crate) fn version() -> String {
    concat!("flanneld ", env!("CARGO_PKG_VERSION")).to_owned()
}

/// The text of `--help`.
pub(crate) fn usage() -> String {
    let mut text = String::from(
        "flanneld: the agent of a container overlay network\n\n\
         Usage: flanneld [flags]\n\n\
         Flags take one dash or two, and their value after \"=\" or a space; true and false only after \"=\".\n\
         A flag that is not given is read from FLANNELD_ and its name in capitals, such as\n\
         FLANNELD_ETCD_PREFIX.\n\nFlags:\n",
    );
    for flag in FLAGS {
        let value = if flag.value.is_empty() { String::new() } else { format!(" {}", flag.value) };
        let mut notes = Vec::new();
        notes.extend((!flag.default.is_empty()).then(|| format!("default {}", flag.default)));
        notes.extend(flag.missing.map(|_| "not supported by this version".to_owned()));
        let notes = if notes.is_empty() { String::new() } else { format!(" ({})", notes.join("; ")) };
        writeln!(text, "  --{}{value}\n        {}{notes}", flag.name, flag.help)
            .expect("writing to a string can't fail");
    }
    text.push_str("  --help\n        print this text\n");
    text
}

/// The table of `docs/flags.md`.
#[cfg(test)]
pub(crate) fn table() -> String {
    let mut text = String::from("| flag | default | variable | meaning |\n| --- | --- | --- | --- |\n");
    for flag in FLAGS {
        writeln!(text, "{}", row(flag)).expect("writing to a string can't fail");
    }
    text
}

#[cfg(test)]
fn row(flag: &super::flags::Flag) -> String {
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
