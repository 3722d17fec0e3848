use flannel_core::addr::PerFamily;
use proptest::prelude::*;

use super::*;

fn key(n: u8) -> LeaseKey {
    format!("10.5.{n}.0-24").parse().unwrap()
}

fn input(data: &str) -> Input {
    Input { values: Values::default(), data: data.to_owned() }
}

fn nodes(nodes: &[(u8, &str)]) -> BTreeMap<LeaseKey, Input> {
    nodes.iter().map(|(n, data)| (key(*n), input(data))).collect()
}

/// Runs all commands that can be run, and returns them in words.
fn run(table: &mut Table, result: Result<(), &str>) -> Vec<String> {
    let mut done = Vec::new();
    while let Some(job) = table.start() {
        done.push(format!("{:?} {} {}", job.action, job.lease, job.input.data));
        table.ended(job.lease, result.map_err(str::to_owned), Instant::now());
    }
    done
}

fn prune(table: &mut Table) {
    table.prune(&|_| false);
}

#[tokio::test(start_paused = true)]
async fn a_node_is_added_once_and_again_when_it_publishes_something_else() {
    let mut table = Table::default();
    table.desire_all(nodes(&[(1, "a"), (2, "b")]), None);
    assert_eq!(table.work_for(&key(1)), PeerWork::Pending);
    assert_eq!(run(&mut table, Ok(())), ["Add 10.5.1.0-24 a", "Add 10.5.2.0-24 b"]);
    assert_eq!((table.work_for(&key(1)), table.changed()), (PeerWork::Done, vec![key(1), key(2)]));
    table.desire_all(nodes(&[(1, "a"), (2, "c")]), None);
    assert_eq!(run(&mut table, Ok(())), ["Add 10.5.2.0-24 c"]);
    table.add_again(None);
    assert_eq!(run(&mut table, Ok(())).len(), 2, "another command");
}

#[tokio::test(start_paused = true)]
async fn a_node_is_removed_with_what_it_had_once_it_is_known_to_be_gone() {
    let mut table = Table::default();
    table.desire_all(nodes(&[(1, "a")]), None);
    run(&mut table, Ok(()));
    table.desire_all(nodes(&[]), None);
    assert_eq!(run(&mut table, Ok(())), [""; 0], "nothing says that it is gone for good");
    table.prune(&|lease| *lease == key(1));
    assert_eq!(run(&mut table, Ok(())), [""; 0], "its record is unreadable");
    table.desire_all(nodes(&[(1, "a")]), None);
    prune(&mut table);
    assert_eq!(run(&mut table, Ok(())), [""; 0], "it is back, and nothing happened");
    table.desire_all(nodes(&[]), None);
    prune(&mut table);
    assert_eq!(run(&mut table, Ok(())), ["Remove 10.5.1.0-24 a"]);
    prune(&mut table);
    assert!(run(&mut table, Ok(())).is_empty() && table.tasks.is_empty(), "{table:?}");
}

#[tokio::test(start_paused = true)]
async fn nodes_of_an_earlier_run_are_added_again_or_removed() {
    let mut table = Table::remembering(nodes(&[(1, "a"), (2, "b")]));
    table.desire_all(nodes(&[(1, "a")]), None);
    assert_eq!(run(&mut table, Ok(())), ["Add 10.5.1.0-24 a"]);
    prune(&mut table);
    assert_eq!(run(&mut table, Ok(())), ["Remove 10.5.2.0-24 b"]);
}

