//! The values of the agent's flags.

use flannel_core::agent::{FirewallOptions, Forward};

use super::*;
use crate::registry;

#[test]
fn defaults_are_those_of_upstream() {
    let defaults = options(&[]);
    let common = &defaults.common;
    assert_eq!(common.etcd_endpoints, ["http://127.0.0.1:4001", "http://127.0.0.1:2379"].map(Into::into));
    assert_eq!(common.etcd_prefix, "/coreos.com/network");
    assert_eq!(common.subnet_file.to_str(), Some("/run/flannel/subnet.env"));
    assert_eq!(common.state_file, None, "the subnet file's, with .state");
    assert_eq!(defaults.subnet_lease_renew_margin, Duration::from_secs(3600));
    assert_eq!((&common.store, common.kube_subnet_mgr), (&Store::Etcd, false));
    assert!(defaults.shown.is_empty());
    for (name, default) in [
        ("ip-masq", "false"),
        ("iptables-resync", "5"),
        ("iptables-forward-rules", "true"),
        ("kube-annotation-prefix", "flannel.alpha.coreos.com"),
        ("net-config-path", "/etc/kube-flannel/net-conf.json"),
        ("set-node-network-unavailable", "true"),
        ("healthz-ip", "0.0.0.0"),
        ("healthz-port", "0"),
        ("v", "0"),
    ] {
        assert_eq!(default_of(flags::program().command(), name), default, "{name}");
    }
}

#[test]
fn what_this_version_lacks_is_refused_only_if_asked_for() {
    options(&["--log_backtrace_at="]);
    let want = "not supported by this version: stack traces in the log (--log_backtrace_at); leave it out";
    assert_eq!(error(&["--log_backtrace_at=/x"]), want);
    let env = error_with(&[], &[("FLANNELD_LOG_BACKTRACE_AT", "x:1")]);
    assert_eq!(env, want.replace("--log_backtrace_at", "FLANNELD_LOG_BACKTRACE_AT"));
    let program = flags::program();
    let all = program.command();
    let lacking =
        all.get_arguments().filter(|flag| help_of_flag(flag).contains("not supported by this version"));
    assert_eq!(lacking.count(), 1);
}

#[test]
fn flags_about_kubernetes() {
    let defaults = options(&["--kube-subnet-mgr"]);
    let common = &defaults.common;
    assert!(common.kube_subnet_mgr && defaults.set_node_network_unavailable);
    assert_eq!((&common.kube_api_url, &common.kubeconfig_file), (&None, &None));
    assert_eq!(common.kube_annotation_prefix, "flannel.alpha.coreos.com");
    assert_eq!(common.net_config_path, Some("/etc/kube-flannel/net-conf.json".into()));
    let given = options_with(
        &[
            "-kube-subnet-mgr=true",
            "--kube-api-url=https://10.0.0.1:6443",
            "--kubeconfig-file=/k",
            "--kube-annotation-prefix=a.com/x",
            "--net-config-path=/n",
        ],
        &[("FLANNELD_SET_NODE_NETWORK_UNAVAILABLE", "false")],
    );
    let common = &given.common;
    assert!(common.kube_subnet_mgr && !given.set_node_network_unavailable);
    assert_eq!(common.kube_api_url, Some("https://10.0.0.1:6443".into()));
    assert_eq!(common.kubeconfig_file, Some("/k".into()));
    assert_eq!(common.kube_annotation_prefix, "a.com/x");
    assert_eq!(common.net_config_path, Some("/n".into()));
    assert!(!options(&["--kube-api-url=http://x"]).common.kube_subnet_mgr);
    assert!(error(&["--kube-subnet-mgr", "--store=local:/x"]).contains("two stores"));
    assert_eq!(error(&["--kube-subnet-mgr", "--net-config-path="]), "--net-config-path: \"\" is not a path");
}

#[test]
fn flags_about_rules() {
    let defaults = registry::rules(&options(&[]));
    let none = FirewallOptions::default();
    assert_eq!(defaults, none.with_forward(Forward::WherePossible).with_resync(Duration::from_secs(5)));
    assert!(defaults.random_ports);
    let args = [
        "--ip-masq",
        "--ip-masq-fully-random-disable",
        "--iptables-forward-rules=false",
        "--iptables-resync=9",
    ];
    let given = registry::rules(&options(&args));
    let want = none.with_masquerade(true).with_random_ports(false).with_resync(Duration::from_secs(9));
    assert_eq!(given, want);
    assert_eq!(registry::rules(&options(&["--iptables-forward-rules"])).forward, Forward::Required);
    for bad in ["0", "-1", "86401"] {
        let error = error(&[&format!("--iptables-resync={bad}")]);
        assert!(error.ends_with("is not from 1 to 86400 seconds"), "{error}");
    }
}

