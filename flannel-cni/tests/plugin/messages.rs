//! What an operator reads when it does not work, and that following it helps.

use std::fs;

use flannel_lab::sandbox::in_sandbox;
use flannel_lab::test_name;
use serde_json::{Value, json};

use crate::host::{Host, PLUGINS, V4, V6, assert_error, assert_ping, finish, spawn};

#[test]
fn without_an_agent_it_says_where_to_look() {
    in_sandbox(test_name!(), || {
        let host = Host::new(&[V4]);
        let (conf, a) = (host.conf("1.0.0"), host.container("a"));
        fs::remove_file(host.dir.join("subnet.env")).unwrap();
        let words = [
            "failed to load flannel 'subnet.env' file: open /run/cni/subnet.env: ",
            "Check the flannel pod log for this node.",
            "journalctl -u flanneld",
        ];
        assert_error(&host.call("ADD", &a, "eth0", &conf), 11, &words);
        assert_error(&host.ask("STATUS", &conf), 50, &words);
        assert_eq!(host.call("DEL", &a, "eth0", &conf), Ok(Value::Null));
        host.assert_empty();
        fs::write(host.dir.join("subnet.env"), "FLANNEL_MTU=1\nFLANNEL_SUBNET=10.42.3.1/24\n").unwrap();
        let words = ["/run/cni/subnet.env is missing FLANNEL_NETWORK, FLANNEL_IPV6_NETWORK, FLANNEL_IPMASQ"];
        assert_error(&host.call("ADD", &a, "eth0", &conf), 7, &words);
        assert_error(&host.ask("STATUS", &conf), 50, &words);
        fs::write(host.dir.join("subnet.env"), "FLANNEL_MTU\n").unwrap();
        assert_error(&host.call("ADD", &a, "eth0", &conf), 7, &["FLANNEL_MTU without a value"]);
        // It waits for nothing more than the file.
        host.write_env(&[V4]);
        host.add(&a, &conf);
        assert_ping(host.node(), &a);
    });
}

#[test]
fn a_bridge_of_an_earlier_subnet_is_named_with_the_commands_that_help() {
    in_sandbox(test_name!(), || {
        let host = Host::new(&[V4, V6]);
        let conf = host.conf("1.0.0");
        let (a, b) = (host.container("a"), host.container("b"));
        let result = host.add(&a, &conf);
        host.write_env(&[&V4.replace("10.42.3.", "10.42.4."), V6]);
        let command = "ip address del 10.42.3.1/24 dev cni0";
        let answer = host.call("ADD", &b, "eth0", &conf);
        let words =
            ["failed to delegate add: ", "already has an IP address different from 10.42.4.1/24", command];
        assert_error(&answer, 102, &words);
        assert_error(&host.ask("STATUS", &conf), 51, &[command, "10.42.4.0/24"]);
        // The failed one left nothing.
        host.assert_holds(1, 2);
        // The one that was there is told apart.
        let mut with_result = conf.clone();
        with_result["prevResult"] = result;
        let checked = host.call("CHECK", &a, "eth0", &with_result);
        assert_error(&checked, 105, &["10.42.3.0/24", "10.42.4.0/24", "make the pod anew"]);

        let details = answer.unwrap_err()["details"].as_str().unwrap().to_owned();
        let (_, told) = details.split_once("Run: ").unwrap();
        let (told, _) = told.split_once(';').unwrap();
        host.node().run("sh", &["-c", told]).unwrap();
        assert_eq!(host.ask("STATUS", &conf), Ok(Value::Null));
        host.add(&b, &conf);
        let subnet: ipnetwork::IpNetwork = "10.42.4.0/24".parse().unwrap();
        assert!(subnet.contains(b.addresses("eth0")[0].ip()));
        assert_ping(host.node(), &b);
        host.del(&a, &conf);
        host.del(&b, &conf);
        host.assert_empty();
    });
}

