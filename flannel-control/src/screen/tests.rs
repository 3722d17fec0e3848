//! Screens, byte for byte: a fixed answer in, text out. `UPDATE_SCREENS=1 cargo test -p flannel-control` writes them anew.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use super::*;
use crate::wire::{Differences, Event, PeerObjects};

/// 2026-11-29T18:00:00Z, at which all answers were given.
fn look() -> Look {
    Look::plain(UNIX_EPOCH + Duration::from_secs(1_795_975_200))
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/screens")
}

fn answer<T: serde::de::DeserializeOwned>(name: &str) -> T {
    let path = folder().join(name);
    serde_json::from_slice(&fs::read(&path).unwrap())
        .unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn check(name: &str, text: &str) {
    let path = folder().join(name);
    if std::env::var_os("UPDATE_SCREENS").is_some() {
        fs::write(&path, text).unwrap();
    }
    let want = fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(text, want, "{} differs; UPDATE_SCREENS=1 writes it anew", path.display());
}

#[test]
fn statuses() {
    for name in ["healthy", "trouble", "starting", "dual", "probes", "sessions"] {
        let answer: Status = answer(&format!("{name}.json"));
        check(&format!("{name}.txt"), &status(&answer, Detail::Table, look()));
        check(&format!("{name}-wide.txt"), &status(&answer, Detail::Wide, look()));
        check(
            &format!("{name}-80.txt"),
            &status(&answer, Detail::Table, look().sized(80, Some(24)).coloured(true)),
        );
    }
}

/// The sizes of terminals: columns, and lines if the screen must not scroll (one fewer than the terminal has).
const SIZES: [(usize, Option<usize>); 15] = [
    (40, None),
    (60, None),
    (80, None),
    (110, None),
    (160, None),
    (40, Some(7)),
    (60, Some(7)),
    (80, Some(7)),
    (110, Some(7)),
    (160, Some(7)),
    (40, Some(23)),
    (60, Some(23)),
    (80, Some(23)),
    (110, Some(23)),
    (160, Some(23)),
];

/// Each verdict, in both families or one.
#[test]
fn verdicts_at_each_size() {
    let answer: Status = answer("verdicts.json");
    check("verdicts.txt", &status(&answer, Detail::Table, look()));
    check("verdicts-wide.txt", &status(&answer, Detail::Wide, look()));
    for (width, height) in SIZES {
        let text = status(&answer, Detail::Table, look().sized(width, height));
        let height = height.map(|height| format!("x{}", height + 1)).unwrap_or_default();
        check(&format!("verdicts-{width}{height}.txt"), &text);
    }
}

/// Whatever the terminal has: the worst peer, its verdict and the reason are on it, and nothing is beyond its edges.
#[test]
fn what_matters_most_stays_on_the_screen() {
    for name in ["healthy", "trouble", "starting", "dual", "probes", "sessions", "verdicts"] {
        let answer: Status = answer(&format!("{name}.json"));
        let probes = reach::by_lease(answer.probes.as_ref());
        for (width, height) in SIZES {
            let text = status(&answer, Detail::Table, look().sized(width, height));
            let size = format!("{name} at {width} x {height:?}:\n{text}");
            assert!(text.lines().all(|line| line.chars().count() <= width), "{size}");
            assert!(height.is_none_or(|height| text.lines().count() <= height), "{size}");
            let words = text.split_whitespace().collect::<Vec<_>>().join(" ");
            assert!(words.starts_with("agent "), "{size}");
            let peers = answer.network.iter().flat_map(|network| &network.peer_list);
            for peer in peers.filter(|_| height.is_none()) {
                let subnet = peers::subnets(&peer.lease);
                assert!(words.contains(subnet.split(' ').next().unwrap()), "{subnet}: {size}");
                if let Some(reason) = &peer.reason {
                    assert!(words.contains(reason.as_str()), "{subnet}: {size}");
                }
                let Some(probe) = probes.get(peer.lease.as_str()) else { continue };
                let verdict = reach::verdict(peer, probe).text;
                assert!(words.contains(&verdict), "{subnet}: {verdict}: {size}");
                for why in reach::why(probe).iter().filter(|_| peer.reason.is_none()) {
                    assert!(words.contains(why.as_str()), "{subnet}: {why}: {size}");
                }
            }
        }
    }
    let verdicts: Status = answer("verdicts.json");
    for (width, height) in SIZES {
        let text = status(&verdicts, Detail::Table, look().sized(width, height));
        let has = |what: &str| assert!(text.contains(what), "{what} at {width} x {height:?}:\n{text}");
        for what in ["10.244.33.0/24", "refused", "route 10.244.33.0/24 is in"] {
            has(what);
        }
    }
}

#[test]
fn of_ten_thousand_peers_the_few_that_are_not_reached_are_seen() {
    let mut status: Status = answer("verdicts.json");
    let (network, probes) = (status.network.as_mut().unwrap(), status.probes.as_mut().unwrap());
    let of = |lease: &str, peers: &[crate::wire::PeerProbe]| {
        peers.iter().find(|peer| peer.lease.starts_with(lease)).unwrap().clone()
    };
    let (untested, unknown) = (of("10.244.21.0", &probes.peers), of("10.244.23.0", &probes.peers));
    let mut peer = network.peer_list[0].clone();
    (network.peer_list, probes.peers) = (Vec::new(), Vec::new());
    for number in 0..10_000 {
        peer.lease = format!("10.{}.{}.0-24", number / 250, number % 250);
        let probe = if number == 9_876 { unknown.clone() } else { untested.clone() };
        network.peer_list.push(peer.clone());
        probes.peers.push(crate::wire::PeerProbe { lease: peer.lease.clone(), ..probe });
    }
    let text = super::status(&status, Detail::Table, look().sized(80, Some(23)));
    assert!(text.lines().count() <= 23, "{text}");
    let first = text.lines().skip_while(|line| !line.starts_with("SUBNET")).nth(1).unwrap();
    assert!(first.starts_with("10.39.126.0/24") && first.contains("unknown"), "{text}");
    assert!(text.contains("10,000 peers") && text.contains("1 unknown"), "{text}");
    assert_eq!(
        super::status(&status, Detail::Table, look()).lines().filter(|it| it.starts_with("10.")).count(),
        10_000
    );
}

#[test]
fn one_peer() {
    let status: Status = answer("trouble.json");
    let objects: PeerObjects = answer("peer.json");
    let found = |text: &str, named: &[std::net::IpAddr]| {
        find(&status, text, named).iter().map(|peer| peer.lease.clone()).collect::<Vec<_>>()
    };
    for text in ["10.244.9.0/24", "10.244.9.0-24", "10.244.9.77", "192.0.2.20"] {
        assert_eq!(found(text, &[]), ["10.244.9.0-24"], "{text}");
    }
    assert_eq!(found("node-b.example", &["192.0.2.20".parse().unwrap()]), ["10.244.9.0-24"]);
    assert!(found("10.99.0.0/24", &[]).is_empty() && found("node-c.example", &[]).is_empty());
    check("peer.txt", &peer(&status, find(&status, "10.244.9.0/24", &[])[0], &objects, look()));
    let status: Status = answer("probes.json");
    let found = &status.probes.as_ref().unwrap().peers[0];
    check(
        "peer-probes.txt",
        &peer(&status, find(&status, &found.lease, &[])[0], &PeerObjects::default(), look()),
    );
    let status: Status = answer("sessions.json");
    let objects: PeerObjects = answer("peer-sessions.json");
    for (lease, name, objects) in [
        ("10.244.9.0/24", "peer-sessions", objects),
        ("10.244.11.0/24", "peer-no-handshake", PeerObjects::default()),
    ] {
        check(&format!("{name}.txt"), &peer(&status, find(&status, lease, &[])[0], &objects, look()));
    }
    let status: Status = answer("verdicts.json");
    for (lease, name) in [("10.244.25.0/24", "peer-mtu-hole"), ("10.244.30.0/24", "peer-one-family")] {
        let found = find(&status, lease, &[])[0];
        let text = peer(&status, found, &PeerObjects::default(), look().sized(80, None));
        check(&format!("{name}-80.txt"), &text);
    }
}

#[test]
fn differences_and_events() {
    let differences: Differences = answer("diff.json");
    check("diff.txt", &diff(&differences, look()));
    check("diff-none.txt", &diff(&Differences::default(), look()));
    let problems = vec!["underlay link eth0 is down".to_owned()];
    check("diff-problem.txt", &diff(&Differences { problems, ..Differences::default() }, look()));
    let since = look().now - Duration::from_secs(3);
    check(
        "gone-60.txt",
        &gone("the agent at /run/flannel/subnet.env.sock has ended", since, look().sized(60, None)),
    );
    let events: Vec<Event> = answer("events.json");
    let text: String = events.iter().map(|it| event(it, look())).collect();
    check("events.txt", &text);
    let text: String = events.iter().map(|it| event(it, look().sized(80, None).coloured(true))).collect();
    check("events-80.txt", &text);
}

/// Whoever writes a lease must not write on the operator's terminal.
#[test]
fn texts_of_others_can_t_leave_their_line() {
    let mut hostile: Status = answer("trouble.json");
    let network = hostile.network.as_mut().unwrap();
    network.peer_list[0].reason = Some("evil\n\x1b]0;title\x07\x1b[2J".to_owned());
    let text = status(&hostile, Detail::Table, look());
    assert!(!text.contains('\x1b') && !text.contains('\x07'), "{text:?}");
    let differences = Differences { notes: vec!["a\nrm -rf /".to_owned()], ..Differences::default() };
    assert!(diff(&differences, look()).lines().all(|line| line.starts_with("# ")));
}
