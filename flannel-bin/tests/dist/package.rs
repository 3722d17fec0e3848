//! The Debian package's scripts, as dpkg runs them, on an `/etc` that goes with the sandbox.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

use flannel_lab::sandbox::in_sandbox;
use flannel_lab::test_name;

use crate::{path, success};

const DEFAULTS: &str = "/etc/default/flanneld";
const DROP_INS: &str = "/etc/systemd/system/flanneld.service.d";

fn sh(script: &str) -> String {
    success(&Command::new("sh").args(["-euc", script]).output().unwrap())
}

/// Lays a layer over the folders that the scripts write to and read, and puts programs that only tell in the place of
/// those that act on the host.
fn lay_over() {
    for folder in ["/etc", "/usr/share/doc"] {
        let name = folder.replace('/', "-");
        sh(&format!(
            "mkdir -p /run/up{name} /run/work{name}; mount -t overlay overlay -o \
             lowerdir={folder},upperdir=/run/up{name},workdir=/run/work{name} {folder}"
        ));
    }
    let examples = Path::new("/usr/share/doc/flanneld/examples");
    fs::create_dir_all(examples).unwrap();
    for name in ["flanneld-as-root.conf", "flanneld-net-raw.conf"] {
        fs::copy(path("dist").join(name), examples.join(name)).unwrap();
    }
    fs::create_dir("/run/stubs").unwrap();
    for name in ["systemctl", "deb-systemd-helper"] {
        let stub = Path::new("/run/stubs").join(name);
        fs::write(&stub, "#!/bin/sh\necho \"${0##*/} $*\" >>/run/told\n").unwrap();
        fs::set_permissions(&stub, fs::Permissions::from_mode(0o755)).unwrap();
    }
    fs::create_dir_all("/run/systemd/system").unwrap();
}

/// Runs a script; what it printed.
fn script(name: &str, args: &[&str]) -> String {
    let stubs = format!("/run/stubs:{}", std::env::var("PATH").unwrap());
    success(&Command::new(path("dist/debian").join(name)).args(args).env("PATH", stubs).output().unwrap())
}

/// The drop-ins that are there.
fn drop_ins() -> Vec<String> {
    let entries = fs::read_dir(DROP_INS).into_iter().flatten();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<_> = names.filter(|name| name.starts_with("50-")).collect();
    names.sort();
    names
}

/// A host before the upgrade: what is configured, by lines of shell.
fn upgrade(prepare: &str) -> (Vec<String>, String) {
    sh(&format!(
        "userdel flanneld 2>/dev/null || true; rm -rf {DROP_INS} {DEFAULTS} /etc/flannel; mkdir -p {DROP_INS} /etc/flannel"
    ));
    sh(prepare);
    let said = script("postinst", &["configure", "0.1.0-1"]);
    (drop_ins(), said)
}

/// Whether this sandbox has more users than root.
fn has_users() -> bool {
    !sh("cat /proc/self/uid_map").trim_end().ends_with(" 1")
}

const KEEPS_ROOT: &[&str] = &["50-as-root.conf"];

