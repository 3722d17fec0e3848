//! Decides whether the chosen variant is still the one that this host uses. Pure.
//!
//! The agent may start before the programs whose rules show which variant is right: the kubelet, Docker.

use std::time::Duration;

use tokio::time::Instant;

use super::variant::{Kind, Usage};

/// How long the other variant must have had more rules. A firewall that restarts has none for a moment.
const STEADY: Duration = Duration::from_secs(30);
/// How long a choice by the number of rules lasts at least, so that it does not oscillate.
const REST: Duration = Duration::from_secs(600);

/// A choice that can be made again.
#[derive(Debug)]
pub(super) struct Evidence {
    pub(super) kind: Kind,
    /// Since when the other variant has had more rules.
    since: Option<Instant>,
    /// When the number of rules may decide again.
    rests_until: Option<Instant>,
}

impl Evidence {
    pub(super) fn new(kind: Kind) -> Self {
        Self { kind, since: None, rests_until: None }
    }

    /// Whether time alone may change the choice.
    pub(super) fn is_pending(&self) -> bool {
        self.since.is_some()
    }

    /// Chooses again, and returns the reason if it is the other variant. A variant that can't be read now is `None`.
    pub(super) fn reconsider(
        &mut self,
        now: Instant,
        this: Option<Usage>,
        other: Option<Usage>,
    ) -> Option<String> {
        let (this, other) = this.zip(other)?;
        let why = if this.has_kubelet_chains || other.has_kubelet_chains {
            self.since = None;
            (!this.has_kubelet_chains).then(|| "the kubelet uses it now".to_owned())
        } else if other.rules > this.rules {
            let since = *self.since.get_or_insert(now);
            let rests = self.rests_until.is_some_and(|until| now < until);
            let is_steady = now.saturating_duration_since(since) >= STEADY;
            let why = || {
                format!("{} rules of others are there now, {} in the other variant", other.rules, this.rules)
            };
            (is_steady && !rests).then(why)
        } else {
            self.since = None;
            None
        }?;
        *self = Self { kind: self.kind.other(), since: None, rests_until: Some(now + REST) };
        Some(why)
    }
}
