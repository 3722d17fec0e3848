//! A namespace's network state as text, so that two states can be compared by `assert_eq!`.

use std::fmt;

use serde_json::Value;

use crate::LabError;
use crate::netns::Netns;

/// What `ip` and `bridge` tell about a namespace, sorted, without what changes by itself.
///
/// Lines are as the tools print them (`ip -d`, trailing blanks and all), so they can be held
/// against recorded ones. Left out: link indexes, counters and timers, learnt neighbours and FDB
/// entries, multicast, and the numbers of next-hop objects.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KernelState {
    /// One line a link but `lo`: name, kind, MTU, state, MAC and master, for VXLAN its details.
    pub links: Vec<String>,
    /// One line an address but `lo`'s: link, address with length, scope.
    pub addresses: Vec<String>,
    /// IPv4 routes of the main table.
    pub routes: Vec<String>,
    /// IPv6 routes of the main table.
    pub routes6: Vec<String>,
    /// Next-hop objects.
    pub next_hops: Vec<String>,
    /// Permanent neighbours, both families.
    pub neighbours: Vec<String>,
    /// Permanent unicast FDB entries.
    pub fdb: Vec<String>,
}

impl KernelState {
    /// Takes a snapshot of a namespace.
    pub fn of(netns: &Netns) -> Result<Self, LabError> {
        // It shows all that `link show` does.
        let links = netns.ip_json("address show")?;
        Ok(Self {
            links: sorted(objects(&links).map(link_line)),
            addresses: sorted(objects(&links).flat_map(address_lines)),
            routes: lines(&netns.ip("-d -4 route show")?),
            routes6: lines(&netns.ip("-d -6 route show")?),
            // A kernel that does not know them has none.
            next_hops: lines(&netns.ip("nexthop show").unwrap_or_default()),
            neighbours: lines(&netns.ip("-d neigh show nud permanent")?),
            fdb: sorted(lines(&netns.bridge("-d fdb show")?).into_iter().filter(|line| is_kept(line))),
        })
    }

    /// Only what names this link.
    pub fn of_link(&self, link: &str) -> Self {
        let names = |line: &&String| line.split_whitespace().any(|word| word == link);
        let only = |lines: &[String]| lines.iter().filter(names).cloned().collect::<Vec<_>>();
        Self {
            links: only(&self.links),
            addresses: only(&self.addresses),
            routes: only(&self.routes),
            routes6: only(&self.routes6),
            next_hops: only(&self.next_hops),
            neighbours: only(&self.neighbours),
            fdb: only(&self.fdb),
        }
    }
}

impl fmt::Display for KernelState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sections = [
            ("links", &self.links),
            ("addresses", &self.addresses),
            ("routes", &self.routes),
            ("routes6", &self.routes6),
            ("next hops", &self.next_hops),
            ("neighbours", &self.neighbours),
            ("fdb", &self.fdb),
        ];
        for (name, lines) in sections {
            writeln!(f, "{name}:")?;
            lines.iter().try_for_each(|line| writeln!(f, "  {}", line.trim_end()))?;
        }
        Ok(())
    }
}

fn sorted(lines: impl IntoIterator<Item = String>) -> Vec<String> {
    let mut lines = lines.into_iter().collect::<Vec<_>>();
    lines.sort();
    lines
}

/// The output's entries; a next hop of a multipath route is on a line of its own, indented. What a route's
/// next-hop object is, is left out: the line itself says it.
fn lines(output: &str) -> Vec<String> {
    let mut entries: Vec<String> = Vec::new();
    let shown = |line: &&str| !line.trim().is_empty() && !line.trim_start().starts_with("nh_info");
    for line in output.lines().filter(shown) {
        let line = &unnumbered(line);
        match entries.last_mut() {
            Some(last) if line.starts_with(char::is_whitespace) => last.push_str(line),
            _ => entries.push(line.to_owned()),
        }
    }
    sorted(entries)
}

/// A line without the number of a next-hop object, which is another one each time.
pub fn unnumbered(line: &str) -> String {
    let mut words: Vec<&str> = line.split(' ').collect();
    let at = if words[0] == "id" { Some(0) } else { words.iter().position(|word| *word == "nhid") };
    if let Some(number) = at.and_then(|at| words.get_mut(at + 1)) {
        *number = "N";
    }
    words.join(" ")
}

