//! A program with Go's flags and a command. `HELLO_NAME=you cargo run -p flannel-flags --example greet -- -times 0x2`

use std::process::ExitCode;

use clap::{CommandFactory as _, Parser, Subcommand};
use flannel_flags::{Line, Program, Read, UsageError, Words, as_in_go, value};

/// The flags of the program.
#[derive(Debug, Parser)]
#[command(name = "hello", args_override_self = true, disable_help_subcommand = true)]
pub struct Flags {
    #[command(subcommand)]
    task: Option<Task>,
    /// whom to greet
    #[arg(long, default_value = "world")]
    name: String,
    /// how often
    #[arg(long, default_value = "1", value_parser = value::int)]
    times: i64,
    /// whether to shout
    #[arg(long)]
    loud: bool,
    /// what nobody else may know
    #[arg(long)]
    password: String,
    /// print the version
    #[arg(long)]
    version: bool,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// say something else
    Say {
        /// what to say
        #[arg(long)]
        text: String,
    },
}

/// The program.
pub fn program() -> Program {
    let program = Program::new(as_in_go(Flags::command())).variables("HELLO_").passwords(&["password"]);
    program.words("say", Words::First("text"))
}

/// What it prints.
pub fn answer(args: &[String], variable: impl Fn(&str) -> Option<String>) -> Result<String, UsageError> {
    let program = program();
    let Line { value: flags, given, .. } = match program.read::<Flags>(args, variable)? {
        Read::Help(text) => return Ok(text),
        Read::Version => return Ok("hello 1.0".to_owned()),
        Read::Line(line) => line,
    };
    if flags.times < 1 {
        return Err(given.bad_value("times", given.value_of("times"), "at least 1"));
    }
    let text = match flags.task {
        Some(Task::Say { text }) => text,
        None => format!("hello {}", flags.name).repeat(usize::try_from(flags.times).unwrap_or_default()),
    };
    let shown = given.shown();
    Ok(format!("{}\n({shown})", if flags.loud { text.to_uppercase() } else { text }))
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match answer(&args, |name| std::env::var(name).ok()) {
        Ok(text) => {
            println!("{text}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("hello: {error}\n{}", program().hint(&args));
            ExitCode::from(2)
        }
    }
}
