//! What agents go through: sudden death, and nodes that join while they are away.

use std::thread::sleep;
use std::time::{Duration, Instant};

use flannel_lab::kernel_state::KernelState;
use flannel_lab::wait::wait_for;

use crate::Fallible;
use crate::lab::{Lab, OF_UDP};
use crate::pings::Pings;
use crate::report::{LIMIT, Row};

/// How long a killed agent stays away, and how long the new one is watched.
const PAUSE: Duration = Duration::from_secs(1);

/// Kills the agent of node1 and starts it again: nothing in the kernel may change, no packet be lost.
pub(crate) fn kill(lab: &mut Lab) -> Fallible<Row> {
    let mut row = Row { fault: "agent killed and started again".into(), ..Row::default() };
    let before = KernelState::of(lab.node(1).netns())?;
    let pings = Pings::start(lab, &lab.families())?;
    lab.bed.agent(1).kill()?;
    sleep(PAUSE);
    let start = Instant::now();
    lab.bed.start(1)?;
    lab.wait_until_ready(1)?;
    row.repairs.push(start.elapsed());
    sleep(PAUSE);
    pings.stop(&mut row);
    let after = KernelState::of(lab.node(1).netns())?;
    // The TUN goes with the agent of udp, and the next one makes another.
    if after != before && !lab.is_udp() {
        row.problem = Some(format!("the kernel's state changed; before:\n{before}after:\n{after}"));
    }
    Ok(without_loss(row, lab))
}

/// Stops the agent of node1, lets a node join, and starts it: it learns of the new node.
pub(crate) fn miss_a_node(lab: &mut Lab) -> Fallible<Row> {
    let mut row = Row { fault: "node joined while the agent was away".into(), ..Row::default() };
    let pings = Pings::start(lab, &lab.families())?;
    lab.bed.agent(1).terminate()?;
    let number = lab.bed.cluster.add_node()?.number();
    lab.bed.start(number)?;
    lab.wait_until_ready(number)?;
    lab.attach_pod(number)?;
    if !lab.is_udp() && lab.missing_route(1)?.is_none() {
        row.problem = Some(format!("node1 had a route to node{number} with its agent away"));
    }
    let start = Instant::now();
    lab.bed.start(1)?;
    wait_for(LIMIT, &format!("node1 to learn of node{number}"), || lab.knows_all(1))?;
    row.repairs.push(start.elapsed());
    lab.wait_until_ready(1)?;
    pings.stop(&mut row);
    Ok(without_loss(row, lab))
}

/// Lost packets are a problem where nothing was to be lost.
fn without_loss(row: Row, lab: &Lab) -> Row {
    judged(Row { tolerated: lab.is_udp().then_some(OF_UDP), ..row })
}

fn judged(mut row: Row) -> Row {
    if row.lost > 0 && row.problem.is_none() && row.tolerated.is_none() {
        row.problem = Some(format!("{} pings lost, none may be", row.lost));
    }
    row
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loss_is_a_problem() {
        assert_eq!(judged(Row { sent: 5, ..Row::default() }).problem, None);
        let lossy = Row { sent: 5, lost: 1, ..Row::default() };
        assert_eq!(judged(lossy.clone()).problem.as_deref(), Some("1 pings lost, none may be"));
        assert_eq!(judged(Row { tolerated: Some(OF_UDP), ..lossy }).problem, None);
    }
}
