//! Help and documents are made from the table of flags.

use super::*;

/// Whoever adds a flag says what it is about, and its help fits a terminal.
#[test]
fn flags_are_grouped_by_theme_and_help_has_80_columns() {
    let program = flags::program();
    let all = program.command();
    let without = |flag: &&clap::Arg| flag.get_help_heading().is_none();
    let names: Vec<_> = all.get_arguments().filter(without).filter_map(clap::Arg::get_long).collect();
    assert_eq!(names, ["version"], "these need a `help_heading`");
    let words = all.get_subcommands().map(|command| vec![command.get_name(), "--help"]);
    for args in words.chain([vec!["--help"]]) {
        let Ok(Command::Help(usage)) = run_with(&args, &[]) else { panic!("{args:?}") };
        let wide: Vec<_> = usage.lines().filter(|line| line.chars().count() > 80).collect();
        assert!(wide.is_empty(), "{wide:#?}");
    }
}

/// A table of `docs/flags.md`.
fn table(command: &clap::Command, program: &flannel_flags::Program) -> String {
    let code = |text: &str| if text.is_empty() { String::new() } else { format!("`{text}`") };
    let row = |flag: &clap::Arg| {
        let name = flag.get_long()?;
        let values = flag.get_value_names().filter(|_| !flag.is_require_equals_set()).unwrap_or_default();
        let value =
            values.first().map_or_else(String::new, |value| format!(" {}", value.replace('|', "\\|")));
        let default = code(default_of(command, name));
        let variable = program.variable_of(name).map_or_else(String::new, |name| code(&name));
        Some(format!("| `--{name}`{value} | {default} | {variable} | {}. |\n", help_of_flag(flag)))
    };
    let rows: String = command.get_arguments().filter_map(row).collect();
    format!("| flag | default | variable | meaning |\n| --- | --- | --- | --- |\n{rows}")
}

#[test]
fn documents_have_the_table_of_flags() {
    let document = include_str!("../../../../docs/flags.md");
    let program = flags::program();
    let all = program.command();
    for table in all.get_subcommands().chain([all]).map(|command| table(command, &program)) {
        assert!(document.contains(&table), "docs/flags.md must have this table:\n{table}");
    }
}
