//! The server with an agent that waits for its store.

use flannel_core::config::{LeaseSource, NetworkConfig};
use flannel_core::firewall::Managers;
use flannel_core::testing::{FakeKernel, FakeStore};
use serde_json::json;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::UnixStream;
use tokio::task::JoinHandle;

use super::*;

const SOON: Duration = Duration::from_secs(20);
const STATUS: &str = r#"{"version":1,"request":"status"}"#;
const WATCH: &str = r#"{"version":1,"request":"status","watch":true}"#;
/// More than the kernel keeps for a client that does not read.
const LARGE: usize = 4 << 20;

#[tokio::test(start_paused = true)]
async fn a_socket_that_cannot_be_made_is_tried_again() {
    let (folder, stop) = (tempfile::tempdir().unwrap(), CancellationToken::new());
    let path = folder.path().join("sock");
    let first = ControlServer::bind(&path).unwrap();
    let (later, ends) =
        (ControlServer::bind_patiently(&path, &stop), ControlServer::bind_patiently(&path, &stop));
    let mut later = std::pin::pin!(later);
    assert!(tokio::time::timeout(RETRY / 2, &mut later).await.is_err(), "another agent has it");
    drop(first);
    let server = later.await;
    assert!(server.is_some() && path.exists());
    stop.cancel();
    assert!(ends.await.is_none(), "it is told to stop");
}

struct Bed {
    folder: TempDir,
    agent: Arc<Agent>,
    stop: CancellationToken,
    server: JoinHandle<()>,
}

impl Bed {
    fn new() -> Self {
        Self::with(Deadlines::default())
    }

    fn with(deadlines: Deadlines) -> Self {
        let config = r#"{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan"}}"#;
        let store = FakeStore::new(NetworkConfig::parse(config, LeaseSource::Store).unwrap());
        store.set_away(true);
        let agent = Agent::builder(Arc::new(store))
            .fakes(|| Ok(Box::new(FakeKernel::default())), || Managers::none("none"))
            .start()
            .unwrap();
        let (agent, folder, stop) = (Arc::new(agent), tempfile::tempdir().unwrap(), CancellationToken::new());
        let mut server = ControlServer::bind(&folder.path().join("sock")).unwrap();
        server.deadlines = deadlines;
        let server = server
            .request("large", |_| Ok("x".repeat(LARGE).into()))
            .request("echo", |fields| Ok(json!(fields)))
            .request("status", |_| Ok("hijacked".into()));
        let (its_agent, until) = (Arc::clone(&agent), stop.clone());
        let server = tokio::spawn(async move { server.serve(&its_agent, until).await });
        Self { folder, agent, stop, server }
    }

    async fn connect(&self) -> UnixStream {
        UnixStream::connect(self.folder.path().join("sock")).await.unwrap()
    }

    /// Sends a request, and returns the connection.
    async fn send(&self, text: &str) -> BufReader<UnixStream> {
        let mut stream = self.connect().await;
        stream.write_all(format!("{text}\n").as_bytes()).await.unwrap();
        BufReader::new(stream)
    }

    /// Sends a request, and returns all that comes.
    async fn talk(&self, text: &str) -> String {
        let mut answer = String::new();
        let mut stream = self.send(text).await;
        tokio::time::timeout(SOON, stream.read_to_string(&mut answer)).await.unwrap().unwrap();
        answer
    }
}

async fn line(stream: &mut BufReader<UnixStream>) -> String {
    let mut line = String::new();
    tokio::time::timeout(SOON, stream.read_line(&mut line)).await.unwrap().unwrap();
    line
}

