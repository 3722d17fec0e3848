use super::*;

fn node(harm: Harm, family: Option<Family>) -> Problem {
    Problem { family, ..Problem::new(Subject::Device, harm, format!("{harm:?}")) }
}

fn reach(expected: usize, cut: usize) -> Reach {
    Reach { expected, cut }
}

/// Who is cut decides, family by family; what is wrong and cuts nobody is a line.
#[test]
fn readiness_is_by_effect() {
    let (v4, v6) = (Some(Family::V4), Some(Family::V6));
    let none = "IPv4: pods reach none of the other nodes (2)";
    for (what, node, reach, masquerade, reasons, notes) in [
        ("a lone node", vec![], [v4.map(|_| reach(0, 0)), None], false, "", ""),
        ("one of two peers cut", vec![], [v4.map(|_| reach(2, 1)), None], true, "", ""),
        ("all peers cut", vec![], [v4.map(|_| reach(2, 2)), None], false, none, ""),
        (
            "all peers of a family",
            vec![],
            [v4.map(|_| reach(2, 2)), v6.map(|_| reach(2, 0))],
            false,
            none,
            "",
        ),
        ("a family without peers", vec![], [v4.map(|_| reach(2, 0)), v6.map(|_| reach(0, 0))], false, "", ""),
        ("a device", vec![node(Harm::All, None)], [v4.map(|_| reach(0, 0)), None], false, "All", ""),
        ("no harm", vec![node(Harm::None, None)], [v4.map(|_| reach(2, 0)), None], true, "", "None"),
        ("some harm", vec![node(Harm::Some, v4)], [v4.map(|_| reach(2, 0)), None], true, "", "Some"),
        (
            "no way out, and none is wanted",
            vec![node(Harm::World, v4)],
            [v4.map(|_| reach(2, 0)), None],
            false,
            "",
            "World",
        ),
        ("no way out", vec![node(Harm::World, v4)], [v4.map(|_| reach(2, 0)), None], true, "World", ""),
        (
            "a family that reaches nothing",
            vec![node(Harm::All, v4)],
            [v4.map(|_| reach(2, 2)), None],
            false,
            "All",
            "",
        ),
        (
            "and has nobody to reach",
            vec![node(Harm::All, v6)],
            [v4.map(|_| reach(2, 0)), v6.map(|_| reach(0, 0))],
            false,
            "",
            "All",
        ),
        (
            "but the world",
            vec![node(Harm::All, v6)],
            [v4.map(|_| reach(2, 0)), v6.map(|_| reach(0, 0))],
            true,
            "All",
            "",
        ),
        (
            "a family out of service",
            vec![node(Harm::Family, v6)],
            [v4.map(|_| reach(2, 0)), v6.map(|_| reach(2, 2))],
            true,
            "",
            "Family",
        ),
        ("the only one", vec![node(Harm::Family, v6)], [None, v6.map(|_| reach(0, 0))], false, "Family", ""),
        (
            "and the other has no peer",
            vec![node(Harm::Family, v6)],
            [v4.map(|_| reach(2, 2)), v6.map(|_| reach(0, 0))],
            false,
            none,
            "Family",
        ),
    ] {
        let reach = PerFamily { v4: reach[0], v6: reach[1] };
        let verdict = Problems { node, reach, ..Problems::default() }.summary(masquerade);
        assert_eq!(
            (verdict.reasons.join("; ").as_str(), verdict.notes.join("; ").as_str()),
            (reasons, notes),
            "{what}"
        );
    }
}

/// Thousands of leases cost a count and twenty lines; those that cut all peers are among the reasons.
#[test]
fn what_others_make_many_is_a_count_and_a_sample() {
    let made = std::cell::Cell::new(0);
    let lease = |n: usize| {
        made.set(made.get() + 1);
        Problem::new(Subject::Lease(n.to_string()), Harm::Some, format!("lease {n}"))
    };
    let leases = Listed::new(5000, (0..5000).map(lease));
    assert_eq!(made.get(), SAMPLE);
    let reach = PerFamily { v4: Some(reach(5001, 5000)), v6: None };
    let mut problems = Problems { leases, reach, ..Problems::default() };
    let verdict = problems.summary(true);
    assert_eq!((verdict.reasons.len(), verdict.notes.len()), (0, SAMPLE + 1));
    assert_eq!(verdict.notes.last().unwrap(), "and 4980 more leases");
    problems.reach = PerFamily { v4: Some(Reach { expected: 5000, cut: 5000 }), v6: None };
    let verdict = problems.summary(true);
    assert_eq!((verdict.reasons.len(), verdict.notes.len()), (SAMPLE + 1, 1));
    assert_eq!(verdict.reasons[..2], ["IPv4: pods reach none of the other nodes (5000)", "lease 0"]);
    // What cuts nobody off is a note all the same.
    problems.leases.sample[0].harm = Harm::None;
    let verdict = problems.summary(true);
    assert_eq!((verdict.reasons[1].as_str(), verdict.notes[0].as_str()), ("lease 1", "lease 0"));
    problems.objects.extend(&problems.leases.sample.clone());
    problems.objects.extend(&problems.leases.sample.clone());
    assert_eq!((problems.objects.count, problems.objects.sample.len()), (2 * SAMPLE, SAMPLE));
}

#[test]
fn messages_name_device_sysctl_and_what_to_set() {
    let mtu = |tunnel| Problem::mtu_without_ipv6("eth0", 1200, tunnel).to_string();
    let vxlan = mtu(Some(("VXLAN", 70)));
    assert!(vxlan.contains("the MTU of eth0 is 1200, and 1130 are left within 70 bytes of VXLAN"), "{vxlan}");
    assert!(vxlan.ends_with("; set the MTU of eth0 to 1350 or more"), "{vxlan}");
    assert!(mtu(None).ends_with("; set the MTU of eth0 to 1280 or more"), "{}", mtu(None));
    let text = |errno| ipv6_refused("flannel-v6.1", "fd00:5::/128", errno).map(|reason| reason.to_string());
    let off = text(libc::EACCES).unwrap();
    assert!(
        off.starts_with("device flannel-v6.1 can't have fd00:5::/128: IPv6 is switched off there"),
        "{off}"
    );
    assert!(off.contains("run sysctl -w net/ipv6/conf/flannel-v6.1/disable_ipv6=0"), "{off}");
    assert!(text(libc::EINVAL).unwrap().contains("its MTU is below 1280"));
    assert!(text(libc::EOPNOTSUPP).unwrap().contains("without IPv6"));
    assert_eq!(text(libc::ENOMEM), None);
}

/// What one device can't carry the other one does, unless there is no other.
#[test]
fn a_device_of_one_family_is_no_problem_of_the_other() {
    let mut problems = DeviceProblems::default();
    problems.add(Some(Family::V6), "device flannel-v6.1: gone");
    assert!(problems.concern(Family::V6) && !problems.concern(Family::V4));
    let of_node = |has_both| problems.of_node(has_both).next().unwrap();
    assert_eq!((of_node(true).family, of_node(false).family), (Some(Family::V6), None));
    problems.extend(["underlay link eth0 is down".to_owned()]);
    assert!(problems.concern(Family::V4));
    assert_eq!(problems.text().unwrap(), "device flannel-v6.1: gone; underlay link eth0 is down");
}
