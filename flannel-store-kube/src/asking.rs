//! Asks for what the metadata of a node does not say: its podCIDRs. They never change while a node exists, so that is one
//! request for each node that joins.
//!
//! Only nodes that take part are asked for. An agent publishes after its node got a subnet, so the first answer has it;
//! a node that somebody annotated before is asked for again when it changes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use flannel_core::subnet::kit::Backoff;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use futures::{StreamExt, stream};
use tokio::time::Instant;

use super::Store;
use super::feed::{Object, too_large};
use super::node::NodeObject;

/// How many requests are made at once.
const MOST: usize = 16;

/// The nodes that are asked for.
#[derive(Default)]
pub(super) struct Asking {
    nodes: BTreeMap<Box<str>, Asked>,
    /// When to ask for which.
    due: BTreeSet<(Instant, Box<str>)>,
    running: FuturesUnordered<BoxFuture<'static, (Box<str>, u64, Answer)>>,
    /// The number of the last request.
    ticket: u64,
}

/// One node that is asked for.
struct Asked {
    /// Its metadata, as the watch showed it last.
    seen: NodeObject,
    /// The revision of that.
    revision: Option<u64>,
    phase: Phase,
    backoff: Backoff,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Due(Instant),
    /// The request with this number is under way. The node may have changed since it was made.
    Running {
        ticket: u64,
        is_newer: bool,
    },
    /// It has no subnet yet. Once it gets one, the watch shows a change.
    Waiting,
}

/// What is known after a request.
enum Answer {
    Object(Object),
    /// There is no such node any more, and the watch will say so.
    Gone,
    /// The status has the reason.
    Failed,
}

impl Asking {
    /// Asks for a node, which was seen without its podCIDRs at a revision.
    pub(super) fn want(&mut self, seen: NodeObject, revision: Option<u64>) {
        let name = seen.name.clone();
        let now = Instant::now();
        let Some(asked) = self.nodes.get_mut(&name).filter(|asked| asked.seen.uid == seen.uid) else {
            self.forget(&name);
            self.due.insert((now, name.clone()));
            let phase = Phase::Due(now);
            self.nodes.insert(name, Asked { seen, revision, phase, backoff: Backoff::new() });
            return;
        };
        (asked.seen, asked.revision) = (seen, revision);
        match &mut asked.phase {
            Phase::Due(_) => {}
            Phase::Running { is_newer, .. } => *is_newer = true,
            Phase::Waiting => self.ask_later(&name),
        }
    }

    /// A node is gone, takes no part any more, or its podCIDRs are known.
    pub(super) fn forget(&mut self, name: &str) {
        if let Some(Asked { phase: Phase::Due(at), seen, .. }) = self.nodes.remove(name) {
            self.due.remove(&(at, seen.name));
        }
    }

    /// Waits until the podCIDRs of a node are known, and returns the node as the watch showed it last, with them. Waits
    /// forever if none is asked for. Dropping the future loses nothing.
    pub(super) async fn next(&mut self, store: &Arc<Store>) -> Object {
        loop {
            self.start(store);
            let is_full = self.running.len() >= MOST;
            let due = self.due.first().map(|(at, _)| *at).filter(|_| !is_full);
            let wake = async {
                match due {
                    Some(due) => tokio::time::sleep_until(due).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                Some((name, ticket, answer)) = self.running.next() => {
                    if let Some(object) = self.on_answer(&name, ticket, answer) {
                        return object;
                    }
                }
                () = wake => {}
            }
        }
    }

    /// Makes the requests that are due.
    fn start(&mut self, store: &Arc<Store>) {
        let now = Instant::now();
        while self.running.len() < MOST && self.due.first().is_some_and(|(at, _)| *at <= now) {
            let Some((_, name)) = self.due.pop_first() else { break };
            let Some(asked) = self.nodes.get_mut(&name) else { continue };
            self.ticket += 1;
            let (ticket, store, revision) = (self.ticket, Arc::clone(store), asked.revision);
            asked.phase = Phase::Running { ticket, is_newer: false };
            self.running.push(Box::pin(async move {
                let answer = store.ask(&name, revision).await;
                (name, ticket, answer)
            }));
        }
    }

    fn on_answer(&mut self, name: &str, ticket: u64, answer: Answer) -> Option<Object> {
        let asked = self.nodes.get_mut(name)?;
        // The node of an earlier request has made room for another one of that name.
        let Phase::Running { ticket: latest, is_newer } = asked.phase else { return None };
        if latest != ticket {
            return None;
        }
        match answer {
            Answer::Object(Ok(node)) if node.uid == asked.seen.uid => {
                if node.has_cidrs() {
                    let asked = self.nodes.remove(name)?;
                    return Some(Ok(NodeObject { pod_cidrs: node.pod_cidrs, ..asked.seen }));
                }
                if is_newer {
                    self.ask_later(name);
                } else {
                    asked.phase = Phase::Waiting;
                }
            }
            Answer::Object(Err(bad)) => {
                self.nodes.remove(name);
                return Some(Err(bad));
            }
            Answer::Gone => asked.phase = Phase::Waiting,
            Answer::Object(Ok(_)) | Answer::Failed => self.ask_later(name),
        }
        None
    }

    fn ask_later(&mut self, name: &str) {
        let Some(asked) = self.nodes.get_mut(name) else { return };
        let at = Instant::now() + asked.backoff.pause();
        asked.phase = Phase::Due(at);
        self.due.insert((at, name.into()));
    }
}

impl Store {
    /// Asks once for each node of a list, so that the list is complete. Returns the nodes with their podCIDRs, and those
    /// for which there was no answer.
    pub(super) async fn ask_all(
        &self,
        wanted: Vec<NodeObject>,
        revision: Option<u64>,
    ) -> (Vec<Object>, Vec<NodeObject>) {
        let asked = wanted.into_iter().map(async |seen| match self.ask(&seen.name, revision).await {
            Answer::Object(Ok(node)) if node.uid == seen.uid && node.has_cidrs() => {
                Ok(Ok(NodeObject { pod_cidrs: node.pod_cidrs, ..seen }))
            }
            Answer::Object(Err(bad)) => Ok(Err(bad)),
            Answer::Object(Ok(_)) | Answer::Gone | Answer::Failed => Err(seen),
        });
        let answers: Vec<_> = stream::iter(asked).buffer_unordered(MOST).collect().await;
        let (mut objects, mut left) = (Vec::new(), Vec::new());
        for answer in answers {
            match answer {
                Ok(object) => objects.push(object),
                Err(seen) => left.push(seen),
            }
        }
        (objects, left)
    }

    /// Reads one node.
    async fn ask(&self, name: &str, revision: Option<u64>) -> Answer {
        match self.read_node("read a new node", name, revision).await {
            Ok(text) => Answer::Object(NodeObject::decode(&text, &self.names).map_err(|mut bad| {
                bad.name = Some(name.into());
                bad
            })),
            Err(error) if error.is_not_found() => Answer::Gone,
            Err(error) if error.is_too_large => Answer::Object(Err(too_large(Some(name.to_owned())))),
            Err(_) => Answer::Failed,
        }
    }
}
