use proptest::prelude::*;

use super::Answer::{No, Untried, Yes};
use super::*;

/// A peer of which everything was tried and nothing answers, though it did before.
fn silent() -> Findings {
    Findings {
        small: No,
        full: No,
        offloaded: No,
        software: No,
        tcp: No,
        under_echo: No,
        under_udp: No,
        under_tcp: No,
        closed: No,
        sideways: No,
        any_mac: No,
        mtu: 1450,
        node_answered: true,
        overlay_answered: true,
        port: Some(8472),
        ..Findings::default()
    }
}

/// What the tunnel knows of a peer that has been silent for half a minute.
fn known(found: &Findings, known: Known) -> Findings {
    Findings { known: Some(known), silent_seconds: 30, ..found.clone() }
}

fn handshake(seconds: u64) -> Known {
    Known::Handshake { seconds, is_alive: seconds < 180 }
}

fn detoured(found: &Findings) -> Findings {
    Findings { detour: Some("udp".to_owned()), ..found.clone() }
}

fn healthy() -> Findings {
    Findings { small: Yes, full: Yes, offloaded: Yes, under_echo: Yes, ..silent() }
}

#[test]
fn each_row() {
    let node = Findings { under_echo: Yes, ..silent() };
    for (what, found, verdict) in [
        ("nothing was sent", Findings::default(), Verdict::Untested),
        ("by a detour", detoured(&healthy()), Verdict::Bridged),
        ("its tunnel answers again", Findings { sideways: Yes, ..detoured(&healthy()) }, Verdict::Bridged),
        ("the detour is blocked, too", detoured(&node), Verdict::TunnelBlocked),
        (
            "the detour has a hole",
            detoured(&Findings { full: No, largest: Some(1350), ..healthy() }),
            Verdict::MtuHole { at_most: 1350 },
        ),
        ("all is answered", healthy(), Verdict::Reachable),
        ("the underlay filters", Findings { under_echo: No, ..healthy() }, Verdict::Reachable),
        ("UDP is filtered, whoever computes", Findings { offloaded: No, ..healthy() }, Verdict::Reachable),
        (
            "full size is lost",
            Findings { full: No, largest: Some(1350), ..healthy() },
            Verdict::MtuHole { at_most: 1350 },
        ),
        ("full size is lost, unmeasured", Findings { full: No, ..healthy() }, Verdict::Reachable),
        (
            "offload alone fails",
            Findings { offloaded: No, software: Yes, ..healthy() },
            Verdict::ChecksumOffload,
        ),
        ("TCP passes, echo doesn't", Findings { tcp: Yes, ..silent() }, Verdict::IcmpFiltered),
        ("UDP passes, echo doesn't", Findings { offloaded: Yes, ..silent() }, Verdict::IcmpFiltered),
        ("the node answers", node.clone(), Verdict::TunnelBlocked),
        ("the node answers TCP alone", Findings { under_tcp: Yes, ..silent() }, Verdict::TunnelBlocked),
        ("without a tunnel", Findings { port: None, ..node.clone() }, Verdict::TunnelBlocked),
        ("the port is closed", Findings { closed: Yes, ..node.clone() }, Verdict::TunnelClosed),
        ("sideways", Findings { sideways: Yes, any_mac: Yes, ..node.clone() }, Verdict::ReturnPath),
        ("another MAC", Findings { any_mac: Yes, ..node.clone() }, Verdict::RecordStale),
        ("no handshake", known(&node, Known::NoHandshake), Verdict::TunnelBlocked),
        ("none any more", known(&node, handshake(400)), Verdict::TunnelBlocked),
        ("none since, yet", known(&node, handshake(31)), Verdict::TunnelBlocked),
        ("the tunnel works", known(&node, handshake(29)), Verdict::ReturnPath),
        ("and the underlay filters", known(&silent(), handshake(29)), Verdict::ReturnPath),
        ("no handshake, and silent", known(&silent(), Known::NoHandshake), Verdict::PeerDead),
        ("it answered before", silent(), Verdict::PeerDead),
        ("on the overlay alone", Findings { node_answered: false, ..silent() }, Verdict::PeerDead),
        (
            "it never answered",
            Findings { node_answered: false, overlay_answered: false, ..silent() },
            Verdict::Unknown,
        ),
        ("it answers on its link alone", Findings { solicit: Yes, ..silent() }, Verdict::Unknown),
        ("not even there", Findings { solicit: No, ..silent() }, Verdict::PeerDead),
        (
            "not even there, and never did",
            Findings { solicit: No, node_answered: false, overlay_answered: false, ..silent() },
            Verdict::PeerDead,
        ),
        (
            "nobody has its address",
            Findings {
                node_answered: false,
                overlay_answered: false,
                unreachable: "192.0.2.1".parse().ok(),
                ..silent()
            },
            Verdict::PeerDead,
        ),
        ("not sent", Findings { refused: Some(libc::EPERM), small: Untried, ..silent() }, Verdict::Unsent),
    ] {
        assert_eq!(judge(&found).0, verdict, "{what}: {found:?}");
    }
}

