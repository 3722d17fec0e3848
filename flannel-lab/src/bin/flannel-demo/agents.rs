//! What agents go through: sudden death, and nodes that join while they are away.

use std::thread::sleep;
use std::time::{Duration, Instant};

use flannel_lab::kernel_state::KernelState;
use flannel_lab::wait::wait_for;

use crate::Fallible;
use crate::lab::Lab;
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
    if after != before {
        row.problem = Some(format!("the kernel's state changed; before:\n{before}after:\n{after}"));
    }
    Ok(without_loss(row))
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
    let missing = lab.missing_route(1)?;
    if missing.is_none() {
        row.problem = Some(format!("node1 had a route to node{number} with its agent away"));
    }
    let start = Instant::now();
    lab.bed.start(1)?;
    wait_for(LIMIT, &format!("node1 to learn of node{number}"), || match lab.missing_route(1) {
        Ok(None) => Ok(()),
        Ok(Some(subnet)) => Err(format!("no route to {subnet}")),
        Err(error) => Err(error.to_string()),
    })?;
    row.repairs.push(start.elapsed());
    lab.wait_until_ready(1)?;
    pings.stop(&mut row);
    Ok(without_loss(row))
}

/// Lost packets are a problem where nothing was to be lost.
fn without_loss(mut row: Row) -> Row {
    if row.lost > 0 && row.problem.is_none() {
        row.problem = Some(format!("{} pings lost, none may be", row.lost));
    }
    row
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loss_is_a_problem() {
        assert_eq!(without_loss(Row { sent: 5, ..Row::default() }).problem, None);
        let lossy = without_loss(Row { sent: 5, lost: 1, ..Row::default() });
        assert_eq!(lossy.problem.as_deref(), Some("1 pings lost, none may be"));
    }
}
