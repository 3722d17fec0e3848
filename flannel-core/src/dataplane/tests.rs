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
        protocol,
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

proptest! {
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
        prop_assert!(puts.is_sorted_by_key(Op::key));
        prop_assert!(deletes.iter().rev().copied().is_sorted_by_key(|op| op.key()));
    }

    #[test]
    fn planning_by_keys_is_planning(want in dataplane(), have in dataplane()) {
        let keys: Vec<_> = have.iter().chain(want.iter()).map(Object::key).collect();
        prop_assert_eq!(plan_keys(&want, &have, keys), plan(&want, &have));
    }
}
