//! Tables of command lines.

use std::time::Duration;

use flannel_control::show::Form;
use flannel_core::agent::{FirewallOptions, Forward};
use proptest::prelude::*;

use super::*;
use crate::registry;

fn run_with(args: &[&str], env: &[(&str, &str)]) -> Result<Command, CliError> {
    let args: Vec<_> = args.iter().map(|arg| (*arg).to_owned()).collect();
    command(&args, |name| env.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned()))
}

fn options_with(args: &[&str], env: &[(&str, &str)]) -> Options {
    match run_with(args, env) {
        Ok(Command::Run(options)) => *options,
        other => panic!("{args:?}: {other:?}"),
    }
}

fn options(args: &[&str]) -> Options {
    options_with(args, &[])
}

fn error_with(args: &[&str], env: &[(&str, &str)]) -> String {
    run_with(args, env).expect_err(&format!("{args:?}"))
}

fn error(args: &[&str]) -> String {
    error_with(args, &[])
}

/// The name of each flag of a command, but `--help`.
fn names(command: &clap::Command) -> Vec<&str> {
    command.get_arguments().filter_map(clap::Arg::get_long).collect()
}

fn default_of<'a>(command: &'a clap::Command, name: &str) -> &'a str {
    let flag = command.get_arguments().find(|flag| flag.get_long() == Some(name)).expect(name);
    flag.get_default_values().first().map_or("", |value| value.to_str().unwrap())
}

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
fn flags_have_the_syntax_of_go() {
    for args in [
        &["-etcd-prefix", "/x"][..],
        &["--etcd-prefix", "/x"],
        &["-etcd-prefix=/x"],
        &["--etcd-prefix=/x", "--"],
        &["--etcd-prefix", "/y", "--etcd-prefix", "/x"],
    ] {
        assert_eq!(options(args).common.etcd_prefix, "/x", "{args:?}");
    }
    assert_eq!(options(&["--etcd-prefix=a=b"]).common.etcd_prefix, "a=b");
    assert_eq!(
        options(&["--etcd-prefix", "--v"]).common.etcd_prefix,
        "--v",
        "the next argument, whatever it is"
    );
    assert_eq!(options(&["--etcd-username="]).common.etcd_username, "");
    assert_eq!(options(&["--iface", "a", "-iface=b,c"]).iface, ["a", "b,c"]);
    for (number, want) in [("10", 10), ("+1", 1), ("0x1f", 31), ("0b11", 3), ("017", 15), ("1_0", 10)] {
        let margin = options(&["--subnet-lease-renew-margin", number]).subnet_lease_renew_margin;
        assert_eq!(margin, Duration::from_secs(60 * want), "{number}");
    }
    for truth in ["1", "t", "T", "true", "TRUE", "True"] {
        assert!(matches!(run_with(&[&format!("--version={truth}")], &[]), Ok(Command::Version)), "{truth}");
    }
    for lie in ["0", "f", "F", "false", "FALSE", "False"] {
        assert!(matches!(run_with(&[&format!("-version={lie}")], &[]), Ok(Command::Run(_))), "{lie}");
    }
}

#[test]
fn help_and_version_come_first() {
    for args in [&["-h"][..], &["--help"], &["-help=x"], &["--v=1", "-h", "--nonsense"], &["-h", "x"]] {
        assert!(matches!(run_with(args, &[]), Ok(Command::Help(_))), "{args:?}");
    }
    let env = [("FLANNELD_V", "nonsense")];
    assert!(matches!(run_with(&["--version"], &env), Ok(Command::Version)));
    assert!(matches!(run_with(&["--version", "--ip-masq"], &[]), Ok(Command::Version)));
    assert!(matches!(run_with(&["--version", "--version=false"], &[]), Ok(Command::Run(_))));
}

