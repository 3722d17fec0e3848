//! Finds chains of others that cut pods off from each other, or from the world.
//!
//! A packet must get through every base chain on its path, in nftables and in legacy iptables: if one drops it, no
//! other can undo that. So the agent can only name the chain and the remedy.
//!
//! `nft` and `iptables` read chains, `packet` describes the packets that must get through, and `walk` decides whether a
//! table surely drops them, by its policy or by a rule. `look` runs the programs and knows when to run them again.

mod chain;
#[cfg(any(test, feature = "testing"))]
pub(crate) mod fuzz;
mod iptables;
mod look;
mod nft;
mod packet;
#[cfg(test)]
mod tests;
mod walk;

use std::fmt;

use serde::Serialize;

pub use self::chain::Realm;
use self::chain::{RuleName, Table, TableName};
pub(super) use self::look::Surroundings;
pub use self::look::obstacles;
use self::packet::{End, Links, Packet};
use self::walk::Cut;
use super::rules::Range;
use crate::addr::{Family, PerFamily};

/// The traffic that a chain surely drops, in one family.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[non_exhaustive]
pub struct Cuts {
    /// Packets of this node's pods to pods of other nodes, or the answers.
    pub to_peers: bool,
    /// Packets of other nodes' pods to pods of this node, or the answers.
    pub from_peers: bool,
    /// Packets of pods to the world, or the answers.
    pub world: bool,
}

/// A base chain that surely drops traffic of pods.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Obstacle {
    /// Which rule system has its table.
    pub realm: Realm,
    /// The table's family: `ip`, `ip6` or `inet`.
    pub family: String,
    /// The table.
    pub table: String,
    /// The base chain.
    pub chain: String,
    /// The chain in which the packets are dropped: the base chain, or one that it jumps to.
    pub ends_in: String,
    /// The rule that drops them; `None` for the policy of the base chain.
    pub rule: Option<String>,
    /// What it drops, in each enabled family.
    pub cuts: PerFamily<Cuts>,
    /// What an operator can do.
    pub advice: String,
}

impl Obstacle {
    /// What was seen, without the advice.
    pub fn seen(&self) -> String {
        Seen(self).to_string()
    }

    /// Whether pods of this node reach no pod of another node in some family, or can't reach the world, if that
    /// matters.
    pub fn cuts_pods_off(&self, world_matters: bool) -> bool {
        self.cuts.iter().any(|(_, cuts)| cuts.to_peers || world_matters && cuts.world)
    }
}

impl fmt::Display for Obstacle {
    /// What was seen, and the advice behind it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; {}", Seen(self), self.advice)
    }
}

/// An obstacle without the advice.
struct Seen<'a>(&'a Obstacle);

impl fmt::Display for Seen<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Obstacle { realm, family, table, chain, ends_in, rule, cuts, .. } = self.0;
        let legacy = if *realm == Realm::Legacy { "legacy " } else { "" };
        write!(f, "chain {chain} of table {legacy}{family} {table} drops forwarded packets (")?;
        for (number, (family, cuts)) in cuts.iter().enumerate() {
            let named = [
                (cuts.to_peers, "to other nodes"),
                (cuts.from_peers, "from other nodes"),
                (cuts.world, "to the world"),
            ];
            let named: Vec<_> =
                named.into_iter().filter(|(is_cut, _)| *is_cut).map(|(_, name)| name).collect();
            let comma = if number > 0 { "; " } else { "" };
            write!(f, "{comma}{family} of pods {}", named.join(", "))?;
        }
        match rule {
            None => write!(f, ") by its policy")?,
            Some(rule) if ends_in == chain => write!(f, ") by its rule `{rule}`")?,
            Some(rule) => write!(f, ") by the rule `{rule}` of chain {ends_in}")?,
        }
        f.write_str(", which no other table can undo")
    }
}

/// A base chain that drops packets, before the texts of its rule and of the advice are known.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Found {
    table: TableName,
    base: String,
    cut: Cut,
    cuts: PerFamily<Cuts>,
}

