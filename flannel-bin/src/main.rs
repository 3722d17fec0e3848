//! `flanneld`: the agent of a container overlay network. It reads arguments and environment, sets up logs, signals and
//! the health server, and exits; what it runs is in the libraries.

mod cleanup;
mod cli;
mod daemon;
mod docker_opts;
mod doctor;
mod init;
mod install_cni;
mod log_level;
mod logs;
mod open_run;
mod privileges;
mod registry;
mod runtime;
mod status;
mod store;
mod supervisor;
mod sys;

use std::ffi::OsString;
use std::io::Write;
use std::process::ExitCode;

use cli::{CliError, Command, Task};

fn main() -> ExitCode {
    sys::keep_heap_small();
    // Failures to print are ignored, since a closed stdout must not crash the program.
    let args = match arguments() {
        Ok(args) => args,
        Err(error) => return bad_usage(&error, &[]),
    };
    match cli::command(&args, |name| Some(std::env::var_os(name)?.to_string_lossy().into_owned())) {
        Ok(Command::Help(usage)) => {
            let _ = std::io::stdout().write_all(usage.as_bytes());
            ExitCode::SUCCESS
        }
        Ok(Command::Version) => {
            let _ = writeln!(std::io::stderr(), "{}", cli::version());
            ExitCode::SUCCESS
        }
        Ok(Command::Run(options)) => init::run(|| daemon::run(&options)),
        Ok(Command::Task(Task::Cleanup(options))) => cleanup::run(*options),
        Ok(Command::Task(Task::Status(options))) => status::run(&options),
        Ok(Command::Task(Task::Events(options))) => status::events(&options),
        Ok(Command::Task(Task::Doctor(options))) => doctor::run(&options),
        Ok(Command::Task(Task::LogLevel(options))) => log_level::run(&options),
        Ok(Command::Task(Task::RotateKey(options))) => log_level::rotate_key(&options),
        Ok(Command::Task(Task::InstallCni(options))) => install_cni::main(&options),
        Ok(Command::Task(Task::OpenRun(options))) => open_run::main(&options),
        Ok(Command::Task(Task::DockerOpts(options))) => docker_opts::main(&options),
        Err(error) => bad_usage(&error, &args),
    }
}

fn arguments() -> Result<Vec<String>, CliError> {
    // What can't be read may be a password.
    let read = |(number, arg): (usize, OsString)| {
        arg.into_string().map_err(|_| format!("argument number {number} is not valid UTF-8"))
    };
    std::env::args_os().enumerate().skip(1).map(read).collect()
}

fn bad_usage(error: &CliError, args: &[String]) -> ExitCode {
    let _ = writeln!(std::io::stderr(), "flanneld: {error}\n{}", cli::help_of(args));
    match args.first().map(String::as_str) {
        Some("status" | "events" | "rotate-key") => status::bad_usage(),
        _ => ExitCode::from(2),
    }
}
