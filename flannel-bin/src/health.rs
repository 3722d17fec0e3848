//! The health server: `/healthz` for liveness, `/readyz` for readiness.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::http::StatusCode;
use axum::routing::any;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::status::{Board, Readiness};

/// How long open requests may take when the agent stops.
const FAREWELL: Duration = Duration::from_secs(3);

/// The health server can't start.
#[derive(Debug, thiserror::Error)]
#[error("health server can't listen on {address} (--healthz-ip, --healthz-port)")]
pub(crate) struct HealthError {
    /// Where it was to listen.
    address: String,
    /// Why it can't.
    source: io::Error,
}

/// Takes the address. An empty one stands for all of this host, as in Go.
pub(crate) async fn bind(address: &str, port: u16) -> Result<TcpListener, HealthError> {
    let host = if address.is_empty() { "::" } else { address };
    let error = |source| HealthError { address: format!("{host} port {port}"), source };
    TcpListener::bind((host, port)).await.map_err(error)
}

/// Serves until `stop` fires.
pub(crate) async fn serve(listener: TcpListener, board: Arc<Board>, stop: CancellationToken) {
    let ready = move || {
        let board = Arc::clone(&board);
        async move { readyz(&board.readiness()) }
    };
    let router =
        Router::new().route("/healthz", any(|| async { "flanneld is running" })).route("/readyz", any(ready));
    let server = axum::serve(listener, router).with_graceful_shutdown(stop.clone().cancelled_owned());
    let deadline = async {
        stop.cancelled().await;
        tokio::time::sleep(FAREWELL).await;
    };
    tokio::select! {
        // It handles errors of connections itself and never returns one.
        _ = server.into_future() => {}
        () = deadline => {}
    }
}

/// The most lines behind the first one of an answer: there is no limit to what others write to a store.
const LINES: usize = 50;

/// The answer for a state. Its first line is what upstream says, which probes may look for.
fn readyz(readiness: &Readiness) -> (StatusCode, String) {
    let (status, first, rest) = match readiness {
        Readiness::Ready(notes) => (StatusCode::OK, "flanneld is ready", notes),
        Readiness::NotReady(reasons) => {
            (StatusCode::SERVICE_UNAVAILABLE, "flanneld is not ready yet", reasons)
        }
    };
    let mut body = first.to_owned();
    for line in rest.iter().take(LINES) {
        body = format!("{body}\n{line}");
    }
    if rest.len() > LINES {
        body = format!("{body}\nand {} more", rest.len() - LINES);
    }
    if !rest.is_empty() {
        body.push('\n');
    }
    (status, body)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_begin_as_upstream() {
        assert_eq!(readyz(&Readiness::Ready(Vec::new())), (StatusCode::OK, "flanneld is ready".into()));
        let (_, body) = readyz(&Readiness::Ready(vec!["lease x: garbled".into(); 51]));
        assert!(body.starts_with("flanneld is ready\nlease x: garbled\n") && body.ends_with("and 1 more\n"));
        let (status, body) = readyz(&Readiness::NotReady(vec!["store away".into()]));
        assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(body, "flanneld is not ready yet\nstore away\n");
    }

    #[tokio::test]
    async fn a_taken_port_is_named() {
        let taken = bind("127.0.0.1", 0).await.unwrap();
        let port = taken.local_addr().unwrap().port();
        let error = bind("127.0.0.1", port).await.unwrap_err().to_string();
        assert!(error.contains(&format!("127.0.0.1 port {port}")), "{error}");
    }
}
