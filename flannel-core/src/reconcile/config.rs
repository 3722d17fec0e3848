//! Follows the network config: keys that the backend can apply take effect at once, the others are reported.

use futures::StreamExt;

use super::{Driver, Reconciler};
use crate::config::{ConfigError, NetworkConfig};
use crate::error::chain;
use crate::events::NetworkEvent;
use crate::subnet::{ConfigStream, SubnetError};

/// What a backend did with a changed config, by names of keys, such as `Backend.MTU`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct AppliedConfig {
    /// The keys that it applied.
    pub live: Vec<String>,
    /// The keys that need a restart, which it did not apply.
    pub restart: Vec<String>,
}

impl AppliedConfig {
    /// These keys are in force, and these take a restart.
    pub fn new(live: Vec<String>, restart: Vec<String>) -> Self {
        Self { live, restart }
    }
}

/// The config in force, and the state of its changes.
pub(super) struct FollowedConfig {
    /// The config that is in force as a whole.
    in_force: NetworkConfig,
    /// `None` once the stream has ended.
    changes: Option<ConfigStream>,
    problems: ConfigProblems,
}

/// The parts of the store's config that are not in force.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct ConfigProblems {
    /// Which keys need a restart.
    pub(super) restart_needed: Option<String>,
    /// Why the config can't be used at all.
    pub(super) unusable: Option<String>,
}

/// Waits for the next message. Dropping the future loses none.
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
    /// Follows the config from now on.
    pub(crate) fn follow_config(&mut self, in_force: NetworkConfig, changes: ConfigStream) {
        let changes = Some(changes);
        self.config = Some(FollowedConfig { in_force, changes, problems: ConfigProblems::default() });
    }

    /// The parts of the store's config that are not in force.
    pub(super) fn config_problems(&self) -> ConfigProblems {
        self.config.as_ref().map(|followed| followed.problems.clone()).unwrap_or_default()
    }

    pub(super) fn fold_config(&mut self, told: Result<NetworkConfig, SubnetError>) {
        let Some(followed) = &mut self.config else { return };
        let taken = match told {
            Ok(next) => self
                .underlay
                .as_ref()
                .map_or(Ok(()), |underlay| underlay.check_networks(&followed.in_force, &next))
                .and_then(|()| apply(&mut self.driver, &followed.in_force, &next))
                .map(|taken| (next, taken))
                .map_err(|error| error.to_string()),
            Err(error) => Err(chain(&error)),
        };
        let before = std::mem::take(&mut followed.problems);
        let live = match taken {
            Ok((next, AppliedConfig { live, restart })) => {
                followed.problems.restart_needed = restart_needed(&restart);
                if restart.is_empty() {
                    // A start without the store uses this config.
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
            self.events.send(event);
        }
        if !live.is_empty() {
            self.desire_anew();
        }
    }
}

impl FollowedConfig {
    /// The event of a change; `before` has the problems before it.
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

/// Lets the driver apply the keys that it can. Only the keys of the backend concern it.
fn apply(
    driver: &mut impl Driver,
    in_force: &NetworkConfig,
    next: &NetworkConfig,
) -> Result<AppliedConfig, ConfigError> {
    let mut changed = in_force.changed_keys(next);
    let of_backend =
        changed.split_off(changed.iter().position(|key| is_backends(key)).unwrap_or(changed.len()));
    let AppliedConfig { live, restart } = driver.apply_config(&next.backend, of_backend)?;
    changed.extend(restart);
    Ok(AppliedConfig { live, restart: changed })
}

fn is_backends(key: &str) -> bool {
    key.starts_with("Backend.")
}
