//! What the user asked for.

use std::path::PathBuf;

use clap::{Parser, ValueEnum};
use flannel_lab::cluster::Families;

use crate::action::Kind;
use crate::changes::Part;
use crate::hostile::Attack;
use crate::model::Backend;

/// Churns a cluster of network namespaces on this machine, with the real agent on every node, for minutes:
/// joins, leaves, drift, flaps, store faults, killed agents, several at once; nodes that get other addresses, new
/// nodes with addresses that others had, NICs with other names, and records that claim what is others'; on Kubernetes
/// annotations that others change, nodes made anew and restored backups, too. Checks that the kernel comes to equal a model of its
/// own, and that no pair of pods loses a ping without a cause.
///
/// Needs root or user namespaces, and leaves nothing behind. The same seed and options give the same actions.
#[derive(Debug, Parser)]
#[command(name = "flannel-soak", version)]
pub(crate) struct Options {
    /// For how long, in minutes; fractions will do
    #[arg(long, value_name = "N", default_value_t = 1.0, value_parser = minutes)]
    pub(crate) minutes: f64,
    /// The seed of all choices; a new one unless told, which is printed
    #[arg(long, value_name = "SEED")]
    pub(crate) seed: Option<u64>,
    /// How many nodes with an agent and a pod
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u8).range(2..=20))]
    pub(crate) nodes: u8,
    /// How many leases of nodes that don't exist to begin with; they come and go
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u8).range(5..=110))]
    pub(crate) phantoms: u8,
    /// Backend of the network config
    #[arg(long, value_enum, default_value_t = Backend::Vxlan)]
    pub(crate) backend: Backend,
    /// Address families of the underlay and of the pods
    #[arg(long, value_enum, default_value_t = Families::Dual)]
    pub(crate) families: Families,
    /// Where leases are
    #[arg(long, value_enum, default_value_t = StoreChoice::Etcd)]
    pub(crate) store: StoreChoice,
    /// Do nothing else than these, by their kinds, with commas between
    #[arg(long, value_enum, value_name = "KIND", value_delimiter = ',', conflicts_with = "without")]
    pub(crate) only: Vec<Kind>,
    /// Do all but these
    #[arg(long, value_enum, value_name = "KIND", value_delimiter = ',')]
    pub(crate) without: Vec<Kind>,
    /// No churn, but attacks on the cluster, all at once, or these alone: hostile records, tunnel packets from strangers,
    /// requests without end, traps in the store's folder, floods of keys
    #[arg(
        long,
        value_enum,
        value_name = "ATTACK",
        value_delimiter = ',',
        num_args = 0..,
        require_equals = true,
        conflicts_with_all = ["only", "without"]
    )]
    pub(crate) hostile: Option<Vec<Attack>>,
    /// No churn, but changes of a running cluster, half of the time each, or one of these alone: backends that change, with
    /// blocked tunnels and agents that end meanwhile; NATs and relays that come and go
    #[arg(
        long,
        value_enum,
        value_name = "PART",
        value_delimiter = ',',
        num_args = 0..,
        require_equals = true,
        conflicts_with_all = ["only", "without", "hostile", "backend", "phantoms"]
    )]
    pub(crate) changes: Option<Vec<Part>>,
    /// Run this flanneld instead of building one
    #[arg(long, value_name = "PATH")]
    pub(crate) flanneld: Option<PathBuf>,
    /// Show every action as it happens
    #[arg(short, long)]
    pub(crate) verbose: bool,
}

fn minutes(text: &str) -> Result<f64, String> {
    let minutes = text.parse::<f64>().map_err(|error| error.to_string())?;
    if minutes > 0.0 && minutes <= 10_000.0 { Ok(minutes) } else { Err("must be above 0, and finite".into()) }
}

/// The values of `--store`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum StoreChoice {
    /// A folder
    Local,
    /// A server in the underlay
    Etcd,
    /// A Kubernetes API server in the underlay, with an object for each node; a stand-in, so nothing is needed
    Kube,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Options::command().debug_assert();
        let options = Options::parse_from(["flannel-soak", "--minutes", "0.5", "--backend", "host-gw"]);
        assert_eq!((options.minutes, options.backend, options.nodes), (0.5, Backend::HostGw, 4));
        assert_eq!(Options::parse_from(["flannel-soak", "--store", "kube"]).store, StoreChoice::Kube);
        let options = Options::parse_from(["flannel-soak", "--only", "nic-rename,tampered"]);
        assert_eq!(options.only, [Kind::NicRename, Kind::Tampered]);
        let hostile = |args: &[&str]| Options::parse_from(["flannel-soak"].iter().chain(args)).hostile;
        assert_eq!((hostile(&[]), hostile(&["--hostile", "--minutes=1"])), (None, Some(Vec::new())));
        let two = hostile(&["--hostile=records,flood"]);
        assert_eq!(two, Some(vec![Attack::Records, Attack::Flood]));
        let changes = |args: &[&str]| Options::parse_from(["flannel-soak"].iter().chain(args)).changes;
        assert_eq!((changes(&[]), changes(&["--changes", "--store=local"])), (None, Some(Vec::new())));
        assert_eq!(changes(&["--changes=nat", "--families=v4"]), Some(vec![Part::Nat]));
        for bad in [
            ["--changes=nobody", "--minutes=1"],
            ["--changes", "--backend=udp"],
            ["--changes", "--hostile"],
            ["--hostile=nobody", "--minutes=1"],
            ["--hostile", "--only=drift"],
            ["--minutes", "0"],
            ["--minutes", "NaN"],
            ["--nodes", "1"],
            ["--phantoms", "111"],
            ["--only", "nothing"],
        ] {
            assert!(Options::try_parse_from(["flannel-soak"].iter().chain(&bad)).is_err(), "{bad:?}");
        }
    }
}
