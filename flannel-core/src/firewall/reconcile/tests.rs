//! The loop on paused time, with managers that do as they are told.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use futures::FutureExt;
use tokio::sync::Notify;

use super::*;
use crate::firewall::manager::{Plan, Step, Work};

/// What a manager is asked and what it says.
#[derive(Default)]
struct Script {
    /// What comes of the next looks; then nothing is to be done.
    looks: VecDeque<Look>,
    /// When it was looked, and whether anything was wanted.
    asked: Vec<(Duration, bool)>,
}

struct Fake {
    script: Arc<Mutex<Script>>,
    change: Arc<Notify>,
    begin: Instant,
}

#[async_trait]
impl RuleManager for Fake {
    fn name(&self) -> &'static str {
        "fake"
    }

    async fn plan(&mut self, want: &Wanted, _: &Ours) -> Result<Plan, FirewallError> {
        let mut script = self.script.lock().unwrap();
        script.asked.push((self.begin.elapsed(), !want.is_empty()));
        match script.looks.pop_front() {
            Some(Look::Plan(plan)) => Ok(plan),
            Some(Look::Failure) => Err(FirewallError::TimedOut { command: "iptables-restore".to_owned() }),
            None => Ok(Plan::default()),
        }
    }

    async fn apply(&mut self, step: &Step) -> Result<(), FirewallError> {
        assert_eq!(step.commands, ["x"]);
        Ok(())
    }

    async fn changed(&mut self) {
        self.change.notified().await;
    }
}

/// A change, which is only noted. (A real program would not wait for paused time.)
fn change() -> Look {
    let step = Step {
        work: Work::Program { program: "fake", args: Vec::new(), input: String::new() },
        commands: vec!["x".to_owned()],
    };
    Look::Plan(Plan { steps: vec![step], notes: Vec::new() })
}

fn failure() -> Look {
    Look::Failure
}

/// What comes of a look.
enum Look {
    Plan(Plan),
    Failure,
}

struct Bed {
    script: Arc<Mutex<Script>>,
    unused: Arc<Mutex<Script>>,
    change: Arc<Notify>,
    status: watch::Receiver<FirewallStatus>,
    events: FirewallEvents,
    inspector: FirewallInspector,
    cancel: CancellationToken,
    task: tokio::task::JoinHandle<()>,
}

impl Bed {
    fn new(looks: Vec<Look>, unused: Vec<Look>) -> Self {
        let script = |looks: Vec<_>| Arc::new(Mutex::new(Script { looks: looks.into(), asked: Vec::new() }));
        let (script, unused, change) = (script(looks), script(unused), Arc::new(Notify::new()));
        let begin = Instant::now();
        let fake = |script: &Arc<_>| {
            Box::new(Fake { script: Arc::clone(script), change: Arc::clone(&change), begin })
                as Box<dyn RuleManager>
        };
        let managers = Managers::new(Some(fake(&script)), vec![fake(&unused)], "fake");
        let range = crate::firewall::rules::Range {
            network: "10.1.0.0/16".parse().unwrap(),
            subnet: "10.1.1.0/24".parse().unwrap(),
        };
        let ranges = crate::addr::PerFamily { v4: Some(range), v6: None };
        let wanted = Wanted { ranges, masquerade: true, ..Wanted::default() };
        let firewall = Firewall::new(managers, wanted, Ours::Of(Vec::new()));
        let (status, inspector) = (firewall.status(), firewall.inspector());
        let (events, cancel) = (firewall.events(), CancellationToken::new());
        let task = tokio::spawn(firewall.run(cancel.clone()));
        Self { script, unused, change, status, events, inspector, cancel, task }
    }

    /// What happened until now, without durations.
    fn told(&mut self) -> Vec<FirewallEvent> {
        let next = std::iter::from_fn(|| self.events.recv().now_or_never().flatten());
        next.map(|event| match event {
            FirewallEvent::RulesRepaired { changes, cause, .. } => {
                FirewallEvent::RulesRepaired { changes, cause, took: Duration::ZERO }
            }
            event => event,
        })
        .collect()
    }

    fn looks(&self) -> usize {
        self.script.lock().unwrap().asked.len()
    }

    async fn until(&mut self, is: impl FnMut(&FirewallStatus) -> bool) -> FirewallStatus {
        tokio::time::timeout(Duration::from_mins(10), self.status.wait_for(is))
            .await
            .expect("in time")
            .unwrap()
            .clone()
    }

