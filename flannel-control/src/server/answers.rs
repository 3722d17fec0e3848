//! The requests, and how each is answered.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use flannel_core::error::chain;
use flannel_core::inspect::{InspectError, PeerObject};
use flannel_core::lease::LeaseKey;
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep_until, timeout};

use super::connection::Connection;
use super::{Desk, MOST_FOLLOWERS};
use crate::protocol::{Refusal, RefusalKind, Request};

/// The shortest time between two statuses for a client that watches.
const CALM: Duration = Duration::from_millis(250);

/// How many times as long as it took to send a status no further one is sent, so that sending large ones all the time takes
/// a small part of a core.
const REST: u32 = 20;

/// How often to look whether a client that follows is still there while nothing happens.
const LOOK: Duration = Duration::from_secs(10);

/// How long the network may take to answer a question.
const INSPECTION: Duration = Duration::from_secs(10);

/// The requests of this crate.
const OURS: [&str; 5] = ["status", "events", "peer", "diff", "command"];

/// Serves one client to the end of its connection.
pub(super) async fn serve(client: Connection, desk: Arc<Desk>) {
    let Some(request) = client.request().await else { return };
    let done = match request {
        Ok(request) => answer(&client, &desk, request).await,
        Err(refusal) => Err(Failure::Refused(refusal)),
    };
    if let Err(Failure::Refused(refusal)) = done {
        // A client that is gone needs no refusal.
        let _ = client.error(refusal).await;
    }
}

/// Refuses a client whatever it asks.
pub(super) async fn refuse(client: Connection, refusal: Refusal) {
    if client.request().await.is_some() {
        // A client that is gone needs no refusal.
        let _ = client.error(refusal).await;
    }
}