#[test]
fn evidence_has_what_the_tunnel_knows() {
    let node = Findings { under_echo: Yes, port: Some(51820), ..silent() };
    for (what, is_said) in [
        (Known::NoHandshake, "there was no handshake with it since this node knows it"),
        (handshake(3), "was 3 s ago, after it stopped to answer"),
        (handshake(100), "was 100 s ago, before it stopped to answer"),
        (handshake(400), "was 400 s ago, and none has succeeded since"),
    ] {
        let (_, evidence) = judge(&known(&node, what));
        assert!(evidence.iter().any(|line| line.contains(is_said)), "{is_said}: {evidence:?}");
    }
    let (_, evidence) = judge(&known(&node, Known::NoHandshake));
    assert!(evidence.last().unwrap().starts_with("UDP port 51820 is closed to this node, or its record"));
}

#[test]
fn only_the_largest_packet_is_missing_for_an_mtu_hole() {
    assert!(Findings { full: No, ..healthy() }.lacks_largest());
    assert!(!Findings { full: No, largest: Some(1350), ..healthy() }.lacks_largest());
    assert!(!healthy().lacks_largest() && !silent().lacks_largest());
}

fn answer() -> impl Strategy<Value = Answer> {
    prop_oneof![Just(Untried), Just(Yes), Just(No)]
}

prop_compose! {
    fn findings()(
        over in [answer(), answer(), answer(), answer(), answer()],
        under in [answer(), answer(), answer()],
        tunnel in [answer(), answer(), answer(), answer()],
        before in any::<[bool; 4]>(),
        session in proptest::option::of(proptest::option::of(0_u64..60)),
        largest in proptest::option::of(100_u32..1450),
        detour in any::<bool>(),
    ) -> Findings {
        let [small, full, offloaded, software, tcp] = over;
        let [under_echo, under_udp, under_tcp] = under;
        let [closed, sideways, any_mac, solicit] = tunnel;
        Findings {
            small, full, offloaded, software, tcp, under_echo, under_udp, under_tcp, closed, sideways, any_mac,
            solicit, largest,
            mtu: 1450,
            unreachable: before[0].then(|| [192, 0, 2, 1].into()),
            refused: before[1].then_some(libc::EPERM),
            node_answered: before[2],
            overlay_answered: before[3],
            port: Some(8472),
            known: session.map(|ago| ago.map_or(Known::NoHandshake, handshake)),
            silent_seconds: 30,
            detour: detour.then(|| "udp".to_owned()),
            is_limited: detour,
        }
    }
}

proptest! {
    #[test]
    fn no_verdict_is_without_evidence_and_nothing_that_answers_is_dead(found in findings()) {
        let (verdict, evidence) = judge(&found);
        let needs_none = matches!(verdict, Verdict::Untested | Verdict::Reachable);
        prop_assert_eq!(evidence.is_empty(), needs_none, "{}", verdict);
        let answers = [
            found.small, found.offloaded, found.software, found.tcp, found.under_echo, found.under_udp,
            found.under_tcp, found.closed, found.sideways, found.any_mac,
        ];
        let lives = answers.contains(&Yes) || found.has_news();
        prop_assert!(!(lives && verdict == Verdict::PeerDead), "{:?}", evidence);
        // What pods need was answered: that is never called a blocked way.
        let is_reached = found.small == Yes || found.tcp == Yes;
        prop_assert!(!is_reached || verdict.severity() <= Verdict::ChecksumOffload.severity(), "{}", verdict);
    }
}