    /// Announces a change and lets the loop look.
    async fn announce(&self) {
        let before = self.looks();
        self.change.notify_one();
        while self.looks() == before {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn looks_when_told_and_once_a_minute_and_ends_when_told() {
    let mut bed = Bed::new(vec![change()], Vec::new());
    let status = bed.until(|status| status.in_place).await;
    assert_eq!(
        (status.repairs, status.manager, &*status.choice),
        (0, Some("fake"), "fake"),
        "the first is no repair"
    );
    bed.announce().await;
    assert_eq!(bed.looks(), 2);
    tokio::time::sleep(Duration::from_secs(50)).await;
    assert_eq!(bed.looks(), 2);
    tokio::time::sleep(Duration::from_secs(20)).await;
    assert_eq!(bed.looks(), 3, "the resync");
    bed.cancel.cancel();
    bed.task.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn the_unused_manager_is_cleared_once_and_only_when_ours_are_in_place() {
    let mut bed = Bed::new(vec![failure(), change()], vec![failure(), change()]);
    assert!(bed.until(|status| status.problem.is_some()).await.problem.unwrap().contains("iptables-restore"));
    assert!(bed.unused.lock().unwrap().asked.is_empty());
    let status = bed.until(|status| status.in_place && !status.notes.is_empty()).await;
    assert!(status.notes[0].contains("may be left"), "{status:?}");
    bed.until(|status| status.problem.is_none()).await;
    bed.announce().await;
    assert_eq!(bed.unused.lock().unwrap().asked.len(), 1, "not with every look");
    let status = bed.until(|status| status.notes.is_empty()).await;
    assert_eq!(status.repairs, 0);
    bed.announce().await;
    let unused = bed.unused.lock().unwrap();
    assert_eq!(unused.asked.len(), 2, "once more after a failure, then never");
    assert!(unused.asked.iter().all(|(_, wanted)| !wanted));
}

/// What happens is told with how it was found; what does not change is told once.
#[tokio::test(start_paused = true)]
async fn each_repair_and_each_problem_is_an_event() {
    let nothing = || Look::Plan(Plan::default());
    let limited = || Look::Plan(Plan { notes: vec!["a rule of others".to_owned()], ..Plan::default() });
    let repaired = |cause| FirewallEvent::RulesRepaired { changes: 1, cause, took: Duration::ZERO };
    let looks =
        vec![change(), change(), change(), failure(), failure(), change(), nothing(), limited(), limited()];
    let mut bed = Bed::new(looks, vec![change()]);
    bed.until(|status| status.in_place).await;
    bed.announce().await;
    let placed = FirewallEvent::RulesInPlace { changes: 1 };
    let removed = FirewallEvent::LeftoverRulesRemoved { manager: "fake" };
    assert_eq!(bed.told(), [placed, removed, repaired(RepairCause::Announced)]);
    bed.until(|status| status.repairs == 2).await;
    assert_eq!(bed.told(), [repaired(RepairCause::Resync)]);
    bed.until(|status| status.problem.is_some()).await;
    bed.until(|status| status.problem.is_none()).await;
    let told = bed.told();
    assert!(
        matches!(&told[0], FirewallEvent::RulesNotReady { reason } if reason.contains("iptables-restore"))
    );
    assert_eq!(told[1..], [repaired(RepairCause::Retry), FirewallEvent::RulesReady]);
    bed.until(|status| !status.notes.is_empty()).await;
    bed.announce().await;
    assert_eq!(bed.told(), [FirewallEvent::RulesLimited { reason: "a rule of others".to_owned() }]);
}

#[tokio::test(start_paused = true)]
async fn a_failure_is_told_tried_again_with_pauses_and_over_when_it_is() {
    let mut bed = Bed::new((0..6).map(|_| failure()).collect(), Vec::new());
    bed.until(|status| status.problem.is_some()).await;
    assert!(!bed.status.borrow().in_place);
    // News don't make it try sooner.
    bed.change.notify_one();
    bed.until(|status| status.in_place && status.problem.is_none()).await;
    let asked: Vec<_> = bed.script.lock().unwrap().asked.iter().map(|(at, _)| *at).collect();
    let pauses: Vec<_> = asked.windows(2).map(|pair| pair[1].saturating_sub(pair[0])).collect();
    assert!(pauses[0] >= Duration::from_millis(375) && pauses[0] <= Duration::from_millis(626), "{pauses:?}");
    assert!(pauses[5] > Duration::from_secs(10) && pauses[5] <= Duration::from_secs(20), "{pauses:?}");
}

#[tokio::test(start_paused = true)]
async fn somebody_who_works_against_us_is_named_and_not_fought_at_full_speed() {
    let mut bed = Bed::new((0..40).map(|_| change()).collect(), Vec::new());
    bed.until(|status| status.in_place).await;
    while bed.status.borrow().problem.is_none() {
        bed.announce().await;
    }
    let status = bed.until(|status| status.problem.is_some()).await;
    assert_eq!(status.repairs, 10);
    assert!(status.problem.unwrap().contains("another program"));
    let before = bed.looks();
    tokio::time::sleep(Duration::from_secs(5)).await;
    bed.change.notify_one();
    assert!(bed.looks() <= before + 1);
    // When the other has stopped, all is as before.
    bed.script.lock().unwrap().looks.clear();
    bed.until(|status| status.problem.is_none()).await;
    bed.announce().await;
}

/// What an operator asks is only read; it is repaired by the next look, which comes right after the answer.
#[tokio::test(start_paused = true)]
async fn a_question_is_answered_by_the_plan_and_changes_nothing() {
    let mut bed = Bed::new(vec![Look::Plan(Plan::default()), change(), failure()], Vec::new());
    bed.until(|status| status.in_place).await;
    let looks = bed.looks();
    let plan = bed.inspector.plan().await.unwrap().unwrap();
    assert_eq!((plan.steps.len(), plan.steps[0].commands.as_slice()), (1, &["x".to_owned()][..]));
    bed.until(|status| status.problem.is_some()).await;
    assert_eq!(
        (bed.looks(), bed.status.borrow().repairs),
        (looks + 2, 0),
        "the answer, and a look that failed"
    );
    bed.cancel.cancel();
    bed.task.await.unwrap();
    assert!(bed.inspector.plan().await.is_none(), "nobody answers any more");
}
