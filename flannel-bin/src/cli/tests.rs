//! Tables of command lines.

mod agent;
mod commands;
mod documents;
mod secrets;
mod syntax;

use std::time::Duration;

use super::*;

fn run_with(args: &[&str], env: &[(&str, &str)]) -> Result<Command, CliError> {
    let args: Vec<_> = args.iter().map(|arg| (*arg).to_owned()).collect();
    command(&args, |name| env.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned()))
}

fn options_with(args: &[&str], env: &[(&str, &str)]) -> Options {
    match run_with(args, env) {
        Ok(Command::Run(options)) => *options,
        other => panic!("{args:?}: {other:?}"),
    }
}

fn options(args: &[&str]) -> Options {
    options_with(args, &[])
}

fn error_with(args: &[&str], env: &[(&str, &str)]) -> String {
    run_with(args, env).expect_err(&format!("{args:?}"))
}

fn error(args: &[&str]) -> String {
    error_with(args, &[])
}

/// The name of each flag of a command, but `--help`.
fn names(command: &clap::Command) -> Vec<&str> {
    command.get_arguments().filter_map(clap::Arg::get_long).collect()
}

fn default_of<'a>(command: &'a clap::Command, name: &str) -> &'a str {
    let flag = command.get_arguments().find(|flag| flag.get_long() == Some(name)).expect(name);
    flag.get_default_values().first().map_or("", |value| value.to_str().unwrap())
}

fn help_of_flag(flag: &clap::Arg) -> String {
    flag.get_help().map(ToString::to_string).unwrap_or_default()
}