#[test]
fn etcd_flags_work_alone() {
    let common = options(&["--etcd-cafile=/ca", "--etcd-endpoints=https://a:1,https://b:2"]).common;
    assert_eq!(common.etcd_cafile.as_deref().and_then(|path| path.to_str()), Some("/ca"));
    assert_eq!((common.etcd_certfile, common.etcd_keyfile), (None, None));
    assert_eq!(common.etcd_endpoints, ["https://a:1", "https://b:2"].map(Into::into));
}

#[test]
fn the_health_server_listens_on_an_address_of_this_host_and_a_port() {
    assert_eq!(options(&[]).healthz_port, 0, "none");
    for (ip, bound) in [
        ("::1", "::1"),
        ("", ""),
        ("192.0.2.1", "192.0.2.1"),
        ("localhost", "127.0.0.1"),
        ("fe80::1%eth0", "fe80::1%eth0"),
    ] {
        let given = options(&["--healthz-port=8081", &format!("--healthz-ip={ip}")]);
        assert_eq!((given.healthz_ip.as_str(), given.healthz_port), (bound, 8081));
    }
    for ip in ["foo", "127.0.0.1:8471", "[::1]", "192.0.2.0/24", "224.0.0.1", "127.0.0.1%lo", "fe80::1%"] {
        let error = error(&[&format!("--healthz-ip={ip}")]);
        let want = format!(
            "--healthz-ip: {ip:?} is not an IP address of this host, such as 127.0.0.1; leave it out"
        );
        assert!(error.starts_with(&want), "{error}");
    }
    for port in ["-1", "65536", "70000"] {
        let error = error_with(&[], &[("FLANNELD_HEALTHZ_PORT", port)]);
        assert_eq!(error, format!("FLANNELD_HEALTHZ_PORT: {port:?} is not a port, 0 to 65535"));
    }
}

#[cfg(all(feature = "etcd", feature = "kube"))]
#[test]
fn names_of_servers_are_checked_if_the_server_is_used() {
    for (args, want) in [
        (&["--etcd-endpoints=http://a"][..], "one has no port"),
        (&["--etcd-endpoints=http://a:1,"], "one is empty"),
        (&["--etcd-endpoints=http://me:hush@a:1"], "one has a user in it"),
        (
            &["--kube-subnet-mgr", "--kube-api-url=10.0.0.1"],
            "is not an URL of an API server: no scheme and host; give an URL such as https://10.0.0.1:6443",
        ),
        (&["--kube-subnet-mgr", "--kube-annotation-prefix=org"], "a prefix of annotations such as"),
    ] {
        let error = error(args);
        let flag = args.last().unwrap().split('=').next().unwrap();
        assert!(error.starts_with(flag) && error.contains(want) && !error.contains("hush"), "{error}");
    }
    let of_variable = error_with(&[], &[("FLANNELD_ETCD_ENDPOINTS", "http://a")]);
    assert!(of_variable.starts_with("FLANNELD_ETCD_ENDPOINTS: \"http://a\" is not a list of endpoints"));
    options(&[
        "--store=local:/x",
        "--etcd-endpoints=http://a",
        "--kube-api-url=x",
        "--kube-annotation-prefix=x",
    ]);
    options(&["--kube-subnet-mgr", "--etcd-endpoints=http://a"]);
}

#[test]
fn next_hop_objects_are_used_unless_switched_off() {
    use flannel_backend_vxlan::NextHopObjects;
    assert_eq!(options(&[]).nexthop_objects, NextHopObjects::Auto);
    let off = options_with(&[], &[("FLANNELD_NEXTHOP_OBJECTS", "off")]);
    assert_eq!(off.nexthop_objects, NextHopObjects::Off);
    let error = error(&["--nexthop-objects=on"]);
    assert!(error.contains("--nexthop-objects") && error.contains("auto or off"), "{error}");
}

