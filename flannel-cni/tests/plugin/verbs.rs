//! Every verb in every version and family.

use std::fs;

use flannel_lab::sandbox::in_sandbox;
use flannel_lab::test_name;
use serde_json::{Value, json};

use crate::host::{Host, V4, V6, assert_error, assert_ping, names};

const VERSIONS: [&str; 7] = ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];

/// Debian's bridge knows nothing newer than 1.0.0; this gives it 1.1.0, with the verbs that came with that.
const NEWER_BRIDGE: &str = r#"
config=$(sed 's/"cniVersion":"1.1.0"/"cniVersion":"1.0.0"/g')
case $CNI_COMMAND in STATUS | GC)
    printf %s "$config" > $dir/$CNI_COMMAND
    [ ! -e $dir/refuse ] || { echo '{"code":51,"msg":"no uplink"}'; exit 1; }
    exit 0 ;;
esac
result=$(printf %s "$config" | CNI_PATH=/usr/lib/cni /usr/lib/cni/bridge)
status=$?
printf %s "$result" | sed 's/"cniVersion": *"1.0.0"/"cniVersion":"1.1.0"/'
exit $status
"#;

fn each_version(families: &[&str]) {
    let host = Host::new(families);
    for version in VERSIONS {
        println!("version {version}");
        if version == "1.1.0" {
            host.script("bridge", NEWER_BRIDGE);
        }
        let conf = host.conf(version);
        assert_eq!(host.ask("STATUS", &conf), Ok(Value::Null));
        let (a, b) = (host.container("a"), host.container("b"));
        let result = host.add(&a, &conf);
        host.add(&b, &conf);
        assert_eq!(result["cniVersion"], version);
        // Before 0.3.0 a result had one address of each family, in keys of their own.
        let told = if result["ips"].is_array() {
            result["ips"].as_array().unwrap().len()
        } else {
            ["ip4", "ip6"].iter().filter(|key| result[**key].is_object()).count()
        };
        assert_eq!((told, a.addresses("eth0").len()), (families.len(), families.len()));
        host.assert_holds(2, families.len());
        assert_ping(host.node(), &a);
        assert_ping(&b.netns, &a);

        let mut with_result = conf.clone();
        with_result["prevResult"] = result;
        let checked = host.call("CHECK", &a, "eth0", &with_result);
        if ["0.4.0", "1.0.0", "1.1.0"].contains(&version) {
            assert_eq!(checked, Ok(Value::Null));
            assert_error(&host.call("CHECK", &a, "eth0", &conf), 7, &["prevResult"]);
            a.netns.ip("address flush dev eth0 scope global").unwrap();
            let error = host.call("CHECK", &a, "eth0", &with_result).unwrap_err();
            assert!(error["msg"].as_str().unwrap().starts_with("failed to delegate check: "), "{error}");
            assert_eq!(error["cniVersion"], version);
        } else {
            assert_error(&checked, 1, &[version, "does not allow CHECK"]);
        }
        for _ in 0..2 {
            host.del(&a, &with_result);
        }
        host.assert_holds(1, families.len());
        assert_eq!(host.call("CHECK", &a, "eth0", &with_result).map_err(|error| error["code"].clone()), {
            let code = if checked.is_ok() { 104 } else { 1 };
            Err(json!(code))
        });

        let mut gc = conf.clone();
        gc["cni.dev/valid-attachments"] = json!([{ "containerID": "b", "ifname": "eth0" }]);
        assert_eq!(host.ask("GC", &gc), Ok(Value::Null));
        host.assert_holds(1, families.len());
        // The container goes without a DEL, as when a runtime lost its memory.
        b.netns.delete().unwrap();
        drop(b);
        gc["cni.dev/valid-attachments"] = json!([]);
        assert_eq!(host.ask("GC", &gc), Ok(Value::Null));
        flannel_lab::wait::eventually(std::time::Duration::from_secs(10), "the pod's link to go", || {
            host.veths() == 0
        });
        host.assert_empty();
    }
}

#[test]
fn every_verb_works_in_every_version_ipv4() {
    in_sandbox(test_name!(), || each_version(&[V4]));
}

#[test]
fn every_verb_works_in_every_version_ipv6() {
    in_sandbox(test_name!(), || each_version(&[V6]));
}

#[test]
fn every_verb_works_in_every_version_dual() {
    in_sandbox(test_name!(), || each_version(&[V4, V6]));
}

