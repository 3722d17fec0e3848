//! Syntax, help, errors and variables, with the flags of the agent.

use proptest::prelude::*;

use super::*;

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
