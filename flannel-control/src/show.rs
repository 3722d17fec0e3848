//! Asks an agent and shows its answer, as `flanneld status` and `flanneld events` do. All of it blocks, and needs no
//! runtime.
//!
//! ```no_run
//! use std::io::stdout;
//! use std::path::Path;
//!
//! use flannel_control::show::{self, Form, Outcome, ShowError, Terminal};
//! use flannel_control::{Client, socket_of};
//!
//! fn is_good() -> Result<bool, ShowError> {
//!     let client = Client::new(socket_of(Path::new("/run/flannel/subnet.env")));
//!     let mut terminal = Terminal::of(stdout(), |name| std::env::var_os(name));
//!     Ok(show::status(&client, Form::Table, &mut terminal)? == Outcome::Good)
//! }
//! ```

mod terminal;
#[cfg(test)]
mod tests;

use std::convert::Infallible;
use std::io::{self, Write};
use std::net::{IpAddr, ToSocketAddrs as _};
use std::time::{Duration, SystemTime};

use flannel_core::error::chain;

pub use self::terminal::Terminal;
use crate::protocol::{RefusalKind, Request};
use crate::screen::{self, Detail};
use crate::{Client, ClientError, wire};

/// After how many seconds a watched status is shown again, since the ages in it change.
const EVERY: u64 = 2;

/// How long a watched agent may take for a status that it should send every [`EVERY`] seconds: it rests between large ones.
const WATCH_PATIENCE: Duration = Duration::from_secs(60);

/// After what time to look whether the next agent is there.
const AGAIN: Duration = Duration::from_millis(500);

/// How an answer is shown.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Form {
    /// A table of what fits the terminal.
    #[default]
    Table,
    /// A table with all columns.
    Wide,
    /// The agent's JSON, in a line.
    Json,
}

/// Why there is nothing to show.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ShowError {
    /// The agent did not answer.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// Its answer is not what this program reads.
    #[error("the answer of the agent can't be read")]
    Unreadable(#[from] serde_json::Error),
    /// The answer can't be written. If the kind is [`BrokenPipe`](io::ErrorKind::BrokenPipe), whoever reads has seen
    /// enough, as `head` does.
    #[error("can't write the answer")]
    Output(#[from] io::Error),
    /// No peer is meant by what was given.
    #[error(
        "no peer has {0:?}: give its subnet, an address of one of its pods or of its node, or a node's name"
    )]
    NoPeer(String),
}

impl ShowError {
    /// The exit status of a program that can't tell what was asked for, for another reason than that nobody answers.
    pub const CANNOT_TELL: u8 = 3;

    /// The exit status of a program that shows nothing for this reason: 1 if the agent is not ready to tell, or knows no
    /// such peer, 2 if nobody answers, else [`Self::CANNOT_TELL`].
    pub fn exit_status(&self) -> u8 {
        match self {
            Self::NoPeer(_) => 1,
            Self::Client(ClientError::Refused(refusal)) if refusal.kind == RefusalKind::NotNow => 1,
            Self::Client(error) if error.is_unanswered() => 2,
            _ => Self::CANNOT_TELL,
        }
    }
}

/// What was shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// All is as it should be.
    Good,
    /// Something is not.
    Bad,
}

impl Outcome {
    fn of(good: bool) -> Self {
        if good { Self::Good } else { Self::Bad }
    }
}

/// Tells an agent's backend to do what only backends of its kind can, such as `rotate-key`. Returns what it does, in words.
pub fn command(client: &Client, name: &str) -> Result<String, ShowError> {
    let answer = client.ask(&Request::new("command").with("name", name))?;
    let answer: serde_json::Value = serde_json::from_str(answer.get())?;
    Ok(answer["text"].as_str().unwrap_or_default().to_owned())
}

/// Writes an answer in words to `out`, or to `errors` why `program` has none. Returns the exit status of the program. That
/// nobody reads is no failure.
pub fn answer(
    program: &str,
    answer: Result<String, ShowError>,
    out: &mut impl Write,
    errors: &mut impl Write,
) -> u8 {
    match answer {
        Ok(text) => {
            let _ = writeln!(out, "{text}");
            0
        }
        Err(error) => failure(program, &error, errors),
    }
}

