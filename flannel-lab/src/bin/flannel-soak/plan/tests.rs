use super::*;

fn setting(backend: Backend) -> Setting {
    Setting { backend, store: StoreChoice::Etcd, families: vec![false, true], nodes: 4, phantoms: 100 }
}

fn rounds(seed: u64, count: usize) -> Vec<Vec<Action>> {
    rounds_on(StoreChoice::Etcd, seed, count)
}

fn rounds_on(store: StoreChoice, seed: u64, count: usize) -> Vec<Vec<Action>> {
    let mut planner = Planner::new(seed, Setting { store, ..setting(Backend::Vxlan) });
    assert_eq!(planner.first().len(), 100);
    (0..count).map(|_| planner.round()).collect()
}

#[test]
fn the_same_seed_gives_the_same_actions() {
    assert_eq!(rounds(7, 200), rounds(7, 200));
    assert_ne!(rounds(7, 20), rounds(8, 20));
}

#[test]
fn every_kind_comes_and_nothing_collides() {
    for (store, count) in [(StoreChoice::Etcd, 21), (StoreChoice::Kube, 29)] {
        every_kind_of(store, count);
    }
}

fn every_kind_of(store: StoreChoice, count: usize) {
    let mut kinds = BTreeSet::new();
    let mut overlapping = 0;
    for round in rounds_on(store, 1, 2000) {
        assert!((1..=3).contains(&round.len()));
        overlapping += usize::from(round.len() > 1);
        kinds.extend(round.iter().map(|action| action.kind));
        let nodes = round.iter().filter_map(|action| action.node).collect::<Vec<_>>();
        assert_eq!(nodes.iter().collect::<BTreeSet<_>>().len(), nodes.len(), "{round:?}");
        let of_store =
            |action: &&Action| action.kind.stops_store() || (action.writes() && !action.kind.meddles());
        let store = round.iter().filter(of_store).count();
        assert!(store <= 1, "{round:?}");
        for action in &round {
            let Some(Drift { victim: Victim::Phantom(phantom), .. }) = action.drift else { continue };
            let changed = |other: &Action| {
                other.del.contains(&phantom) || other.put.iter().any(|put| put.subnet == phantom)
            };
            assert!(!round.iter().any(changed), "{round:?}");
        }
    }
    assert_eq!(kinds.len(), count, "{kinds:?}");
    assert!(overlapping > 1000);
}

#[test]
fn leases_stay_unique_and_about_as_many() {
    let mut planner = Planner::new(3, setting(Backend::Vxlan));
    let mut leases: BTreeMap<u8, Phantom> =
        planner.first().into_iter().map(|phantom| (phantom.subnet, phantom)).collect();
    for _ in 0..2000 {
        for action in planner.round() {
            for subnet in &action.del {
                assert!(leases.remove(subnet).is_some(), "{action}");
            }
            leases.extend(action.put.iter().map(|phantom| (phantom.subnet, *phantom)));
        }
        let hosts = leases.values().map(|phantom| phantom.host).collect::<BTreeSet<_>>();
        let macs = leases.values().map(|phantom| phantom.mac).collect::<BTreeSet<_>>();
        assert_eq!((hosts.len(), macs.len()), (leases.len(), leases.len()));
        assert!((60..=141).contains(&leases.len()), "{}", leases.len());
    }
}

#[test]
fn what_a_backend_or_store_lacks_is_not_chosen() {
    let mut planner = Planner::new(5, Setting { store: StoreChoice::Local, ..setting(Backend::HostGw) });
    planner.first();
    for action in (0..1000).flat_map(|_| planner.round()) {
        use Kind::*;
        let lacking = [NewMac, DeviceDown, DeviceDeleted, DeviceMac, StoreKilled, Compaction];
        assert!(!lacking.contains(&action.kind), "{action}");
        let pieces = [Piece::Route, Piece::Stray];
        assert!(action.drift.is_none_or(|drift| pieces.contains(&drift.piece)), "{action}");
    }
}

#[test]
fn without_its_agent_udp_has_nothing_to_damage() {
    let mut planner = Planner::new(5, setting(Backend::Udp));
    planner.first();
    for action in (0..1000).flat_map(|_| planner.round()) {
        assert!(action.drift.is_none() || action.kind == Kind::Drift, "{action}");
    }
}

#[test]
fn a_restored_store_undoes_nothing_that_somebody_needs() {
    let (mut first, mut recent) = (0, 0);
    for round in rounds_on(StoreChoice::Kube, 2, 3000) {
        let has = |kinds: &[Kind]| round.iter().any(|action| kinds.contains(&action.kind));
        let Some(restored) = round.iter().find(|action| action.kind == Kind::Restored) else { continue };
        assert!(!has(&[Kind::Remade]), "{round:?}");
        // Whoever starts on a store that has forgotten the others can't know of them.
        assert!(!restored.is_first_backup || !has(&[Kind::AgentKilled, Kind::AgentAway]), "{round:?}");
        *(if restored.is_first_backup { &mut first } else { &mut recent }) += 1;
    }
    assert!(first > 10 && recent > 10, "{first} {recent}");
}
