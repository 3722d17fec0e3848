//! The network config in a file, as a `ConfigMap` is mounted. It is read at the start, and followed.

use std::io;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use flannel_core::config::{LeaseSource, NetworkConfig};
use flannel_core::guarded;
use flannel_core::subnet::SubnetError;
use flannel_core::subnet::kit::FileWatch;
use futures::StreamExt;
use futures::stream::{self, BoxStream};
use tokio::time::sleep;
use tracing::debug;

use super::Store;

/// How often the file is read without a notification, for changes that inotify misses.
const RESCAN: Duration = Duration::from_secs(60);
/// How long to wait after the folder was removed before it is watched again.
const SETTLE: Duration = Duration::from_millis(100);

impl Store {
    /// Reads the file.
    pub(super) fn config(&self) -> Result<NetworkConfig, SubnetError> {
        let path = &self.options.net_config;
        let place = || path.display().to_string();
        // Links are followed, since a `ConfigMap` is mounted with them.
        let text = match guarded::read_linked(path, NetworkConfig::MAX_BYTES as u64).and_then(guarded::text) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(SubnetError::NoConfig { place: place() });
            }
            read => read.map_err(|error| SubnetError::Unavailable {
                what: format!("read {}", path.display()),
                source: error.into(),
            })?,
        };
        NetworkConfig::parse(&text, LeaseSource::Assigned)
            .map_err(|source| SubnetError::Config { place: place(), source })
    }
}

/// Yields the config whenever it differs from the last one that was returned, or the reason when it becomes unusable.
/// Never ends.
pub(super) fn changes(store: Arc<Store>) -> BoxStream<'static, Result<NetworkConfig, SubnetError>> {
    let used = store.used_config.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let last = used.map_or_else(|| Seen::of(&store.config()), |config| Seen::Config(Box::new(config)));
    let follower = Follower { store, last, watch: None };
    stream::unfold(follower, |mut follower| async move {
        let news = follower.next().await;
        Some((news, follower))
    })
    .boxed()
}

/// What was yielded last.
#[derive(PartialEq)]
enum Seen {
    Config(Box<NetworkConfig>),
    Problem(String),
}

impl Seen {
    fn of(read: &Result<NetworkConfig, SubnetError>) -> Self {
        match read {
            Ok(config) => Self::Config(Box::new(config.clone())),
            Err(error) => Self::Problem(flannel_core::error::chain(error)),
        }
    }
}

struct Follower {
    store: Arc<Store>,
    last: Seen,
    watch: Option<FileWatch>,
}

impl Follower {
    async fn next(&mut self) -> Result<NetworkConfig, SubnetError> {
        loop {
            if self.watch.is_none() {
                let path = &self.store.options.net_config;
                match FileWatch::open(path) {
                    Ok(watch) => self.watch = Some(watch),
                    Err(error) => {
                        debug!(path = %path.display(), %error, "no inotify watch; changes are found by the rescan");
                    }
                }
            }
            let read = self.store.config();
            let now = Seen::of(&read);
            if now != self.last {
                self.last = now;
                return read;
            }
            self.wait().await;
        }
    }

    /// Waits until the file may have changed.
    async fn wait(&mut self) {
        let Some(watch) = &self.watch else { return sleep(RESCAN).await };
        let Ok(is_whole) = tokio::time::timeout(RESCAN, watch.changed()).await else { return };
        if !is_whole {
            self.watch = None;
            // A pause, in case there is nothing to watch.
            sleep(SETTLE).await;
        }
    }
}
