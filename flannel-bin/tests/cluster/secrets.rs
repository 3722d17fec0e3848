//! Credentials are shown nowhere: not by the log, not by the health port, not by `cleanup`, not at a start that fails.

use std::fs;
use std::process::Output;

use flannel_lab::cluster::Cluster;
use flannel_lab::kube::fake::Login;
use flannel_lab::netns::Netns;
use flannel_lab::sandbox::in_sandbox;
use flannel_lab::test_name;
use flannel_lab::wait::eventually;

use crate::backends::VXLAN;
use crate::harness::{Bed, FLANNELD, SOON, Store, http_get, subnet_file};
use crate::kube::kube;

/// What stands where a credential is.
const SECRET: &str = "Marker-Of-Secret";

#[track_caller]
fn assert_hidden(what: &str, text: &str) {
    // A part of it would be enough to guess the rest.
    let is_told = (0..=SECRET.len() - 8).any(|at| text.contains(&SECRET[at..at + 8]));
    assert!(!is_told, "{what} tells it: {text}");
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// A kubeconfig that is no YAML for a moment, and an URL with a password.
#[test]
fn a_damaged_kubeconfig_shows_no_token() {
    in_sandbox(test_name!(), || {
        let cluster = Cluster::builder().nodes(1).families(VXLAN.widest()).build().unwrap();
        let store = kube(&cluster);
        let kubeconfig = store.config_path().with_file_name("kubeconfig");
        store.api().set_tokens(Some(vec![SECRET.to_owned()]));
        store.api().write_kubeconfig(&kubeconfig, &Login::Token(SECRET.to_owned())).unwrap();
        let whole = fs::read_to_string(&kubeconfig).unwrap();
        let url = store.api().url().replace("http://", &format!("http://me:{SECRET}@"));
        // With all that the libraries below have to say.
        let flags = [
            format!("--kubeconfig-file={}", kubeconfig.display()),
            format!("--kube-api-url={url}"),
            "--vmodule=*=9".to_owned(),
        ];
        let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
        let mut bed = Bed::new(cluster, store, &VXLAN, VXLAN.widest());
        bed.spawn(1, &flags);
        bed.wait_ready(1);
        let shown = format!("--kube-api-url={}", bed.store.api().url());
        assert!(bed.agent(1).log().contains(&shown), "the log names the server");

        // As it is while it is rotated in place.
        let cut = whole.find(SECRET).unwrap() + SECRET.len();
        fs::write(&kubeconfig, &whole[..cut]).unwrap();
        bed.store.api().set_tokens(Some(vec!["another".to_owned()]));
        bed.store.api().disconnect();
        eventually(SOON, "the status to say where it is damaged", || {
            let answer = http_get(bed.netns(1), 8471, "/readyz");
            assert_hidden("/readyz", &answer);
            if answer.contains("it is no kubeconfig: line ") { Ok(()) } else { Err(answer) }
        });
        assert_hidden("/healthz", &http_get(bed.netns(1), 8471, "/healthz"));
        let log = bed.agent(1).log();
        assert!(log.contains("it is no kubeconfig: line "), "{log}");
        assert_hidden("the log", &log);
        assert!(log.contains(" kube_client::"), "the libraries say something");

        // It goes on by the whole one, whose token is refused first.
        fs::write(&kubeconfig, &whole).unwrap();
        bed.store.api().stop_listening();
        bed.store.api().disconnect();
        eventually(SOON, "the status to say that nobody answers", || {
            let answer = http_get(bed.netns(1), 8471, "/readyz");
            assert_hidden("/readyz", &answer);
            if answer.contains("refused") { Ok(()) } else { Err(answer) }
        });
        bed.store.api().listen_again().unwrap();
        bed.store.api().set_tokens(Some(vec![SECRET.to_owned()]));
        bed.wait_ready(1);
        bed.stop(1);

        for content in [&whole[..cut], &whole] {
            fs::write(&kubeconfig, content).unwrap();
            let mut command = bed.netns(1).command(FLANNELD);
            command.arg("cleanup").args(["--lease", "--dry-run"]);
            command.arg(format!("--subnet-file={}", subnet_file(1).display()));
            command.args(bed.store.flags()).args(&flags).env("NODE_NAME", bed.cluster.node(1).name());
            let said = said(&command.output().unwrap());
            assert!(said.contains("line ") == (content != whole), "{said}");
            assert_hidden("cleanup", &said);
        }
    });
}

/// The password of etcd goes to etcd, and nowhere else, whatever the libraries below have to say.
#[test]
fn a_password_of_etcd_is_shown_nowhere() {
    in_sandbox(test_name!(), || {
        let cluster = Cluster::builder().nodes(1).families(VXLAN.widest()).build().unwrap();
        let store = crate::etcd::start(&cluster);
        store.etcd().enable_auth("flannel", SECRET).unwrap();
        let mut bed = Bed::new(cluster, store, &VXLAN, VXLAN.widest());
        let password = format!("--etcd-password={SECRET}");
        bed.spawn(1, &["--etcd-username=flannel", &password, "--vmodule=*=9"]);
        bed.wait_ready(1);
        let log = bed.agent(1).log();
        assert!(
            log.contains("--etcd-username=flannel --etcd-password=***") && log.contains(" h2::"),
            "{log}"
        );
        bed.store.etcd().ctl(&["user", "delete", "flannel"]).unwrap();
        bed.store.etcd().kill().unwrap();
        eventually(SOON, "the status to say that nobody answers", || {
            let answer = http_get(bed.netns(1), 8471, "/readyz");
            assert_hidden("/readyz", &answer);
            if answer.starts_with("HTTP/1.1 503") { Ok(()) } else { Err(answer) }
        });
        assert_hidden("the log", &bed.agent(1).log());
    });
}

/// A start that fails says why, and quotes nothing.
#[test]
fn a_start_that_fails_shows_no_credentials() {
    in_sandbox(test_name!(), || {
        let node = Netns::add("alone").unwrap();
        let key = std::path::Path::new("/run/key.pem");
        fs::write(key, format!("-----BEGIN PRIVATE KEY-----{SECRET}\n-----END PRIVATE KEY-----\n")).unwrap();
        let kubeconfig = "/run/kubeconfig";
        fs::write(kubeconfig, format!("users:\n- name: a\n  user: {{token: {SECRET}\n")).unwrap();
        let url = format!("http://me:{SECRET}@127.0.0.1:1");
        for (flags, says) in [
            (vec![format!("--etcd-endpoints={url}")], "has a user in it"),
            (vec![format!("--etcd-endpoints=http://me:{SECRET}")], "has no valid port"),
            (
                vec![
                    "--etcd-endpoints=https://127.0.0.1:1".to_owned(),
                    "--etcd-certfile=/run/key.pem".to_owned(),
                    "--etcd-keyfile=/run/key.pem".to_owned(),
                ],
                "/run/key.pem can't be used",
            ),
            (
                vec!["--kube-subnet-mgr".to_owned(), format!("--kube-api-url=http://me:{SECRET}")],
                "give an URL",
            ),
            (
                vec!["--kube-subnet-mgr".to_owned(), format!("--kubeconfig-file={kubeconfig}")],
                "it is no kubeconfig: line ",
            ),
            (vec![format!("--etcd-passwordx{SECRET}")], "unknown flag --etcd-password"),
            (vec!["--".to_owned(), SECRET.to_owned()], "unexpected argument"),
        ] {
            let output = node.command(FLANNELD).args(&flags).env("NODE_NAME", "n1").output().unwrap();
            let said = said(&output);
            assert!(!output.status.success() && said.contains(says), "{flags:?}: {said}");
            assert_hidden("the start", &said);
            // A variable says the same, where a flag has one.
            let variables = flags.iter().filter_map(|flag| flag.strip_prefix("--")?.split_once('='));
            let mut command = node.command(FLANNELD);
            command.args(flags.iter().filter(|flag| !flag.contains('='))).env("NODE_NAME", "n1");
            for (name, value) in variables.clone() {
                command.env(format!("FLANNELD_{}", name.to_uppercase().replace('-', "_")), value);
            }
            if variables.count() > 0 {
                let said = self::said(&command.output().unwrap());
                assert!(said.contains(says), "{flags:?} as variables: {said}");
                assert_hidden("the start", &said);
            }
        }
    });
}
