//! Follows the network config: what the backend can take is in force at once, the rest is named.

use futures::StreamExt;

use super::{Driver, Reconciler};
use crate::config::{ConfigError, NetworkConfig};
use crate::error::chain;
use crate::events::NetworkEvent;
use crate::subnet::{ConfigStream, SubnetError};

/// What a backend made of another config, by the names of keys, such as `Backend.MTU`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct AppliedConfig {
    /// What it has now and had not before.
    pub live: Vec<String>,
    /// What it can't take without a restart, and so does not have.
    pub restart: Vec<String>,
}

impl AppliedConfig {
    /// These keys are in force, and these take a restart.
    pub fn new(live: Vec<String>, restart: Vec<String>) -> Self {
        Self { live, restart }
    }
}

/// The config and what is known of it.
pub(super) struct FollowedConfig {
    /// The one that is in force as a whole.
    in_force: NetworkConfig,
    /// `None` once it ended.
    changes: Option<ConfigStream>,
    problems: ConfigProblems,
}

/// What of the store's config is not in force.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct ConfigProblems {
    /// Which keys take a restart.
    pub(super) restart_needed: Option<String>,
    /// Why it can't be used at all.
    pub(super) unusable: Option<String>,
}

/// The next message. Dropping the future loses none.
pub(super) async fn next(config: &mut Option<FollowedConfig>) -> Result<NetworkConfig, SubnetError> {
    if let Some(FollowedConfig { changes, .. }) = config {
        if let Some(told) = match changes {
            Some(stream) => stream.next().await,
            None => None,
        } {
            return told;
        }
        *changes = None;
    }
    std::future::pending().await
}

impl<D: Driver> Reconciler<D> {
    /// From now on the config is followed.
    pub(crate) fn follow_config(&mut self, in_force: NetworkConfig, changes: ConfigStream) {
        let changes = Some(changes);
        self.config = Some(FollowedConfig { in_force, changes, problems: ConfigProblems::default() });
    }

    /// What of the store's config is not in force.
    pub(super) fn config_problems(&self) -> ConfigProblems {
        self.config.as_ref().map(|followed| followed.problems.clone()).unwrap_or_default()
    }

    pub(super) fn take_config(&mut self, told: Result<NetworkConfig, SubnetError>) {
        let Some(followed) = &mut self.config else { return };
        let taken = match told {
            Ok(next) => self
                .underlay
                .as_ref()
                .map_or(Ok(()), |underlay| underlay.take_networks(&followed.in_force, &next))
                .and_then(|()| take(&mut self.driver, &followed.in_force, &next))
                .map(|taken| (next, taken))
                .map_err(|error| error.to_string()),
            Err(error) => Err(chain(&error)),
        };
        let before = std::mem::take(&mut followed.problems);
        let live = match taken {
            Ok((next, AppliedConfig { live, restart })) => {
                followed.problems.restart_needed = restart_needed(&restart);
                if restart.is_empty() {
                    // Without the store, the next start is by this one.
                    if self.record.config() != Some(&next) {
                        self.record.edit(|state| state.config = Some(next.clone()));
                    }
                    followed.in_force = next;
                }
                live
            }
            Err(why) => {
                followed.problems.unusable = Some(format!(
                    "{why}; the running config stays in force, but flanneld could not be started with this one"
                ));
                Vec::new()
            }
        };
        if let Some(event) = followed.news(&live, &before) {
            self.tell(event);
        }
        if !live.is_empty() {
            self.desire_anew();
        }
    }
}

impl FollowedConfig {
    /// What to tell of a change; `before` is what was wrong before it.
    fn news(&self, live: &[String], before: &ConfigProblems) -> Option<NetworkEvent> {
        let is_news = !live.is_empty() || self.problems != *before;
        let live = live.to_vec();
        is_news.then(|| match (&self.problems.unusable, &self.problems.restart_needed) {
            (Some(reason), _) => NetworkEvent::ConfigUnusable { reason: reason.clone() },
            (_, Some(reason)) => NetworkEvent::RestartNeeded { live, reason: reason.clone() },
            (None, None) => NetworkEvent::ConfigApplied { live },
        })
    }
}

fn restart_needed(keys: &[String]) -> Option<String> {
    let keys = Some(keys.join(", ")).filter(|keys| !keys.is_empty())?;
    Some(format!(
        "network config: {keys} changed, which takes a restart; the running config stays in force until flanneld \
         is restarted"
    ))
}

/// Lets the driver take what it can. The keys around the backend's are none of its business.
fn take(
    driver: &mut impl Driver,
    in_force: &NetworkConfig,
    next: &NetworkConfig,
) -> Result<AppliedConfig, ConfigError> {
    let mut changed = in_force.changed_keys(next);
    if in_force.backend.kind != next.backend.kind {
        return Ok(AppliedConfig { live: Vec::new(), restart: changed });
    }
    let of_backend =
        changed.split_off(changed.iter().position(|key| is_backends(key)).unwrap_or(changed.len()));
    let AppliedConfig { live, restart } = driver.take_config(&next.backend, of_backend)?;
    changed.extend(restart);
    Ok(AppliedConfig { live, restart: changed })
}

fn is_backends(key: &str) -> bool {
    key.starts_with("Backend.")
}
