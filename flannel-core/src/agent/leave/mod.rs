//! Leaving a node: removes what agents left on this host.
//!
//! Files say what an agent had (`known`), the kernel what is there (`seen`). From both follows what is ours and goes
//! (`plan`), besides firewall rules (`rules`) and, if it was asked for, the own lease (`lease`). All is a plan first, each
//! step with the shell commands that do the same, and then done (`act`).

mod act;
mod known;
mod lease;
mod plan;
mod removal;
mod rules;
mod seen;

use std::fmt;
use std::sync::Arc;

use super::lock::{self, Alone, LockError};
use super::node::Node;
use super::setup::Setup;
use crate::kernel::{Kernel, KernelError};
use crate::netns::Netns;
use crate::subnet::SubnetManager;
use known::Known;
use removal::Plan;
pub use removal::Removal;

/// This node could not be left.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LeaveError {
    /// An agent runs.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// The kernel can't be spoken to.
    #[error("can't speak to the kernel; that takes root")]
    Kernel(#[from] KernelError),
    /// Not all could be removed; the rest is gone.
    #[error("not all is removed: {}", .0.join("; "))]
    Incomplete(Vec<String>),
}

/// What leaving this node takes. It holds off agents with the same subnet file until it is dropped.
pub struct LeavePlan {
    /// What goes, in this order.
    pub removals: Vec<Removal>,
    /// What stays although it looks like ours, and why.
    pub notes: Vec<String>,
    /// What could not be looked at, and may have to go.
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

impl LeavePlan {
    /// Why [`Self::carry_out`] would refuse: an agent runs that would put everything back.
    pub fn refused(&self) -> Option<&LockError> {
        self.alone.as_ref().err()
    }

    /// Removes everything, goes on past what fails, and returns what could not be removed, with the reasons and with
    /// [`Self::problems`]. Files stay once something failed: they prove to the next run that the rest is ours.
    pub async fn carry_out(mut self) -> Result<Vec<String>, LockError> {
        let _alone = self.alone?;
        let mut failures = self.problems;
        act::carry_out(&self.removals, &self.netns, &mut *self.kernel, &*self.store, &mut failures).await;
        Ok(failures)
    }
}

/// Looks what there is, and says what goes. Touches nothing. `node` is what an agent of this process had.
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
