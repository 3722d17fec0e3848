//! What others have put on a node, which no agent may touch.

use flannel_lab::kernel_state::KernelState;
use flannel_lab::netns::Netns;

use crate::Fallible;
use crate::model::{Backend, POD_BRIDGE};

/// An entry: the command that puts it, and what shows that it is there.
struct Entry {
    command: String,
    /// Words that one line has in it, all of them.
    shows: Vec<String>,
    /// Whether it is on a device of the backend, and goes with it.
    on_device: bool,
}

fn entries(backend: Backend, families: &[bool]) -> Vec<Entry> {
    let mut entries = Vec::new();
    let mut put = |command: String, shows: &[&str], on_device| {
        let shows = shows.iter().map(|word| (*word).to_owned()).collect();
        entries.push(Entry { command, shows, on_device });
    };
    for v6 in families.iter().copied() {
        let (family, elsewhere, ours, host) = if v6 {
            ("-6", "2001:db8:7::/64", "fd00:42:0:ffe::/64", "2001:db8:7::7")
        } else {
            ("-4", "198.51.100.0/24", "10.42.199.0/24", "198.51.100.7")
        };
        for dst in [elsewhere, ours] {
            let command = format!("{family} route replace {dst} dev {POD_BRIDGE} proto static");
            put(command, &["unicast", dst, POD_BRIDGE, "static"], false);
        }
        let mac = "02:f0:0e:16:00:01";
        let neighbour = |link| format!("neigh replace {host} lladdr {mac} dev {link} nud permanent");
        put(neighbour(POD_BRIDGE), &[host, POD_BRIDGE, mac], false);
        let link = backend.link(v6);
        if backend == Backend::Vxlan {
            put(neighbour(link), &[host, link, mac], true);
            let dst = if v6 { "2001:db8:8::/64" } else { "198.51.101.0/24" };
            put(
                format!("{family} route replace {dst} dev {link} proto static"),
                &[dst, link, "static"],
                true,
            );
        }
    }
    entries
}

/// Puts all on a node, or those that are missing.
pub(crate) fn put(node: &Netns, backend: Backend, families: &[bool]) -> Fallible<()> {
    let commands = entries(backend, families).into_iter().map(|entry| entry.command).collect::<Vec<_>>();
    commands.iter().try_for_each(|command| node.ip(command).map(drop))?;
    let ports = node.ip(&format!("-brief link show master {POD_BRIDGE}"))?;
    let port = ports.split(['@', ' ']).next().unwrap_or_default();
    node.bridge(&format!("fdb replace {FDB} dev {port} master permanent"))?;
    Ok(())
}

/// An entry in the pods' bridge.
const FDB: &str = "02:f0:0e:16:00:02";

/// What is gone from a node; `with_device` says whether what was on the backend's devices must still be there.
pub(crate) fn missing(
    node: &Netns,
    backend: Backend,
    families: &[bool],
    with_device: bool,
) -> Fallible<Option<String>> {
    let state = KernelState::of(node)?;
    let lists = [&state.routes, &state.routes6, &state.neighbours, &state.fdb];
    let lines = lists.into_iter().flatten().collect::<Vec<_>>();
    let is_there = |shows: &[String]| {
        lines.iter().any(|line| shows.iter().all(|show| line.split_whitespace().any(|word| word == show)))
    };
    let expected = entries(backend, families).into_iter().filter(|entry| with_device || !entry.on_device);
    let fdb = Entry { command: format!("fdb {FDB}"), shows: vec![FDB.to_owned()], on_device: false };
    let gone = expected.chain([fdb]).filter(|entry| !is_there(&entry.shows)).map(|entry| entry.command);
    let gone = gone.collect::<Vec<_>>();
    Ok((!gone.is_empty())
        .then(|| format!("{} lost what others put there:\n{}", node.name(), gone.join("\n"))))
}
