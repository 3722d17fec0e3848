//! A round: its actions at once, then the wait until all is well, then the account.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{scope, sleep};
use std::time::{Duration, Instant};

use crate::Fallible;
use crate::act::perform;
use crate::action::{Action, Kind, Touch};
use crate::alarms::{self, Alarms};
use crate::foreign;
use crate::lab::{LIMIT, Lab};
use crate::pings::{Loss, Pings};
use crate::report::{Journal, Report};

/// Between two looks at those whom a round does not concern.
const GLANCE: Duration = Duration::from_millis(200);

/// Runs one, after the one with the actions `before`. An error is a violation, or the lab itself failed.
pub(crate) fn run(
    lab: &Lab,
    actions: &[Action],
    before: &[Action],
    pings: &mut Pings,
    alarms: &mut Alarms,
    journal: &Journal,
    report: &mut Report,
) -> Fallible<()> {
    let start = Instant::now();
    let over = AtomicBool::new(false);
    // When the store answers again; recovery can't be expected before.
    let store_back = Mutex::new(start);
    let results = scope(|scope| {
        let threads = actions.iter().map(|action| {
            let store_back = &store_back;
            scope.spawn(move || one(lab, action, actions, journal, store_back))
        });
        let threads = threads.collect::<Vec<_>>();
        let bystanders = scope.spawn(|| watch_bystanders(lab, actions, &over));
        let results = threads.into_iter().map(|thread| thread.join().expect("no action panics"));
        let mut results = results.collect::<Vec<_>>();
        over.store(true, Ordering::Relaxed);
        results.push(bystanders.join().expect("no look panics").map(|()| None));
        results
    });
    let mut failures = Vec::new();
    for (result, action) in results.into_iter().zip(actions.iter().map(Some).chain([None])) {
        match (result, action) {
            (Ok(Some(time)), Some(action)) => report.converged(action.kind, time),
            (Ok(_), Some(action)) => report.done(action.kind),
            (Ok(_), None) => {}
            (Err(error), Some(action)) => failures.push(format!("after \"{action}\": {error}")),
            (Err(error), None) => failures.push(error.to_string()),
        }
    }
    if !failures.is_empty() {
        return Err(failures.join("\n").into());
    }
    for action in actions.iter().filter(|action| action.kind == Kind::AddressReuse) {
        action.node.map_or(Ok(()), |node| pings.renew(lab, node))?;
    }
    settle(lab, actions, pings, journal)?;
    // The next ones first: there is no moment without.
    let next = Pings::start(lab)?;
    let (sent, losses) = std::mem::replace(pings, next).stop();
    // With a datapath of the agent's no kernel shows whether a node has heard of another's record that was changed and put back,
    // so that may be yet to come.
    let late = before.iter().filter(|action| lab.backend.is_in_agent() && action.kind.meddles());
    let touches = actions.iter().chain(late).filter_map(|action| action.touches(lab.backend));
    let touches = touches.collect::<Vec<_>>();
    // What was said after the end of the last round may be about that.
    let earlier =
        before.iter().filter_map(|action| action.touches(lab.backend)).chain(touches.iter().copied());
    let false_alarms = alarms.false_ones(lab, &earlier.collect::<Vec<_>>());
    let (without_cause, mut lines) = unexplained(&touches, &losses);
    report.pings(sent, losses.iter().map(|loss| loss.report.lost).sum(), without_cause);
    report.alarms(false_alarms.len());
    lines.extend(false_alarms);
    if !lines.is_empty() {
        return Err(lines.join("\n").into());
    }
    journal.note(format!("all well after {:.1} s", start.elapsed().as_secs_f64()));
    Ok(())
}

/// One action and its time to recovery, counted from the end of its cause, where it can be told from others'.
fn one(
    lab: &Lab,
    action: &Action,
    all: &[Action],
    journal: &Journal,
    store_back: &Mutex<Instant>,
) -> Fallible<Option<Duration>> {
    sleep(action.after);
    journal.note(action.to_string());
    // A node whose record is changed by somebody concerns all.
    let is_calm = |number: &u8| !all.iter().any(|other| other.kind.meddles() || other.node == Some(*number));
    perform(lab, action, &lab.numbers().filter(is_calm).collect::<Vec<_>>())?;
    let end = Instant::now();
    if action.kind.stops_store() {
        *store_back.lock().expect("nobody panics with it") = end;
    }
    // Where somebody else's fault lasts, this one's recovery says nothing.
    let others = all.iter().filter(|other| *other != action).filter_map(|other| other.node);
    let others = others.collect::<Vec<_>>();
    let concerned: Vec<u8> = match action.node {
        Some(node) if !action.writes() => vec![node],
        _ => lab.numbers().filter(|number| !others.contains(number)).collect(),
    };
    // A fault of the store that begins later may still delay it.
    let longest = all.iter().map(|other| other.after + other.hold).max().unwrap_or_default();
    if action.kind.meddles() || action.kind.is_alone() {
        lab.wait_for_store(LIMIT + longest)?;
    }
    let back = lab.wait_for_model(&concerned, end + LIMIT + longest)?;
    if let Some(node) = action.node {
        lab.wait_until_ready(node, LIMIT + longest)?;
    }
    let since = end.max(*store_back.lock().expect("nobody panics with it"));
    let time = back.saturating_duration_since(since);
    journal.note(format!("    well {} ms after: {action}", time.as_millis()));
    // A node that also waited for the store, or for the last of many writes, tells of two causes.
    let is_cause = |other: &Action| other.kind.stops_store() || other.kind == Kind::Burst;
    let others = || all.iter().filter(|other| *other != action);
    Ok((!concerned.is_empty() && !others().any(is_cause)).then_some(time))
}