#[tokio::test(start_paused = true)]
async fn a_failure_is_shown_and_tried_again_later_and_later() {
    let mut table = Table::default();
    table.desire_all(nodes(&[(1, "a")]), None);
    let mut delays = Vec::new();
    for _ in 0..4 {
        assert_eq!(run(&mut table, Err("no")), ["Add 10.5.1.0-24 a"]);
        assert_eq!(table.work_for(&key(1)), PeerWork::Failed { reason: "no".into(), in_force: false });
        let due = table.due().unwrap();
        table.wake(Instant::now());
        assert!(!table.is_ready());
        delays.push(due - Instant::now());
        tokio::time::advance(due - Instant::now()).await;
        table.wake(Instant::now());
    }
    assert!(delays.is_sorted(), "{delays:?}");
    assert_eq!(table.failures(Action::Add).collect::<Vec<_>>(), [(key(1), "no")]);
    assert_eq!(run(&mut table, Ok(())), ["Add 10.5.1.0-24 a"]);
    assert_eq!((table.work_for(&key(1)), table.failures(Action::Add).count()), (PeerWork::Done, 0));

    table.desire_all(nodes(&[(1, "b")]), None);
    run(&mut table, Err("no"));
    assert_eq!(table.work_for(&key(1)), PeerWork::Failed { reason: "no".into(), in_force: true });
    table.desire_all(nodes(&[(1, "c")]), None);
    assert_eq!(run(&mut table, Ok(())), ["Add 10.5.1.0-24 c"], "other values need not wait");
    assert_eq!(table.due(), None);

    table.desire_all(nodes(&[]), None);
    prune(&mut table);
    assert_eq!(run(&mut table, Err("no")), ["Remove 10.5.1.0-24 c"]);
    assert_eq!(table.failures(Action::Remove).collect::<Vec<_>>(), [(key(1), "no")]);
    tokio::time::advance(Duration::from_secs(2)).await;
    table.wake(Instant::now());
    assert_eq!(run(&mut table, Ok(())), ["Remove 10.5.1.0-24 c"]);
    assert!(run(&mut table, Ok(())).is_empty() && table.tasks.is_empty() && table.failed.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_node_that_fails_to_be_added_and_leaves_is_removed() {
    let mut table = Table::default();
    table.desire_all(nodes(&[(1, "a")]), None);
    run(&mut table, Err("half done"));
    table.desire_all(nodes(&[]), None);
    prune(&mut table);
    assert_eq!(run(&mut table, Ok(())), ["Remove 10.5.1.0-24 a"]);
}

#[tokio::test(start_paused = true)]
async fn commands_of_one_node_never_overlap() {
    let mut table = Table::default();
    table.desire_all(nodes(&[(1, "a")]), None);
    let add = table.start().unwrap();
    table.desire_all(nodes(&[]), None);
    prune(&mut table);
    assert_eq!(table.start(), None, "it is still being added");
    table.desire_all(nodes(&[(1, "b")]), None);
    assert_eq!(table.start(), None);
    table.ended(add.lease, Ok(()), Instant::now());
    assert_eq!(run(&mut table, Ok(())), ["Add 10.5.1.0-24 b"]);
}

#[tokio::test(start_paused = true)]
async fn this_nodes_own_values_stand_apart() {
    let mut table = Table::default();
    table.was_added(key(9), input("own"));
    table.desire_all(nodes(&[(1, "a")]), Some(key(9)));
    prune(&mut table);
    assert_eq!(run(&mut table, Ok(())), ["Add 10.5.1.0-24 a"]);
    table.add_again(Some(key(9)));
    assert_eq!(run(&mut table, Ok(())), ["Add 10.5.1.0-24 a"]);
    table.desire(key(9), input("new"));
    assert_eq!(run(&mut table, Ok(())), ["Add 10.5.9.0-24 new"]);
}

#[derive(Debug, Clone)]
enum Step {
    Desire(Vec<(u8, u8)>),
    Prune(bool),
    Start,
    End(bool),
    Wait,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => prop::collection::vec((0..3_u8, 0..2_u8), 0..3).prop_map(Step::Desire),
        2 => any::<bool>().prop_map(Step::Prune),
        4 => Just(Step::Start),
        4 => any::<bool>().prop_map(Step::End),
        2 => Just(Step::Wait),
    ]
}

proptest! {
    /// Whatever happens, in the end exactly the desired nodes are there, each with its present values.
    #[test]
    fn it_ends_with_what_is_desired(steps in prop::collection::vec(step(), 0..40)) {
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let mut table = Table::default();
            let (mut running, mut there, mut desired) = (Vec::<Job>::new(), BTreeMap::new(), BTreeMap::new());
            let end = |table: &mut Table, there: &mut BTreeMap<_, _>, job: Job, ok: bool| {
                match (ok, job.action) {
                    (true, Action::Add) => _ = there.insert(job.lease, job.input.data),
                    (true, Action::Remove) => _ = there.remove(&job.lease),
                    // A command that fails may have done half of its work.
                    (false, _) => _ = there.insert(job.lease, "half".to_owned()),
                }
                table.ended(job.lease, if ok { Ok(()) } else { Err("no".to_owned()) }, Instant::now());
            };
            for step in steps {
                match step {
                    Step::Desire(list) => {
                        desired = list.into_iter().map(|(n, data)| (key(n), input(&data.to_string()))).collect();
                        table.desire_all(desired.clone(), None);
                    }
                    Step::Prune(some) => table.prune(&|lease| some && *lease == key(1)),
                    Step::Start => running.extend(table.start()),
                    Step::End(ok) if !running.is_empty() => end(&mut table, &mut there, running.remove(0), ok),
                    Step::End(_) => {}
                    Step::Wait => {
                        tokio::time::advance(Duration::from_mins(7)).await;
                        table.wake(Instant::now());
                    }
                }
                let mut leases: Vec<LeaseKey> = running.iter().map(|job| job.lease).collect();
                leases.dedup();
                assert_eq!(leases.len(), running.len(), "one command of a node at a time");
            }
            for _ in 0..4 {
                prune(&mut table);
                for job in running.drain(..) {
                    end(&mut table, &mut there, job, true);
                }
                while let Some(job) = table.start() {
                    end(&mut table, &mut there, job, true);
                }
                tokio::time::advance(Duration::from_mins(7)).await;
                table.wake(Instant::now());
            }
            let want: BTreeMap<_, _> = desired.into_iter().map(|(lease, it)| (lease, it.data)).collect();
            assert_eq!(there, want);
            assert!(table.failed.is_empty() && table.waiting.is_empty() && table.tasks.len() == want.len());
            assert!(want.keys().all(|lease| table.work_for(lease) == PeerWork::Done));
        });
    }
}

/// The families are not of interest here.
#[test]
fn inputs_differ_by_values_and_by_data() {
    let other =
        Values { subnets: PerFamily { v4: "10.5.1.0/24".parse().ok(), v6: None }, ..Values::default() };
    assert_ne!(input("a"), Input { values: other, data: "a".to_owned() });
}
