//! `flanneld cleanup`: removes what agents left on this host.
//!
//! Files say what an agent had ([`known`]), the kernel what is there ([`seen`]). From both follows what is ours
//! and goes ([`plan`]), besides firewall rules ([`rules`]) and, if it was asked for, the own lease ([`lease`]).
//! All is told as commands first, and then done ([`act`]).

mod act;
mod known;
mod lease;
mod plan;
mod rules;
mod seen;

use std::io::{self, Write};
use std::process::ExitCode;

use flannel_core::kernel::KernelError;
use flannel_core::netlink::Netlink;
use flannel_core::netns::Netns;
use flannel_core::subnet::Identity;
use tracing::{error, info, warn};

use crate::cli::CleanupOptions;
use crate::lock::{self, LockError};
use crate::logs;
use crate::report::chain;
use crate::store::{self, StoreError};
use known::Known;
use plan::Removal;

/// Nothing could be done at all.
#[derive(Debug, thiserror::Error)]
enum CleanupError {
    /// The runtime.
    #[error("can't set up the process")]
    Process(#[from] io::Error),
    /// An agent runs.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// The kernel can't be spoken to.
    #[error("can't speak to the kernel; that takes root")]
    Kernel(#[from] KernelError),
    /// The store's options can't be used.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Cleans up, or says what that would do.
pub(crate) fn run(options: &CleanupOptions) -> ExitCode {
    logs::set_up(&options.agent);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let result = runtime.map_err(CleanupError::Process).and_then(|runtime| {
        let result = runtime.block_on(clean_up(options));
        // A look at a store that hangs must not keep the process.
        runtime.shutdown_background();
        result
    });
    match result {
        Ok(failures) if failures.is_empty() => ExitCode::SUCCESS,
        Ok(failures) => {
            for failure in &failures {
                error!("{failure}");
            }
            ExitCode::FAILURE
        }
        Err(error) => {
            error!(error = chain(&error), "nothing is cleaned up");
            ExitCode::FAILURE
        }
    }
}

/// Returns what could not be removed, with the reasons.
async fn clean_up(options: &CleanupOptions) -> Result<Vec<String>, CleanupError> {
    let agent = &options.agent;
    let _alone = match lock::alone(&agent.subnet_file) {
        Err(error) if options.dry_run => {
            warn!(error = chain(&error), "without --dry-run this would be refused");
            None
        }
        alone => Some(alone?),
    };
    let known = Known::read(agent);
    let netns = Netns::current().map_err(KernelError::from)?;
    let mut kernel = Netlink::open_in(&netns)?;
    let seen = seen::look(&mut kernel).await?;
    let store = store::open(agent, known.key().map(Identity::from).unwrap_or_default())?;

    let mut plan = plan::plan(&known, &seen);
    let gates = rules::gates(&netns, &known, &seen, &plan).await;
    plan.add(gates);
    plan.add(rules::removals(&netns, &known).await);
    if options.lease {
        plan.add(lease::removals(agent, &*store, &known, &seen).await);
    }
    plan.add(known.removals());

    for note in &plan.notes {
        info!("{note}");
    }
    print(&plan.removals);
    if options.dry_run {
        return Ok(plan.problems);
    }
    let mut failures = plan.problems;
    act::carry_out(&plan.removals, &netns, &mut kernel, &*store, &mut failures).await;
    Ok(failures)
}

/// Prints a script that does the same. Nobody may read it, which is no reason to stop.
fn print(removals: &[Removal]) {
    let mut out = io::stdout().lock();
    let mut last = "";
    for removal in removals {
        if removal.what != last {
            let _ = writeln!(out, "# {}", removal.what);
            last = &removal.what;
        }
        for command in &removal.commands {
            let _ = writeln!(out, "{command}");
        }
    }
}
