//! What the user asked for.

use std::path::PathBuf;

use clap::Parser;
use flannel_lab::cluster::Families;

/// Shows flannel at work: builds a cluster of network namespaces on this machine, with the real agent on
/// every node, breaks it in several ways and measures how long the repair takes.
///
/// Needs root or user namespaces, and leaves nothing behind.
#[derive(Debug, Parser)]
#[command(name = "flannel-demo", version)]
pub(crate) struct Options {
    /// How many nodes
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u8).range(2..=50))]
    pub(crate) nodes: u8,
    /// Backend of the network config: vxlan, host-gw or udp
    #[arg(long, value_name = "KIND", default_value = "vxlan")]
    pub(crate) backend: String,
    /// Address families of the underlay and of the pods
    #[arg(long, value_enum, default_value_t = Families::Dual)]
    pub(crate) families: Families,
    /// Show the status of node1's agent, live, while damage is done
    #[arg(long)]
    pub(crate) watch: bool,
    /// Leave the cluster up afterwards, until Ctrl-C, with commands to look around in it
    #[arg(long)]
    pub(crate) keep: bool,
    /// Run this flanneld instead of the one beside this program
    #[arg(long, value_name = "PATH")]
    pub(crate) flanneld: Option<PathBuf>,
    /// No colours; the variable `NO_COLOR` does the same
    #[arg(long)]
    pub(crate) no_color: bool,
    /// Show what the agent of node1 logs, and where all logs are
    #[arg(short, long)]
    pub(crate) verbose: bool,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Options::command().debug_assert();
        let options = Options::parse_from(["flannel-demo"]);
        assert_eq!((options.nodes, options.backend.as_str()), (3, "vxlan"));
        assert_eq!(options.families, Families::Dual);
        for nodes in ["1", "51", "x"] {
            assert!(Options::try_parse_from(["flannel-demo", "--nodes", nodes]).is_err(), "{nodes}");
        }
    }
}
