//! `flanneld events`: what happened to the agent of this host.

use std::process::ExitCode;

use flannel_control::protocol::Request;
use flannel_control::screen::{self, Detail};
use flannel_control::{Client, socket_of, wire};

use super::terminal::Terminal;
use super::{StatusError, Verdict, end};
use crate::cli::{EventsOptions, LogFormat};

/// Shows the events that the agent remembers, and with `--follow` those that happen.
pub(crate) fn run(options: &EventsOptions) -> ExitCode {
    end(show(options))
}

fn show(options: &EventsOptions) -> Result<Verdict, StatusError> {
    let client = Client::new(socket_of(&options.subnet_file));
    let terminal = Terminal::of_stdout();
    let request = Request::new("events").with("follow", options.follow);
    for answer in client.follow(&request)? {
        let answer = answer?;
        match options.output {
            LogFormat::Json => Terminal::print(&format!("{answer}\n"))?,
            LogFormat::Text => {
                let event: wire::Event = serde_json::from_str(answer.get())?;
                Terminal::print(&screen::event(&event, terminal.look(Detail::Wide)))?;
            }
        }
    }
    Ok(Verdict::Good)
}