#[test]
fn strangers_are_observed_unless_said_otherwise() {
    use flannel_core::firewall::gate::{GateOptions, Mode};
    assert_eq!(registry::gate(&options(&[])), GateOptions::new(Mode::Observe));
    let off = options_with(&[], &[("FLANNELD_STRICT_UNDERLAY", "off")]);
    assert_eq!(off.strict_underlay, Mode::Off);
    let allow = ["--vxlan-allow-from=192.0.2.0/24", "--vxlan-allow-from=2001:db8::/64"];
    let enforce = registry::gate(&options(&[&["--strict-underlay=enforce"], allow.as_slice()].concat()));
    let allow_from = ["192.0.2.0/24", "2001:db8::/64"].map(|it| it.parse().unwrap());
    assert_eq!(enforce, GateOptions::new(Mode::Enforce).allow_from(allow_from));
    let wrong = error(&["--strict-underlay=drop"]);
    assert!(wrong.contains("--strict-underlay") && wrong.contains("off, observe or enforce"), "{wrong}");
    let wrong = error(&["--vxlan-allow-from=192.0.2.1"]);
    assert!(wrong.contains("--vxlan-allow-from") && wrong.contains("a CIDR"), "{wrong}");
}

#[test]
fn the_wireguard_key_is_changed_never_or_after_days() {
    use std::time::Duration;

    assert_eq!(options(&[]).wireguard_rotate, None);
    let month = Some(Duration::from_hours(720));
    assert_eq!(options(&["--wireguard-rotate=30d"]).wireguard_rotate, month);
    assert_eq!(options_with(&[], &[("FLANNELD_WIREGUARD_ROTATE", "720h")]).wireguard_rotate, month);
    let wrong = error(&["--wireguard-rotate=30"]);
    assert!(wrong.contains("--wireguard-rotate") && wrong.contains("such as 30d or 720h"), "{wrong}");
}

#[test]
fn probes_have_an_interval_and_readiness_may_wait_for_peers() {
    use std::time::Duration;

    use flannel_backend_vxlan::TxChecksum;
    use flannel_core::probe::{ProbeInterval, ReadyPeers};
    let plain = options(&[]);
    let set = (plain.probe, plain.ready_peers, plain.vxlan_tx_checksum);
    assert_eq!(set, (ProbeInterval::Auto, None, TxChecksum::Keep));
    for (text, seconds) in [("30s", 30), ("1m30s", 90), ("24h", 86_400), ("1000ms", 1)] {
        let interval = options(&[&format!("--probe={text}")]).probe;
        assert_eq!(interval, ProbeInterval::Every(Duration::from_secs(seconds)));
    }
    assert_eq!(options(&["--probe=off"]).probe, ProbeInterval::Off);
    for wrong in ["on", "30", "999ms", "25h", "s", "-1s", "1s1", "99999999999h"] {
        let error = error(&[&format!("--probe={wrong}")]);
        assert!(error.contains("--probe") && error.contains("a time from 1s to 24h"), "{error}");
    }
    let ready = options_with(&[], &[("FLANNELD_READY_PEERS", "80%,1m")]).ready_peers;
    assert_eq!(ready, Some(ReadyPeers::new(80, Duration::from_secs(60))));
    for wrong in ["80", "80%", "0%,60s", "101%,60s", "80%,0s", "80,60s", "%,60s"] {
        let error = error(&[&format!("--ready-peers={wrong}")]);
        assert!(error.contains("--ready-peers") && error.contains("such as 80%,60s"), "{error}");
    }
    let idle = error(&["--ready-peers=80%,60s", "--probe=off"]);
    assert!(idle.contains("--ready-peers") && idle.contains("--probe=off"), "{idle}");
    assert_eq!(options(&["--vxlan-tx-checksum=auto"]).vxlan_tx_checksum, TxChecksum::Auto);
    assert!(error(&["--vxlan-tx-checksum=on"]).contains("auto, keep or off"));
}

#[test]
fn vmodule_is_a_list_of_patterns() {
    let vmodule = options(&["--vmodule=netlink=5,flannel_*=2,"]).common.vmodule;
    let vmodule: Vec<_> = vmodule.iter().map(|item| (item.pattern.as_str(), item.verbosity)).collect();
    assert_eq!(vmodule, [("netlink", 5), ("flannel_*", 2)]);
}