#[test]
fn errors_name_flag_value_and_what_was_meant() {
    for (args, want) in [
        (&["--ifcae=eth0"][..], "unknown flag --ifcae; did you mean --iface?"),
        (&["--etcd_prefix=/x"], "unknown flag --etcd_prefix; did you mean --etcd-prefix?"),
        (&["-public-ip6", "::1"], "unknown flag --public-ip6; did you mean --public-ipv6?"),
        (&["--completely-different"], "unknown flag --completely-different"),
        (&["---v"], "bad flag syntax: ---v"),
        (&["---etcd-password=hunter2"], "bad flag syntax: ---etcd-password="),
        (
            &["--etcd-password", "=", "hunter2"],
            "unexpected argument \"***\"; flanneld takes flags only, and reads none after it",
        ),
        (&["--etcd-password=hunter", "-2"], "unknown flag --***"),
        (&["--etcd-passwordhunter2"], "unknown flag --etcd-password***; did you mean --etcd-password?"),
        (
            &["--etcd-password=x", "--etcd-usrname=y"],
            "unknown flag --etcd-usrname; did you mean --etcd-username?",
        ),
        (
            &["--etcd-password=hunter", "-v=1", "2"],
            "unexpected argument \"***\"; flanneld takes flags only, and reads none after it",
        ),
        (&["--=v"], "bad flag syntax: --="),
        (&["-=v"], "bad flag syntax: -="),
        (&["--etcd-prefix"], "flag --etcd-prefix needs a value"),
        (&["--v=x"], "--v: \"x\" is not a whole number"),
        (&["--v="], "--v: \"\" is not a whole number"),
        (&["--v=1_"], "--v: \"1_\" is not a whole number"),
        (&["--v=99999999999999999999"], "--v: \"99999999999999999999\" is not a whole number"),
        (&["--version=yes"], "--version: \"yes\" is not true or false"),
        (&["--ip-masq", "false"], "unexpected argument \"false\"; did you mean --ip-masq=false?"),
        (
            &["--v=1", "eth0"],
            "unexpected argument \"eth0\"; flanneld takes flags only, and reads none after it",
        ),
        (&["eth0"], "unknown command \"eth0\""),
        (&["clean-up"], "unknown command \"clean-up\"; did you mean cleanup?"),
        (&["--v=1", "cleanup"], "the command cleanup goes before all flags"),
        (&["cleanup", "--dryrun"], "unknown flag --dryrun; did you mean --dry-run?"),
        (&["cleanup", "--healthz-port=1"], "unknown flag --healthz-port"),
        (&["cleanup", "--store=redis"], "--store: \"redis\" is not etcd or local:DIR"),
        (&["cleanup", "--lease", "false"], "unexpected argument \"false\"; did you mean --lease=false?"),
        (&["--", "x"], "unexpected argument \"***\"; flanneld takes flags only, and reads none after it"),
        (&["-"], "unexpected argument \"-\"; flanneld takes flags only, and reads none after it"),
        (
            &["--subnet-lease-renew-margin=0"],
            "--subnet-lease-renew-margin: \"0\" is not from 1 to 1439 minutes",
        ),
        (
            &["--subnet-lease-renew-margin=1440"],
            "--subnet-lease-renew-margin: \"1440\" is not from 1 to 1439 minutes",
        ),
        (&["--healthz-port=65536"], "--healthz-port: \"65536\" is not a port, 0 to 65535"),
        (&["--public-ip=fd00::1"], "--public-ip: \"fd00::1\" is not an IPv4 address"),
        (&["--public-ipv6=10.0.0.1"], "--public-ipv6: \"10.0.0.1\" is not an IPv6 address"),
        (&["--iface-can-reach=host"], "--iface-can-reach: \"host\" is not an IP address"),
        (&["--store=local:"], "--store: \"local:\" is not etcd or local:DIR"),
        (&["--store=redis"], "--store: \"redis\" is not etcd or local:DIR"),
        (&["--log-format=xml"], "--log-format: \"xml\" is not text or json"),
        (&["--vmodule=x"], "--vmodule: \"x\" is not a comma-separated list of pattern=N"),
        (&["--etcd-keyfile=k"], "--etcd-certfile and --etcd-keyfile need each other"),
        (&["--subnet-file="], "--subnet-file: \"\" is not a path"),
        (&["--iface-regex=("], "--iface-regex: \"(\" is not a regular expression: unclosed group"),
        (
            &["--iface=192.0.2.0/24"],
            "--iface: \"192.0.2.0/24\" is not the name of an interface or one IP address",
        ),
        (
            &["--public-ip=0.0.0.0"],
            "--public-ip: \"0.0.0.0\" is not an IPv4 address of this node: 0.0.0.0 is the unspecified address, \
             which no node has",
        ),
        (&["--etcd-prefix="], "--etcd-prefix: \"\" is not a prefix of keys, such as /coreos.com/network"),
        (&["--etcd-password=x"], "--etcd-password needs --etcd-username, since etcd asks for both"),
    ] {
        assert_eq!(error(args), want, "{args:?}");
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
fn environment_fills_in_what_was_not_given() {
    let env = [
        ("FLANNELD_ETCD_PREFIX", "/env"),
        ("FLANNELD_IFACE", "a,b"),
        ("FLANNELD_V", "4"),
        ("FLANNELD_SUBNET_FILE", ""),
        ("FLANNELD_VERSION", "true"),
        ("FLANNELD_STORE", "local:/x"),
    ];
    let from_env = options_with(&[], &env);
    assert_eq!(from_env.common.etcd_prefix, "/env");
    assert_eq!(from_env.iface, ["a,b"], "one element, never split");
    assert_eq!(from_env.common.verbosity, 4);
    assert_eq!(from_env.common.subnet_file.to_str(), Some("/run/flannel/subnet.env"), "empty is unset");
    let local = |options: &Options| (options.common.store.clone(), options.common.local_store_allow_shared);
    assert_eq!(local(&from_env), (Store::Local("/x".into()), false));
    let shared = options_with(&[], &[&env[..], &[("FLANNELD_LOCAL_STORE_ALLOW_SHARED", "true")]].concat());
    assert_eq!(local(&shared), (Store::Local("/x".into()), true));
    assert_eq!(local(&options(&["--store=local:/x", "--local-store-allow-shared"])), local(&shared));
    let both = options_with(&["--etcd-prefix=/arg", "--iface=c"], &env);
    assert_eq!((both.common.etcd_prefix.as_str(), both.iface), ("/arg", vec!["c".to_owned()]));
    let error = error_with(&[], &[("FLANNELD_HEALTHZ_PORT", "http")]);
    assert_eq!(error, "FLANNELD_HEALTHZ_PORT: \"http\" is not a whole number");
    let error = error_with(&[], &[("FLANNELD_SUBNET_LEASE_RENEW_MARGIN", "0")]);
    assert!(error.starts_with("FLANNELD_SUBNET_LEASE_RENEW_MARGIN: "), "{error}");
    assert_eq!(flags::program().variable_of("log_backtrace_at").unwrap(), "FLANNELD_LOG_BACKTRACE_AT");
}

#[test]
fn cleanup_takes_the_flags_of_the_agent_that_it_needs() {
    let cleanup = |args: &[&str], env: &[(&str, &str)]| match run_with(args, env) {
        Ok(Command::Task(Task::Cleanup(options))) => *options,
        other => panic!("{args:?}: {other:?}"),
    };
    let defaults = cleanup(&["cleanup"], &[]);
    assert!(!defaults.dry_run && !defaults.lease);
    assert_eq!(defaults.common, options(&[]).common);
    assert_eq!(Options::from(defaults.common.clone()), options(&[]));
    let given = cleanup(&["cleanup", "-dry-run", "--store=local:/x"], &[("FLANNELD_SUBNET_FILE", "/a/b")]);
    assert!(given.dry_run && !given.lease);
    assert_eq!(given.common.store, Store::Local("/x".into()));
    assert_eq!(given.common.subnet_file.to_str(), Some("/a/b"));
    // What is only the agent's is not read, and what is not the agent's has no variable.
    let env = [("FLANNELD_HEALTHZ_PORT", "x"), ("FLANNELD_IP_MASQ", "true"), ("FLANNELD_LEASE", "true")];
    assert_eq!(cleanup(&["cleanup"], &env), defaults);
}

#[test]
fn log_level_takes_a_word_or_a_number_first() {
    let level = |args: &[&str], env: &[(&str, &str)]| match run_with(&[&["log-level"], args].concat(), env) {
        Ok(Command::Task(Task::LogLevel(options))) => options,
        other => panic!("{args:?}: {other:?}"),
    };
    for (args, want) in [
        (&[][..], None),
        (&["debug"], Some(1)),
        (&["info"], Some(0)),
        (&["trace"], Some(4)),
        (&["7"], Some(7)),
        (&["--level=-1"], Some(-1)),
        (&["2", "--subnet-file=/x"], Some(2)),
    ] {
        assert_eq!((level(args, &[]).level, level(args, &[]).sets_modules), (want, false), "{args:?}");
    }
    let modules = level(&["--modules=netlink=5"], &[]);
    assert_eq!((modules.level, modules.sets_modules, modules.modules.len()), (None, true, 1));
    assert!(level(&["--modules="], &[]).sets_modules, "none is a wish, too");
    let of_agent = [("FLANNELD_SUBNET_FILE", "/a"), ("FLANNELD_V", "9"), ("FLANNELD_VMODULE", "x=9")];
    let asked = level(&[], &of_agent);
    assert_eq!((asked.subnet_file.to_str(), asked.level, asked.sets_modules), (Some("/a"), None, false));
    assert_eq!(
        error(&["log-level", "loud"]),
        "--level: \"loud\" is not info, debug, trace or a whole number"
    );
    assert!(error(&["log-level", "debug", "trace"]).starts_with("unexpected argument \"trace\""));
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

/// Whoever writes `--etcd-keyfile="$(cat key)"` learns it, and the log does not have the key.
#[test]
fn the_content_of_a_file_is_refused_where_its_path_belongs_and_not_repeated() {
    let key = "-----BEGIN PRIVATE KEY-----\nTWFya2Vy\n-----END PRIVATE KEY-----\n";
    let long = "x/".repeat(2048);
    let contents = [
        key,
        "apiVersion: v1\nusers: [TWFya2Vy]",
        "apiVersion: v1, users: [TWFya2Vy]",
        r#"{"Network": "TWFya2Vy"}"#,
        "LS0tLS1CRUdJTiBQUklWQVRFIEtFWS0tLS0tCTWFya2Vy",
        "/run\tx",
        long.as_str(),
    ];
    let program = flags::program();
    let all = program.command();
    let is_path = |flag: &&clap::Arg| {
        let kind = flag.get_value_names().unwrap_or_default().first().map(AsRef::<str>::as_ref);
        matches!(kind, Some("FILE" | "DIR"))
    };
    let commands = all.get_subcommands().chain([all]);
    let paths: Vec<(&clap::Command, &str)> = commands
        .flat_map(|command| {
            let flags = command.get_arguments().filter(is_path);
            flags.map(move |flag| (command, flag.get_long().unwrap()))
        })
        .collect();
    assert!(paths.len() > 12, "{paths:?}");
    for (command, name) in paths {
        for content in contents {
            let flag = format!("--{name}={content}");
            let word = Some(command.get_name()).filter(|name| *name != "flanneld");
            let args: Vec<&str> = word.into_iter().chain([&*flag]).collect();
            let why = "is not a path, but seems to be the content of a file; save that to a file, and give the path of this";
            assert_eq!(error(&args), format!("--{name}: \"***\" {why}"));
        }
    }
    let stored = error(&[&format!("--store=local:{}", contents[3])]);
    assert!(stored.starts_with("--store: \"***\" is not a path"), "{stored}");
    // Where it is no path, it is not shown either.
    let options = options(&[&format!("--etcd-username={key}"), "--etcd-password=x"]);
    assert!(
        options.shown.contains("--etcd-username=***") && !options.shown.contains("BEGIN"),
        "{}",
        options.shown
    );
    for path in ["/run/flannel/", "/", "..", "/run/."] {
        let want = format!("--subnet-file: {path:?} is not the path of a file, but that of a folder");
        assert_eq!(error(&[&format!("--subnet-file={path}")]), want);
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
fn secrets_are_never_shown() {
    let options = options(&[
        "--etcd-username=root",
        "--etcd-password=hunter2",
        "--etcd-endpoints=http://me:hunter2,/@10.0.0.1:2379",
        "--etcd-prefix=/coreos.com/network",
        "--iface=eth0",
        // With it nobody uses the endpoints, which are none.
        "--kube-subnet-mgr",
    ]);
    let want =
        "--etcd-username=root --etcd-password=*** --etcd-endpoints=*** --iface=eth0 --kube-subnet-mgr=true";
    assert_eq!(options.shown, want, "only what differs from the defaults");
    assert!(!format!("{options:?}").contains("hunter2"), "{options:?}");
    let both = self::options(&["--etcd-username=root:hunter2"]);
    assert_eq!(both.shown, "--etcd-username=root:***", "as etcdctl takes them");
}

/// Flags that can hold a password, and the same as variables: cut anywhere, and with any byte replaced.
#[test]
fn no_mistyped_flag_or_variable_shows_a_password() {
    const PASSWORD: &str = "Marker-Of-Secret";
    let told = |text: &str| (0..=PASSWORD.len() - 8).any(|at| text.contains(&PASSWORD[at..at + 8]));
    let check = |args: &[&str], env: &[(&str, &str)]| {
        let shown = match run_with(args, env) {
            Ok(Command::Run(options)) => {
                let opened = crate::store::open(&options).map(|store| store.place());
                let opened =
                    opened.map_err(|error| format!("{error:?} {}", flannel_core::error::chain(&*error)));
                format!("{options:?} {opened:?}")
            }
            other => {
                format!("{other:?} {}", other.as_ref().map_or_else(ToString::to_string, |_| String::new()))
            }
        };
        assert!(!told(&shown), "{args:?} {env:?} shows {shown}");
    };
    let url = format!("https://me:{PASSWORD}@10.0.0.1:2379");
    for (name, value) in
        [("etcd-password", PASSWORD), ("etcd-endpoints", &url), ("kube-api-url", &format!("{url}/base"))]
    {
        let login: &[&str] = if name == "etcd-password" { &["--etcd-username=me"] } else { &[] };
        let login = if name == "kube-api-url" { &["--kube-subnet-mgr"] } else { login };
        let variable = format!("FLANNELD_{}", name.to_uppercase().replace('-', "_"));
        let of = |flag: &str, value: &str| {
            let joined = format!("{flag}={value}");
            check(&[login, &[&joined]].concat(), &[]);
            check(&[login, &[flag, value]].concat(), &[]);
            check(&[&[&*joined], login].concat(), &[]);
            check(&[&[flag, value], login].concat(), &[]);
            check(login, &[(&variable, value)]);
        };
        let flag = format!("--{name}");
        of(&flag, value);
        (0..flag.len()).for_each(|cut| of(&flag[..cut], value));
        (0..value.len()).for_each(|cut| of(&flag, &value[..cut]));
        for byte in ["=", "-", "/", ":", "@", ",", "?", "#", " ", "x", "0", "\n", "é", "["] {
            let replaced = |text: &str, at: usize| format!("{}{byte}{}", &text[..at], &text[at + 1..]);
            (0..flag.len()).for_each(|at| of(&replaced(&flag, at), value));
            (0..value.len()).for_each(|at| of(&flag, &replaced(value, at)));
            check(&[login, &[&format!("{flag}{byte}{value}")]].concat(), &[]);
        }
    }
}

#[test]
fn vmodule_is_a_list_of_patterns() {
    let vmodule = options(&["--vmodule=netlink=5,flannel_*=2,"]).common.vmodule;
    let vmodule: Vec<_> = vmodule.iter().map(|item| (item.pattern.as_str(), item.verbosity)).collect();
    assert_eq!(vmodule, [("netlink", 5), ("flannel_*", 2)]);
}

#[test]
fn usage_names_every_flag() {
    let program = flags::program();
    let all = program.command();
    let help = |args: &[&str]| match run_with(args, &[]) {
        Ok(Command::Help(text)) => text,
        other => panic!("{args:?}: {other:?}"),
    };
    let usage = help(&["--help"]);
    for name in names(all) {
        assert!(usage.contains(&format!(" --{name}")), "{name}");
    }
    for command in all.get_subcommands() {
        let summary = command.get_about().unwrap();
        assert!(usage.contains(command.get_name()) && usage.contains(&summary.to_string()), "{usage}");
        let usage = help(&[command.get_name(), "--help"]);
        for name in names(command) {
            assert!(usage.contains(&format!(" --{name}")), "{name}");
        }
    }
    assert!(usage.contains("--iface <NAME|IP>") && usage.contains("FLANNELD_ETCD_PREFIX"), "{usage}");
    assert!(!usage.contains("FLANNELD_ETCD_PASSWORD="), "{usage}");
    assert!(version().starts_with("flanneld 0."));
}

#[test]
fn docker_opts_takes_what_the_script_takes() {
    let docker = |args: &[&str]| match run_with(&[&["docker-opts"], args].concat(), &[]) {
        Ok(Command::Task(Task::DockerOpts(options))) => options,
        other => panic!("{args:?}: {other:?}"),
    };
    let defaults = docker(&[]);
    assert!(!defaults.i && !defaults.c && !defaults.m);
    assert_eq!((defaults.k.as_str(), defaults.d.to_str()), ("DOCKER_OPTS", Some("/run/docker_opts.env")));
    for args in [&["-c", "-m", "-k", "X", "-f", "/a"][..], &["-cmkX", "-f/a"], &["-cm", "-k=X", "--f=/a"]] {
        let options = docker(args);
        assert!(!options.i && options.c && options.m, "{args:?}");
        assert_eq!((options.k.as_str(), options.f.to_str()), ("X", Some("/a")), "{args:?}");
    }
    let both = docker(&["-ic"]);
    assert!(both.i && both.c);
    let last = docker(&["-c", "-c=false", "-f", "-x"]);
    assert_eq!((last.c, last.f.to_str()), (false, Some("-x")));
    for args in [["docker-opts", "-?"], ["docker-opts", "-h"]] {
        assert!(matches!(run_with(&args, &[]), Ok(Command::Help(_))), "{args:?}");
    }
    let error = |args: &[&str]| run_with(args, &[]).unwrap_err();
    assert_eq!(error(&["docker-opts", "-k", "a b"]), "--k: \"a b\" is not the name of a variable");
    assert_eq!(error(&["docker-opts", "-ik"]), "flag --k needs a value");
    assert!(error(&["docker-opts", "-x"]).starts_with("unknown flag --x"));
    assert_eq!(
        error(&["docker-opts", "x"]),
        "unexpected argument \"x\"; flanneld takes flags only, and reads none after it"
    );
}

#[test]
fn install_cni_checks_names() {
    let install = |args: &[&str]| run_with(&[&["install-cni"], args].concat(), &[]);
    let Ok(Command::Task(Task::InstallCni(options))) = install(&["--undo", "--conf-dir=/c"]) else {
        panic!()
    };
    assert!(options.undo && options.plugin.is_none() && options.conf.is_none() && options.only.is_none());
    assert_eq!(options.conf_dir.join(&options.conf_name).to_str(), Some("/c/10-flannel.conflist"));
    assert_eq!(options.plugin_dir.to_str(), Some("/opt/cni/bin"));
    for args in [&["--conf-name=a/b"][..], &["--conf-name="], &["--plugin-dir="], &["--only=both"]] {
        assert!(install(args).is_err(), "{args:?}");
    }
}

/// Whoever adds a flag says what it is about, and its help fits a terminal.
#[test]
fn flags_are_grouped_by_theme_and_help_has_80_columns() {
    let program = flags::program();
    let all = program.command();
    let without = |flag: &&clap::Arg| flag.get_help_heading().is_none();
    let names: Vec<_> = all.get_arguments().filter(without).filter_map(clap::Arg::get_long).collect();
    assert_eq!(names, ["version"], "these need a `help_heading`");
    let words = all.get_subcommands().map(|command| vec![command.get_name(), "--help"]);
    for args in words.chain([vec!["--help"]]) {
        let Ok(Command::Help(usage)) = run_with(&args, &[]) else { panic!("{args:?}") };
        let wide: Vec<_> = usage.lines().filter(|line| line.chars().count() > 80).collect();
        assert!(wide.is_empty(), "{wide:#?}");
    }
}

#[test]
fn a_status_is_one_question_about_the_agent_of_this_host() {
    let ask = |args: &[&str], env: &[(&str, &str)]| run_with(&[&["status"], args].concat(), env);
    let Ok(Command::Task(Task::Status(options))) =
        ask(&["--watch", "--output=wide"], &[("FLANNELD_SUBNET_FILE", "/x")])
    else {
        panic!()
    };
    assert!(options.watch && !options.diff && options.peer.is_empty());
    assert_eq!((options.output, options.subnet_file.to_str()), (Form::Wide, Some("/x")));
    for (args, why) in [
        (&["--diff", "--watch"][..], "--diff is a question of its own"),
        (&["--diff", "--peer=10.5.1.0/24"], "--diff is a question of its own"),
        (&["--watch", "--peer=10.5.1.0/24"], "--watch shows all peers"),
        (&["--output=yaml"], "--output: \"yaml\" is not table, wide or json"),
        (&["--output"], "flag --output needs a value"),
    ] {
        let error = ask(args, &[]).unwrap_err();
        assert!(error.starts_with(why), "{args:?}: {error}");
    }
    let Ok(Command::Task(Task::Events(options))) = run_with(&["events", "--follow"], &[]) else { panic!() };
    assert_eq!((options.follow, options.output), (true, Form::Wide));
}

fn help_of_flag(flag: &clap::Arg) -> String {
    flag.get_help().map(ToString::to_string).unwrap_or_default()
}

/// A table of `docs/flags.md`.
fn table(command: &clap::Command, program: &flannel_flags::Program) -> String {
    let code = |text: &str| if text.is_empty() { String::new() } else { format!("`{text}`") };
    let row = |flag: &clap::Arg| {
        let name = flag.get_long()?;
        let values = flag.get_value_names().filter(|_| !flag.is_require_equals_set()).unwrap_or_default();
        let value =
            values.first().map_or_else(String::new, |value| format!(" {}", value.replace('|', "\\|")));
        let default = code(default_of(command, name));
        let variable = program.variable_of(name).map_or_else(String::new, |name| code(&name));
        Some(format!("| `--{name}`{value} | {default} | {variable} | {}. |\n", help_of_flag(flag)))
    };
    let rows: String = command.get_arguments().filter_map(row).collect();
    format!("| flag | default | variable | meaning |\n| --- | --- | --- | --- |\n{rows}")
}

#[test]
fn documents_have_the_table_of_flags() {
    let document = include_str!("../../../docs/flags.md");
    let program = flags::program();
    let all = program.command();
    for table in all.get_subcommands().chain([all]).map(|command| table(command, &program)) {
        assert!(document.contains(&table), "docs/flags.md must have this table:\n{table}");
    }
}

proptest! {
    #[test]
    fn never_panics(
        args in prop::collection::vec("cleanup|-{0,3}(dry-run|v|iface|version|healthz-port|store|etcd-prefix|vmodule|h)(=.{0,5})?|.{0,9}", 0..5),
        value in ".{0,9}",
    ) {
        let _ = command(&args, |_| None);
        let _ = command(&args, |_| Some(value.clone()));
    }
}
