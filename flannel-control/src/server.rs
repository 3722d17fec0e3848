//! The agent's side of the socket.
//!
//! Only the owner and the group of the socket can connect, and still nothing that they do costs the agent much: there are
//! at most [`MOST`] connections, a request has a size and a deadline, and a client that does not read is cut off. Large
//! answers are written as they are made, in a thread that may block, so that they take no memory and hold up nobody.

mod answers;
mod connection;
mod socket;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::sync::{Arc, Weak};
use std::time::Duration;

use flannel_core::agent::Agent;
use flannel_core::error::chain;
use serde_json::{Map, Value};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use self::connection::Connection;
pub use self::socket::BindError;
use self::socket::Socket;
use crate::protocol::{Refusal, RefusalKind};
use crate::shortage;

/// How many clients are served at a time.
const MOST: usize = 32;

/// How many of them may follow what happens; the others get one answer.
const MOST_FOLLOWERS: usize = 16;

/// The pause between attempts to make the socket.
const RETRY: Duration = Duration::from_secs(10);

/// Answers a request of the embedding program.
type Handler = dyn Fn(Map<String, Value>) -> Result<Value, Refusal> + Send + Sync;

/// How long clients may take.
#[derive(Debug, Clone, Copy)]
struct Deadlines {
    /// To send their request.
    request: Duration,
    /// To read one answer.
    answer: Duration,
}

impl Default for Deadlines {
    fn default() -> Self {
        Self { request: Duration::from_secs(5), answer: Duration::from_secs(10) }
    }
}

/// The control socket of an agent. Dropping it removes the socket.
pub struct ControlServer {
    socket: Socket,
    deadlines: Deadlines,
    further: BTreeMap<String, Box<Handler>>,
}

impl fmt::Debug for ControlServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ControlServer").field("socket", &self.socket).finish_non_exhaustive()
    }
}

impl ControlServer {
    /// Makes the socket, with mode 0660. It replaces the socket of an agent that was killed. It fails if another agent
    /// serves the socket, and never removes anything but a socket.
    ///
    /// # Panics
    /// Outside of a tokio runtime with I/O.
    pub fn bind(path: &Path) -> Result<Self, BindError> {
        Ok(Self { socket: Socket::bind(path)?, deadlines: Deadlines::default(), further: BTreeMap::new() })
    }

    /// The same, and tries again every ten seconds until `stop` fires, which gives `None`: an agent whose socket can't be
    /// made should run all the same. Each reason why not is logged once, and so is that it is made after all.
    ///
    /// # Panics
    /// Outside of a tokio runtime with I/O and time.
    pub async fn bind_patiently(path: &Path, stop: &CancellationToken) -> Option<Self> {
        let mut told = None;
        loop {
            match Self::bind(path) {
                Ok(server) => {
                    if told.is_some() {
                        info!(path = %path.display(), "control socket is served");
                    }
                    return Some(server);
                }
                Err(error) => {
                    let why = Some(chain(&error));
                    if told != why {
                        warn!(error = why, "flanneld status can't ask this agent; trying again");
                        told = why;
                    }
                }
            }
            stop.run_until_cancelled(tokio::time::sleep(RETRY)).await?;
        }
    }

    /// Adds a request of the embedding program, such as one that changes its log level. The function gets the fields of
    /// the request, should refuse those that it does not know ([`RefusalKind::BadField`]), and must not block. The
    /// requests of this crate can't be replaced.
    #[must_use]
    pub fn request(
        mut self,
        name: impl Into<String>,
        answer: impl Fn(Map<String, Value>) -> Result<Value, Refusal> + Send + Sync + 'static,
    ) -> Self {
        self.further.insert(name.into(), Box::new(answer));
        self
    }

    /// Serves until `stop` fires, and removes the socket. The agent is not kept alive: once it is dropped, requests
    /// about it are refused.
    pub async fn serve(self, agent: &Arc<Agent>, stop: CancellationToken) {
        let Self { socket, deadlines, further } = self;
        let desk = Arc::new(Desk {
            status: agent.status(),
            agent: Arc::downgrade(agent),
            further,
            followers: Semaphore::new(MOST_FOLLOWERS),
        });
        let mut clients = JoinSet::new();
        while let Some(accepted) = stop.run_until_cancelled(socket.accept()).await {
            while clients.try_join_next().is_some() {}
            match accepted {
                // There are even too many that have to be refused.
                Ok(stream) if clients.len() >= 2 * MOST => drop(stream),
                Ok(stream) => {
                    let (client, desk) = (Connection::new(stream, deadlines), Arc::clone(&desk));
                    let is_one_too_many = clients.len() >= MOST;
                    clients.spawn(async move {
                        if is_one_too_many {
                            answers::refuse(client, busy()).await;
                        } else {
                            answers::serve(client, desk).await;
                        }
                    });
                }
                Err(error) => {
                    debug!(%error, "control connection not accepted");
                    if shortage::is_one(&error) {
                        tokio::time::sleep(shortage::REST).await;
                    }
                }
            }
        }
        // Clients that follow learn of the end by the end of their connection.
    }
}

/// What answers are made from.
struct Desk {
    status: tokio::sync::watch::Receiver<Arc<flannel_core::agent::AgentStatus>>,
    agent: Weak<Agent>,
    further: BTreeMap<String, Box<Handler>>,
    followers: Semaphore,
}

impl Desk {
    /// The agent, if it was not dropped.
    fn agent(&self) -> Result<Arc<Agent>, Refusal> {
        self.agent.upgrade().ok_or_else(|| Refusal::new(RefusalKind::NotNow, "the agent has ended"))
    }
}

fn busy() -> Refusal {
    Refusal::new(RefusalKind::Busy, format!("{MOST} clients are connected already; try again"))
}
