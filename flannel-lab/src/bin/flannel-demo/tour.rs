//! The steps of the demo, in order.

use std::path::Path;
use std::process::ExitCode;

use flannel_lab::LabError;

use crate::lab::{Lab, store};
use crate::matrix::Matrix;
use crate::options::Options;
use crate::report::Report;
use crate::screen::{Screen, Style};
use crate::way::Way;
use crate::{Fallible, agents, faults, keep, leases};

/// How many lines of a log are shown when something went wrong.
const LAST_LINES: usize = 8;
/// And of how many agents.
const LOGS: usize = 4;
/// How many routes are shown.
const ROUTES: usize = 12;

/// Runs it all, inside the sandbox.
pub(crate) fn run(options: &Options, flanneld: &Path, screen: &Screen) -> Fallible<ExitCode> {
    let user = if keep::is_user_sandbox() { "user, " } else { "" };
    screen.step("sandbox", &format!("new {user}mount, network and pid namespaces; all goes with them"));
    let lab = Lab::new(options.nodes, options.families, &options.backend.to_lowercase(), flanneld)?;
    let (verbose, watches) = (options.verbose, options.watch);
    let mut tour = Tour { lab, screen, verbose, watches, logged: 0, report: Report::default() };
    let code = match tour.run() {
        Ok(()) => tour.conclude(),
        Err(error) => {
            screen.error(error.as_ref());
            // This one brings its log along.
            let has_log = matches!(error.downcast_ref(), Some(LabError::Ended { .. }));
            if !has_log {
                tour.show_logs();
            }
            ExitCode::FAILURE
        }
    };
    if options.keep {
        keep::until_interrupted(&tour.lab, screen)?;
    }
    Ok(code)
}

struct Tour<'a> {
    lab: Lab,
    screen: &'a Screen,
    verbose: bool,
    /// Whether the status of node1's agent is shown while damage is done.
    watches: bool,
    /// How much of node1's log was shown.
    logged: usize,
    report: Report,
}

