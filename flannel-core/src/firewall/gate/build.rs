//! Tests what the kernel can do, and creates tables.

use super::table::tables;
use super::{FAMILIES, GateOptions, Mode, Tunnels, vni_of};
use crate::addr::{PerFamily, Vni};
use crate::error::chain;
use crate::kernel::KernelError;
use crate::netlink::nftables::{Change, NfTables, Table, TableEvents, TableFamily};
use crate::netns::Netns;

/// The connection to the kernel, and its notifications.
pub(super) type Kernel = (NfTables, TableEvents);

/// What the kernel needs for a gate.
pub(super) const NEEDS: &str =
    "it takes a kernel with nf_tables (`modprobe -a nf_tables nft_fib_netdev`) and CAP_NET_ADMIN";
/// The name of tables that are created and removed in one transaction, so that nobody ever sees them.
const TRIAL: &str = "flannel-underlay-trial";

/// Opens the sockets in a network namespace, and tests whether the kernel accepts the tables. Those of an earlier run show that
/// it does. A test takes time: until its deletions are over, the kernel keeps the next change of rules waiting, and whoever
/// closes a socket of `nf_tables`, for 12 ms.
pub(super) async fn open(netns: &Netns, options: &GateOptions) -> Result<Kernel, KernelError> {
    let (events, mut tables) =
        netns.run(|| Ok::<_, KernelError>((TableEvents::open()?, NfTables::open()?)))??;
    if options.mode == Mode::Off {
        tables.names(TableFamily::Inet).await?;
        return Ok((tables, events));
    }
    // If tables can't be read, the trial says more.
    if has_run(&mut tables).await.unwrap_or(false) {
        return Ok((tables, events));
    }
    if let Some(trial) = trial(options) {
        let changes: Vec<_> = trial
            .iter()
            .flat_map(|table| [Change::Create(table), Change::Delete(table.family, TRIAL)])
            .collect();
        tables.transact("try out tables of nf_tables", &changes).await?;
    }
    Ok((tables, events))
}

/// Whether the kernel has the two tables of an earlier run, with rules.
async fn has_run(tables: &mut NfTables) -> Result<bool, KernelError> {
    let [first, second] = FAMILIES;
    for name in tables.names(first).await?.iter().filter(|name| vni_of(name).is_some()) {
        let seen = [tables.read(first, name).await?, tables.read(second, name).await?];
        if seen.iter().all(|it| it.as_ref().is_some_and(|table| !table.rules.is_empty())) {
            return Ok(true);
        }
    }
    Ok(false)
}

fn trial(options: &GateOptions) -> Option<[Table; 2]> {
    let vni = Vni::new(1).ok()?;
    // Every namespace has this device, and no packet meets the tables, since the transaction also removes them.
    let devices = PerFamily::from_fn(|_| Some("lo".to_owned()));
    let subnets = PerFamily::from_fn(|family| crate::addr::Subnet::containing(family.unspecified(), 16));
    let tunnels = Tunnels { vni, port: 8472, devices, links: PerFamily::default(), subnets };
    let trial = tables(&tunnels, options, Mode::Observe)?;
    Some(trial.map(|table| Table { name: TRIAL.to_owned(), ..table }))
}

/// Why packets can't be observed, and what to do.
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

/// The present state of a table, before its elements and rules are changed.
pub(super) enum Found {
    /// There is no table, and it is too early for one.
    Nothing,
    /// The table is right, except perhaps for elements.
    Table(Table),
    /// The table has its sets and chains, and no or other rules.
    Made(Table),
}

/// Creates the sets and chains of a table. Its rules come after the elements, so that they never treat a node as a
/// stranger.
pub(super) async fn build(
    tables: &mut NfTables,
    wanted: &Table,
    lax: &Table,
    is_synced: bool,
) -> Result<Found, KernelError> {
    let what = "put a table of the underlay gate";
    let mut bare = lax.clone();
    bare.chains.iter_mut().for_each(|chain| chain.rules.clear());
    let family = lax.family;
    match tables.read(family, &lax.name).await? {
        Some(seen) if seen.is(wanted) => return Ok(Found::Table(wanted.clone())),
        Some(seen) if seen.is(lax) => return Ok(Found::Table(lax.clone())),
        Some(seen) if seen.is_built_as(lax) => {}
        Some(_) => tables.transact(what, &[Change::Delete(family, &lax.name), Change::Create(&bare)]).await?,
        None if !is_synced => return Ok(Found::Nothing),
        None => tables.transact(what, &[Change::Create(&bare)]).await?,
    }
    Ok(Found::Made(bare))
}
