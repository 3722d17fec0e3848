//! The real binary: what it prints and how it exits. None of these touches the host's network.

use std::process::{Command, Output};

use flannel_lab::sandbox::in_sandbox;
use flannel_lab::test_name;

fn flanneld(args: &[&str], env: &[(&str, &str)]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_flanneld"));
    command.args(args).env_clear().envs(env.iter().copied());
    command.output().unwrap()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

#[test]
fn version_goes_to_stderr() {
    for flag in ["--version", "-version", "--version=true"] {
        let output = flanneld(&[flag], &[]);
        assert_eq!(output.status.code(), Some(0));
        assert!(text(&output.stderr).starts_with("flanneld ") && output.stdout.is_empty(), "{output:?}");
    }
}

#[test]
fn help_goes_to_stdout() {
    for flag in ["-h", "--help"] {
        let output = flanneld(&[flag], &[]);
        assert_eq!(output.status.code(), Some(0));
        assert!(text(&output.stdout).contains("--etcd-endpoints") && output.stderr.is_empty(), "{output:?}");
    }
}

#[test]
fn the_doctor_examines_a_host_without_agent_and_store() {
    in_sandbox(test_name!(), || {
        let help = flanneld(&["doctor", "--help"], &[]);
        for check in flannel_doctor::CHECKS {
            assert!(text(&help.stdout).contains(check.name), "{}", check.name);
        }
        // Where the programs are that show rules.
        let path = ("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
        let files = ["doctor", "--subnet-file=/run/none/subnet.env", "--conf-dir=/run/none"];
        let whole = flanneld(&files, &[path]);
        assert_eq!(whole.status.code(), Some(4), "{whole:?}");
        assert!(text(&whole.stdout).starts_with("failure  subnet-file "), "{whole:?}");
        assert!(text(&whole.stdout).contains("no store was named"), "{whole:?}");
        let relative = flanneld(&["doctor", "subnet-file", "--subnet-file=none.env"], &[path]);
        let here = std::env::current_dir().unwrap().join("none.env").display().to_string();
        assert!(text(&relative.stdout).contains(&here), "{relative:?}");
        let one = flanneld(&[&files[..], &["--check=capabilities", "--output=json"]].concat(), &[path]);
        assert_eq!(one.status.code(), Some(0), "{one:?}");
        assert!(text(&one.stdout).contains("\"check\": \"capabilities\""), "{one:?}");
        let words = flanneld(&["doctor", "capabilities", "agents", "--output=json"], &[path]);
        let names = text(&words.stdout).lines().filter(|line| line.contains("\"check\": ")).count();
        assert_eq!((words.status.code(), names), (Some(3), 2), "{words:?}");
        let over_etcd = flanneld(
            &[&files[..], &["--etcd-endpoints=http://127.0.0.1:1", "--check=store-reachable"]].concat(),
            &[],
        );
        assert_eq!(over_etcd.status.code(), Some(4), "{over_etcd:?}");

        let folder = tempfile::tempdir().unwrap();
        let bundle = folder.path().join("b.tar.gz").display().to_string();
        let bundle_flag = format!("--bundle={bundle}");
        let password =
            [path, ("FLANNELD_ETCD_USERNAME", "root"), ("FLANNELD_ETCD_PASSWORD", "correct-horse")];
        let packed = flanneld(&[&files[..], &["--check=agents", &bundle_flag]].concat(), &password);
        assert_eq!(packed.status.code(), Some(3), "{packed:?}");
        let shown = Command::new("tar").args(["xzOf", &bundle]).output().unwrap();
        let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
        assert!(shown.contains("--etcd-username=root") && !shown.contains("correct-horse"), "{shown}");
        let refused = flanneld(&[&files[..], &["--check=agents", "--bundle=/dev/null/b"]].concat(), &[]);
        assert_eq!(refused.status.code(), Some(1), "{refused:?}");

        // The backends of this build read the config, as an agent would.
        for (backend, part) in [("vxlna", "has vxlan"), ("vxlan\",\"VNI\":\"x", "Backend.VNI")] {
            let config = format!("{{\"Network\":\"10.244.0.0/16\",\"Backend\":{{\"Type\":\"{backend}\"}}}}");
            std::fs::write(folder.path().join("config"), config).unwrap();
            let store = format!("--store=local:{}", folder.path().display());
            let output = flanneld(&[&files[..], &["--check=network-config", &store]].concat(), &[]);
            assert_eq!(output.status.code(), Some(4), "{output:?}");
            assert!(text(&output.stdout).contains(part), "{output:?}");
        }
        let root = flanneld(&["doctor", "--root=/nonexistent"], &[]);
        assert_eq!(root.status.code(), Some(2), "{root:?}");
        assert!(text(&root.stderr).contains("/nonexistent can't be the root of a host"), "{root:?}");
        let node = [
            "doctor",
            "store-reachable",
            "kube-rights",
            "--kube-subnet-mgr",
            "--kube-api-url=http://127.0.0.1:1",
        ];
        let node = flanneld(&node, &[]);
        if cfg!(feature = "kube") {
            assert!(text(&node.stdout).contains("NODE_NAME"), "{node:?}");
            assert!(!text(&node.stdout).contains("not Kubernetes"), "{node:?}");
        }
    });
}

#[test]
fn bad_command_lines_exit_2_and_say_why() {
    for (args, env, want) in [
        (&["--ifcae=eth0"][..], &[][..], "unknown flag --ifcae; did you mean --iface?"),
        (&["--subnet-lease-renew-margin=1440"], &[], "is not from 1 to 1439 minutes"),
        (&[], &[("FLANNELD_HEALTHZ_PORT", "x")], "FLANNELD_HEALTHZ_PORT: \"x\" is not a whole number"),
        (
            &["--log_backtrace_at=main.rs:1"],
            &[],
            "not supported by this version: stack traces in the log (--log_backtrace_at); leave it out",
        ),
        (&["doctor", "--check=mtu-path,mtu"], &[], "\"mtu\" is not the name of a check"),
        (&["doctor", "mtu"], &[], "\"mtu\" is not the name of a check"),
        (&["doctor", "--output=xml"], &[], "is not table or json"),
        (&["doctor", "--bundle="], &[], "--bundle: \"\" is not a path"),
        (
            &["doctor", "--output=json", "rp-filter"],
            &[],
            "\"rp-filter\"; give it before all flags, or as --check=rp-filter",
        ),
        (
            &["log-level", "--subnet-file=/a", "debug"],
            &[],
            "\"debug\"; give it before all flags, or as --level=debug",
        ),
        (&["--ip-masq", "false"], &[], "did you mean --ip-masq=false?"),
        (&[], &[("FLANNELD_IFACE_REGEX", "(")], "FLANNELD_IFACE_REGEX: \"(\" is not a regular expression"),
    ] {
        let output = flanneld(args, env);
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        let stderr = text(&output.stderr);
        assert!(stderr.starts_with("flanneld: ") && stderr.contains(want), "{stderr}");
        assert!(output.stdout.is_empty());
    }
}

#[test]
fn a_wrong_flag_is_no_missing_agent() {
    for command in ["status", "events", "rotate-key"] {
        let output = flanneld(&[command, "--no-such-flag"], &[]);
        assert_eq!(output.status.code(), Some(3), "{output:?}");
    }
}

#[cfg(not(feature = "etcd"))]
#[test]
fn a_build_without_etcd_says_what_to_do() {
    let output = flanneld(&["--subnet-file=/nonexistent/subnet.env"], &[]);
    assert_eq!(output.status.code(), Some(1));
    let stderr = text(&output.stderr);
    assert!(stderr.contains("this build has no etcd store; give --store=local:DIR"), "{stderr}");
}

#[test]
fn docker_opts_writes_and_then_looks_whose_the_subnet_is() {
    in_sandbox(test_name!(), || {
        let folder = tempfile::tempdir().unwrap();
        let (env, out) = (folder.path().join("subnet.env"), folder.path().join("docker"));
        let file = "FLANNEL_NETWORK=10.1.0.0/16\nFLANNEL_SUBNET=10.1.74.1/24\nFLANNEL_MTU=1472\nFLANNEL_IPMASQ=true\n";
        std::fs::write(&env, file).unwrap();
        let run = || {
            let (env, out) = (format!("-f{}", env.display()), out.display().to_string());
            flanneld(&["docker-opts", &env, "-d", &out, "-c"], &[("DOCKER_OPTS", "-D")])
        };
        let done = run();
        assert!(done.status.success(), "{}", text(&done.stderr));
        let want = "DOCKER_OPTS=\"-D --bip=10.1.74.1/24 --ip-masq=false --mtu=1472\"\n";
        assert_eq!(std::fs::read_to_string(&out).unwrap(), want);
        for command in [
            "link add eth0 type veth peer name peer0",
            "link set eth0 up",
            "address add 192.0.2.1/24 dev eth0",
            "route add default via 192.0.2.254",
        ] {
            ip(command);
        }
        assert!(run().status.success(), "the default route leads to everything, and says nothing");
        std::fs::remove_file(&out).unwrap();
        ip("route add 10.1.74.0/24 via 192.0.2.9");
        let refused = run();
        assert_eq!(refused.status.code(), Some(1));
        let said = text(&refused.stderr);
        assert!(said.contains("10.1.74.0/24") && said.contains("192.0.2.9"), "{said}");
        assert_eq!(
            std::fs::read_to_string(&out).unwrap(),
            want,
            "the file is there all the same, as the script's"
        );
    });
}

#[test]
fn install_cni_puts_and_takes_away() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    std::fs::write(path("plugin"), "#!/bin/sh\n").unwrap();
    let run = |more: &[&str]| {
        let flag = |flag: &str, name: &str| format!("--{flag}={}", path(name).display());
        let flags = [flag("plugin", "plugin"), flag("plugin-dir", "bin"), flag("conf-dir", "net.d")];
        let args: Vec<_> = ["install-cni"].into_iter().chain(flags.iter().map(String::as_str)).collect();
        flanneld(&[&args, more].concat(), &[])
    };
    let done = run(&[]);
    assert!(done.status.success(), "{}", text(&done.stderr));
    assert_eq!(text(&done.stdout).lines().count(), 2);
    assert!(path("bin/flannel").is_file() && path("net.d/10-flannel.conflist").is_file());
    assert!(run(&["--undo"]).status.success());
    assert!(!path("bin/flannel").exists() && !path("net.d/10-flannel.conflist").exists());
    std::fs::remove_file(path("plugin")).unwrap();
    let failed = run(&[]);
    assert_eq!(failed.status.code(), Some(1));
    assert!(text(&failed.stderr).contains("plugin"), "{}", text(&failed.stderr));
}

fn ip(arguments: &str) {
    let done = Command::new("ip").args(arguments.split(' ')).output().unwrap();
    assert!(done.status.success(), "ip {arguments}: {}", text(&done.stderr));
}