impl Tour<'_> {
    fn run(&mut self) -> Fallible<()> {
        self.start()?;
        self.show_state()?;
        for number in self.numbers() {
            self.lab.attach_pod(number)?;
        }
        self.screen.step("pods", "one on every node, by a veth pair to its bridge cni0");
        self.pings()?;
        if self.watches {
            let (screen, status) = (self.screen, self.lab.status());
            status.show_while(screen, || self.faults())?;
        } else {
            self.faults()?;
        }
        self.pings()
    }

    fn start(&mut self) -> Fallible<()> {
        let numbers = self.numbers();
        let (first, last) = (numbers.first().copied(), numbers.last().copied());
        let nodes = format!("node{} to node{}", first.unwrap_or_default(), last.unwrap_or_default());
        self.screen.step("nodes", &format!("{nodes}, namespaces on one underlay bridge of MTU 1500"));
        let config = self.lab.write_config()?;
        self.screen.step("config", &format!("in {}", store().join("config").display()));
        self.screen.block(&config);
        for number in &numbers {
            self.lab.bed.start(*number)?;
        }
        for number in &numbers {
            self.lab.wait_until_ready(*number)?;
        }
        self.lab.wait_for_routes()?;
        let what = format!("{} ready, every node has routes to all others", numbers.len());
        self.screen.step("agents", &what);
        self.show_new_lines();
        Ok(())
    }

    fn show_state(&mut self) -> Fallible<()> {
        let leases = leases::read(&store())?;
        self.screen.step("leases", &format!("in {}", store().join("subnets").display()));
        let nodes = self.lab.bed.cluster.nodes();
        let names = nodes.flat_map(|node| {
            let addresses = node.ipv4().into_iter().chain(node.ipv6());
            addresses.map(|address| (address.to_string(), node.number()))
        });
        let names = names.collect::<std::collections::BTreeMap<_, _>>();
        self.screen.block(&leases::show(&leases, |node| names.get(node).copied()));

        self.screen.step("subnets", "what node1's agent wrote for the CNI plugin");
        self.screen.block(&std::fs::read_to_string(self.lab.bed.subnet_file(1))?);

        self.screen.step("routes", "of node1 to the other nodes' pods");
        let node = self.lab.node(1).netns();
        let routes = [node.ip("-4 route show")?, node.ip("-6 route show")?].concat();
        let ours = routes.lines().filter(|line| line.contains(" via ") && !line.starts_with("default"));
        let ours = ours.collect::<Vec<_>>();
        self.screen.block(&ours[..ours.len().min(ROUTES)].join("\n"));
        if ours.len() > ROUTES {
            self.screen.block(&format!("... and {} more", ours.len() - ROUTES));
        }
        Ok(())
    }

    fn pings(&mut self) -> Fallible<()> {
        self.lab.pin_underlay()?;
        for v6 in self.lab.families() {
            let matrix = Matrix::measure(&self.lab, v6)?;
            let style = if matrix.is_complete() { Style::Good } else { Style::Bad };
            self.screen.step("pings", &self.screen.paint(style, &matrix.headline()));
            self.screen.block(&matrix.show());
            if !matrix.is_complete() {
                self.report.matrices.push(matrix.headline());
            }
        }
        Ok(())
    }

    fn faults(&mut self) -> Fallible<()> {
        self.screen.step("faults", "on node1, with pings from its pod to that of node2 every millisecond");
        if self.lab.is_udp() {
            self.screen.block(
                "udp carries packets in the agent itself: while its TUN or the agent is away they are lost.\nA restart \
                 without loss, which vxlan and host-gw have, is not promised here.",
            );
        }
        for v6 in self.lab.families() {
            let way = Way::find(&self.lab, v6)?;
            for fault in faults::of(&way) {
                let (tool, command) = fault.command(&way);
                self.screen.step("damage", &tool.line(v6, &command));
                let row = fault.measure(&self.lab, &way)?;
                self.note(row);
            }
        }
        self.screen.step("damage", "the agent is killed with SIGKILL, and started again a second later");
        let row = agents::kill(&mut self.lab)?;
        self.logged = 0;
        self.note(row);
        self.screen.step("damage", "the agent is stopped, a node joins, the agent is started");
        let row = agents::miss_a_node(&mut self.lab)?;
        self.logged = 0;
        self.note(row);
        Ok(())
    }

    fn note(&mut self, row: crate::report::Row) {
        self.screen.step("repaired", &row.headline());
        if self.watches && !self.screen.is_terminal() {
            self.screen.block(&self.lab.status().table());
        }
        self.report.rows.push(row);
        self.show_new_lines();
    }

    /// The summary and the verdict.
    fn conclude(&self) -> ExitCode {
        let problems = self.report.problems();
        self.screen.step("summary", "");
        self.screen.block(&self.report.show());
        self.screen.line(
            "\n    repaired: median, from the moment the damaging command is given until a look shows the old\n    \
             \x20         state again, a look every 0.2 ms; of an agent: from its start until it is done\n    \
             outage:   the longest time without an answer, of pings a millisecond apart\n",
        );
        if problems.is_empty() {
            self.screen.line(&self.screen.paint(Style::Good, "All pings answered, all damage repaired."));
            return ExitCode::SUCCESS;
        }
        self.show_logs();
        for problem in problems {
            self.screen.line(&self.screen.paint(Style::Bad, &format!("FAILED: {problem}")));
        }
        ExitCode::FAILURE
    }

    fn numbers(&self) -> Vec<u8> {
        self.lab.bed.cluster.nodes().map(flannel_lab::node::Node::number).collect()
    }

    /// With `--verbose`, what node1's agent wrote since the last time.
    fn show_new_lines(&mut self) {
        let Some(agent) = self.lab.bed.agents().into_iter().next().filter(|_| self.verbose) else { return };
        let log = agent.log();
        if self.logged == 0 {
            let path = agent.log_path().display().to_string();
            self.screen.block(&self.screen.paint(Style::Dim, &format!("log of node1's agent: {path}")));
        }
        for line in log.lines().skip(self.logged) {
            self.screen.block(&self.screen.paint(Style::Dim, line));
        }
        self.logged = log.lines().count();
    }

    fn show_logs(&self) {
        for agent in self.lab.bed.agents().into_iter().take(LOGS) {
            let log = agent.log();
            let lines = log.lines().collect::<Vec<_>>();
            self.screen.line(&format!("the end of {}'s log:", agent.name()));
            self.screen.block(&lines[lines.len().saturating_sub(LAST_LINES)..].join("\n"));
        }
    }
}
