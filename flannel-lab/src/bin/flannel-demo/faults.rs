//! Damage to the kernel's state on node1 that concerns node2, and the time until it is undone.

use std::collections::BTreeSet;
use std::thread::sleep;
use std::time::{Duration, Instant};

use flannel_lab::kernel_state::KernelState;
use flannel_lab::netns::Netns;
use flannel_lab::wait::wait_for;

use crate::Fallible;
use crate::batch::Batch;
use crate::lab::{Lab, family_name};
use crate::pings::Pings;
use crate::report::{LIMIT, Row};
use crate::way::{Way, flag};

/// How often each damage is done.
const TIMES: usize = 5;
/// Between two looks. A look itself takes a tenth of that or less.
const POLL: Duration = Duration::from_micros(200);

/// The kinds of damage that can be done to a way.
pub(crate) fn of(way: &Way) -> &'static [Fault] {
    const ALL: &[Fault] = &[Fault::Route, Fault::Fdb, Fault::Neighbour, Fault::LinkDeleted, Fault::LinkDown];
    const OF_TUN: &[Fault] = &[Fault::Route, Fault::LinkDeleted, Fault::LinkDown];
    // Without tunnel ends the link is the underlay's, which no agent could repair, or a TUN.
    match way.tunnel {
        Some(_) => ALL,
        None if way.is_tun => OF_TUN,
        None => &ALL[..1],
    }
}

/// A kind of damage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The route to node2's pods is deleted.
    Route,
    /// The FDB entry of node2's tunnel end is deleted.
    Fdb,
    /// The neighbour entry of node2's tunnel end is deleted.
    Neighbour,
    /// The tunnel device is deleted, and all entries with it.
    LinkDeleted,
    /// The tunnel device is set down, at which its routes go.
    LinkDown,
}

impl Fault {
    /// Its name in the report.
    fn name(self, way: &Way) -> String {
        match self {
            Self::Route => format!("{} route deleted", family_name(way.v6)),
            Self::Fdb => format!("{} FDB entry deleted", family_name(way.v6)),
            Self::Neighbour => format!("{} neighbour deleted", family_name(way.v6)),
            Self::LinkDeleted => format!("{} deleted", way.link),
            Self::LinkDown => format!("{} set down", way.link),
        }
    }

    /// The tool and the command that do it.
    pub(crate) fn command(self, way: &Way) -> (Tool, String) {
        let Way { subnet, gateway, link, .. } = way;
        let (mac, node) = way.tunnel.clone().unwrap_or_default();
        match self {
            // Of a route through a next-hop object, the kernel finds no link to compare.
            Self::Route => (Tool::Ip, format!("route del {subnet}")),
            Self::Fdb => (Tool::Bridge, format!("fdb del {mac} dev {link} dst {node}")),
            Self::Neighbour => (Tool::Ip, format!("neigh del {gateway} dev {link}")),
            Self::LinkDeleted => (Tool::Ip, format!("link del {link}")),
            Self::LinkDown => (Tool::Ip, format!("link set {link} down")),
        }
    }

    /// What shows that all is back: routes are the last to be put.
    fn look(self, way: &Way) -> (Tool, String) {
        let Way { subnet, link, .. } = way;
        match self {
            Self::Route => (Tool::Ip, format!("route show {subnet}")),
            Self::Fdb => (Tool::Bridge, format!("fdb show dev {link}")),
            Self::Neighbour => (Tool::Ip, format!("neigh show dev {link} nud permanent")),
            Self::LinkDeleted | Self::LinkDown => (Tool::Ip, "route show".to_owned()),
        }
    }

    /// Does it several times, with pings going on, and waits for the repair each time.
    pub(crate) fn measure(self, lab: &Lab, way: &Way) -> Fallible<Row> {
        let mut row = Row { fault: self.name(way), ..Row::default() };
        let node = lab.node(1).netns();
        let pings = Pings::start(lab, &[way.v6])?;
        for _ in 0..TIMES {
            match self.once(node, way) {
                Ok(time) => row.repairs.push(time),
                Err(error) => {
                    row.problem = Some(error.to_string());
                    break;
                }
            }
            // A repair that lets no packet through is none.
            if let Err(error) = pings.wait_for_replies() {
                row.problem = Some(error.to_string());
                break;
            }
        }
        pings.stop(&mut row);
        Ok(row)
    }

