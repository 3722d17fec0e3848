//! What happened to the firewall rules, as values, and the log lines of it.

use std::time::Duration;

use serde::Serialize;
use tracing::{debug, info, warn};

use super::obstacles::{Obstacle, Realm};
use crate::events::{Event, EventReader, EventSender, RepairCause};
use crate::times::microseconds;

/// Reads the events of the firewall rules.
pub type FirewallEvents = EventReader<FirewallEvent>;

/// Sends the events of the firewall rules.
pub type FirewallEventSender = EventSender<FirewallEvent>;

/// Something that happened to the firewall rules of an agent, or to those of others that concern pods.
///
/// It is serialized with its name in `event` (`{"event":"rules-repaired","changes":2,..}`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
#[non_exhaustive]
pub enum FirewallEvent {
    /// The reader was too slow and missed this many events.
    LeftOut {
        /// How many.
        events: u64,
    },
    /// The rules are in place for the first time.
    RulesInPlace {
        /// How many commands that took; 0 if an earlier run had left all of them.
        changes: usize,
    },
    /// Somebody removed or changed rules, and they were put back.
    RulesRepaired {
        /// How many commands that took.
        changes: usize,
        /// How the difference was found.
        cause: RepairCause,
        /// The time from the moment when the agent learned of it to the end of the last change.
        #[serde(rename = "took_us", serialize_with = "microseconds")]
        took: Duration,
    },
    /// The rules may be missing or wrong.
    RulesNotReady {
        /// Why.
        reason: String,
    },
    /// The rules are right again.
    RulesReady,
    /// Rules of others in chains of ours, or what is not installed, limit what the rules do.
    RulesLimited {
        /// What it is.
        reason: String,
    },
    /// The rules are kept in the other variant of iptables from now on.
    RulesMoved {
        /// The manager with its variant, as in [`FirewallStatus::manager`](super::FirewallStatus::manager).
        manager: &'static str,
        /// The same with the reason, for people.
        choice: String,
    },
    /// Rules that an earlier run had made with another manager were removed.
    LeftoverRulesRemoved {
        /// That manager.
        manager: &'static str,
    },
    /// Rules that an earlier run may have made with another manager can't be read. They are tried again.
    LeftoverRulesUnclear {
        /// Why.
        reason: String,
    },
    /// Rules of an earlier run may be left, since nothing proves that they are ours.
    LeftoverRulesStay {
        /// Which.
        reason: String,
    },
    /// A chain of others surely drops packets of pods. As JSON its fields are those of the [`Obstacle`].
    ChainDropsPods(Box<Obstacle>),
    /// A chain drops packets of pods no more, or in another way, of which another event tells.
    ChainDropsNoMore {
        /// Which rule system has its table.
        realm: Realm,
        /// The table's family: `ip`, `ip6` or `inet`.
        family: String,
        /// The table.
        table: String,
        /// The base chain.
        chain: String,
    },
}

impl Event for FirewallEvent {
    fn left_out(events: u64) -> Self {
        Self::LeftOut { events }
    }

    fn log(&self) {
        match self {
            Self::RulesInPlace { changes } => debug!(changes, "firewall rules are in place"),
            Self::RulesRepaired { changes, cause, took } => {
                warn!(changes, %cause, took_us = took.as_micros(), "firewall rules repaired");
            }
            Self::RulesNotReady { reason } => warn!(problem = reason, "firewall rules not as they should be"),
            Self::RulesReady => info!("firewall rules are as they should be again"),
            Self::RulesLimited { reason } => {
                warn!(note = reason, "rules of others limit the firewall rules");
            }
            Self::RulesMoved { manager: _, choice } => {
                info!(manager = choice, "firewall rules moved to the other variant");
            }
            Self::LeftoverRulesRemoved { manager } => {
                info!(manager, "firewall rules of an earlier run removed");
            }
            Self::LeftoverRulesUnclear { reason } => {
                warn!(note = reason, "leftover firewall rules can't be read");
            }
            Self::LeftoverRulesStay { reason } => {
                warn!(note = reason, "firewall rules of an earlier run may be left");
            }
            Self::ChainDropsPods(obstacle) => warn!(%obstacle, "a chain drops forwarded traffic"),
            Self::ChainDropsNoMore { realm: _, family, table, chain } => {
                info!(family, table, chain, "a chain drops forwarded traffic no more, or in another way");
            }
            // For readers who were too slow.
            Self::LeftOut { .. } => {}
        }
    }
}
