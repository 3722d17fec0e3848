//! The entries of peers in the status, and the events. Whenever entries are worked out, those that were not marked are
//! compared with the rule, too (`assert_book_is_right`), in all tests of the loop.

use proptest::prelude::*;

use super::*;
use crate::events::RepairCause;
use crate::status::{PeerState, PeerStatus};

fn key(n: u8) -> String {
    // The last two lie in the subnets of others.
    match n {
        6 => "10.5.2.128-25".to_owned(),
        7 => "10.5.0.0-21".to_owned(),
        n => format!("10.5.{}.0-24", n + 2),
    }
}

fn unreadable(n: u8) -> Lease {
    let lease = lease(&key(n), u64::from(n) + 2);
    Lease { attrs: LeaseAttrs { backend_type: "unreadable".into(), ..lease.attrs }, ..lease }
}

impl Bench {
    fn peer(&self, key: &str) -> Option<PeerStatus> {
        self.status.borrow().peer_list.get(&key.parse().unwrap()).cloned()
    }

    fn state(&self, key: &str) -> String {
        let state = self.peer(key).map(|peer| serde_json::to_value(peer).unwrap()["state"].clone());
        state.map_or("none".to_owned(), |state| state.as_str().unwrap().to_owned())
    }

    /// What happened since the last call.
    fn events(&mut self) -> Vec<NetworkEvent> {
        let mut events = Vec::new();
        while let Some(Some(event)) = self.events.recv().now_or_never() {
            events.push(event);
        }
        events
    }
}

#[tokio::test(start_paused = true)]
async fn each_peer_has_an_entry_that_says_how_it_is() {
    let kernel = FakeKernel::default();
    let link = kernel.add_link("tun0", 1450);
    let bench = bench_on(kernel, link);
    let of = |n: u8| lease(&key(n), u64::from(n) + 2);
    bench.send(LeaseUpdate::Recalled { leases: vec![of(0), of(1), lease(OWN, 1)], saved: 7 });
    bench.told().await;
    assert_eq!(
        [bench.state(&key(0)), bench.state(&key(1)), bench.state(OWN)],
        ["recalled", "recalled", "none"]
    );
    let hooked = route_of(link, &key(3).parse().unwrap()).key();
    bench.kernel.refuse(move |op| (op.key() == hooked).then_some(libc::EPERM));
    bench.snapshot(&[of(0), of(1), of(3), unreadable(4), of(6)]);
    bench.told().await;
    let states = |bench: &Bench| [0, 1, 3, 4, 6].map(|n| bench.state(&key(n)));
    assert_eq!(states(&bench), ["programmed", "programmed", "refused", "rejected", "rejected"]);
    let PeerState::Refused(refused) = bench.peer(&key(3)).unwrap().state else { panic!() };
    assert_eq!((refused.object.key, refused.errno), (hooked, libc::EPERM));
    let programmed = bench.peer(&key(0)).unwrap();
    assert_eq!(programmed.path.v4.as_ref().unwrap().as_str(), "one", "the backend's own way");
    let PeerState::Rejected(rejected) = bench.peer(&key(6)).unwrap().state else { panic!() };
    assert!(rejected.reason.contains("overlaps 10.5.2.0/24") && !rejected.programmed);

    // A record that becomes unreadable leaves its lease programmed.
    bench.send(LeaseUpdate::Unreadable(UnreadableRecord { key: key(1), reason: "unreadable".into() }));
    bench.kernel.refuse_nothing();
    bench.send(LeaseUpdate::Removed(key(6)));
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(states(&bench), ["programmed", "rejected", "programmed", "rejected", "none"]);
    let PeerState::Rejected(rejected) = bench.peer(&key(1)).unwrap().state else { panic!() };
    assert!(rejected.reason.contains("unreadable") && rejected.programmed);
    assert_eq!(bench.peer(&key(0)).unwrap(), programmed, "nothing happened to it");

    // A lease that says something else is dated; its state is what it was.
    bench.send(LeaseUpdate::Put(Lease { created: 99, ..of(0) }));
    bench.told().await;
    let changed = bench.peer(&key(0)).unwrap();
    assert!(changed.changed > programmed.changed);
    assert_eq!(changed, PeerStatus { changed: changed.changed, vteps: changed.vteps, ..programmed });
}