/// Writes to `errors` why `program` has shown nothing, if that is so. Returns the exit status of the program: 1 if what was
/// shown is [not as it should be](Outcome::Bad). That whoever reads has seen enough is no failure.
pub fn outcome(program: &str, shown: Result<Outcome, ShowError>, errors: &mut impl Write) -> u8 {
    match shown {
        Ok(Outcome::Good) => 0,
        Ok(Outcome::Bad) => 1,
        Err(ShowError::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => 0,
        Err(error) => failure(program, &error, errors),
    }
}

fn failure(program: &str, error: &ShowError, errors: &mut impl Write) -> u8 {
    let _ = writeln!(errors, "{program}: {}", chain(error));
    error.exit_status()
}

/// Shows the status: good if pods can be started.
pub fn status<W: Write>(
    client: &Client,
    form: Form,
    terminal: &mut Terminal<W>,
) -> Result<Outcome, ShowError> {
    let answer = client.ask(&Request::new("status"))?;
    let status: wire::Status = serde_json::from_str(answer.get())?;
    terminal.print(&match detail(form) {
        Some(detail) => screen::status(&status, detail, terminal.look(detail)),
        None => format!("{answer}\n"),
    })?;
    Ok(Outcome::of(status.ready))
}

/// Shows each status, on a terminal in place of the last one. It returns only with an error. Where the agent ends, or stops
/// to answer, that is [`ClientError::is_unanswered`]; on a terminal a table says so, and goes on with the next agent.
pub fn watch<W: Write>(
    client: &Client,
    form: Form,
    terminal: &mut Terminal<W>,
) -> Result<Infallible, ShowError> {
    let Some(detail) = detail(form).filter(|_| terminal.is_terminal()) else {
        return Err(watch_plain(client, form, terminal));
    };
    let request = Request::new("status").with("watch", true).with("every_s", EVERY);
    let mut gone_since: Option<SystemTime> = None;
    let mut has_answered = false;
    loop {
        let ended = || ClientError::Ended { path: client.path().to_owned() };
        let mut follow = || -> Result<Infallible, ShowError> {
            for answer in client.follow_within(&request, WATCH_PATIENCE)? {
                let status: wire::Status = serde_json::from_str(answer?.get())?;
                (has_answered, gone_since) = (true, None);
                terminal.redraw(&screen::status(&status, detail, terminal.whole_look()))?;
            }
            Err(ended().into())
        };
        let Err(error) = follow();
        match error {
            ShowError::Client(error) if has_answered && error.is_unanswered() => {
                let look = terminal.whole_look();
                let since = *gone_since.get_or_insert(look.now);
                terminal.redraw(&screen::gone(&error.to_string(), since, look))?;
            }
            error => return Err(error),
        }
        std::thread::sleep(AGAIN);
    }
}

/// The same for what is no table on a terminal. Returns why it ends.
fn watch_plain<W: Write>(client: &Client, form: Form, terminal: &mut Terminal<W>) -> ShowError {
    let mut follow = || -> Result<Infallible, ShowError> {
        for answer in client.follow(&Request::new("status").with("watch", true))? {
            let answer = answer?;
            terminal.print(&match detail(form) {
                Some(detail) => {
                    let status: wire::Status = serde_json::from_str(answer.get())?;
                    screen::status(&status, detail, terminal.look(detail)) + "\n"
                }
                None => format!("{answer}\n"),
            })?;
        }
        Err(ClientError::Ended { path: client.path().to_owned() }.into())
    };
    let Err(error) = follow();
    error
}

/// Shows the peers that a text means (a subnet, an address of a pod or a node, or a node's name, which may be looked up)
/// with their kernel objects: good if all of them are programmed.
pub fn peer<W: Write>(
    client: &Client,
    text: &str,
    form: Form,
    terminal: &mut Terminal<W>,
) -> Result<Outcome, ShowError> {
    let answer = client.ask(&Request::new("status"))?;
    let status: wire::Status = serde_json::from_str(answer.get())?;
    let found = match screen::find(&status, text, &[]) {
        found if found.is_empty() => screen::find(&status, text, &addresses_of(text)),
        found => found,
    };
    if found.is_empty() {
        return Err(ShowError::NoPeer(text.to_owned()));
    }
    let mut good = true;
    for (number, peer) in found.iter().enumerate() {
        let objects = client.ask(&Request::new("peer").with("lease", peer.lease.as_str()))?;
        good &= matches!(peer.state.as_str(), "programmed" | "recalled");
        let text = if let Some(detail) = detail(form) {
            let objects: wire::PeerObjects = serde_json::from_str(objects.get())?;
            screen::peer(&status, peer, &objects, terminal.look(detail))
        } else {
            let (peer, objects) = (json_of(&answer, &peer.lease)?, serde_json::from_str(objects.get())?);
            format!("{}\n", merged(peer, objects))
        };
        terminal.print(&if number > 0 && form != Form::Json { format!("\n{text}") } else { text })?;
    }
    Ok(Outcome::of(good))
}

/// How much of a status a form shows; `None` for the agent's JSON.
fn detail(form: Form) -> Option<Detail> {
    match form {
        Form::Table => Some(Detail::Table),
        Form::Wide => Some(Detail::Wide),
        Form::Json => None,
    }
}

/// A peer of a status, with all fields that the agent sent, what probes found out of it as `probes`, and, where the tunnel has
/// such, its sessions as `sessions`.
fn json_of(status: &serde_json::value::RawValue, lease: &str) -> Result<serde_json::Value, ShowError> {
    let mut status: serde_json::Value = serde_json::from_str(status.get())?;
    let mut find = |list: &str| {
        let peers = status.pointer_mut(list).and_then(serde_json::Value::as_array_mut)?;
        peers.iter_mut().find(|peer| peer["lease"] == lease).map(serde_json::Value::take)
    };
    let (mut peer, probes) = (find("/network/peer_list").unwrap_or_default(), find("/probes/peers"));
    let sessions = status.pointer_mut("/network/sessions").map(serde_json::Value::take);
    if let Some(peer) = peer.as_object_mut() {
        if let Some(serde_json::Value::Array(mut sessions)) = sessions {
            sessions.retain(|session| session["lease"] == lease);
            peer.insert("sessions".to_owned(), sessions.into());
        }
        peer.insert("probes".to_owned(), probes.unwrap_or_default());
    }
    Ok(peer)
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

/// Shows what differs between desired and observed state, as commands that can be pasted: good if everything was compared, and
/// nothing differs.
pub fn diff<W: Write>(client: &Client, form: Form, terminal: &mut Terminal<W>) -> Result<Outcome, ShowError> {
    let answer = client.ask(&Request::new("diff"))?;
    let differences: wire::Differences = serde_json::from_str(answer.get())?;
    terminal.print(&match detail(form) {
        Some(_) => screen::diff(&differences, terminal.look(Detail::Wide)),
        None => format!("{answer}\n"),
    })?;
    Ok(Outcome::of(differences.is_none()))
}

/// Shows the events that the agent remembers, a line each. With `follow` it goes on with those that happen, and its end is
/// that of the agent, an error ([`ClientError::is_unanswered`]).
pub fn events<W: Write>(
    client: &Client,
    follow: bool,
    form: Form,
    terminal: &mut Terminal<W>,
) -> Result<Outcome, ShowError> {
    for answer in client.follow(&Request::new("events").with("follow", follow))? {
        let answer = answer?;
        terminal.print(&match form {
            Form::Json => format!("{answer}\n"),
            Form::Table | Form::Wide => {
                let event: wire::Event = serde_json::from_str(answer.get())?;
                screen::event(&event, terminal.look(Detail::Wide))
            }
        })?;
    }
    if follow {
        return Err(ClientError::Ended { path: client.path().to_owned() }.into());
    }
    Ok(Outcome::Good)
}
