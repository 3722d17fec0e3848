//! The control socket of the agent, for `flanneld status`, `flanneld events` and `flanneld log-level`.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use flannel_control::log::{self, LogLevels};
use flannel_control::{ControlServer, socket_of};
use flannel_core::agent::Agent;
use flannel_core::error::chain;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

/// The pause between attempts to make the socket.
const RETRY: Duration = Duration::from_secs(10);

/// Serves the socket beside the subnet file until `stop` fires. An agent whose socket can't be made runs all the same.
pub(crate) fn serve(
    subnet_file: &Path,
    agent: Arc<Agent>,
    levels: LogLevels,
    stop: CancellationToken,
) -> impl Future<Output = ()> + use<> {
    let path = socket_of(subnet_file);
    async move {
        let mut told = None;
        loop {
            match ControlServer::bind(&path) {
                Ok(server) => {
                    let server = server.request(log::REQUEST, move |fields| levels.answer(&fields));
                    if told.is_some() {
                        info!(path = %path.display(), "control socket is served");
                    }
                    return server.serve(&agent, stop).await;
                }
                Err(error) => {
                    let why = Some(chain(&error));
                    if told != why {
                        warn!(error = why, "flanneld status can't ask this agent; trying again");
                        told = why;
                    }
                }
            }
            if stop.run_until_cancelled(tokio::time::sleep(RETRY)).await.is_none() {
                return;
            }
        }
    }
}
