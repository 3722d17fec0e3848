//! The client's side of the socket. It blocks, and needs no runtime.

use std::io::{self, BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

use crate::path::Folder;
use crate::protocol::{Refusal, Request, VERSION};

/// How long to wait for the next part of an answer that should come at once.
const PATIENCE: Duration = Duration::from_secs(15);

/// Asks the agent at one socket.
#[derive(Debug, Clone)]
pub struct Client {
    path: PathBuf,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// Nobody listens at the socket.
    #[error("no agent answers at {}; is it running, and with this subnet file?", path.display())]
    NoAgent {
        /// The socket.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// This user may not connect.
    #[error("{} is for its owner and group only; ask as root", path.display())]
    Denied {
        /// The socket.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The connection failed.
    #[error("the connection to the agent at {} failed", path.display())]
    Connection {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The agent's answer can't be read.
    #[error("the answer of the agent can't be read")]
    Unreadable(#[source] serde_json::Error),
    /// The agent speaks another version of the protocol.
    #[error("the agent speaks version {0} of the protocol, this program version {VERSION}")]
    Version(u64),
    /// The agent accepted the connection, and does not answer.
    #[error(
        "the agent at {} does not answer within {} s; is it stopped (SIGSTOP), or has its host no time for it?",
        path.display(), patience.as_secs()
    )]
    Silent {
        /// The socket.
        path: PathBuf,
        /// How long it had for the next part of its answer.
        patience: Duration,
    },
    /// The agent whose answers were followed has ended, or was killed.
    #[error("the agent at {} has ended", path.display())]
    Ended {
        /// The socket.
        path: PathBuf,
    },
    /// The agent closed the connection without an answer.
    #[error("the agent closed the connection without an answer")]
    Closed,
    /// The agent refused the request.
    #[error(transparent)]
    Refused(Refusal),
}

/// What an agent says of itself.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct AgentReport {
    /// Its status as JSON.
    pub status: Option<Value>,
    /// The events that it remembers, an event as JSON a line.
    pub events: Option<String>,
}

impl ClientError {
    /// Whether there is no agent, as opposed to one that can't or won't answer.
    pub fn is_no_agent(&self) -> bool {
        matches!(self, Self::NoAgent { .. })
    }

    /// Whether nobody answers: there is no agent, or it is silent, or it was gone before its answer was complete.
    pub fn is_unanswered(&self) -> bool {
        matches!(
            self,
            Self::NoAgent { .. }
                | Self::Silent { .. }
                | Self::Ended { .. }
                | Self::Closed
                | Self::Connection { .. }
        )
    }
}

impl Client {
    /// A client of the agent that serves this socket.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    /// The socket.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Sends a request, and returns its one answer.
    pub fn ask(&self, request: &Request) -> Result<Box<RawValue>, ClientError> {
        let mut answers = self.send(request, Some(PATIENCE))?;
        answers.next().unwrap_or(Err(ClientError::Closed))
    }

    /// Sends a request, and returns all its answers as they come. The iterator blocks until the next one, and ends with
    /// the agent.
    pub fn follow(&self, request: &Request) -> Result<Answers, ClientError> {
        self.send(request, None)
    }

    /// The same for a request whose answers never take longer than this, one after the other. An agent that is silent
    /// for longer is an error ([`ClientError::Silent`]).
    pub fn follow_within(&self, request: &Request, patience: Duration) -> Result<Answers, ClientError> {
        self.send(request, Some(patience))
    }

    /// Asks for all that a report about this host should have, and leaves out what the agent does not say. `with_events`
    /// asks for the events that it remembers, too. An agent that hangs can hold this up.
    pub fn report(&self, with_events: bool) -> AgentReport {
        let status = self.ask(&Request::new("status")).ok();
        let status: Option<Value> = status.and_then(|answer| serde_json::from_str(answer.get()).ok());
        let is_asked = with_events && status.is_some();
        let events = is_asked.then(|| self.follow(&Request::new("events")).ok()).flatten();
        let lines = |events: Answers| {
            events.map_while(Result::ok).fold(String::new(), |text, event| text + event.get() + "\n")
        };
        AgentReport { status, events: events.map(lines) }
    }

    fn send(&self, request: &Request, patience: Option<Duration>) -> Result<Answers, ClientError> {
        let path = || self.path.clone();
        let connect = || {
            let (folder, name) = Folder::of(&self.path)?;
            UnixStream::connect(folder.path(name))
        };
        let stream = connect().map_err(|source| match source.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                ClientError::NoAgent { path: path(), source }
            }
            io::ErrorKind::PermissionDenied => ClientError::Denied { path: path(), source },
            _ => ClientError::Connection { path: path(), source },
        })?;
        let mut line = serde_json::to_vec(request).map_err(ClientError::Unreadable)?;
        line.push(b'\n');
        let send = || {
            stream.set_read_timeout(patience)?;
            (&stream).write_all(&line)
        };
        // An agent that refuses at once closes before it has read the request; its refusal can still be read.
        match send() {
            Err(source) if source.kind() != io::ErrorKind::BrokenPipe => {
                Err(ClientError::Connection { path: path(), source })
            }
            _ => {
                let reader = BufReader::with_capacity(64 << 10, stream);
                Ok(Answers { path: path(), patience, reader, ended: false })
            }
        }
    }
}

/// The answers to one request. After an error it ends.
#[derive(Debug)]
pub struct Answers {
    path: PathBuf,
    patience: Option<Duration>,
    reader: BufReader<UnixStream>,
    ended: bool,
}

#[derive(Deserialize)]
struct Line {
    version: u64,
    answer: Option<Box<RawValue>>,
    error: Option<Refusal>,
}

impl Answers {
    fn read(&mut self) -> Result<Option<Box<RawValue>>, ClientError> {
        let mut line = String::new();
        let read = self.reader.read_line(&mut line);
        let failed = |source: io::Error| match (source.kind(), self.patience) {
            // SO_RCVTIMEO (socket(7)).
            (io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut, Some(patience)) => {
                ClientError::Silent { path: self.path.clone(), patience }
            }
            _ => ClientError::Connection { path: self.path.clone(), source },
        };
        if read.map_err(failed)? == 0 {
            return Ok(None);
        }
        let Line { version, answer, error } = serde_json::from_str(&line).map_err(ClientError::Unreadable)?;
        match (error, answer) {
            (Some(refusal), _) => Err(ClientError::Refused(refusal)),
            _ if version != VERSION => Err(ClientError::Version(version)),
            (None, Some(answer)) => Ok(Some(answer)),
            (None, None) => Err(ClientError::Closed),
        }
    }
}

impl Iterator for Answers {
    type Item = Result<Box<RawValue>, ClientError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let next = self.read().transpose();
        self.ended = !matches!(next, Some(Ok(_)));
        next
    }
}