/// Permanent entries; not the multicast groups that every link has.
fn is_kept(fdb: &str) -> bool {
    let first = fdb.split(':').next().and_then(|byte| u8::from_str_radix(byte, 16).ok());
    fdb.contains("permanent") && first.is_some_and(|byte| byte & 1 == 0)
}

/// Everything but `lo`. `ip` prints empty objects for what its filter left out.
fn objects(json: &Value) -> impl Iterator<Item = &Value> {
    let all = json.as_array().into_iter().flatten();
    all.filter(|object| object["ifname"].is_string() && object["ifname"] != "lo")
}

fn link_line(link: &Value) -> String {
    let is_up = link["flags"].as_array().is_some_and(|flags| flags.iter().any(|flag| flag == "UP"));
    let mut words = vec![
        text(&link["ifname"]),
        text(&link["linkinfo"]["info_kind"]),
        format!("mtu {}", text(&link["mtu"])),
        if is_up { "up".to_owned() } else { "down".to_owned() },
        format!("oper {}", text(&link["operstate"])),
        text(&link["address"]),
    ];
    if link["master"].is_string() {
        words.push(format!("master {}", text(&link["master"])));
    }
    if link["linkinfo"]["info_kind"] == "vxlan" {
        let details = link["linkinfo"]["info_data"].as_object().into_iter().flatten();
        words.extend(details.map(|(key, value)| format!("{key} {}", text(value))));
    }
    words.join(" ")
}

fn address_lines(link: &Value) -> Vec<String> {
    let addresses = link["addr_info"].as_array().into_iter().flatten();
    let addresses = addresses.filter(|address| address["local"].is_string());
    addresses
        .map(|address| {
            let [local, length, scope] = ["local", "prefixlen", "scope"].map(|key| text(&address[key]));
            format!("{} {local}/{length} scope {scope}", text(&link["ifname"]))
        })
        .collect()
}

/// A JSON value without the quotes; `-` for none.
fn text(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn links_become_lines() {
        let vxlan = json!({
            "ifname": "flannel.1", "mtu": 1450, "flags": ["BROADCAST", "UP"], "operstate": "UNKNOWN",
            "address": "6e:01:35:13:e4:d6",
            "linkinfo": { "info_kind": "vxlan", "info_data": { "id": 1, "local": "192.168.77.11" } },
        });
        let line = "flannel.1 vxlan mtu 1450 up oper UNKNOWN 6e:01:35:13:e4:d6 id 1 local 192.168.77.11";
        assert_eq!(link_line(&vxlan), line);
        let listed = json!([{ "ifname": "lo" }, {}, vxlan]);
        assert_eq!(objects(&listed).count(), 1);
    }

    #[test]
    fn multipath_routes_stay_together_and_lines_are_sorted() {
        let output = "unicast b dev x \nunicast a \n\tnexthop via 1 \n\tnexthop via 2 \n\n";
        assert_eq!(lines(output), ["unicast a \tnexthop via 1 \tnexthop via 2 ", "unicast b dev x "]);
    }

    #[test]
    fn next_hop_objects_have_no_numbers() {
        let output = "unicast 10.5.1.0/24 nhid 7 via 10.5.1.0 dev x \n\tnh_info id 7 via 10.5.1.0 dev x \n";
        assert_eq!(lines(output), ["unicast 10.5.1.0/24 nhid N via 10.5.1.0 dev x "]);
        assert_eq!(unnumbered("id 7 via 10.5.1.0 dev x"), "id N via 10.5.1.0 dev x");
        assert_eq!(unnumbered("x vxlan mtu 1450 id 1"), "x vxlan mtu 1450 id 1");
    }

    #[test]
    fn learnt_and_multicast_fdb_entries_are_left_out() {
        assert!(is_kept("22:bb:dc:8b:da:2b dev flannel.1 dst 192.168.77.12 self permanent"));
        assert!(!is_kept("33:33:00:00:00:01 dev eth0 self permanent"));
        assert!(!is_kept("01:00:5e:00:00:01 dev eth0 self permanent"));
        assert!(!is_kept("22:bb:dc:8b:da:2b dev pod1 master cni0"));
    }
}
