//! Follows the network config of a store.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use async_trait::async_trait;
use futures::StreamExt;
use futures::stream;
use tokio::time::sleep;
use tracing::debug;

use super::FileWatch;
use crate::config::{ConfigError, NetworkConfig};
use crate::error::chain;
use crate::subnet::{ConfigStream, SubnetError};

/// How often the file is read without a notification, for changes that inotify misses.
const RESCAN: Duration = Duration::from_secs(60);
/// How long to wait after the folder was removed before it is watched again.
const SETTLE: Duration = Duration::from_millis(100);

/// Where a network config can be read, and what tells that it may have changed.
#[async_trait]
pub trait ConfigSource: Send {
    /// Reads it. From before that on, [`Self::changed`] must miss nothing.
    async fn read(&mut self) -> Result<NetworkConfig, SubnetError>;

    /// Waits until it may have changed, or could not be followed for a while.
    async fn changed(&mut self);
}

/// Yields the config whenever it differs from the last one that was returned, or the reason when it becomes unusable. The
/// first is one that differs from `used`. While the store does not answer, nothing is yielded. The stream never ends.
pub fn follow_config(source: impl ConfigSource + 'static, used: Option<NetworkConfig>) -> ConfigStream {
    let last = used.map(|config| Seen::Config(Box::new(config)));
    stream::unfold((source, last), |(mut source, mut last)| async move {
        loop {
            let read = source.read().await;
            let now = match &read {
                Ok(config) => Some(Seen::Config(Box::new(config.clone()))),
                Err(error) if error.is_transient() => None,
                Err(error) => Some(Seen::Problem(chain(error))),
            };
            if now.is_some() && now != last {
                last = now;
                return Some((read, (source, last)));
            }
            source.changed().await;
        }
    })
    .boxed()
}

/// What was yielded last.
#[derive(PartialEq)]
enum Seen {
    Config(Box<NetworkConfig>),
    Problem(String),
}

/// A config in a file, followed by inotify, and by reading it once a minute where that misses changes.
pub struct ConfigFile<Read> {
    path: PathBuf,
    read: Read,
    is_absence_news: bool,
    watch: Option<FileWatch>,
}

impl<Read: Fn() -> Result<NetworkConfig, SubnetError> + Send> ConfigFile<Read> {
    /// The file at this path, which this function reads.
    pub fn new(path: impl Into<PathBuf>, read: Read) -> Self {
        Self { path: path.into(), read, is_absence_news: true, watch: None }
    }

    /// The same where a missing file is a folder that is not mounted, which says nothing of the config.
    #[must_use]
    pub fn may_be_away(self) -> Self {
        Self { is_absence_news: false, ..self }
    }
}

#[async_trait]
impl<Read: Fn() -> Result<NetworkConfig, SubnetError> + Send> ConfigSource for ConfigFile<Read> {
    async fn read(&mut self) -> Result<NetworkConfig, SubnetError> {
        if self.watch.is_none() {
            match FileWatch::open(&self.path) {
                Ok(watch) => self.watch = Some(watch),
                Err(error) => {
                    debug!(path = %self.path.display(), %error, "no inotify watch; changes are found by the rescan");
                }
            }
        }
        (self.read)().map_err(|error| match error {
            SubnetError::NoConfig { place } if !self.is_absence_news => SubnetError::Unavailable {
                what: format!("read {place}"),
                source: io::Error::from(io::ErrorKind::NotFound).into(),
            },
            // Somebody wrote what can't be read, or took the right to read it.
            SubnetError::Unavailable { what, source } => SubnetError::Config {
                place: self.path.display().to_string(),
                source: ConfigError::new("JSON", None, format!("can't {what}: {source}")),
            },
            error => error,
        })
    }

    async fn changed(&mut self) {
        let Some(watch) = &self.watch else { return sleep(RESCAN).await };
        let Ok(is_whole) = tokio::time::timeout(RESCAN, watch.changed()).await else { return };
        if !is_whole {
            self.watch = None;
            // A pause, in case there is nothing to watch.
            sleep(SETTLE).await;
        }
    }
}
