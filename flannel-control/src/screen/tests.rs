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
    for name in ["healthy", "trouble", "starting", "dual", "probes"] {
        let answer: Status = answer(&format!("{name}.json"));
        check(&format!("{name}.txt"), &status(&answer, Detail::Table, look()));
        check(&format!("{name}-wide.txt"), &status(&answer, Detail::Wide, look()));
        check(
            &format!("{name}-80.txt"),
            &status(&answer, Detail::Table, look().sized(80, Some(24)).coloured(true)),
        );
    }
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
    check("peer.txt", &peer(find(&status, "10.244.9.0/24", &[])[0], None, &objects, look()));
    let status: Status = answer("probes.json");
    let found = &status.probes.as_ref().unwrap().peers[0];
    check(
        "peer-probes.txt",
        &peer(find(&status, &found.lease, &[])[0], Some(found), &PeerObjects::default(), look()),
    );
}

#[test]
fn differences_and_events() {
    let differences: Differences = answer("diff.json");
    check("diff.txt", &diff(&differences, look()));
    check("diff-none.txt", &diff(&Differences::default(), look()));
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
