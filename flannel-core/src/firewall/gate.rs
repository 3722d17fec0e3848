//! The gate of tunnels that the kernel carries: it counts and names packets from strangers, or drops them.
//!
//! VXLAN does not check senders: a host that knows a VTEP's MAC can send frames into the overlay. So two `nf_tables`
//! tables of our own admit only packets from underlay addresses that leases publish (family `inet`), and forward
//! packets from the overlay device only to this node's own subnets (family `netdev`, so that packets of other devices
//! are not slowed down). They work with any manager of the other rules, and need no program.
//!
//! `table.rs` computes the desired tables, and `strangers.rs` makes reports of the counters (both pure). [`Desk`] has
//! what the reconcile loop knows: the devices, and the addresses of leases, kept incrementally, so that one lease costs
//! one element. `renew.rs` is the task that changes the kernel. It runs beside the loop, since `nf_tables` has one lock,
//! which somebody else's large transaction can hold for long.
//!
//! Before the store's first snapshot, addresses are only added, and no rules that drop are put; those of an earlier run
//! stay. What an unreadable record published is unknown, so leftover addresses stay while there is one.

mod build;
mod counters;
mod desk;
mod reconcile;
mod strangers;
mod table;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;

use serde::Serialize;

use crate::addr::{LinkIndex, PerFamily, Subnet, Vni};
use crate::kernel::KernelError;
use crate::netlink::nftables::{Change, NfTables, TableFamily};
use crate::netns::Netns;

pub use counters::{GateCount, GateCounters, GateReading};
pub use desk::Desk;
pub use reconcile::{Gate, GateStatus};

/// What is done about packets from strangers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Mode {
    /// Nothing: no table is kept.
    Off,
    /// They are counted, named and let in.
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

/// The operator's options for the gate.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct GateOptions {
    /// What is done about packets from strangers.
    pub mode: Mode,
    /// Underlay addresses that are admitted, in addition to the published ones.
    pub allow_from: Vec<Subnet>,
}

impl GateOptions {
    /// Options with this mode.
    pub fn new(mode: Mode) -> Self {
        Self { mode, allow_from: Vec::new() }
    }

    /// Also admits these underlay addresses.
    #[must_use]
    pub fn allow_from(mut self, subnets: impl IntoIterator<Item = Subnet>) -> Self {
        self.allow_from.extend(subnets);
        self
    }
}

/// The tunnels of a node that a gate protects.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tunnels {
    /// The VNI of its devices.
    pub vni: Vni,
    /// Their UDP port.
    pub port: u16,
    /// The names of the devices, by the family of the underlay and of the pods.
    pub devices: PerFamily<String>,
    /// Their indices. Kernels before 6.16 remove hooks on a device together with the device, without a notification.
    pub links: PerFamily<LinkIndex>,
    /// This node's own subnets.
    pub subnets: PerFamily<Subnet>,
}

/// The beginning of our tables' names.
const PREFIX: &str = "flannel-underlay-";

const FAMILIES: [TableFamily; 2] = [TableFamily::Inet, TableFamily::Netdev];

/// The name of the tables for the devices of a VNI, of which a host has one pair.
pub fn table_name(vni: Vni) -> String {
    format!("{PREFIX}{vni}")
}

/// The VNIs for which a network namespace has tables. A kernel without `nf_tables` has none.
pub async fn present(netns: &Netns) -> Result<Vec<Vni>, KernelError> {
    match all_names(netns).await {
        Err(error) if build::is_lacking(&error) => Ok(Vec::new()),
        names => {
            Ok(names?.iter().filter_map(|name| vni_of(name)).collect::<BTreeSet<_>>().into_iter().collect())
        }
    }
}

async fn all_names(netns: &Netns) -> Result<Vec<String>, KernelError> {
    let mut tables = netns.run(NfTables::open)??;
    let mut names = Vec::new();
    for family in FAMILIES {
        names.extend(tables.names(family).await?);
    }
    Ok(names)
}

/// The VNI in the name of a table of ours.
fn vni_of(name: &str) -> Option<Vni> {
    let vni = Vni::new(name.strip_prefix(PREFIX)?.parse().ok()?).ok()?;
    (table_name(vni) == name).then_some(vni)
}

/// Removes the tables for a VNI from a network namespace.
pub async fn remove(netns: &Netns, vni: Vni) -> Result<(), KernelError> {
    remove_by(&mut netns.run(NfTables::open)??, vni).await
}

/// Removes the tables for a VNI, by a socket in its namespace.
pub(crate) async fn remove_by(tables: &mut NfTables, vni: Vni) -> Result<(), KernelError> {
    let name = table_name(vni);
    for family in FAMILIES {
        match tables.transact("remove a table of the underlay gate", &[Change::Delete(family, &name)]).await {
            Err(error) if error.errno() == Some(libc::ENOENT) || build::is_lacking(&error) => {}
            done => done?,
        }
    }
    Ok(())
}
