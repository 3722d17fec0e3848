//! `flanneld cleanup`: removes what agents left on this host, and tells it as commands first.

use std::error::Error;
use std::io::{self, Write};
use std::process::ExitCode;

use flannel_core::error::chain;
use tokio::runtime::Builder;
use tracing::{error, info, warn};

use crate::cli::{CleanupOptions, Options};
use crate::{logs, registry, runtime, store};

/// Cleans up, or says what that would do.
pub(crate) fn run(options: CleanupOptions) -> ExitCode {
    logs::set_up(&options.common);
    logs::name_unread_variables();
    match runtime::block_on(Builder::new_current_thread(), clean_up(options)) {
        Ok(failures) if failures.is_empty() => ExitCode::SUCCESS,
        Ok(failures) => {
            for failure in &failures {
                error!("{failure}");
            }
            ExitCode::FAILURE
        }
        Err(error) => {
            error!(error = chain(&*error), "nothing is cleaned up");
            ExitCode::FAILURE
        }
    }
}

/// Returns what could not be removed, with the reasons.
async fn clean_up(options: CleanupOptions) -> Result<Vec<String>, Box<dyn Error>> {
    let CleanupOptions { dry_run, lease, common } = options;
    let agent = Options::from(common);
    let builder = registry::agent(&agent, store::open(&agent)?);
    let plan = if lease { builder.plan_leave().await } else { builder.plan_cleanup().await };
    let plan =
        plan.map_err(|error| format!("can't speak to the kernel; that takes root: {}", chain(&error)))?;
    match plan.refused() {
        Some(error) if dry_run => {
            warn!(error = chain(error), "without --dry-run this would be refused");
        }
        // Carrying it out says so; nothing is told that is not done.
        Some(_) => return Ok(plan.carry_out().await?),
        None => {}
    }
    for note in &plan.notes {
        info!("{note}");
    }
    // Nobody may read it, which is no reason to stop.
    let _ = io::stdout().write_all(plan.script().as_bytes());
    if dry_run { Ok(plan.problems) } else { Ok(plan.carry_out().await?) }
}
