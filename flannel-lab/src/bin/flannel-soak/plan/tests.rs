use super::*;
use crate::tampering::{Meanwhile, Tampering};

fn setting(backend: Backend) -> Setting {
    Setting {
        backend,
        store: StoreChoice::Etcd,
        families: vec![false, true],
        nodes: 4,
        phantoms: 100,
        only: Vec::new(),
        without: Vec::new(),
    }
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
    for (store, count) in [(StoreChoice::Etcd, 25), (StoreChoice::Kube, 33)] {
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

#[test]
fn what_concerns_all_comes_alone() {
    for round in rounds(4, 2000) {
        assert!(round.len() == 1 || !round.iter().any(|action| action.kind.is_alone()), "{round:?}");
    }
}

#[test]
fn an_address_is_used_again_by_another_node_once_it_is_free() {
    let mut hosts: BTreeMap<(u8, bool), u8> = BTreeMap::new();
    let mut left: BTreeMap<u8, u8> = BTreeMap::new();
    for node in 1..=4 {
        hosts.extend([((node, false), 10 + node), ((node, true), 10 + node)]);
    }
    let (mut again, mut one_family) = (0, 0);
    let only = |only: &[Kind]| Planner::new(6, Setting { only: only.to_vec(), ..setting(Backend::Vxlan) });
    assert_eq!(only(&[Kind::AddressReuse]).round()[0].kind, Kind::Renumber, "somebody has to leave first");
    let mut planner = only(&[Kind::AddressReuse, Kind::RenumberAway]);
    for action in (0..500).flat_map(|_| planner.round()) {
        let node = action.node.unwrap();
        assert!(!hosts.values().any(|host| *host == action.host), "{action}");
        if action.kind == Kind::AddressReuse {
            assert_eq!(action.families, [false, true]);
            assert!(left.get(&action.host).is_some_and(|owner| *owner != node), "{action}");
            again += 1;
        }
        one_family += usize::from(action.families.len() == 1);
        for v6 in &action.families {
            let old = hosts.insert((node, *v6), action.host).unwrap();
            left.insert(old, node);
        }
    }
    assert!(again > 100 && one_family > 10, "{again} {one_family}");
}

#[test]
fn records_of_all_claim_what_is_others() {
    let mut seen = BTreeSet::new();
    for action in rounds(8, 6000).into_iter().flatten().filter(|action| action.kind == Kind::Tampered) {
        let tampering = action.tampering.unwrap();
        let Tampering { record, claim, owner, meanwhile, starts, .. } = tampering;
        assert_ne!(record, Victim::Node(owner), "{action}");
        assert!(starts.is_none_or(|node| record != Victim::Node(node)), "{action}");
        match record {
            Victim::Node(node) => assert_eq!(action.node, Some(node)),
            Victim::Phantom(_) => assert_eq!((action.node, meanwhile), (None, Meanwhile::Runs)),
        }
        let is_older = matches!(record, Victim::Node(node) if node < owner);
        seen.insert(format!("{claim:?} {meanwhile:?} {is_older} {}", starts.is_some()));
    }
    assert_eq!(seen.len(), 3 * 3 * 2 * 2, "{seen:?}");
}

#[test]
fn kinds_are_chosen_and_left_out() {
    let kinds = |only: &[Kind], without: &[Kind]| {
        let setting = Setting { only: only.to_vec(), without: without.to_vec(), ..setting(Backend::Vxlan) };
        let mut planner = Planner::new(9, setting);
        planner.first();
        let has_choice = planner.has_choice();
        let kinds = (0..1000).flat_map(|_| planner.round()).map(|action| action.kind);
        (has_choice, kinds.collect::<BTreeSet<_>>())
    };
    let two = [Kind::NicRename, Kind::Tampered];
    assert_eq!(kinds(&two, &[]), (true, two.into()));
    assert_eq!(kinds(&[Kind::Meddled], &[]), (false, BTreeSet::new()), "nobody annotates a key in etcd");
    let (_, all) = kinds(&[], &two);
    assert!(all.len() == 23 && !all.contains(&Kind::NicRename), "{all:?}");
}