/// Looks at nodes that nothing happens to: their kernels must not change for a moment.
fn watch_bystanders(lab: &Lab, actions: &[Action], over: &AtomicBool) -> Fallible<()> {
    if actions.iter().any(Action::writes) {
        return Ok(());
    }
    let touched = actions.iter().filter_map(|action| action.node).collect::<Vec<_>>();
    let numbers = lab.numbers().filter(|number| !touched.contains(number)).collect::<Vec<_>>();
    while !over.load(Ordering::Relaxed) {
        for number in &numbers {
            if let Some(deviation) = lab.deviation(*number)? {
                return Err(format!("nothing happened to it, and still {deviation}").into());
            }
        }
        sleep(GLANCE);
    }
    Ok(())
}

/// Waits until all of it is well, whoever had to do with it, and checks what must never have changed.
fn settle(lab: &Lab, actions: &[Action], pings: &Pings, journal: &Journal) -> Fallible<()> {
    let numbers = lab.numbers().collect::<Vec<_>>();
    if actions.iter().any(|action| action.kind.meddles() || action.kind == Kind::Restored) {
        // What a node has not heard of yet it shows as little as what it has got over.
        lab.wait_for_store(LIMIT)?;
        lab.beat()?;
    }
    lab.wait_for_model(&numbers, Instant::now() + LIMIT)?;
    numbers.iter().try_for_each(|number| lab.wait_until_ready(*number, LIMIT))?;
    journal.note("    all kernels equal the model, all agents are ready");
    pings.wait_for_replies()?;
    journal.note("    all pairs have replies");
    alarms::wait_until_quiet(lab)?;
    journal.note("    no agent says that a node is not reached");
    // Once more, all at one time: nothing that was repaired may have gone wrong again meanwhile.
    for number in &numbers {
        if let Some(deviation) = lab.deviation(*number)? {
            return Err(format!("it was well before, and now {deviation}").into());
        }
        let is_taken = |action: &Action| action.node == Some(*number) && action.takes_foreign();
        let was_taken = actions.iter().any(is_taken);
        if let Some(missing) =
            foreign::missing(lab.node(*number).netns(), lab.backend, &lab.families(), !was_taken)?
        {
            return Err(missing.into());
        }
        if was_taken {
            foreign::put(lab.node(*number).netns(), lab.backend, &lab.families())?;
        }
    }
    match lab.store_deviation()? {
        Some(deviation) => Err(deviation.into()),
        None => Ok(()),
    }
}

/// Pings that were lost by somebody to whom nothing happened: how many, and a line for each pair.
pub(crate) fn unexplained(touches: &[Touch], losses: &[Loss]) -> (u64, Vec<String>) {
    let unexplained =
        losses.iter().filter(|loss| !touches.iter().any(|one| one.covers(loss.a, loss.b, loss.v6)));
    let mut count = 0;
    let lines = unexplained.map(|Loss { a, b, v6, report, .. }| {
        let family = if *v6 { 6 } else { 4 };
        let (lost, sent) = (report.lost, report.sent);
        count += lost;
        let outages = report.outages.iter().take(5).map(|outage| {
            format!("{} from {:.2} s on for {:?}", outage.lost, outage.began.as_secs_f64(), outage.lasted)
        });
        let outages = outages.collect::<Vec<_>>().join("; ");
        let error = report.last_error.as_deref().unwrap_or("no error");
        format!("node{a} to node{b} lost {lost} of {sent} pings over IPv{family} without a cause: {outages}; {error}")
    });
    let lines = lines.collect();
    (count, lines)
}

#[cfg(test)]
mod tests {
    use flannel_lab::ping::PingReport;

    use super::*;

    #[test]
    fn only_losses_without_a_cause_are_violations() {
        let report = |lost| PingReport {
            sent: 100,
            received: 100 - lost,
            lost,
            duplicates: 0,
            rtt: None,
            outages: Vec::new(),
            last_error: None,
        };
        let losses = [(1, 2, 3), (2, 3, 5), (3, 4, 7)].map(|(a, b, lost)| Loss {
            a,
            b,
            v6: true,
            start: Instant::now(),
            report: report(lost),
        });
        let touch = Touch { node: 2, peer: None, v6: Some(true) };
        let (count, lines) = unexplained(&[touch], &losses);
        assert_eq!((count, lines.len()), (7, 1));
        assert!(lines[0].starts_with("node3 to node4 lost 7 of 100 pings over IPv6"), "{}", lines[0]);
        assert_eq!(unexplained(&[Touch { v6: None, node: 3, ..touch }, touch], &losses), (0, Vec::new()));
    }
}
