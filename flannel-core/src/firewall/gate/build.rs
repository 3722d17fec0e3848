//! What the kernel must be able to do, and how a table comes to be.

use super::table::table;
use super::{GateOptions, Mode, Tunnels};
use crate::addr::{PerFamily, Vni};
use crate::kernel::KernelError;
use crate::netlink::nftables::{Change, NfTables, Table, TableEvents};
use crate::subnet::chain;

/// What speaks to the kernel, and what hears it.
pub(super) type Kernel = (NfTables, TableEvents);

/// What it takes.
pub(super) const NEEDS: &str =
    "it takes a kernel with nf_tables (`modprobe -a nf_tables nft_fib_inet`) and CAP_NET_ADMIN";
/// Of a table that is made and removed in one transaction, so that nobody ever sees it.
const TRIAL: &str = "flannel-underlay-trial";

/// Opens the sockets in the network namespace of the calling thread, and tries out a table.
pub(super) async fn open(options: &GateOptions) -> Result<Kernel, KernelError> {
    let (events, mut tables) = (TableEvents::open()?, NfTables::open()?);
    if options.mode == Mode::Off {
        tables.names().await?;
        return Ok((tables, events));
    }
    if let Some(trial) = trial(options) {
        let changes = [Change::Create(&trial), Change::Delete(TRIAL)];
        tables.transact("try out a table of nf_tables", &changes).await?;
    }
    Ok((tables, events))
}

fn trial(options: &GateOptions) -> Option<Table> {
    let vni = Vni::new(1).ok()?;
    let devices = PerFamily::from_fn(|family| Some(format!("trial-{family}")));
    let subnets = PerFamily::from_fn(|family| crate::addr::Subnet::containing(family.unspecified(), 16));
    let trial = table(&Tunnels { vni, port: 8472, devices, subnets }, options, options.mode)?;
    Some(Table { name: TRIAL.to_owned(), ..trial })
}

/// Why nothing can be observed, and what to do.
pub(super) fn blind(error: &KernelError) -> String {
    format!(
        "packets from strangers can't be observed: {}; {NEEDS}, and a new start; --strict-underlay=off silences this",
        chain(error)
    )
}

/// Whether an error says that the kernel has no `nf_tables`.
pub(super) fn is_lacking(error: &KernelError) -> bool {
    let errno = match error {
        KernelError::Socket { source, .. } => source.raw_os_error(),
        other => other.errno(),
    };
    matches!(errno, Some(libc::EPROTONOSUPPORT | libc::EAFNOSUPPORT | libc::EOPNOTSUPP | libc::EINVAL))
}

/// What there is of the table before its elements and rules are made right.
pub(super) enum Found {
    /// None, and it is too early for one.
    Nothing,
    /// A table that is right but for elements, as it was put or would be.
    Table(Table),
    /// One with sets and chains and without rules, or with others.
    Made(Table),
}

/// Makes the table have its sets and chains. Its rules come after the elements, so that they know who is a node.
pub(super) async fn build(
    tables: &mut NfTables,
    wanted: &Table,
    lax: &Table,
    is_synced: bool,
) -> Result<Found, KernelError> {
    let what = "put the table of the underlay gate";
    let mut bare = lax.clone();
    bare.chains.iter_mut().for_each(|chain| chain.rules.clear());
    match tables.read(&lax.name).await? {
        Some(seen) if seen.is(wanted) => return Ok(Found::Table(wanted.clone())),
        Some(seen) if seen.is(lax) => return Ok(Found::Table(lax.clone())),
        Some(seen) if seen.is_built_as(lax) => {}
        Some(_) => tables.transact(what, &[Change::Delete(&lax.name), Change::Create(&bare)]).await?,
        None if !is_synced => return Ok(Found::Nothing),
        None => tables.transact(what, &[Change::Create(&bare)]).await?,
    }
    Ok(Found::Made(bare))
}
