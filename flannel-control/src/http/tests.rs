use std::net::Ipv4Addr;

use flannel_core::agent::{FirewallOptions, Phase};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::Instant;

use super::*;

/// The readiness of an agent in a phase.
fn readiness(phase: Phase) -> Readiness {
    let mut status = AgentStatus::new(FirewallOptions::default());
    status.phase = phase;
    status.readiness()
}

fn not_ready(why: &str) -> Readiness {
    readiness(Phase::Starting { waiting_for: why.to_owned() })
}

/// A ready agent with so many problems.
fn ready(notes: usize) -> Readiness {
    let mut readiness = not_ready("lease x: unreadable");
    readiness.notes = std::mem::take(&mut readiness.reasons).into_iter().cycle().take(notes).collect();
    readiness
}

#[test]
fn bodies_begin_as_upstream() {
    let readyz = |readiness: Readiness| readyz(PROGRAM, &readiness, false, Origin::ThisHost);
    assert_eq!(readyz(ready(0)), (StatusCode::OK, "flanneld is ready".into()));
    let (_, body) = readyz(ready(51));
    assert!(body.starts_with("flanneld is ready\nlease x: unreadable\n") && body.ends_with("and 1 more\n"));
    let (status, body) = readyz(not_ready("store away"));
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(body, "flanneld is not ready yet\nstore away\n");
}

#[test]
fn who_was_ready_is_not_said_to_be_on_its_way() {
    let (_, body) = readyz(PROGRAM, &not_ready("store away"), true, Origin::ThisHost);
    assert_eq!(body, "flanneld is not ready any more\nstore away\n");
}

/// Reasons and notes name endpoints and leases.
#[test]
fn others_get_the_first_line() {
    let readyz = |readiness: Readiness| readyz(PROGRAM, &readiness, false, Origin::Elsewhere);
    assert_eq!(readyz(ready(1)), (StatusCode::OK, "flanneld is ready".to_owned()));
    let not_ready = readyz(not_ready("store away: https://10.0.0.1:2379 refused"));
    assert_eq!(not_ready, (StatusCode::SERVICE_UNAVAILABLE, "flanneld is not ready yet".to_owned()));
}

#[tokio::test]
async fn a_taken_port_is_named() {
    let taken = HttpServer::bind("127.0.0.1", 0).await.unwrap();
    let port = taken.local_addr().unwrap().port();
    let error = HttpServer::bind("127.0.0.1", port).await.unwrap_err();
    assert!(error.to_string().contains(&format!("127.0.0.1 port {port}")), "{error}");
}

#[test]
fn one_listens_on_an_address_of_this_host_or_on_all() {
    for (text, address) in
        [("::1", "::1"), ("", ""), ("localhost", "127.0.0.1"), ("fe80::1%eth0", "fe80::1%eth0")]
    {
        assert_eq!(listen_address(text).unwrap(), address);
    }
    for text in ["foo", "127.0.0.1:8471", "[::1]", "192.0.2.0/24", "224.0.0.1", "127.0.0.1%lo", "fe80::1%"] {
        assert!(listen_address(text).is_err(), "{text}");
    }
}

/// A server of an agent that waits for something.
async fn server() -> (SocketAddr, CancellationToken) {
    let server = HttpServer::bind(&Ipv4Addr::LOCALHOST.to_string(), 0).await.unwrap();
    let address = server.local_addr().unwrap();
    let mut status = AgentStatus::new(FirewallOptions::default());
    status.phase = Phase::Starting { waiting_for: "waiting for a test".to_owned() };
    let (stop, (_, status)) = (CancellationToken::new(), watch::channel(Arc::new(status)));
    let server =
        server.page("/echo", |accept| Page::new("text/x-test", format!("for {accept}").into_bytes()));
    tokio::spawn(server.serve(status, stop.clone()));
    (address, stop)
}

