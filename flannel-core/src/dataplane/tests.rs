use proptest::prelude::*;

use super::*;
use crate::testing::dataplane;

/// The kernel as far as a plan can tell.
fn apply(kernel: &mut Dataplane, op: Op) {
    match op {
        Op::Create(object) | Op::Replace(object) => _ = kernel.insert(object),
        Op::Delete(object) => _ = kernel.remove(&object.key()),
    }
}

fn route(via: u8, protocol: u8) -> Object {
    Object::Route(Route {
        dst: "10.5.1.0/24".parse().unwrap(),
        metric: 0,
        via: Some([10, 5, 1, via].into()),
        link: Some(LinkIndex(3)),
        onlink: true,
        through: Through::Itself,
        protocol,
        mtu: None,
        plain: true,
    })
}

#[test]
fn a_changed_object_is_replaced_in_place() {
    let (want, have) = (Dataplane::from_iter([route(1, 102)]), Dataplane::from_iter([route(2, 102)]));
    assert_eq!(plan(&want, &have), [Op::Replace(route(1, 102))]);
}

#[test]
fn who_wrote_a_route_makes_a_difference_on_shared_links_only() {
    let (mut want, have) = (Dataplane::from_iter([route(1, 102)]), Dataplane::from_iter([route(1, 3)]));
    assert_eq!(plan(&want, &have), []);
    want.share([LinkIndex(3)]);
    assert_eq!(plan(&want, &have), [Op::Replace(route(1, 102))], "marked in place");
    assert_eq!(plan(&want, &want), []);
}

#[test]
fn a_route_moves_between_forms_in_place() {
    let (link, gateway) = (LinkIndex(3), IpAddr::from([10, 5, 1, 1]));
    let next_hop = Object::NextHop(NextHop { link, gateway, spare: None });
    let Object::Route(plain) = route(1, 102) else { unreachable!() };
    let by_object = Object::Route(Route { through: Through::Object, ..plain });
    let with = Dataplane::from_iter([next_hop, by_object]);
    let without = Dataplane::from_iter([route(1, 102)]);
    assert_eq!(plan(&with, &without), [Op::Create(next_hop), Op::Replace(by_object)]);
    assert_eq!(plan(&without, &with), [Op::Replace(route(1, 102)), Op::Delete(next_hop)]);
    // A second object with the same link and gateway: the route leaves it before it goes.
    let spare = Object::NextHop(NextHop { link, gateway, spare: Some(7) });
    let through_spare = Object::Route(Route { through: Through::Spare(7), ..plain });
    let have = Dataplane::from_iter([next_hop, spare, through_spare]);
    assert_eq!(plan(&with, &have), [Op::Replace(by_object), Op::Delete(spare)]);
    assert_eq!(have.routes_through(&spare.key()).collect::<Vec<_>>(), [by_object.key()]);
}

proptest! {
    #[test]
    fn routes_are_found_by_their_next_hop(objects in prop::collection::vec(crate::testing::object(), 0..40)) {
        let mut dataplane = Dataplane::default();
        for (at, object) in objects.into_iter().enumerate() {
            _ = if at % 3 == 2 { dataplane.remove(&object.key()) } else { dataplane.insert(object) };
        }
        let rebuilt: Dataplane = dataplane.iter().collect();
        prop_assert_eq!(&rebuilt, &dataplane);
        for object in dataplane.iter() {
            let through: Vec<_> = dataplane.routes_through(&object.key()).collect();
            let naive: Vec<_> = (dataplane.iter())
                .filter(|other| matches!(other, Object::Route(route) if route.next_hop() == Some(object.key())))
                .map(|other| other.key())
                .collect();
            prop_assert_eq!(through, naive);
        }
    }

    #[test]
    fn plan_converges_even_when_ops_fail(
        want in dataplane(), mut kernel in dataplane(), fails in prop::collection::vec(any::<bool>(), 64),
    ) {
        for (op, fails) in plan(&want, &kernel).into_iter().zip(fails) {
            if !fails {
                apply(&mut kernel, op);
            }
        }
        for op in plan(&want, &kernel) {
            apply(&mut kernel, op);
        }
        prop_assert_eq!(&kernel, &want);
        prop_assert_eq!(plan(&want, &kernel), []);
    }

    #[test]
    fn puts_come_first_and_in_build_up_order(want in dataplane(), have in dataplane()) {
        let ops = plan(&want, &have);
        let (puts, deletes): (Vec<Op>, Vec<Op>) = ops.iter().partition(|op| !matches!(op, Op::Delete(_)));
        prop_assert!(ops.iter().take(puts.len()).all(|op| !matches!(op, Op::Delete(_))));
        prop_assert!(puts.is_sorted_by_key(|op| op.object().stage()));
        prop_assert!(deletes.iter().rev().is_sorted_by_key(|op| op.object().stage()));
    }

    #[test]
    fn planning_by_keys_is_planning(want in dataplane(), have in dataplane()) {
        let keys: Vec<_> = have.iter().chain(want.iter()).map(|object| object.key()).collect();
        prop_assert_eq!(plan_keys(&want, &have, keys), plan(&want, &have));
    }
}
