//! What comes before the first request to the store: reading what earlier runs left, and who this node is.

use std::fs::File;
use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use super::Life;
use crate::agent::error::Failure;
use crate::agent::event::AgentEvent;
use crate::agent::firewall::ranges;
use crate::agent::setup::Setup;
use crate::agent::status::{Board, Phase};
use crate::agent::{lock, memory};
use crate::atomic_file;
use crate::error::chain;
use crate::kernel::Kernel;
use crate::netns::Netns;
use crate::remembering::Remembering;
use crate::state_file::StoredOn;
use crate::subnet_file;

/// Runs an agent to its end.
pub(in crate::agent) async fn live(
    setup: Arc<Setup>,
    netns: Netns,
    mut kernel: Box<dyn Kernel>,
    board: Arc<Board>,
    shutdown: CancellationToken,
) -> Result<(), Failure> {
    let begun = shutdown.run_until_cancelled(setup.begin(netns, &mut *kernel, &board, &shutdown)).await;
    let Some(begun) = begun else {
        board.enter(Phase::Stopping);
        return Ok(());
    };
    let (life, _running) = begun?;
    // The future is large.
    Box::pin(life.run(kernel)).await
}

impl Setup {
    /// Reads what earlier runs left, and tells the store who this node is.
    async fn begin(
        &self,
        netns: Netns,
        kernel: &mut dyn Kernel,
        board: &Arc<Board>,
        shutdown: &CancellationToken,
    ) -> Result<(Life, Option<File>), Failure> {
        let journal = &board.journal;
        let running = match &self.subnet_file {
            Some(path) => lock::hold(path, journal).await,
            None => None,
        };
        for path in [&self.subnet_file, &self.state_file].into_iter().flatten() {
            if let Err(error) = atomic_file::remove_abandoned_drafts(path) {
                journal.emit(AgentEvent::DraftsStay { path: path.clone(), reason: chain(&error) });
            }
        }
        let previous = self.subnet_file.as_deref().map(subnet_file::read_previous).unwrap_or_default();
        for problem in &previous.problems {
            journal.emit(AgentEvent::OldSubnetFile { problem: problem.clone() });
        }
        let mut state = self.state_file.as_deref().and_then(|path| memory::recall(path, journal));
        let host = memory::read_host(kernel, state.as_ref(), &previous).await?;
        let stored_on = memory::check_host(state.as_ref(), &host, journal);
        let place = self.store.place();
        // Without a file there is nothing to report about it.
        let stand_in =
            self.state_file.is_some().then(|| memory::stand_in(state.as_ref(), &place, stored_on, journal));
        self.store.identify(memory::identity(&previous, state.as_ref(), &place, stored_on, &host));
        let store = Remembering::new(Arc::clone(&self.store), stand_in.flatten());
        let store = Arc::new(store.telling(board.sender()));
        if let Some(state) = state.as_mut().filter(|_| stored_on == StoredOn::AnotherHost) {
            // The lease belongs to another machine, which may be alive.
            (state.own, state.former_ips) = (None, Vec::new());
        }
        if let Some(state) =
            state.as_mut().filter(|_| stored_on == StoredOn::AnotherHost || !self.probes.is_on())
        {
            // Only probes take back what probes have proven, and only of this host.
            state.proven.clear();
        }
        let subnets = previous.key.map(|key| key.subnets()).unwrap_or_default();
        let life = Life {
            netns,
            underlay: self.underlay.clone(),
            subnet_file: self.subnet_file.clone(),
            state_file: self.state_file.clone(),
            previous: state,
            blackholes: self.blackholes,
            firewall: self.firewall,
            probes: self.probes,
            written_for: ranges(previous.networks, subnets),
            place: self.place.clone(),
            store,
            backends: self.backends.clone(),
            board: Arc::clone(board),
            shutdown: shutdown.clone(),
        };
        Ok((life, running))
    }
}
