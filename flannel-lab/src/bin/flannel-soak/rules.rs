//! The firewall rules of a node: as its agent wrote them at first, whatever happens after.

use flannel_lab::netns::Netns;

use crate::Fallible;

/// All tables, without counters, in the order of their names: one that was put back is listed last.
pub(crate) fn read(netns: &Netns) -> Fallible<String> {
    let text = netns.run("nft", &["--stateless", "list", "ruleset"])?;
    let mut tables = text.split_inclusive("\n}\n").collect::<Vec<_>>();
    tables.sort_unstable();
    Ok(tables.concat())
}

/// Takes one family's rules away.
pub(crate) fn lose(netns: &Netns, v6: bool) -> Fallible<()> {
    let table = if v6 { ["ip6", "flannel-ipv6"] } else { ["ip", "flannel-ipv4"] };
    netns.run("nft", &["delete", "table", table[0], table[1]])?;
    Ok(())
}
