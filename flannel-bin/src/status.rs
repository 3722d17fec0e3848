//! `flanneld status` and `flanneld events`: flags and exit codes around [`flannel_control::show`].

use std::io::{self, Stdout, Write as _};
use std::process::ExitCode;

use flannel_control::protocol::RefusalKind;
use flannel_control::show::{self, Outcome, ShowError, Terminal};
use flannel_control::{Client, ClientError, socket_of};
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
            ExitCode::from(code(&error))
        }
    }
}

/// What kept the agent from telling what was asked for.
const CANNOT_TELL: u8 = 3;

/// The exit status of an error: nobody answers, or the agent is not ready to.
fn code(error: &ShowError) -> u8 {
    match error {
        ShowError::NoPeer(_) => 1,
        ShowError::Client(ClientError::Refused(refusal)) if refusal.kind == RefusalKind::NotNow => 1,
        ShowError::Client(error) if error.is_unanswered() => 2,
        _ => CANNOT_TELL,
    }
}

/// The exit status of bad flags, which must not look as if there were no agent.
pub(crate) fn bad_usage() -> ExitCode {
    ExitCode::from(CANNOT_TELL)
}

#[cfg(test)]
mod tests {
    use flannel_control::protocol::Refusal;

    use super::*;

    #[test]
    fn each_kind_of_failure_has_its_exit_status() {
        let path = || "/run/sock".into();
        let refused = |kind| ClientError::Refused(Refusal::new(kind, "why"));
        let broken = || io::Error::from(io::ErrorKind::PermissionDenied);
        for (error, want) in [
            (refused(RefusalKind::NotNow), 1),
            (ClientError::NoAgent { path: path(), source: broken() }, 2),
            (ClientError::Ended { path: path() }, 2),
            (ClientError::Silent { path: path(), patience: std::time::Duration::from_secs(1) }, 2),
            (ClientError::Closed, 2),
            (ClientError::Denied { path: path(), source: broken() }, 3),
            (refused(RefusalKind::Busy), 3),
            (ClientError::Version(2), 3),
        ] {
            let error = ShowError::from(error);
            assert_eq!(code(&error), want, "{error}");
        }
        assert_eq!(code(&ShowError::NoPeer("x".to_owned())), 1);
        assert_eq!(code(&ShowError::Output(broken())), 3);
    }
}
