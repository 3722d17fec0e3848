//! Follows the network config: a watch of its key tells that it may have changed, then it is read.

use std::sync::Arc;

use async_trait::async_trait;
use flannel_core::config::NetworkConfig;
use flannel_core::subnet::SubnetError;
use flannel_core::subnet::kit::{Backoff, ConfigSource};

use super::Store;
use super::watch::Feed;

/// The config in etcd.
pub(super) struct ConfigKey {
    store: Arc<Store>,
    feed: Option<Feed>,
    backoff: Backoff,
}

impl ConfigKey {
    pub(super) fn new(store: Arc<Store>) -> Self {
        Self { store, feed: None, backoff: Backoff::new() }
    }
}

#[async_trait]
impl ConfigSource for ConfigKey {
    /// The watch begins before the read, so a change between both is told.
    async fn read(&mut self) -> Result<NetworkConfig, SubnetError> {
        if self.feed.is_none() {
            self.feed = Feed::open(&self.store, &self.store.keys.config, None, 0).await.ok();
        }
        self.store.config().await
    }

    async fn changed(&mut self) {
        let Some(feed) = &mut self.feed else { return tokio::time::sleep(self.backoff.pause()).await };
        loop {
            match feed.next(&self.store).await {
                Ok(response) if response.events().is_empty() => self.backoff.reset(),
                Ok(_) => return self.backoff.reset(),
                // What was missed meanwhile is read, whatever the reason was.
                Err(_) => {
                    self.feed = None;
                    return tokio::time::sleep(self.backoff.pause()).await;
                }
            }
        }
    }
}
