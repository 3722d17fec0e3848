//! `flanneld status`: asks the agent of this host, and shows the answer.

pub(crate) mod events;
mod terminal;

use std::io::{self, Write as _};
use std::net::{IpAddr, ToSocketAddrs as _};
use std::process::ExitCode;

use flannel_control::protocol::Request;
use flannel_control::screen::{self, Detail};
use flannel_control::{Client, ClientError, socket_of, wire};
use flannel_core::error::chain;

use self::terminal::Terminal;
use crate::cli::{StatusForm, StatusOptions};

/// After how many seconds a watched status is shown again, since the ages in it change.
const EVERY: u64 = 2;

/// Why there is nothing to show.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StatusError {
    /// The agent did not answer.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// Its answer is not what this program reads.
    #[error("the answer of the agent can't be read")]
    Unreadable(#[from] serde_json::Error),
    /// Nobody reads what is shown.
    #[error("can't write the answer")]
    Output(#[from] io::Error),
    /// No peer is meant by what was given.
    #[error(
        "no peer has {0:?}: give its subnet, an address of one of its pods or of its node, or a node's name"
    )]
    NoPeer(String),
}

/// What was learned, as an exit status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// All is as it should be.
    Good,
    /// Something is not.
    Bad,
}

impl Verdict {
    fn of(good: bool) -> Self {
        if good { Self::Good } else { Self::Bad }
    }
}

/// Shows the status, and says by the exit status whether pods can be started.
pub(crate) fn run(options: &StatusOptions) -> ExitCode {
    let client = Client::new(socket_of(&options.subnet_file));
    end(match options {
        StatusOptions { diff: true, .. } => diff(&client, options.output),
        StatusOptions { peer, .. } if !peer.is_empty() => self::peer(&client, peer, options.output),
        StatusOptions { watch: true, .. } => watch(&client, options.output),
        _ => once(&client, options.output),
    })
}

/// Says on stderr why there is nothing to show.
fn end(result: Result<Verdict, StatusError>) -> ExitCode {
    match result {
        Ok(Verdict::Good) => ExitCode::SUCCESS,
        Ok(Verdict::Bad) => ExitCode::from(1),
        // Whoever reads has seen enough, as `head` does.
        Err(StatusError::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(error) => {
            let code = if matches!(error, StatusError::NoPeer(_)) { 1 } else { 2 };
            let _ = writeln!(io::stderr(), "flanneld: {}", chain(&error));
            ExitCode::from(code)
        }
    }
}

fn once(client: &Client, form: StatusForm) -> Result<Verdict, StatusError> {
    let answer = client.ask(&Request::new("status"))?;
    let status: wire::Status = serde_json::from_str(answer.get())?;
    let terminal = Terminal::of_stdout();
    Terminal::print(&match detail(form) {
        Some(detail) => screen::status(&status, detail, terminal.look(detail)),
        None => format!("{answer}\n"),
    })?;
    Ok(Verdict::of(status.ready))
}

/// How much of a status a form shows; `None` for the agent's JSON.
fn detail(form: StatusForm) -> Option<Detail> {
    match form {
        StatusForm::Table => Some(Detail::Table),
        StatusForm::Wide => Some(Detail::Wide),
        StatusForm::Json => None,
    }
}

/// Shows each status until the agent ends.
fn watch(client: &Client, form: StatusForm) -> Result<Verdict, StatusError> {
    let terminal = Terminal::of_stdout();
    let mut request = Request::new("status").with("watch", true);
    if terminal.is_terminal() {
        request = request.with("every_s", EVERY);
    }
    let mut verdict = Verdict::Bad;
    for answer in client.follow(&request)? {
        let answer = answer?;
        let Some(detail) = detail(form) else {
            Terminal::print(&format!("{answer}\n"))?;
            continue;
        };
        let status: wire::Status = serde_json::from_str(answer.get())?;
        verdict = Verdict::of(status.ready);
        if terminal.is_terminal() {
            Terminal::redraw(&screen::status(&status, detail, terminal.whole_look()))?;
        } else {
            Terminal::print(&(screen::status(&status, detail, terminal.look(detail)) + "\n"))?;
        }
    }
    Ok(verdict)
}

fn peer(client: &Client, text: &str, form: StatusForm) -> Result<Verdict, StatusError> {
    let answer = client.ask(&Request::new("status"))?;
    let status: wire::Status = serde_json::from_str(answer.get())?;
    let found = match screen::find(&status, text, &[]) {
        found if found.is_empty() => screen::find(&status, text, &addresses_of(text)),
        found => found,
    };
    if found.is_empty() {
        return Err(StatusError::NoPeer(text.to_owned()));
    }
    let terminal = Terminal::of_stdout();
    let mut good = true;
    for (number, peer) in found.iter().enumerate() {
        let objects = client.ask(&Request::new("peer").with("lease", peer.lease.as_str()))?;
        good &= matches!(peer.state.as_str(), "programmed" | "recalled");
        let text = if let Some(detail) = detail(form) {
            let objects: wire::PeerObjects = serde_json::from_str(objects.get())?;
            let probes = status.probes.iter().flat_map(|probes| &probes.peers);
            let probe = probes.clone().find(|probe| probe.lease == peer.lease);
            screen::peer(peer, probe, &objects, terminal.look(detail))
        } else {
            let (status, objects) = (json_of(&answer, &peer.lease)?, serde_json::from_str(objects.get())?);
            format!("{}\n", merged(status, objects))
        };
        Terminal::print(&if number > 0 && form != StatusForm::Json { format!("\n{text}") } else { text })?;
    }
    Ok(Verdict::of(good))
}

/// A peer of a status, with all fields that the agent sent.
fn json_of(status: &serde_json::value::RawValue, lease: &str) -> Result<serde_json::Value, StatusError> {
    let mut status: serde_json::Value = serde_json::from_str(status.get())?;
    let peers = status.pointer_mut("/network/peer_list").and_then(serde_json::Value::as_array_mut);
    let found = peers.and_then(|peers| peers.iter_mut().find(|peer| peer["lease"] == lease));
    Ok(found.map(serde_json::Value::take).unwrap_or_default())
}

/// One object with the fields of both.
fn merged(mut one: serde_json::Value, other: serde_json::Value) -> serde_json::Value {
    if let (Some(one), serde_json::Value::Object(other)) = (one.as_object_mut(), other) {
        one.extend(other);
    }
    one
}

/// The addresses of a host name; none if it is none.
fn addresses_of(name: &str) -> Vec<IpAddr> {
    (name, 0).to_socket_addrs().map(|found| found.map(|address| address.ip()).collect()).unwrap_or_default()
}

fn diff(client: &Client, form: StatusForm) -> Result<Verdict, StatusError> {
    let answer = client.ask(&Request::new("diff"))?;
    let differences: wire::Differences = serde_json::from_str(answer.get())?;
    let terminal = Terminal::of_stdout();
    Terminal::print(&match detail(form) {
        Some(_) => screen::diff(&differences, terminal.look(Detail::Wide)),
        None => format!("{answer}\n"),
    })?;
    Ok(Verdict::of(differences.differences.is_empty()))
}
