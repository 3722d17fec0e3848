//! The gate of tunnels that the kernel carries: packets from strangers are counted and named, or dropped.
//!
//! VXLAN has no idea of who may send: whoever knows a VTEP's MAC gets frames into the overlay. So a table of our own
//! in `nf_tables` lets in only what comes from underlay addresses that leases publish, and forwards what comes out of
//! the overlay device to this node's own subnets only. It works whatever keeps the other rules, and takes no program.
//!
//! `table.rs` says what the table should be, and `strangers.rs` what its counters tell (both pure). [`Desk`] has what
//! the reconcile loop knows: the devices, and the addresses of leases, kept incrementally, so that one lease costs
//! one element. `hold.rs` is the task that makes the kernel follow. It runs beside the loop, since `nf_tables` has one
//! lock, which somebody else's large transaction can hold for long.
//!
//! Before the store's first snapshot addresses are only added, and rules that drop are not put; those of an earlier
//! run stay. What an unreadable record may have published is unknown, so leftover addresses wait for it.

mod build;
mod desk;
mod hold;
mod strangers;
mod table;
#[cfg(test)]
mod tests;

use crate::addr::{PerFamily, Subnet, Vni};
use crate::kernel::KernelError;
use crate::netlink::nftables::{Change, NfTables};

pub use desk::Desk;
pub use hold::{Gate, GateStatus};

/// What is done about packets from strangers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Mode {
    /// Nothing: no table is kept.
    Off,
    /// They are counted and named, and go on their way.
    #[default]
    Observe,
    /// They are counted, named and dropped.
    Enforce,
}

impl std::fmt::Display for Mode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Off => "off",
            Self::Observe => "observe",
            Self::Enforce => "enforce",
        })
    }
}

/// What the operator wants of the gate.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GateOptions {
    /// What is done about packets from strangers.
    pub mode: Mode,
    /// Underlay addresses besides the published ones that are no strangers.
    pub allow_from: Vec<Subnet>,
}

/// The tunnels of a node that a gate is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tunnels {
    /// The VNI of its devices.
    pub vni: Vni,
    /// Their UDP port.
    pub port: u16,
    /// The names of the devices, by the family of the underlay and of the pods.
    pub devices: PerFamily<String>,
    /// This node's own subnets.
    pub subnets: PerFamily<Subnet>,
}

/// What the names of our tables begin with.
const PREFIX: &str = "flannel-underlay-";

/// The name of the table for the devices of a VNI, of which a host has one pair.
pub fn table_name(vni: Vni) -> String {
    format!("{PREFIX}{vni}")
}

/// The VNIs of which a table is there, in the network namespace of the calling thread. A kernel without `nf_tables` has
/// none.
pub async fn present() -> Result<Vec<Vni>, KernelError> {
    let names = match NfTables::open() {
        Ok(mut tables) => tables.names().await,
        Err(error) => Err(error),
    };
    match names {
        Err(error) if build::is_lacking(&error) => Ok(Vec::new()),
        names => Ok(names?.iter().filter_map(|name| vni_of(name)).collect()),
    }
}

/// The VNI in the name of a table of ours.
fn vni_of(name: &str) -> Option<Vni> {
    let vni = Vni::new(name.strip_prefix(PREFIX)?.parse().ok()?).ok()?;
    (table_name(vni) == name).then_some(vni)
}

/// Removes the table for a VNI.
pub async fn remove(vni: Vni) -> Result<(), KernelError> {
    remove_by(&mut NfTables::open()?, vni).await
}

/// Removes the table for a VNI, by a socket of the namespace that is meant.
pub(crate) async fn remove_by(tables: &mut NfTables, vni: Vni) -> Result<(), KernelError> {
    let name = table_name(vni);
    match tables.transact("remove the table of the underlay gate", &[Change::Delete(&name)]).await {
        Err(error) if error.errno() == Some(libc::ENOENT) || build::is_lacking(&error) => Ok(()),
        done => done,
    }
}
