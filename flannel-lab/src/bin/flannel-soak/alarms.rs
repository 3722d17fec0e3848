//! What agents say of peers by their probes: nothing bad of a pair to which nothing happened, and nothing bad for long.

use std::collections::BTreeMap;
use std::time::Instant;

use flannel_lab::wait::wait_for;

use crate::Fallible;
use crate::action::{Touch, Victim};
use crate::lab::{LIMIT, Lab};

/// The log line of a verdict that pods' packets are lost.
const BAD: &str = "peer is not reached";
/// .. of another verdict.
const GOOD: &str = "verdict about a peer changed";
/// .. of many at once, which are not told one by one.
const MANY: &str = "verdicts about many peers changed";

/// How much of each agent's log was looked at.
#[derive(Debug, Default)]
pub(crate) struct Alarms(BTreeMap<u8, usize>);

/// A verdict of a node about another one.
#[derive(Debug, PartialEq, Eq)]
struct Said {
    subnet: String,
    v6: bool,
    is_bad: bool,
}

/// Reads a line of a log; `None` if it is no verdict.
fn said(line: &str) -> Option<Said> {
    let is_bad = line.contains(BAD);
    if !is_bad && !line.contains(GOOD) {
        return None;
    }
    let field = |name: &str| line.split_once(name)?.1.split(' ').next();
    Some(Said { subnet: field("subnet=")?.to_owned(), v6: field("family=")? == "IPv6", is_bad })
}

impl Alarms {
    /// The alarms since the last look about pairs to which nothing happened, a line for each.
    pub(crate) fn false_ones(&mut self, lab: &Lab, touches: &[Touch]) -> Vec<String> {
        let nodes = nodes(lab);
        let mut lines = Vec::new();
        for number in lab.numbers() {
            let log = lab.agent(number).log();
            // An agent that was started again has a log of its own.
            let seen = self.0.insert(number, log.len()).filter(|seen| *seen <= log.len()).unwrap_or(0);
            for line in log.get(seen..).unwrap_or_default().lines() {
                let Some(said) = said(line).filter(|said| said.is_bad) else { continue };
                let Some(peer) = nodes.get(&said.subnet) else { continue };
                if !touches.iter().any(|touch| touch.covers(number, *peer, said.v6)) {
                    lines.push(format!("a false alarm of node{number} about node{peer}: {line}"));
                }
            }
        }
        lines
    }
}

/// Waits until no agent says anything bad of a node that is there.
pub(crate) fn wait_until_quiet(lab: &Lab) -> Fallible<()> {
    let nodes = nodes(lab);
    let start = Instant::now();
    for number in lab.numbers() {
        let limit = LIMIT.saturating_sub(start.elapsed());
        wait_for(limit, &format!("node{number}'s agent to see all nodes reached"), || {
            let log = lab.agent(number).log();
            let mut bad = BTreeMap::new();
            for line in log.lines() {
                if line.contains(MANY) {
                    bad.clear();
                } else if let Some(said) = said(line).filter(|said| nodes.contains_key(&said.subnet)) {
                    bad.insert((said.subnet, said.v6), said.is_bad.then(|| line.to_owned()));
                }
            }
            match bad.into_values().flatten().next() {
                Some(line) => Err(line),
                None => Ok(()),
            }
        })?;
    }
    Ok(())
}

/// The nodes by their leases.
fn nodes(lab: &Lab) -> BTreeMap<String, u8> {
    let key = |number| Some((lab.lease(Victim::Node(number))?.key(), number));
    lab.numbers().filter_map(key).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verdicts_are_read_from_the_log() {
        let bad = "2026 WARN flannel_core::agent::log: peer is not reached subnet=10.5.2.0-24 family=IPv6 verdict=peer dead evidence=\"x\"";
        let good = "2026 INFO x: verdict about a peer changed subnet=10.5.2.0-24 family=IPv4 verdict=reachable evidence=\"\"";
        let subnet = "10.5.2.0-24".to_owned();
        assert_eq!(said(bad), Some(Said { subnet: subnet.clone(), v6: true, is_bad: true }));
        assert_eq!(said(good), Some(Said { subnet, v6: false, is_bad: false }));
        assert_eq!(said("2026 INFO x: peers changed"), None);
    }
}