#[test]
fn without_a_free_address_it_says_who_has_them() {
    in_sandbox(test_name!(), || {
        let host = Host::new(&[&V4.replace("10.42.3.1/24", "10.42.3.1/30")]);
        let conf = host.conf("1.0.0");
        let (a, b) = (host.container("a"), host.container("b"));
        host.add(&a, &conf);
        let answer = host.call("ADD", &b, "eth0", &conf);
        let error = answer.clone().unwrap_err();
        assert!(error["msg"].as_str().unwrap().contains("no IP addresses available in range set"), "{error}");
        let details = error["details"].as_str().unwrap();
        for word in ["this node's subnet 10.42.3.0/30", "has a file for each", "maxPods", "SubnetLen"] {
            assert!(details.contains(word), "{word}: {details}");
        }
        // The folder that it names has the file of the address that is taken.
        let (_, rest) = details.split_once("are taken: ").unwrap();
        let (folder, _) = rest.split_once(" has a file").unwrap();
        assert!(fs::exists(format!("{folder}/10.42.3.2")).unwrap(), "{folder}");
        // What is deleted there, is free.
        host.del(&a, &conf);
        host.add(&b, &conf);
        host.del(&b, &conf);
        host.assert_empty();
    });
}

#[test]
fn a_plugin_that_is_missing_is_named() {
    in_sandbox(test_name!(), || {
        let host = Host::new(&[V4]);
        let (mut conf, a) = (host.conf("1.0.0"), host.container("a"));
        conf["delegate"] = json!({ "type": "no-such" });
        let words = [
            "failed to find plugin \"no-such\" in path [/run/cni/bin /usr/lib/cni]",
            "containernetworking-plugins",
        ];
        assert_error(&host.call("ADD", &a, "eth0", &conf), 100, &words);
        assert_error(&host.ask("STATUS", &conf), 50, &words);
        conf["delegate"] = json!({});
        conf["ipam"]["type"] = json!("no-ipam");
        assert_error(&host.ask("STATUS", &conf), 50, &["no-ipam"]);
        assert_error(&host.call("ADD", &a, "eth0", &conf), 100, &["no-ipam", "put it into /run/cni/bin"]);
        host.assert_empty();
    });
}

#[test]
fn wrong_calls_get_the_specifications_codes() {
    in_sandbox(test_name!(), || {
        let host = Host::new(&[V4]);
        let (conf, a) = (host.conf("1.0.0"), host.container("a"));
        assert_error(&host.ask("NONSENSE", &conf), 4, &["NONSENSE"]);
        assert_error(&host.ask("ADD", &conf), 4, &["CNI_CONTAINERID,CNI_NETNS,CNI_IFNAME"]);
        assert_error(&host.call("ADD", &a, "a/b", &conf), 4, &["CNI_IFNAME"]);
        assert_error(&host.call("ADD", &a, "eth0", &json!([])), 6, &["netconf"]);
        let mut newer = conf.clone();
        newer["cniVersion"] = json!("9.0.0");
        let answer = host.call("ADD", &a, "eth0", &newer);
        assert_error(&answer, 1, &["9.0.0", "0.1.0, 0.2.0"]);
        assert_eq!(answer.unwrap_err()["cniVersion"], "1.1.0");
        // Debian's bridge is older than this version; its word about that comes through.
        let answer = host.call("ADD", &a, "eth0", &host.conf("1.1.0"));
        assert_error(&answer, 1, &["failed to delegate add: incompatible CNI versions", "1.1.0"]);
        host.assert_empty();
    });
}

#[test]
fn a_result_that_is_none_is_an_error() {
    in_sandbox(test_name!(), || {
        let host = Host::new(&[V4]);
        let (conf, a) = (host.conf("1.0.0"), host.container("a"));
        host.script("bridge", "cat > /dev/null; [ $CNI_COMMAND != ADD ] || echo good morning");
        assert_error(&host.call("ADD", &a, "eth0", &conf), 6, &["failed to delegate add", "good morning"]);
        host.script("bridge", "echo oops >&2; kill -9 $$");
        assert_error(&host.call("ADD", &a, "eth0", &conf), 101, &["bin/bridge was killed by signal 9"]);
        // Its DEL dies, too, so the record stays for the runtime's.
        assert_eq!(crate::host::names(&host.records()), ["a"]);
        let mut command = host.command(std::path::Path::new(crate::host::FLANNEL), "DEL", &a, "eth0");
        command.env("CNI_PATH", PLUGINS);
        assert_eq!(finish(spawn(command, &conf)), Ok(Value::Null));
        host.assert_empty();
    });
}