/// All that the server says to these bytes, until it closes.
async fn say(server: SocketAddr, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(server).await.unwrap();
    // It may close before it has read all.
    let _ = stream.write_all(bytes).await;
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test]
async fn requests_have_one_answer_a_connection() {
    let (server, _stop) = server().await;
    for (request, want) in [
        ("GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n", "HTTP/1.1 200 OK"),
        ("GET /healthz HTTP/1.0\r\n\r\n", "HTTP/1.0 200 OK"),
        ("GET /readyz HTTP/1.1\r\nHost: x\r\nConnection: keep-alive\r\n\r\n", "HTTP/1.1 503 "),
        ("GET /other HTTP/1.1\r\nHost: x\r\n\r\n", "HTTP/1.1 404 "),
        // Nobody waits for a body.
        ("POST /healthz HTTP/1.1\r\nHost: x\r\nContent-Length: 999999999\r\n\r\nabc", "HTTP/1.1 200 OK"),
        ("garbage\r\n\r\n", "HTTP/1.1 400 "),
    ] {
        let answer = say(server, request.as_bytes()).await;
        assert!(answer.starts_with(want), "{request:?}: {answer:?}");
        assert_eq!(answer.matches("HTTP/1").count(), 1, "{answer}");
    }
    let readyz = say(server, b"GET /readyz HTTP/1.1\r\nHost: x\r\n\r\n").await;
    assert!(readyz.ends_with("\r\n\r\nflanneld is not ready yet\nwaiting for a test\n"), "{readyz}");
    let pipelined = say(server, &b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n".repeat(5)).await;
    assert_eq!(pipelined.matches("HTTP/1.1 200").count(), 1, "{pipelined}");
}

#[tokio::test]
async fn a_page_of_the_program_knows_what_the_client_reads() {
    let (server, _stop) = server().await;
    for (accept, want) in
        [("Accept: text/x-test;q=1\r\n", "\r\n\r\nfor text/x-test;q=1"), ("", "\r\n\r\nfor ")]
    {
        let answer = say(server, format!("GET /echo HTTP/1.1\r\nHost: x\r\n{accept}\r\n").as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 200 OK") && answer.ends_with(want), "{answer}");
        assert!(answer.contains("content-type: text/x-test\r\n"), "{answer}");
    }
}

#[tokio::test]
async fn a_program_has_its_own_name_and_none_of_our_paths() {
    let server = HttpServer::from(TcpListener::bind("127.0.0.1:0").await.unwrap());
    let (address, stop) = (server.local_addr().unwrap(), CancellationToken::new());
    let (_, status) = watch::channel(Arc::new(AgentStatus::new(FirewallOptions::default())));
    let server = server.program("netd").page("/readyz", |_| Page::new("text/plain", *b"always"));
    tokio::spawn(server.serve(status, stop));
    assert!(say(address, b"GET /healthz HTTP/1.0\r\n\r\n").await.ends_with("\r\n\r\nnetd is running"));
    let readyz = say(address, b"GET /readyz HTTP/1.0\r\n\r\n").await;
    assert!(readyz.starts_with("HTTP/1.0 503 ") && readyz.contains("netd is not ready yet\n"), "{readyz}");
}

#[tokio::test]
async fn http_2_is_not_spoken() {
    let (server, _stop) = server().await;
    // The preface, an empty SETTINGS frame, and a request for HTTP/2 by upgrade.
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
    let answer = say(server, preface).await;
    assert!(!answer.contains("200") && !answer.contains('\u{4}'), "{answer:?}");
    let upgrade = "GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n\
                   HTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n";
    assert!(say(server, upgrade.as_bytes()).await.starts_with("HTTP/1.1 200 OK"));
}

#[tokio::test]
async fn a_header_has_8_kib_at_most() {
    let (server, _stop) = server().await;
    let request = |len: usize| {
        let head = "GET /healthz HTTP/1.1\r\nHost: x\r\nX: ";
        format!("{head}{}\r\n\r\n", "x".repeat(len - head.len() - 4))
    };
    assert!(say(server, request(HEADER - 1).as_bytes()).await.starts_with("HTTP/1.1 200 "));
    for len in [HEADER + 1, 380 << 10] {
        let answer = say(server, request(len).as_bytes()).await;
        // A client that goes on sending loses the answer with the connection.
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 431 "), "{len}: {answer}");
    }
    let many = format!("GET /healthz HTTP/1.1\r\nHost: x\r\n{}\r\n", "a: b\r\n".repeat(200));
    assert!(say(server, many.as_bytes()).await.starts_with("HTTP/1.1 431 "));
}

/// The clock stands still while anything is to be done, and jumps to the next deadline else.
#[tokio::test(start_paused = true)]
async fn a_request_is_whole_within_5_s() {
    let (server, _stop) = server().await;
    for begin in ["", "GET /healthz HTTP/1.1\r\n", "GET /hea"] {
        let start = Instant::now();
        let mut stream = TcpStream::connect(server).await.unwrap();
        stream.write_all(begin.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        let took = start.elapsed();
        assert!((REQUEST..REQUEST + Duration::from_millis(100)).contains(&took), "{begin:?}: {took:?}");
        assert!(!answer.starts_with(b"HTTP/1.1 200"));
    }
    // A byte now and then makes it no longer.
    let start = Instant::now();
    let mut stream = TcpStream::connect(server).await.unwrap();
    stream.write_all(b"GET /healthz HTTP/1.1\r\nX: ").await.unwrap();
    while stream.write_all(b"x").await.is_ok() {
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    assert!(start.elapsed() <= REQUEST + Duration::from_secs(2), "{:?}", start.elapsed());
}

#[tokio::test]
async fn a_probe_is_answered_among_clients_that_say_nothing() {
    let (server, _stop) = server().await;
    let mut silent = Vec::new();
    for _ in 0..200 {
        let mut stream = TcpStream::connect(server).await.unwrap();
        stream.write_all(b"GET /healthz HTTP/1.1\r\n").await.unwrap();
        silent.push(stream);
    }
    let answer = say(server, b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n").await;
    assert!(answer.ends_with("flanneld is running"), "{answer}");
    // Of the silent ones the oldest were closed, and the last one was not.
    let mut byte = [0];
    assert!(matches!(silent[0].read(&mut byte).await, Ok(0) | Err(_)));
    let mut last = silent.pop().unwrap();
    last.write_all(b"\r\n").await.unwrap();
    let mut answer = String::new();
    last.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 "), "{answer}");
}

#[tokio::test]
async fn it_ends_when_it_is_told_to() {
    let (server, stop) = server().await;
    assert!(say(server, b"GET /healthz HTTP/1.0\r\n\r\n").await.contains("200"));
    stop.cancel();
    while TcpStream::connect(server).await.is_ok() {
        tokio::task::yield_now().await;
    }
}
