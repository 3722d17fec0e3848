//! The runtime of one run of the program.

use std::error::Error;

use tokio::runtime::Builder;

/// Runs something to its end on a runtime of its own. What hangs on another thread then, such as a look-up of a name, does not
/// keep the process.
pub(crate) fn block_on<T>(
    mut runtime: Builder,
    work: impl Future<Output = Result<T, Box<dyn Error>>>,
) -> Result<T, Box<dyn Error>> {
    let runtime = runtime.enable_all().build();
    let runtime = runtime.map_err(|error| format!("can't set up the process: {error}"))?;
    let result = runtime.block_on(work);
    runtime.shutdown_background();
    result
}