    fn once(self, node: &Netns, way: &Way) -> Fallible<Duration> {
        let state = || -> Fallible<KernelState> {
            let mut state = KernelState::of(node)?.of_link(&way.link);
            // The kernel draws the link-local address of a TUN anew.
            state.addresses.retain(|address| !way.is_tun || !address.contains(" fe80:"));
            Ok(state)
        };
        let before = state()?;
        // New ones each time: the tools keep the links' indexes.
        let mut tools = Tools { ip: Batch::ip(node, way.v6)?, bridge: Batch::bridge(node)? };
        let (tool, look) = self.look(way);
        let healthy = tools.run(tool, &look)?;
        let (damaging, damage) = self.command(way);
        // From before the command: it returns from `link del` only when the agent may be done already.
        let start = Instant::now();
        tools.run(damaging, &damage)?;
        while entries(&tools.run(tool, &look)?) != entries(&healthy) {
            if start.elapsed() > LIMIT {
                return Err(format!("`{damage}` is not repaired after {LIMIT:?}").into());
            }
            sleep(POLL);
        }
        let time = start.elapsed();
        let what = format!("all entries of {} to be as before", way.link);
        wait_for(LIMIT, &what, || {
            let now = state().map_err(|error| error.to_string())?;
            if now == before { Ok(()) } else { Err(format!("before:\n{before}now:\n{now}")) }
        })?;
        Ok(time)
    }
}

/// A tool of iproute2.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tool {
    /// `ip`.
    Ip,
    /// `bridge`.
    Bridge,
}

impl Tool {
    /// A command line of it, as one would type it.
    pub(crate) fn line(self, v6: bool, args: &str) -> String {
        match self {
            Self::Ip if args.starts_with("link ") => format!("ip {args}"),
            Self::Ip => format!("ip {} {args}", flag(v6)),
            Self::Bridge => format!("bridge {args}"),
        }
    }
}

struct Tools {
    ip: Batch,
    bridge: Batch,
}

impl Tools {
    fn run(&mut self, tool: Tool, command: &str) -> Fallible<String> {
        match tool {
            Tool::Ip => self.ip.run(command),
            Tool::Bridge => self.bridge.run(command),
        }
    }
}

/// The entries that a tool shows, without the multicast groups every link has in its FDB, and without the numbers
/// of next-hop objects, which are others after a repair.
fn entries(output: &str) -> BTreeSet<String> {
    output.lines().map(str::trim).filter(|line| !line.starts_with("33:33:")).map(without_number).collect()
}

fn without_number(line: &str) -> String {
    match line.split_once(" nhid ") {
        Some((before, rest)) => format!("{before} {}", rest.split_once(' ').map_or("", |(_, after)| after)),
        None => line.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_compared_in_any_order() {
        let fdb = "33:33:00:00:00:01 dev x self permanent\nb dev x dst 2 self permanent \na\n";
        assert_eq!(entries(fdb), entries("a\nb dev x dst 2 self permanent"));
        let route =
            |number| format!("10.42.2.0/24 nhid {number} via 10.42.2.0 dev flannel.1 proto 102 onlink");
        assert_eq!(entries(&route(7)), entries(&route(8)));
        assert_ne!(entries(&route(7)), entries("10.42.2.0/24 via 10.42.9.0 dev flannel.1 proto 102 onlink"));
    }

    #[test]
    fn without_tunnel_ends_only_routes_are_touched() {
        let tunnel = Some(("02:00:00:00:00:02".to_owned(), "192.168.77.12".to_owned()));
        let link = "flannel.1".to_owned();
        let (subnet, gateway) = ("10.42.2.0/24".to_owned(), "10.42.2.0".to_owned());
        let mut way = Way { v6: false, subnet, gateway, link, tunnel, is_tun: false };
        assert_eq!(of(&way).len(), 5);
        let (tool, command) = Fault::Fdb.command(&way);
        assert_eq!(
            tool.line(false, &command),
            "bridge fdb del 02:00:00:00:00:02 dev flannel.1 dst 192.168.77.12"
        );
        let (tool, command) = Fault::LinkDown.command(&way);
        assert_eq!(tool.line(true, &command), "ip link set flannel.1 down");
        way.tunnel = None;
        assert_eq!(of(&way), [Fault::Route]);
        way.is_tun = true;
        assert_eq!(of(&way), [Fault::Route, Fault::LinkDeleted, Fault::LinkDown]);
    }
}