#[tokio::test]
async fn requests_are_answered_and_wrong_ones_are_refused_by_name() {
    let bed = Bed::new();
    let long = format!(r#"{{"version":1,"request":"{}"}}"#, "x".repeat(20_000));
    for (request, want) in [
        (STATUS, r#"{"version":1,"answer":{"phase":{"name":"starting","#),
        (r#"{"version":1,"request":"echo","a":[1]}"#, r#"{"version":1,"answer":{"a":[1]}}"#),
        (
            r#"{"version":1,"request":"sttus"}"#,
            r#"{"version":1,"error":{"kind":"unknown-request","message":"request \"sttus\" is unknown; this agent knows status, "#,
        ),
        (r#"{"version":7,"request":"status"}"#, r#"{"version":1,"error":{"kind":"unknown-version","#),
        (
            r#"{"version":1,"request":"status","wtch":true}"#,
            r#"{"version":1,"error":{"kind":"bad-field","message":"request status: unknown field `wtch`"#,
        ),
        (
            r#"{"version":1,"request":"status","every_s":1}"#,
            r#"{"version":1,"error":{"kind":"bad-field","message":"request status: field every_s is for clients that watch"#,
        ),
        (
            r#"{"version":1,"request":"peer"}"#,
            r#"{"version":1,"error":{"kind":"bad-field","message":"request peer: missing field `lease`"#,
        ),
        (
            r#"{"version":1,"request":"peer","lease":"x"}"#,
            r#"{"version":1,"error":{"kind":"bad-field","message":"request peer: field lease: "#,
        ),
        (
            r#"{"version":1,"request":"diff"}"#,
            r#"{"version":1,"error":{"kind":"not-now","message":"the network does not run"}}"#,
        ),
        (
            r#"{"version":1,"request":"command","name":"rotate-key"}"#,
            r#"{"version":1,"error":{"kind":"not-now","message":"the network does not run"}}"#,
        ),
        (
            r#"{"version":1,"request":"command"}"#,
            r#"{"version":1,"error":{"kind":"bad-field","message":"request command: missing field `name`"#,
        ),
        ("status", r#"{"version":1,"error":{"kind":"malformed","#),
        (
            &long,
            r#"{"version":1,"error":{"kind":"malformed","message":"the request has more than 16384 bytes"}}"#,
        ),
    ] {
        let answer = bed.talk(request).await;
        assert!(answer.starts_with(want) && answer.ends_with("}\n"), "{request}\n{answer}");
        assert_eq!(answer.lines().count(), 1, "{answer}");
    }
    let status: crate::wire::Status = serde_json::from_str::<serde_json::Value>(&bed.talk(STATUS).await)
        .and_then(|answer| serde_json::from_value(answer["answer"].clone()))
        .unwrap();
    assert_eq!((status.phase.name.as_str(), status.ready), ("starting", false));
    assert!(status.store_place.is_some() && status.store.is_some(), "{status:?}");
}

#[tokio::test]
async fn who_watches_sees_changes_and_the_end() {
    let bed = Bed::new();
    let mut watch = bed.send(WATCH).await;
    assert!(line(&mut watch).await.contains(r#""name":"starting""#));
    bed.agent.stop().await.unwrap();
    let mut last = String::new();
    while !last.contains(r#""name":"ended""#) {
        last = line(&mut watch).await;
        assert!(!last.is_empty(), "the end is told");
    }
    let mut often = bed.send(r#"{"version":1,"request":"status","watch":true,"every_s":1}"#).await;
    for _ in 0..2 {
        assert!(line(&mut often).await.contains(r#""name":"ended""#), "although nothing changes");
    }
    bed.stop.cancel();
    bed.server.await.unwrap();
    assert_eq!(line(&mut watch).await, "", "and then the connection ends");
    assert!(!bed.folder.path().join("sock").exists());
}

#[tokio::test]
async fn a_client_that_does_not_read_is_cut_off_and_holds_up_nobody() {
    let large = r#"{"version":1,"request":"large"}"#;
    assert_eq!(Bed::new().talk(large).await.len(), LARGE + 26, "a client that reads gets all");
    let bed = Bed::with(Deadlines { answer: Duration::from_millis(300), ..Deadlines::default() });
    let mut slow = bed.send(large).await;
    assert!(bed.talk(STATUS).await.contains("starting"));
    // It has begun to read only after its deadline.
    tokio::time::timeout(SOON, async {
        while !slow.get_ref().ready(tokio::io::Interest::READABLE).await.unwrap().is_read_closed() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await
    .expect("it is cut off");
    let mut rest = Vec::new();
    slow.read_to_end(&mut rest).await.unwrap();
    assert!(rest.len() < LARGE, "{}", rest.len());
}

#[tokio::test]
async fn clients_and_followers_are_bounded_in_number() {
    let bed = Bed::new();
    let mut followers = Vec::new();
    for _ in 0..MOST_FOLLOWERS {
        let mut follower = bed.send(WATCH).await;
        line(&mut follower).await;
        followers.push(follower);
    }
    let refused = bed.talk(WATCH).await;
    assert!(refused.contains(r#""kind":"busy","message":"16 clients follow"#), "{refused}");
    assert!(bed.talk(STATUS).await.contains("starting"), "one answer is still to be had");
    let mut idle = Vec::new();
    while idle.len() < MOST - MOST_FOLLOWERS {
        idle.push(bed.connect().await);
    }
    let refused = bed.talk(STATUS).await;
    assert!(refused.contains(r#""kind":"busy","message":"32 clients are connected"#), "{refused}");
    drop(idle);
    tokio::time::timeout(SOON, async { while !bed.talk(STATUS).await.contains("starting") {} })
        .await
        .expect("places are free again");
}