/// No upgrade takes from an agent what it needs.
#[test]
fn an_upgrade_keeps_what_the_agent_needs() {
    in_sandbox(test_name!(), || {
        lay_over();
        let key = format!(
            "echo FLANNELD_ETCD_KEYFILE=/etc/flannel/etcd.key >{DEFAULTS}; echo x >/etc/flannel/etcd.key"
        );
        let kubeconfig = format!(
            "printf '[Service]\\nEnvironment=FLANNELD_KUBECONFIG_FILE=/etc/flannel/kubeconfig\\n' >{DROP_INS}/kubernetes.conf; \
             printf 'users:\\n- user:\\n    client-key: node.key\\n' >/etc/flannel/kubeconfig; echo x >/etc/flannel/node.key"
        );
        for (what, prepare, want, word) in [
            (
                "nothing special",
                format!("echo FLANNELD_ETCD_ENDPOINTS=https://192.0.2.1:2379 >{DEFAULTS}"),
                &[][..],
                "",
            ),
            (
                "a key of root's",
                format!("{key}; chmod 600 /etc/flannel/etcd.key"),
                KEEPS_ROOT,
                "/etc/flannel/etcd.key is root's",
            ),
            ("a key of root's group", format!("{key}; chmod 640 /etc/flannel/etcd.key"), &[], ""),
            (
                "a comment",
                format!("{key}; chmod 600 /etc/flannel/etcd.key; sed -i s/^/#/ {DEFAULTS}"),
                &[],
                "",
            ),
            (
                "a flag",
                format!(
                    "printf '[Service]\\nExecStart=\\nExecStart=/usr/bin/flanneld -etcd-keyfile /etc/flannel/k\\n' >{DROP_INS}/a.conf; \
                                install -m 600 /dev/null /etc/flannel/k"
                ),
                KEEPS_ROOT,
                "/etc/flannel/k is root's",
            ),
            (
                "a key that a kubeconfig names",
                format!("{kubeconfig}; chmod 600 /etc/flannel/node.key"),
                KEEPS_ROOT,
                "/etc/flannel/node.key is root's",
            ),
            ("a kubeconfig for the group", format!("{kubeconfig}; chmod 640 /etc/flannel/*"), &[], ""),
            (
                "a folder as the store",
                format!("echo FLANNELD_STORE=local:/var/lib/flannel >{DEFAULTS}"),
                KEEPS_ROOT,
                "a folder as the store",
            ),
            (
                "a state file on a disk",
                format!("echo FLANNELD_STATE_FILE=/var/lib/flannel/state >{DEFAULTS}"),
                &[],
                "",
            ),
            (
                "a state file elsewhere",
                format!("echo FLANNELD_STATE_FILE=/srv/state >{DEFAULTS}"),
                KEEPS_ROOT,
                "/srv/state is to be written",
            ),
            (
                "rules of the legacy variant",
                "iptables-legacy -t nat -A POSTROUTING -s 192.0.2.0/24 -j ACCEPT".to_owned(),
                &["50-net-raw.conf"],
                "",
            ),
        ] {
            let (drop_ins, said) = upgrade(&prepare);
            // In a sandbox of an ordinary user there is no other user who could read anything.
            let want = if prepare.contains("chmod 640") && !has_users() { KEEPS_ROOT } else { want };
            assert_eq!(drop_ins, want, "{what}: {said}");
            assert!(said.contains(word), "{what}: {said}");
            assert!(sh("cat /run/told").contains("systemctl --system daemon-reload"), "{what}");
        }
        for name in drop_ins() {
            let example = fs::read(
                Path::new("/usr/share/doc/flanneld/examples").join(format!("flanneld{}", &name[2..])),
            );
            assert_eq!(fs::read(Path::new(DROP_INS).join(&name)).unwrap(), example.unwrap());
        }
        // Later upgrades leave an operator's choice.
        sh(&format!("rm {DROP_INS}/50-*; {key}; chmod 600 /etc/flannel/etcd.key"));
        script("postinst", &["configure", "0.2.0-1"]);
        assert_eq!(drop_ins(), [""; 0]);
    });
}

#[test]
fn a_first_installation_makes_the_user_and_a_purge_takes_the_drop_ins() {
    in_sandbox(test_name!(), || {
        lay_over();
        sh("userdel flanneld 2>/dev/null || true");
        let said = script("postinst", &["configure", ""]);
        assert!(said.contains("installed and not started") && drop_ins().is_empty(), "{said}");
        let user = sh("getent passwd flanneld");
        assert!(user.ends_with(":/nonexistent:/usr/sbin/nologin\n"), "{user}");
        sh(&format!(
            "mkdir -p {DROP_INS}; touch {DROP_INS}/50-as-root.conf {DROP_INS}/50-net-raw.conf {DROP_INS}/mine.conf"
        ));
        script("postrm", &["remove"]);
        assert_eq!(drop_ins(), ["50-as-root.conf", "50-net-raw.conf"]);
        script("postrm", &["purge"]);
        assert_eq!(sh(&format!("ls {DROP_INS}")), "mine.conf\n");
        sh(&format!("rm {DROP_INS}/mine.conf"));
        script("postrm", &["purge"]);
        assert!(!Path::new(DROP_INS).exists());
    });
}