/// Why an answer ended early.
enum Failure {
    /// The client gets to know why.
    Refused(Refusal),
    /// The client is gone or too slow.
    Gone,
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl From<io::Error> for Failure {
    fn from(_: io::Error) -> Self {
        Self::Gone
    }
}

async fn answer(client: &Connection, desk: &Desk, request: Request) -> Result<(), Failure> {
    match request.name() {
        "status" => status(client, desk, request.fields_as()?).await,
        "events" => events(client, desk, request.fields_as()?).await,
        "peer" => peer(client, desk, request.fields_as()?).await,
        "diff" => diff(client, desk, request.fields_as()?).await,
        "command" => command(client, desk, request.fields_as()?).await,
        name => {
            let Some(further) = desk.further.get(name) else { return Err(unknown(name, desk).into()) };
            Ok(client.answer(Arc::new(further(request.fields().clone())?)).await?)
        }
    }
}

fn unknown(name: &str, desk: &Desk) -> Refusal {
    let known: Vec<_> = OURS.into_iter().chain(desk.further.keys().map(String::as_str)).collect();
    let why = format!("request {name:?} is unknown; this agent knows {}", known.join(", "));
    Refusal::new(RefusalKind::UnknownRequest, why)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct StatusFields {
    /// Whether to send each further status, too.
    #[serde(default)]
    watch: bool,
    /// With `watch`: after how many seconds to send a status that has not changed.
    #[serde(default)]
    every_s: Option<u64>,
}

async fn status(client: &Connection, desk: &Desk, fields: StatusFields) -> Result<(), Failure> {
    let StatusFields { watch, every_s } = fields;
    let mut status = desk.status.clone();
    if !watch {
        if every_s.is_some() {
            let why = "request status: field every_s is for clients that watch";
            return Err(Refusal::new(RefusalKind::BadField, why).into());
        }
        let now = Arc::clone(&status.borrow());
        return Ok(client.answer(now).await?);
    }
    let _place = follow(desk)?;
    let every = every_s.map(|seconds| Duration::from_secs(seconds.clamp(1, 3600)));
    loop {
        let now = Arc::clone(&status.borrow_and_update());
        let begun = Instant::now();
        client.answer(now).await?;
        let sent = Instant::now();
        sleep_until(sent + CALM.max(REST * (sent - begun))).await;
        // The agent's end is a status, too; there is none after it.
        if !wait(client, every.map(|every| sent + every), status.changed()).await?.unwrap_or(true) {
            return Ok(());
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct EventsFields {
    /// Whether to go on with the events that happen.
    #[serde(default)]
    follow: bool,
}

async fn events(client: &Connection, desk: &Desk, fields: EventsFields) -> Result<(), Failure> {
    let _place = if fields.follow { Some(follow(desk)?) } else { None };
    // Who follows must not keep the agent alive.
    let (recent, mut next) = {
        let agent = desk.agent()?;
        let recent = agent.recent_events();
        let last = recent.last().map_or(0, |event| event.seq);
        (recent, fields.follow.then(|| agent.events_after(last)))
    };
    for event in recent {
        client.answer(event).await?;
    }
    while let Some(events) = &mut next {
        let mut came = None;
        let news = async {
            came = events.recv().await;
            came.is_some().then_some(()).ok_or(())
        };
        wait(client, None, news).await?;
        match came {
            Some(event) => client.answer(Arc::new(event)).await?,
            None => break,
        }
    }
    Ok(())
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PeerFields {
    /// The key of its lease, such as `10.5.1.0-24`.
    lease: String,
}

#[derive(Serialize)]
struct PeerAnswer {
    objects: Vec<PeerObject>,
}

async fn peer(client: &Connection, desk: &Desk, fields: PeerFields) -> Result<(), Failure> {
    let lease: LeaseKey = fields.lease.parse().map_err(|error| {
        Refusal::new(RefusalKind::BadField, format!("request peer: field lease: {error}"))
    })?;
    let objects = answered(desk.agent()?.peer_objects(lease)).await?;
    Ok(client.answer(Arc::new(PeerAnswer { objects })).await?)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NoFields {}

async fn diff(client: &Connection, desk: &Desk, NoFields {}: NoFields) -> Result<(), Failure> {
    let differences = answered(desk.agent()?.differences()).await?;
    Ok(client.answer(Arc::new(differences)).await?)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CommandFields {
    /// What the backend is to do, such as `rotate-key`.
    name: String,
}

#[derive(Serialize)]
struct CommandAnswer {
    text: String,
}

async fn command(client: &Connection, desk: &Desk, fields: CommandFields) -> Result<(), Failure> {
    let text = answered(desk.agent()?.command(fields.name)).await?;
    Ok(client.answer(Arc::new(CommandAnswer { text })).await?)
}

/// What the agent's network answers. It may be busy, but not for ever.
async fn answered<T>(answer: impl Future<Output = Result<T, InspectError>>) -> Result<T, Refusal> {
    match timeout(INSPECTION, answer).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(error @ (InspectError::NotRunning | InspectError::NoLoop))) => {
            Err(Refusal::new(RefusalKind::NotNow, error.to_string()))
        }
        Ok(Err(error)) => Err(Refusal::new(RefusalKind::Failed, chain(&error))),
        Err(_) => {
            let why = format!("the network did not answer within {} s", INSPECTION.as_secs());
            Err(Refusal::new(RefusalKind::Failed, why))
        }
    }
}

/// Waits for something until a time, while the client is there. `Some(false)` says that it will not come any more, `None`
/// that it is time.
async fn wait<E>(
    client: &Connection,
    until: Option<Instant>,
    news: impl Future<Output = Result<(), E>>,
) -> Result<Option<bool>, Failure> {
    let mut news = std::pin::pin!(news);
    loop {
        let look = Instant::now() + LOOK;
        let next = until.map_or(look, |until| until.min(look));
        match timeout(next.saturating_duration_since(Instant::now()), &mut news).await {
            Ok(came) => return Ok(Some(came.is_ok())),
            Err(_) if until.is_some_and(|until| Instant::now() >= until) => return Ok(None),
            Err(_) if client.is_gone().await => return Err(Failure::Gone),
            Err(_) => {}
        }
    }
}

/// A place among the clients that follow.
fn follow(desk: &Desk) -> Result<tokio::sync::SemaphorePermit<'_>, Refusal> {
    desk.followers.try_acquire().map_err(|_| {
        Refusal::new(RefusalKind::Busy, format!("{MOST_FOLLOWERS} clients follow the agent already"))
    })
}