#[tokio::test(start_paused = true)]
async fn what_happens_is_told_as_it_happens() {
    let mut bench = bench();
    bench.snapshot(&[lease("10.5.2.0-24", 2), lease(OWN, 1)]);
    bench.told().await;
    let (lease_2, underlay) = ("10.5.2.0-24".parse().unwrap(), PerFamily::default());
    assert_eq!(bench.events(), [NetworkEvent::PeerAdded { lease: lease_2, underlay }]);

    let route = route_of(bench.link, &lease_2).key();
    bench.kernel.delete(&route, true);
    bench.told().await;
    let named = Some((route, Some("tun0".to_owned())));
    let repaired = |event: &NetworkEvent| match event {
        NetworkEvent::Repaired { objects, object, device: false, cause, .. } => {
            (*objects, object.clone().map(|it| (it.key, it.device)), *cause)
        }
        other => panic!("{other:?}"),
    };
    let events = bench.events();
    assert_eq!(events.iter().map(repaired).collect::<Vec<_>>(), [(1, named.clone(), RepairCause::Announced)]);
    bench.kernel.delete(&route, false);
    tokio::time::sleep(Duration::from_secs(67)).await;
    let events = bench.events();
    assert_eq!(events.iter().map(repaired).collect::<Vec<_>>(), [(1, named.clone(), RepairCause::Resync)]);
    bench.kernel.delete(&route, false);
    bench.kernel.overrun();
    bench.told().await;
    let events = bench.events();
    assert_eq!(events.iter().map(repaired).collect::<Vec<_>>(), [(1, named.clone(), RepairCause::Overrun)]);

    bench.kernel.refuse(move |op| (op.key() == route).then_some(libc::EPERM));
    bench.kernel.delete(&route, true);
    bench.told().await;
    bench.kernel.refuse_nothing();
    tokio::time::sleep(Duration::from_secs(10)).await;
    let events = bench.events();
    let [
        NetworkEvent::ObjectRefused { object, peer, errno, .. },
        NetworkEvent::ObjectAccepted { object: accepted },
    ] = &events[..]
    else {
        panic!("{events:?}")
    };
    assert_eq!((object.key, *peer, *errno), (route, Some(lease_2), libc::EPERM));
    assert_eq!(accepted, object);

    bench.send(LeaseUpdate::Put(unreadable(0)));
    bench.told().await;
    bench.send(LeaseUpdate::Put(lease("10.5.2.0-24", 3)));
    bench.told().await;
    bench.snapshot(&(0..40).map(|n| lease(&format!("10.5.{}.0-24", n + 3), n)).collect::<Vec<_>>());
    bench.told().await;
    let events = bench.events();
    let [
        NetworkEvent::PeerChanged { .. },
        NetworkEvent::LeaseRejected { lease, left_out: 0, .. },
        NetworkEvent::PeerChanged { .. },
        NetworkEvent::LeaseAccepted { lease: accepted },
        NetworkEvent::PeersChanged { added: 40, changed: 0, removed: 1 },
        ..,
    ] = &events[..]
    else {
        panic!("{events:?}")
    };
    assert_eq!((lease.as_str(), *accepted), ("10.5.2.0-24", lease_2));
}

#[derive(Debug, Clone)]
enum Step {
    Put(u8, u64),
    UnreadableData(u8),
    Remove(u8),
    Unreadable(u8),
    Snapshot(Vec<u8>),
    /// Damage to one of the objects of a peer, announced or not.
    Damage(u8, usize, bool),
    Refuse(u8),
    RefuseNothing,
    Overrun,
    LoseDevice,
    GetDevice,
    FailDumps(bool),
    Wait(u64),
}

