//! Leaving a node: removes what agents left on this host.
//!
//! The files say what an agent had (`known`), the kernel what is there (`seen`). From both follows what is ours and is
//! removed (`plan`), together with firewall rules (`rules`) and, if asked for, the own lease (`lease`). First all of it
//! is a plan, each step with the equivalent shell commands; then it is carried out (`act`).

mod act;
mod known;
mod lease;
mod plan;
mod removal;
mod rules;
mod seen;

use std::fmt;
use std::sync::Arc;

use serde::ser::SerializeStruct;
use serde::{Serialize, Serializer};

use super::lock::{self, Alone, LockError};
use super::node::Node;
use super::setup::Setup;
use crate::error::chain;
use crate::kernel::{Kernel, KernelError};
use crate::netns::Netns;
use crate::subnet::SubnetManager;
use known::Known;
pub use removal::Removal;
use removal::{Plan, script};

/// Why this node could not leave the network.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LeaveError {
    /// An agent runs.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// The kernel could not be reached by netlink.
    #[error("can't speak to the kernel; that takes root")]
    Kernel(#[from] KernelError),
    /// Not all could be removed; the rest is gone.
    #[error("not all is removed: {}", .0.join("; "))]
    Incomplete(Vec<String>),
}

/// The steps to take this node out of the network. Until it is dropped, agents with the same subnet file can't start.
pub struct LeavePlan {
    /// What is removed, in this order.
    pub removals: Vec<Removal>,
    /// What stays although it looks like ours, and why.
    pub notes: Vec<String>,
    /// What could not be read, and may have to be removed.
    pub problems: Vec<String>,
    alone: Result<Option<Alone>, LockError>,
    netns: Netns,
    kernel: Box<dyn Kernel>,
    store: Arc<dyn SubnetManager>,
}

impl fmt::Debug for LeavePlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LeavePlan")
            .field("removals", &self.removals)
            .field("notes", &self.notes)
            .field("problems", &self.problems)
            .finish_non_exhaustive()
    }
}

impl Serialize for LeavePlan {
    /// Serializes what is removed, what stays, and what could not be read.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut plan = serializer.serialize_struct("LeavePlan", 4)?;
        plan.serialize_field("refused", &self.refused().map(|error| chain(error)))?;
        plan.serialize_field("removals", &self.removals)?;
        plan.serialize_field("notes", &self.notes)?;
        plan.serialize_field("problems", &self.problems)?;
        plan.end()
    }
}

impl LeavePlan {
    /// A shell script that removes the same, with a comment before what belongs together.
    pub fn script(&self) -> String {
        script(&self.removals)
    }

    /// Why [`Self::carry_out`] would refuse: an agent runs that would put everything back.
    pub fn refused(&self) -> Option<&LockError> {
        self.alone.as_ref().err()
    }

    /// Removes everything, goes on after failures, and returns what could not be removed with the reasons, and
    /// [`Self::problems`]. After a failure the files stay, since they prove to the next run that the rest is ours.
    pub async fn carry_out(mut self) -> Result<Vec<String>, LockError> {
        let _alone = self.alone?;
        let mut failures = self.problems;
        act::carry_out(&self.removals, &self.netns, &mut *self.kernel, &*self.store, &mut failures).await;
        Ok(failures)
    }
}

/// Reads what there is, and plans what to remove. It changes nothing. `node` is what an agent of this process had.
pub(super) async fn plan_for(
    setup: &Arc<Setup>,
    node: Option<&Node>,
    releases: bool,
) -> Result<LeavePlan, KernelError> {
    let alone = setup.subnet_file.as_deref().map(lock::alone).transpose();
    let mut known = Known::read(setup.subnet_file.as_deref(), setup.state_file.as_deref());
    known.add(node);
    let netns = setup.netns()?;
    let mut kernel = setup.place.open_kernel(&netns)?;
    let seen = seen::look(&mut *kernel).await?;

    let mut plan = plan::plan(&known, &seen, &setup.backends.devices());
    let gates = rules::gates(&netns, &known, &seen, &plan).await;
    plan.add(gates);
    plan.add(rules::removals(&netns, &known).await);
    if releases {
        plan.add(lease::removals(&*setup.store, &setup.underlay.public_ips, &known, &seen).await);
    }
    plan.add(known.removals());
    let (store, Plan { removals, notes, problems }) = (Arc::clone(&setup.store), plan);
    Ok(LeavePlan { removals, notes, problems, alone, netns, kernel, store })
}
