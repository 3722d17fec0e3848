//! What an operator learns of a running agent by `flanneld status` and `flanneld events`, with the exit status that scripts
//! look at.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::PathBuf;
use std::process::{Child, Stdio};

use flannel_lab::wait::eventually;
use serde_json::Value;

use crate::backends::{BackendCase, on_every_kind};
use crate::harness::{Bed, FLANNELD, Folder, Store as _, new_folder};

on_every_kind!(an_agent_is_asked_by_its_socket);

/// The exit status, and what was printed.
fn ask(bed: &Bed<Folder>, number: u8, args: &[&str]) -> (i32, String) {
    let file = format!("--subnet-file={}", bed.subnet_file(number).display());
    let output = bed.netns(number).command(FLANNELD).args(args).arg(file).output().unwrap();
    let said = [output.stdout, output.stderr].map(|it| String::from_utf8(it).unwrap()).concat();
    (output.status.code().unwrap(), said)
}

#[track_caller]
fn wait_for(bed: &Bed<Folder>, number: u8, args: &[&str], code: i32, word: &str) -> String {
    let mut last = String::new();
    eventually(crate::harness::SOON, &format!("{args:?} to end with {code} and say {word:?}"), || {
        let (found, text) = ask(bed, number, args);
        last.clone_from(&text);
        if found == code && text.contains(word) { Ok(()) } else { Err(format!("{found}: {text}")) }
    });
    last
}

fn socket(bed: &Bed<Folder>, number: u8) -> PathBuf {
    let mut path = bed.subnet_file(number).into_os_string();
    path.push(".sock");
    path.into()
}

fn an_agent_is_asked_by_its_socket(case: &'static BackendCase) {
    let mut bed = Bed::of_three(case, |_| new_folder());
    let table = wait_for(&bed, 1, &["status"], 0, "2 peers  2 programmed\n");
    for word in ["agent     ready\n", "store     ", "lease     10.", "underlay  eth0 ", case.kind, "SUBNET"] {
        assert!(table.contains(word), "{word:?} is not in\n{table}");
    }
    let (code, json) = ask(&bed, 1, &["status", "--output=json"]);
    let json: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(
        (code, &json["ready"], json["network"]["peer_list"].as_array().unwrap().len()),
        (0, &true.into(), 2)
    );

    let node = bed.cluster.node(2).ipv4().unwrap().to_string();
    let (code, peer) = ask(&bed, 1, &["status", "--peer", &node]);
    assert!(code == 0 && peer.contains(" programmed for "), "{code}: {peer}");
    let commands = peer.lines().filter_map(|line| line.strip_prefix("present  "));
    for command in commands.clone() {
        let shown = bed.netns(1).command("sh").args(["-c", command]).output().unwrap();
        assert!(shown.status.success() && !shown.stdout.is_empty(), "{command} shows nothing: {shown:?}");
    }
    // The one route of udp leads to all peers.
    assert!(commands.count() > 0 || case.kind == "udp", "{peer}");
    assert!(!peer.contains("missing "), "{peer}");
    let (code, other) = ask(&bed, 1, &["status", "--peer", "10.99.0.1"]);
    assert!(code == 1 && other.contains("no peer has \"10.99.0.1\""), "{code}: {other}");
    wait_for(&bed, 1, &["status", "--diff"], 0, "# the kernel is as it should be\n");

    events_are_told_and_followed(&bed);

    bed.netns(1).ip("link set eth0 down").unwrap();
    wait_for(&bed, 1, &["status"], 1, "reason    ");
    let diff = wait_for(&bed, 1, &["status", "--diff"], 1, "# ");
    assert!(!diff.contains("as it should be"), "nothing is right without the underlay: {diff}");
    bed.netns(1).ip("link set eth0 up").unwrap();
    // The kernel deleted it.
    let address = bed.cluster.node(1).ipv6().unwrap();
    bed.netns(1).ip(&format!("addr add {address}/64 dev eth0 nodad")).unwrap();

    let path = socket(&bed, 1);
    let mode = || fs::symlink_metadata(&path).unwrap();
    assert!(mode().file_type().is_socket() && mode().permissions().mode() & 0o777 == 0o660);
    assert_eq!(ask(&bed, 1, &["status", "--no-such-flag"]).0, 3, "that is no missing agent");
    let mut watch = follow(&bed, &["status", "--watch"]);
    BufReader::new(watch.stdout.as_mut().unwrap()).read_line(&mut String::new()).unwrap();
    bed.kill(1);
    let ended = watch.wait_with_output().unwrap();
    assert!(ended.status.code() == Some(2) && text(&ended.stderr).contains("has ended"), "{ended:?}");
    let (code, gone) = ask(&bed, 1, &["status"]);
    assert!(code == 2 && gone.contains("no agent answers at "), "{code}: {gone}");
    assert!(path.exists(), "a killed agent leaves its socket");
    bed.start(1);
    wait_for(&bed, 1, &["status"], 0, "2 peers  2 programmed\n");
    bed.stop(1);
    assert!(!path.exists(), "an agent that was stopped does not");
    assert_eq!(ask(&bed, 1, &["events"]).0, 2);
}

/// Starts a command that goes on for as long as the agent of node 1.
fn follow(bed: &Bed<Folder>, args: &[&str]) -> Child {
    let file = format!("--subnet-file={}", bed.subnet_file(1).display());
    let mut command = bed.netns(1).command(FLANNELD);
    let command = command.args(args).arg(file).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn().unwrap()
}

fn text(bytes: &[u8]) -> std::borrow::Cow<'_, str> {
    String::from_utf8_lossy(bytes)
}

fn events_are_told_and_followed(bed: &Bed<Folder>) {
    let (code, events) = ask(bed, 1, &["events"]);
    assert!(code == 0 && events.contains("Z  config-read "), "{code}: {events}");
    let peers = events.lines().filter(|line| line.contains("  peer-added "));
    assert_eq!(peers.count(), 2, "{events}");

    let mut follow = follow(bed, &["events", "--follow", "--output=json"]);
    let mut lines = BufReader::new(follow.stdout.take().unwrap()).lines().map(Result::unwrap);
    let mut last = 0;
    let mut next = || {
        let event: Value = serde_json::from_str(&lines.next().expect("a further event")).unwrap();
        assert_eq!(event["seq"], last + 1, "none is missing: {event}");
        last += 1;
        event
    };
    while next()["event"] != "ready" {}
    bed.store.put("10.244.177.0-24", "{\"PublicIP\": \"nowhere\"}").unwrap();
    let rejected = loop {
        let event = next();
        if event["event"] == "lease-rejected" {
            break event;
        }
    };
    assert_eq!(rejected["lease"], "10.244.177.0-24");
    bed.store.delete("10.244.177.0-24").unwrap();
    follow.kill().unwrap();
    follow.wait().unwrap();
}
