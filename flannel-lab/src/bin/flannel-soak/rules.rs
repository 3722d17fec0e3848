//! The firewall rules of a node: as its agent wrote them at first, whatever happens after.

use flannel_lab::netns::Netns;

use crate::Fallible;

/// All tables, without counters, in the order of their names: one that was put back is listed last. What is in
/// sets goes by leases, and is left out.
pub(crate) fn read(netns: &Netns) -> Fallible<String> {
    let text = without_elements(&netns.run("nft", &["--stateless", "list", "ruleset"])?);
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

fn without_elements(text: &str) -> String {
    let mut inside = false;
    let is_kept = |line: &&str| {
        let is_element = inside || line.trim_start().starts_with("elements = {");
        inside = is_element && !line.contains('}');
        !is_element
    };
    text.split_inclusive('\n').filter(is_kept).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_in_sets_is_left_out() {
        let text = "table ip a {\n\tset s {\n\t\ttype ipv4_addr\n\t\telements = { 192.0.2.1,\n\t\t\t\t192.0.2.2 }\n\t}\n}\n";
        let kept = "table ip a {\n\tset s {\n\t\ttype ipv4_addr\n\t}\n}\n";
        assert_eq!(without_elements(text), kept);
        assert_eq!(without_elements(&text.replace(",\n\t\t\t\t192.0.2.2", "")), kept);
        assert_eq!(without_elements(kept), kept);
    }
}
