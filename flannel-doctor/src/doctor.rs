//! Runs checks.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use flannel_core::backend::Backend;
use flannel_core::error::chain;
use futures::future::join_all;
use serde_json::Value;

use crate::checks::{CHECKS, Check};
use crate::facts::{Facts, StoreToAsk};
use crate::finding::{Finding, Skip};
use crate::host::Host;
use crate::places::Places;
use crate::report::{Examined, Report};

/// How long a check may take: more than a store that does not answer takes.
const DEADLINE: Duration = Duration::from_secs(25);

/// Examines a host. It changes nothing on it, and needs neither a running agent nor a store; what either knows is used
/// if it is given.
#[derive(Clone)]
#[must_use]
pub struct Doctor {
    host: Host,
    places: Places,
    store: Option<StoreToAsk>,
    status: Option<Value>,
    backends: Vec<Arc<dyn Backend>>,
    checks: Vec<&'static Check>,
    deadline: Duration,
}

impl fmt::Debug for Doctor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.checks.iter().map(|check| check.name).collect();
        f.debug_struct("Doctor").field("host", &self.host).field("checks", &names).finish_non_exhaustive()
    }
}

/// No check has this name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("there is no check {0:?}")]
pub struct UnknownCheck(pub String);

impl Doctor {
    /// A doctor for a host, with all checks and the usual places.
    pub fn new(host: Host) -> Self {
        let checks = CHECKS.iter().collect();
        let (places, backends) = (Places::default(), Vec::new());
        Self { host, places, store: None, status: None, backends, checks, deadline: DEADLINE }
    }

    /// Where files are.
    pub fn places(self, places: Places) -> Self {
        Self { places, ..self }
    }

    /// The store to ask.
    pub fn store(self, store: Option<StoreToAsk>) -> Self {
        Self { store, ..self }
    }

    /// The status of the running agent as JSON: `ready` (a boolean), and `reasons` and `notes`, lists of texts or of
    /// objects with a `text`. All of it goes into a bundle.
    pub fn agent_status(self, status: Option<Value>) -> Self {
        Self { status, ..self }
    }

    /// The backends that the agent of this host has (`AgentBuilder::backends`): they check the network config as the agent
    /// would, and say which devices are theirs. Without any, the doctor knows the devices of vxlan and udp.
    pub fn backends(self, backends: impl IntoIterator<Item = Arc<dyn Backend>>) -> Self {
        Self { backends: backends.into_iter().collect(), ..self }
    }

    /// Does only the checks with these names; all for none.
    pub fn only<'a>(self, names: impl IntoIterator<Item = &'a str>) -> Result<Self, UnknownCheck> {
        let mut checks: Vec<&'static Check> = Vec::new();
        for name in names {
            let check = Check::named(name).ok_or_else(|| UnknownCheck(name.to_owned()))?;
            if !checks.iter().any(|known| known.name == check.name) {
                checks.push(check);
            }
        }
        let checks = if checks.is_empty() { self.checks } else { checks };
        Ok(Self { checks, ..self })
    }

    /// How long a check may take; one that takes longer is reported as skipped.
    pub fn deadline(self, deadline: Duration) -> Self {
        Self { deadline, ..self }
    }

    /// Does the checks, all at once. Dropping the future stops them.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime with I/O and time.
    pub async fn examine(&self) -> Report {
        self.examine_with_facts().await.0
    }

    /// The same, with what was read for it; the error says why nothing could be read.
    pub(crate) async fn examine_with_facts(&self) -> (Report, Result<Facts, Skip>) {
        let (host, places) = (self.host.clone(), self.places.clone());
        let (store, status, backends) = (self.store.clone(), self.status.clone(), self.backends.clone());
        let facts = Facts::read(host, places, store, status, backends).await;
        let done = match &facts {
            Ok(facts) => join_all(self.checks.iter().map(|check| self.one(check, facts))).await,
            Err(Skip(why)) => {
                let skipped = |check: &&'static Check| Examined {
                    check: check.name,
                    finding: Finding::skipped(why.clone()),
                    took: Duration::ZERO,
                };
                self.checks.iter().map(skipped).collect()
            }
        };
        (Report::new(done), facts)
    }

    async fn one(&self, check: &Check, facts: &Facts) -> Examined {
        let start = Instant::now();
        let finding = match tokio::time::timeout(self.deadline, check.run(facts)).await {
            Ok(Ok(finding)) => finding,
            Ok(Err(Skip(why))) => Finding::skipped(why),
            Err(late) => Finding::skipped(format!("not done within {:?}: {}", self.deadline, chain(&late))),
        };
        Examined { check: check.name, finding, took: start.elapsed() }
    }
}
