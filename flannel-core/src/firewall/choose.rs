//! Chooses the manager that keeps the rules.

use std::time::Duration;

use super::error::FirewallError;
use super::iptables::{Iptables, may_have_rules};
use super::manager::RuleManager;
use super::nft::{self, Nftables};
use super::obstacles::Surroundings;
use crate::addr::Family;
use crate::netns::Netns;
use crate::resync;

/// Which manager the operator wants.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum ManagerChoice {
    /// nftables.
    Nftables,
    /// iptables.
    Iptables,
    /// iptables if it is installed, since others on this host may use it, else nftables.
    #[default]
    Either,
}

/// The manager that keeps the rules, and those that may still have rules of an earlier run.
pub struct Managers {
    /// The manager that keeps the rules; `None` if there are none to keep.
    pub(super) active: Option<Box<dyn RuleManager>>,
    /// Managers without rules to keep.
    pub(super) unused: Vec<Unused>,
    choice: String,
    /// What an operator should know if rules can't be kept.
    pub(super) missed: Option<String>,
    /// What other firewalls do with forwarded packets; `None` if that is not watched.
    pub(super) surroundings: Option<Surroundings>,
}

/// A manager without rules to keep. It is opened only when it is needed.
pub(super) enum Unused {
    /// nftables in a namespace.
    Nftables(Netns),
    /// iptables in a namespace, if it is installed.
    Iptables(Netns),
    /// A manager that is open.
    Open(Box<dyn RuleManager>),
}

impl Unused {
    /// Opens the manager; `None` if it has no rules, or if it is not installed, so that its rules can't be removed.
    pub(super) async fn open(&mut self) -> Result<Option<&mut (dyn RuleManager + 'static)>, FirewallError> {
        let opened = match self {
            Self::Nftables(netns) => Ok(Box::new(Nftables::open(netns)) as Box<dyn RuleManager>),
            Self::Iptables(netns) if !may_have_rules(netns).await => return Ok(None),
            Self::Iptables(netns) => boxed(Iptables::open(netns, &[], resync::PERIOD).await),
            Self::Open(manager) => return Ok(Some(manager.as_mut())),
        };
        match opened {
            Ok(manager) => {
                *self = Self::Open(manager);
                let Self::Open(manager) = self else { unreachable!("it was just opened") };
                Ok(Some(manager.as_mut()))
            }
            Err(FirewallError::Missing { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

impl std::fmt::Debug for Managers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Managers").field("choice", &self.choice).finish_non_exhaustive()
    }
}

impl Managers {
    /// Finds the managers that this host has for the rules of a network namespace. Changes nothing.
    ///
    /// `families` are those for which rules will be kept. Without any, nothing has to be installed.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime with I/O and time.
    pub async fn open(
        netns: &Netns,
        choice: ManagerChoice,
        families: &[Family],
        resync: Duration,
    ) -> Result<Self, FirewallError> {
        let managers = if families.is_empty() {
            let unused = vec![Unused::Nftables(netns.clone()), Unused::Iptables(netns.clone())];
            Self { unused, ..Self::new(None, Vec::new(), "") }
        } else {
            Self::choose(netns, choice, families, resync).await?
        };
        Ok(managers.watching(netns, resync))
    }

    /// Also watches the chains of other firewalls in a network namespace, and reports what they surely drop. Legacy
    /// tables, for which the kernel sends no notifications, are read every `resync`.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime with I/O and time.
    #[must_use]
    pub fn watching(self, netns: &Netns, resync: Duration) -> Self {
        Self { surroundings: Some(Surroundings::open(netns, resync)), ..self }
    }

    async fn choose(
        netns: &Netns,
        choice: ManagerChoice,
        families: &[Family],
        resync: Duration,
    ) -> Result<Self, FirewallError> {
        let by_iptables = |iptables: Iptables, why: &str| {
            let choice = format!("{}; {why}", iptables.choice());
            let unused = vec![Unused::Nftables(netns.clone())];
            Self { unused, ..Self::new(Some(Box::new(iptables)), Vec::new(), choice) }
        };
        let by_nftables = |nftables: Nftables, why: &str| {
            let choice = format!("nftables; {why}");
            let unused = vec![Unused::Iptables(netns.clone())];
            Self { unused, ..Self::new(Some(Box::new(nftables)), Vec::new(), choice) }
        };
        match choice {
            ManagerChoice::Nftables => Ok(by_nftables(Nftables::open(netns), "EnableNFTables is true")),
            ManagerChoice::Iptables => {
                Ok(by_iptables(Iptables::open(netns, families, resync).await?, "EnableNFTables is false"))
            }
            ManagerChoice::Either => match Iptables::open(netns, families, resync).await {
                Ok(iptables) => Ok(by_iptables(iptables, "EnableNFTables is not in the network config")),
                Err(FirewallError::Missing { .. }) => match nft::tables(netns).await {
                    Err(FirewallError::NoNfTables(_)) => Err(FirewallError::Neither),
                    _ => Ok(by_nftables(Nftables::open(netns), "iptables is not installed")),
                },
                Err(error) => Err(error),
            },
        }
    }

    /// Managers that the caller made.
    pub fn new(
        active: Option<Box<dyn RuleManager>>,
        unused: Vec<Box<dyn RuleManager>>,
        choice: impl Into<String>,
    ) -> Self {
        let unused = unused.into_iter().map(Unused::Open).collect();
        Self { active, unused, choice: choice.into(), missed: None, surroundings: None }
    }

    /// No manager, on a host that can't have rules; `missed` is what an operator should know about that.
    pub fn none(missed: impl Into<String>) -> Self {
        Self { missed: Some(missed.into()), ..Self::new(None, Vec::new(), "") }
    }

    /// Whether one of them keeps rules.
    pub fn keeps_any(&self) -> bool {
        self.active.is_some()
    }

    /// The chosen manager by its [`RuleManager::kind`]; `None` if there are no rules to keep.
    pub fn kind(&self) -> Option<&'static str> {
        self.active.as_ref().map(|active| active.kind())
    }

    /// The chosen manager and the reason, for the log; empty if there are no rules to keep.
    pub fn choice(&self) -> &str {
        &self.choice
    }
}

fn boxed<M: RuleManager + 'static>(
    manager: Result<M, FirewallError>,
) -> Result<Box<dyn RuleManager>, FirewallError> {
    manager.map(|manager| Box::new(manager) as Box<dyn RuleManager>)
}
