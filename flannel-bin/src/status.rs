//! `flanneld status` and `flanneld events`: flags and exit codes around [`flannel_control::show`].

use std::io::{self, Stdout, Write as _};
use std::process::ExitCode;

use flannel_control::show::{self, Outcome, ShowError, Terminal};
use flannel_control::{Client, socket_of};
use flannel_core::error::chain;

use crate::cli::{EventsOptions, StatusOptions};

/// Shows the status, and says by the exit status whether pods can be started.
pub(crate) fn run(options: &StatusOptions) -> ExitCode {
    let (client, terminal) = (Client::new(socket_of(&options.subnet_file)), &mut stdout());
    end(match options {
        StatusOptions { diff: true, output, .. } => show::diff(&client, *output, terminal),
        StatusOptions { peer, output, .. } if !peer.is_empty() => {
            show::peer(&client, peer, *output, terminal)
        }
        StatusOptions { watch: true, output, .. } => {
            let Err(error) = show::watch(&client, *output, terminal);
            Err(error)
        }
        StatusOptions { output, .. } => show::status(&client, *output, terminal),
    })
}

/// Shows the events that the agent remembers, and with `--follow` those that happen.
pub(crate) fn events(options: &EventsOptions) -> ExitCode {
    let client = Client::new(socket_of(&options.subnet_file));
    end(show::events(&client, options.follow, options.output, &mut stdout()))
}

fn stdout() -> Terminal<Stdout> {
    Terminal::of(io::stdout(), |name| std::env::var_os(name))
}

/// Says on stderr why there is nothing to show.
fn end(result: Result<Outcome, ShowError>) -> ExitCode {
    match result {
        Ok(Outcome::Good) => ExitCode::SUCCESS,
        Ok(Outcome::Bad) => ExitCode::from(1),
        // Whoever reads has seen enough, as `head` does.
        Err(ShowError::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(io::stderr(), "flanneld: {}", chain(&error));
            ExitCode::from(error.exit_status())
        }
    }
}

/// The exit status of bad flags, which must not look as if there were no agent.
pub(crate) fn bad_usage() -> ExitCode {
    ExitCode::from(ShowError::CANNOT_TELL)
}