#[test]
fn version_is_answered_in_the_version_of_the_question() {
    in_sandbox(test_name!(), || {
        let host = Host::new(&[V4]);
        for version in VERSIONS {
            let answer = host.ask("VERSION", &json!({ "cniVersion": version })).unwrap();
            assert_eq!(answer, json!({ "cniVersion": version, "supportedVersions": VERSIONS }));
        }
        // Without a verb it says what it is.
        let mut command = host.node().command(crate::host::FLANNEL);
        let output = command.env_remove("CNI_COMMAND").output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success() && output.stdout.is_empty());
        assert!(said.starts_with("CNI Plugin flannel version ") && said.contains("1.1.0"), "{said}");
    });
}

#[test]
fn what_a_delegate_of_the_same_version_can_is_asked_of_it() {
    in_sandbox(test_name!(), || {
        let host = Host::new(&[V4]);
        host.script("bridge", NEWER_BRIDGE);
        let mut conf = host.conf("1.1.0");
        let read =
            |verb: &str| -> Value { fs::read_to_string(host.dir.join(verb)).unwrap().parse().unwrap() };
        assert_eq!(host.ask("STATUS", &conf), Ok(Value::Null));
        assert_eq!(read("STATUS")["ipam"]["ranges"], json!([[{ "subnet": "10.42.3.0/24" }]]));
        conf["cni.dev/valid-attachments"] = json!([{ "containerID": "x", "ifname": "net1" }]);
        assert_eq!(host.ask("GC", &conf), Ok(Value::Null));
        assert_eq!(read("GC")["cni.dev/valid-attachments"], conf["cni.dev/valid-attachments"]);
        assert_eq!(read("GC")["type"], "bridge");
        // And what it says counts.
        host.touch("refuse");
        assert_error(&host.ask("STATUS", &conf), 51, &["failed to delegate status: no uplink"]);
        assert_error(&host.ask("GC", &conf), 51, &["failed to delegate gc: no uplink"]);
        // One that is older doesn't know the verbs, and isn't asked.
        conf["cniVersion"] = json!("1.0.0");
        assert_eq!((host.ask("STATUS", &conf), host.ask("GC", &conf)), (Ok(Value::Null), Ok(Value::Null)));
    });
}

#[test]
fn two_interfaces_of_a_container_are_two_attachments() {
    in_sandbox(test_name!(), || {
        let host = Host::new(&[V4, V6]);
        let conf = host.conf("1.0.0");
        let a = host.container("a");
        let mut second = conf.clone();
        second["delegate"] = json!({ "mtu": 1300 });
        host.add(&a, &conf);
        host.call("ADD", &a, "net1", &second).unwrap();
        assert_eq!(names(&host.records()), ["a", "a:net1"]);
        assert_eq!(host.addresses_in_use().len(), 4);
        host.del(&a, &conf);
        assert_eq!((names(&host.records()), host.veths()), (vec!["a:net1".to_owned()], 1));
        assert_eq!(a.addresses("net1").len(), 2);
        assert_eq!(host.call("DEL", &a, "net1", &second), Ok(Value::Null));
        host.assert_empty();
    });
}

#[test]
fn gc_removes_leftovers_of_its_own_network_only() {
    in_sandbox(test_name!(), || {
        let host = Host::new(&[V4]);
        let mut conf = host.conf("1.0.0");
        let (a, b, c) = (host.container("a"), host.container("b"), host.container("c"));
        for container in [&a, &b, &c] {
            host.add(container, &conf);
        }
        let record = fs::read_to_string(host.records().join("a")).unwrap();
        let write = |name: &str, text: &str| fs::write(host.records().join(name), text).unwrap();
        write("other", &record.replace("cbr0", "other"));
        write(".killed.tmp", "{");
        write("damaged", "{");
        // No list is no order to remove all.
        assert_error(&host.ask("GC", &conf), 7, &["cni.dev/valid-attachments", "nothing was removed"]);
        host.call("DEL", &c, "eth0", &conf).unwrap();
        // As long as a container has any attachment, its record may be what that one needs.
        conf["cni.dev/valid-attachments"] = json!([{ "containerID": "b", "ifname": "net1" }]);
        let answer = host.ask("GC", &conf);
        assert_error(&answer, 103, &["eth0 of container damaged", "rm /run/cni/records/damaged"]);
        assert_eq!(names(&host.records()), ["b", "damaged", "other"]);
        assert_eq!(host.addresses_in_use().len(), 1);
        assert_ping(host.node(), &b);
    });
}
