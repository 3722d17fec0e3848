//! The real binary: what it prints and how it exits. None of these touches the network.

use std::process::{Command, Output};

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
fn bad_command_lines_exit_2_and_say_why() {
    for (args, env, want) in [
        (&["--ifcae=eth0"][..], &[][..], "unknown flag --ifcae; did you mean --iface?"),
        (&["--subnet-lease-renew-margin=1440"], &[], "is not from 1 to 1439 minutes"),
        (&[], &[("FLANNELD_HEALTHZ_PORT", "x")], "FLANNELD_HEALTHZ_PORT: \"x\" is not a whole number"),
        (
            &["--kube-subnet-mgr"],
            &[],
            "not supported by this version: the Kubernetes subnet manager (--kube-subnet-mgr); leave it out",
        ),
        (&["--ip-masq", "false"], &[], "did you mean --ip-masq=false?"),
    ] {
        let output = flanneld(args, env);
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        let stderr = text(&output.stderr);
        assert!(stderr.starts_with("flanneld: ") && stderr.contains(want), "{stderr}");
        assert!(output.stdout.is_empty());
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
