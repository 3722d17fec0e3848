//! Failing delegates, killed runtimes, and many at once: nothing leaks.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::thread;
use std::time::Duration;

use flannel_lab::ping::{PingOptions, ping};
use flannel_lab::sandbox::in_sandbox;
use flannel_lab::test_name;
use flannel_lab::wait::eventually;
use serde_json::Value;

use crate::host::{FLANNEL, Host, V4, V6, assert_error, assert_ping, finish, names, spawn};

#[test]
fn fifty_pods_at_once_have_fifty_addresses() {
    in_sandbox(test_name!(), || {
        let host = Host::new(&[V4, V6]);
        let conf = host.conf("1.0.0");
        let pods: Vec<_> = (0..50).map(|n| host.container(&format!("p{n}"))).collect();
        let all = |verb: &str| {
            let children: Vec<_> = (pods.iter())
                .map(|pod| spawn(host.command(Path::new(FLANNEL), verb, pod, "eth0"), &conf))
                .collect();
            for child in children {
                finish(child).unwrap();
            }
        };
        all("ADD");
        let addresses: BTreeSet<_> = pods.iter().flat_map(|pod| pod.addresses("eth0")).collect();
        assert_eq!(addresses.len(), 100);
        host.assert_holds(50, 2);
        let gateways = ["10.42.3.1", "fd00:42:0:3::1"].map(|gateway| gateway.parse().unwrap());
        for pod in &pods {
            for gateway in gateways {
                let report = ping(&pod.netns, gateway, PingOptions::default()).unwrap();
                assert_eq!(report.lost, 0, "{} to {gateway}: {report:?}", pod.id);
            }
        }
        assert_ping(&pods[0].netns, &pods[49]);
        all("DEL");
        host.assert_empty();
    });
}

/// Debian's bridge, that fails on demand: before it did anything, or after all.
const FAILING: &str = r#"
config=$(cat)
fail() { [ ! -e $dir/$1-$CNI_COMMAND ] || { echo '{"code":11,"msg":"out of order"}'; exit 1; }; }
fail before
result=$(printf %s "$config" | /usr/lib/cni/bridge) || { printf %s "$result"; exit 1; }
fail after
printf %s "$result"
"#;

#[test]
fn a_failed_del_can_be_repeated() {
    in_sandbox(test_name!(), || {
        let host = Host::new(&[V4, V6]);
        let (conf, a) = (host.conf("1.0.0"), host.container("a"));
        host.script("bridge", FAILING);
        for fault in ["before-DEL", "after-DEL"] {
            host.add(&a, &conf);
            host.touch(fault);
            for _ in 0..2 {
                let answer = host.call("DEL", &a, "eth0", &conf);
                assert_error(&answer, 11, &["failed to delegate del: out of order"]);
                assert_eq!(names(&host.records()), ["a"], "{fault}");
            }
            if fault == "before-DEL" {
                host.assert_holds(1, 2);
                assert_ping(host.node(), &a);
            }
            fs::remove_file(host.dir.join(fault)).unwrap();
            // The agent's file is not needed for it.
            fs::rename(host.dir.join("subnet.env"), host.dir.join("away")).unwrap();
            host.del(&a, &conf);
            host.assert_empty();
            fs::rename(host.dir.join("away"), host.dir.join("subnet.env")).unwrap();
        }
    });
}

#[test]
fn a_failed_add_leaves_nothing_and_takes_nothing() {
    in_sandbox(test_name!(), || {
        let host = Host::new(&[V4, V6]);
        let (conf, a) = (host.conf("1.0.0"), host.container("a"));
        host.script("bridge", FAILING);
        for fault in ["before-ADD", "after-ADD"] {
            host.touch(fault);
            assert_error(&host.call("ADD", &a, "eth0", &conf), 11, &["failed to delegate add: out of order"]);
            host.assert_empty();
            // If the delegate can't undo it either, the record stays for the runtime's DEL.
            host.touch("before-DEL");
            assert_error(&host.call("ADD", &a, "eth0", &conf), 11, &["failed to delegate add: out of order"]);
            assert_eq!(names(&host.records()), ["a"]);
            fs::remove_file(host.dir.join("before-DEL")).unwrap();
            host.del(&a, &conf);
            host.assert_empty();
            fs::remove_file(host.dir.join(fault)).unwrap();
        }
        // A second ADD of what is attached fails, and costs the first nothing.
        host.add(&a, &conf);
        host.call("ADD", &a, "eth0", &conf).unwrap_err();
        host.assert_holds(1, 2);
        assert_ping(host.node(), &a);
        host.del(&a, &conf);
        host.assert_empty();
    });
}

/// Debian's bridge with a halt before and after its work.
const SLOW: &str = r#"
config=$(cat)
halt() {
    [ $CNI_COMMAND = ADD ] || return
    touch $dir/at-$1
    while [ ! -e $dir/go-$1 ]; do sleep 0.01; done
}
halt before
result=$(printf %s "$config" | /usr/lib/cni/bridge) || exit 1
halt after
printf %s "$result"
"#;

#[test]
fn del_waits_for_the_delegate_of_a_killed_add() {
    in_sandbox(test_name!(), || {
        let host = Host::new(&[V4, V6]);
        let conf = host.conf("1.0.0");
        host.script("bridge", SLOW);
        for point in ["before", "after"] {
            let a = host.container(point);
            for name in ["at-before", "at-after", "go-before", "go-after"] {
                let _ = fs::remove_file(host.dir.join(name));
            }
            if point == "after" {
                host.touch("go-before");
            }
            let mut add = spawn(host.command(Path::new(FLANNEL), "ADD", &a, "eth0"), &conf);
            let at = host.dir.join(format!("at-{point}"));
            eventually(Duration::from_secs(30), "the delegate to get there", || at.exists());
            add.kill().unwrap();
            add.wait().unwrap();
            assert_eq!(names(&host.records()), [point]);
            thread::scope(|scope| {
                let del = scope.spawn(|| host.call("DEL", &a, "eth0", &conf));
                // Long enough for a DEL that would not wait; one that waits is right whenever we go on.
                thread::sleep(Duration::from_millis(300));
                host.touch("go-before");
                host.touch("go-after");
                assert_eq!(del.join().unwrap(), Ok(Value::Null));
            });
            // A delegate that was not waited for may still be at work.
            let done = host.dir.join("at-after");
            eventually(Duration::from_secs(30), "the delegate to end its work", || done.exists());
            host.assert_empty();
        }
    });
}

#[test]
fn an_add_killed_at_any_time_leaves_nothing_after_del() {
    in_sandbox(test_name!(), || {
        let host = Host::new(&[V4, V6]);
        let conf = host.conf("1.0.0");
        let mut seen = BTreeSet::new();
        for round in 0..60_u64 {
            let a = host.container(&format!("k{round}"));
            let mut add = spawn(host.command(Path::new(FLANNEL), "ADD", &a, "eth0"), &conf);
            thread::sleep(Duration::from_micros(round * 1500));
            add.kill().unwrap();
            let ended = add.wait().unwrap().success();
            seen.insert((ended, !names(&host.records()).is_empty()));
            host.del(&a, &conf);
            host.assert_empty();
        }
        // Killed before the record, with it, and too late: whichever of these the machine's pace allows for.
        assert!(seen.len() >= 2, "{seen:?}");
        // What a kill in the midst of writing leaves, too.
        let a = host.container("w");
        fs::write(host.records().join(".w.tmp"), "{\"na").unwrap();
        host.del(&a, &conf);
        host.assert_empty();
    });
}