/// All chains that surely drop packets: one for each base chain and place where they are dropped.
fn find(tables: &[Table], ranges: &PerFamily<Range>, links: &Links) -> Vec<Found> {
    let mut found: Vec<Found> = Vec::new();
    for table in tables {
        for base in table.chains.iter().filter(|chain| chain.policy.is_some()) {
            for (family, range) in ranges.iter().filter(|(family, _)| table.name.is_for(*family)) {
                let ends = |from, to, is_new| {
                    let packet = Packet { family, range: *range, from, to, is_new, links };
                    walk::cut(table, base, &packet)
                };
                // Packets that open a connection in one direction, and answers in the other.
                let both = |from, to| ends(from, to, true).or_else(|| ends(to, from, false));
                let peers = (both(End::Pod, End::Peer), both(End::Peer, End::Pod));
                let world = both(End::Pod, End::World);
                let cuts = Cuts {
                    to_peers: peers.0.is_some(),
                    from_peers: peers.1.is_some(),
                    world: world.is_some(),
                };
                let Some(cut) = peers.0.or(peers.1).or(world) else { continue };
                let is_same =
                    |it: &&mut Found| it.table == table.name && it.base == base.name && it.cut == cut;
                if let Some(same) = found.iter_mut().find(is_same) {
                    *same.cuts.get_mut(family) = Some(cuts);
                    continue;
                }
                let cuts = PerFamily::from_fn(|of| (of == family).then_some(cuts));
                found.push(Found { table: table.name.clone(), base: base.name.clone(), cut, cuts });
            }
        }
    }
    found
}

/// What an operator can do about a table that drops packets.
fn advice(table: &Table, found: &Found, ranges: &PerFamily<Range>) -> String {
    let Found { table: TableName { realm, family, name }, base, cuts, .. } = found;
    let network = |family| Some((family, ranges.get(family)?.network));
    let networks: Vec<_> = cuts.families().filter_map(network).collect();
    let has = |prefix: &str| table.chains.iter().any(|chain| chain.name.starts_with(prefix));
    let each = |command: &dyn Fn(Family, &str) -> String| {
        let commands = networks.iter().map(|(family, network)| command(*family, &network.to_string()));
        commands.collect::<Vec<_>>().join("; ")
    };
    let by_iptables = |chain: &str| {
        each(&|family, network| {
            let six = if family == Family::V6 { "6" } else { "" };
            let variant = if *realm == Realm::Legacy { "legacy" } else { "nft" };
            let program = format!("ip{six}tables-{variant} -t {name} -I {chain}");
            format!("`{program} -s {network} -j ACCEPT`, `{program} -d {network} -j ACCEPT`")
        })
    };
    if name == "firewalld" {
        let sources =
            each(&|_, network| format!("`firewall-cmd --permanent --zone=trusted --add-source={network}`"));
        return format!("tell firewalld that pods are trusted: {sources}, then `firewall-cmd --reload`");
    }
    if has("ufw") {
        let routes =
            each(&|_, network| format!("`ufw route allow from {network}`, `ufw route allow to {network}`"));
        return format!("tell ufw to let pods through: {routes}");
    }
    if has("DOCKER-USER") {
        return format!("tell Docker's firewall to let pods through: {}", by_iptables("DOCKER-USER"));
    }
    if *realm == Realm::Legacy || family != "inet" && base.chars().all(|letter| letter.is_ascii_uppercase()) {
        return format!("accept pods there: {}", by_iptables(base));
    }
    let rules = each(&|of, network| {
        let ip = if of == Family::V4 { "ip" } else { "ip6" };
        let insert = format!("nft insert rule {family} {name} {base} {ip}");
        format!("`{insert} saddr {network} accept`, `{insert} daddr {network} accept`")
    });
    format!("accept pods there: {rules}")
}

/// The text of a rule by its handle, from the output of `nft -a list chain`.
fn text_of(rule: &RuleName, listing: &str) -> String {
    match rule {
        RuleName::Text(text) => text.clone(),
        RuleName::Handle(handle) => {
            let mut lines = listing.lines().filter_map(|line| line.trim().rsplit_once(" # handle "));
            let text =
                lines.find(|(_, number)| number.parse() == Ok(*handle)).map(|(text, _)| text.to_owned());
            text.unwrap_or_else(|| format!("handle {handle}"))
        }
    }
}