fn step() -> impl Strategy<Value = Step> {
    let n = || 0..8_u8;
    prop_oneof![
        4 => (n(), 2..5_u64).prop_map(|(n, created)| Step::Put(n, created)),
        1 => n().prop_map(Step::UnreadableData),
        1 => n().prop_map(Step::Remove),
        1 => n().prop_map(Step::Unreadable),
        1 => prop::collection::vec(n(), 0..6).prop_map(Step::Snapshot),
        4 => (n(), 0..3_usize, any::<bool>()).prop_map(|(n, at, told)| Step::Damage(n, at, told)),
        1 => n().prop_map(Step::Refuse),
        1 => Just(Step::RefuseNothing),
        1 => Just(Step::Overrun),
        1 => Just(Step::LoseDevice),
        1 => Just(Step::GetDevice),
        1 => any::<bool>().prop_map(Step::FailDumps),
        3 => (0..400_u64).prop_map(Step::Wait),
        1 => Just(Step::Wait(70_000)),
    ]
}

async fn walk(steps: Vec<Step>) {
    let bench = bench();
    for step in steps {
        match step {
            Step::Put(n, created) => bench.send(LeaseUpdate::Put(lease(&key(n), created))),
            Step::UnreadableData(n) => bench.send(LeaseUpdate::Put(unreadable(n))),
            Step::Remove(n) => bench.send(LeaseUpdate::Removed(key(n))),
            Step::Unreadable(n) => {
                bench.send(LeaseUpdate::Unreadable(UnreadableRecord {
                    key: key(n),
                    reason: "unreadable".into(),
                }));
            }
            Step::Snapshot(all) => {
                bench.snapshot(&all.iter().map(|n| lease(&key(*n), u64::from(*n) + 2)).collect::<Vec<_>>());
            }
            Step::Damage(n, at, told) => {
                let base = subnet(&key(n).replace('-', "/")).base();
                let is_of = |object: &Object| match object {
                    Object::Neighbour(neighbour) => neighbour.addr == base,
                    Object::Route(route) => route.dst.base() == base,
                    Object::Fdb(_) => true,
                    _ => false,
                };
                let objects = bench.kernel.objects();
                let objects: Vec<Object> = objects.iter().filter(is_of).collect();
                if let Some(object) = objects.get(at) {
                    bench.kernel.delete(&object.key(), told);
                }
            }
            Step::Refuse(n) => {
                let dst = subnet(&key(n).replace('-', "/"));
                let is_its = move |key: ObjectKey| matches!(key, ObjectKey::Route(of, _) if of == dst);
                bench.kernel.refuse(move |op| is_its(op.key()).then_some(libc::EPERM));
            }
            Step::RefuseNothing => bench.kernel.refuse_nothing(),
            Step::Overrun => bench.kernel.overrun(),
            Step::LoseDevice => bench.kernel.delete_link("tun0"),
            Step::GetDevice if bench.kernel.link_named("tun0").is_none() => {
                bench.kernel.add_link("tun0", 1450);
            }
            Step::GetDevice => {}
            Step::FailDumps(fails) => bench.kernel.fail_dumps(fails.then_some(libc::EBUSY)),
            Step::Wait(millis) => tokio::time::sleep(Duration::from_millis(millis)).await,
        }
        tokio::time::sleep(Duration::from_micros(10)).await;
    }
    // Nothing is in the way any more, so each is programmed, or contradicts another.
    bench.kernel.refuse_nothing();
    bench.kernel.fail_dumps(None);
    if bench.kernel.link_named("tun0").is_none() {
        bench.kernel.add_link("tun0", 1450);
    }
    tokio::time::sleep(Duration::from_secs(200)).await;
    let status = bench.status.borrow().clone();
    for peer in status.peer_list.iter() {
        let is_fine = matches!(peer.state, PeerState::Programmed | PeerState::Rejected(_));
        assert!(is_fine, "{peer:?}");
    }
    bench.cancel.cancel();
    bench.task.await.unwrap().unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 192, ..ProptestConfig::default() })]

    #[test]
    fn the_increments_are_what_the_rule_says_of_all(steps in prop::collection::vec(step(), 1..40)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
        runtime.unwrap().block_on(walk(steps));
    }
}
