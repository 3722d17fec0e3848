//! `flanneld status` and `flanneld events`: flags and exit codes around [`flannel_control::show`].

use std::io::{self, Stdout};
use std::process::ExitCode;

use flannel_control::show::{self, Outcome, ShowError, Terminal};
use flannel_control::{Client, socket_of};

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

fn end(shown: Result<Outcome, ShowError>) -> ExitCode {
    show::outcome("flanneld", shown, &mut io::stderr()).into()
}

/// The exit status of bad flags, which must not look as if there were no agent.
pub(crate) fn bad_usage() -> ExitCode {
    ExitCode::from(ShowError::CANNOT_TELL)
}
