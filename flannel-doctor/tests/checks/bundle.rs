//! Bundles for bug reports: what is in them, and what must not be.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use flannel_core::netns::Netns;
use flannel_doctor::bundle::Bundle;
use flannel_doctor::redact::Redactor;
use flannel_lab::sandbox::in_sandbox;
use flannel_lab::test_name;
use flate2::read::GzDecoder;
use serde_json::json;

use super::common::{Case, STATE_FILE, SUBNET_ENV, SUBNET_FILE, block_on, config, sh, state};

/// In every place where a password can be.
const SECRET: &str = "correct-horse-battery";

/// The files of a bundle by name.
fn unpack(path: &Path) -> BTreeMap<String, String> {
    let mut archive = tar::Archive::new(GzDecoder::new(File::open(path).unwrap()));
    let entry = |entry: std::io::Result<tar::Entry<'_, GzDecoder<File>>>| {
        let mut entry = entry.unwrap();
        let name = entry.path().unwrap().strip_prefix("flannel-bundle").unwrap().display().to_string();
        let mut text = String::new();
        entry.read_to_string(&mut text).unwrap();
        (name, text)
    };
    archive.entries().unwrap().map(entry).collect()
}

#[test]
fn a_bundle_has_what_a_bug_report_needs() {
    in_sandbox(test_name!(), || {
        sh(
            "ip link add eth0 type veth peer name far; ip link set eth0 up; ip link set far up; ip address add 192.0.2.1/24 dev eth0; nft add table ip seen",
        );
        let case = Case::of_netns(Netns::current().unwrap());
        case.agent_files(&state()).file("/flanneld.log", "level=info msg=started\n");
        let bundle =
            Bundle::new(case.doctor()).text("about.txt", "flanneld 0.1.0").log(case.path("/flanneld.log"));
        let misspelt = case.path("/bundels/bundle.tar.gz");
        let error = block_on(bundle.write(&misspelt)).unwrap_err();
        assert!(error.to_string().contains("/bundels/bundle.tar.gz"), "{error}");
        assert!(!misspelt.parent().unwrap().exists(), "a misspelt path makes no folder");
        let path = case.path("/bundle.tar.gz");
        let packed = block_on(bundle.write(&path)).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let files = unpack(&path);
        assert_eq!(packed.files.len(), files.len());
        for (name, part) in [
            ("about.txt", "flanneld 0.1.0"),
            ("report.txt", "subnet-file"),
            ("report.json", "\"version\": 1"),
            ("agent/subnet.env", "FLANNEL_SUBNET=10.244.1.1/24"),
            ("agent/state.json", "10.244.2.0-24"),
            ("network/addresses.txt", "192.0.2.1/24"),
            ("network/links.txt", "eth0"),
            ("network/routes.txt", "192.0.2.0/24 dev eth0"),
            ("firewall/nft.txt", "table ip seen"),
            ("kernel/sysctls.txt", "net/ipv4/ip_forward = "),
            ("logs/0-flanneld.log", "msg=started"),
            ("manifest.txt", "store: the store, missing: no store was given"),
        ] {
            let text = files.get(name).unwrap_or_else(|| panic!("no {name} in {:?}", files.keys()));
            assert!(text.contains(part), "{name}: {text}");
        }
        // Only a file gives way: what somebody reads from, or a link to a device, stays.
        let (fifo, link) = (case.path("/fifo"), case.path("/link"));
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
        std::os::unix::fs::symlink("/dev/null", &link).unwrap();
        for other in [&fifo, &link] {
            let before = fs::symlink_metadata(other).unwrap().file_type();
            let error = block_on(bundle.write(other)).unwrap_err();
            assert!(error.source.to_string().contains("no regular file"), "{error}");
            assert_eq!(fs::symlink_metadata(other).unwrap().file_type(), before);
        }
        // The next one takes its place.
        block_on(bundle.write(&path)).unwrap();
        let nowhere = block_on(bundle.write(Path::new("/dev/null/b.tar.gz"))).unwrap_err();
        assert!(nowhere.to_string().contains("/dev/null/b.tar.gz"));
    });
}

#[test]
fn no_bundle_has_a_secret() {
    let mut case = Case::of_files();
    let mut wireguard = state();
    let psk = format!(r#"{{"Network":"10.244.0.0/16","Backend":{{"Type":"wireguard","PSK":"{SECRET}"}}}}"#);
    wireguard.config = Some(config(&psk));
    case.agent_files(&wireguard);
    assert!(
        fs::read_to_string(case.path(STATE_FILE)).unwrap().contains(SECRET),
        "what is not there proves nothing"
    );
    case.file(SUBNET_FILE, &format!("{SUBNET_ENV}ETCD_PASSWORD={SECRET}\n"));
    let command = format!(
        "/usr/bin/flanneld\0--etcd-password\0{SECRET}\0--etcd-endpoints=https://root:{SECRET}@10.0.0.1:2379\0"
    );
    case.file("/proc/7/cmdline", &command);
    case.file("/proc/8/cmdline", &format!("kubelet\0--token=with a space and {SECRET}\0"));
    case.file("/proc/cmdline", &format!("quiet root=/dev/vda rd.password={SECRET}\n"));
    case.file("/proc/sys/net/ipv6/conf/all/stable_secret", SECRET);
    // A kubeconfig that somebody put among the configs of CNI, as Calico and Multus do.
    let kubeconfig = format!(
        "users:\n- user:\n    token: {SECRET}\n    client-key-data: {SECRET}\n    password: \"{SECRET}\"\n"
    );
    case.file("/etc/cni/net.d/calico-kubeconfig", &kubeconfig);
    let conflist = format!(
        r#"{{"plugins":[{{"type":"x","etcd_endpoints":"https://u:{SECRET}@h","apiToken":"{SECRET}"}}]}}"#
    );
    case.file("/etc/cni/net.d/10-x.conflist", &conflist);
    let log = format!(
        "level=error msg=\"login\" url=https://root:{SECRET}@10.0.0.1 header=\"Authorization: Bearer {SECRET}\"\n\
         config={{\"PSK\":\"{SECRET}\"}} FLANNELD_ETCD_PASSWORD={SECRET}\nthe bare word {SECRET} that the caller knows\n"
    );
    case.file("/var/log/flanneld.log", &log);
    case.file("/etc/kubeconfig", &kubeconfig).mode("/etc/kubeconfig", 0o644);
    case.places = case.places.clone().secrets(["/etc/kubeconfig".into()]);
    case.status = Some(
        json!({ "ready": true, "notes": [], "store": { "password": SECRET, "url": format!("http://a:{SECRET}@b") } }),
    );

    let bundle = Bundle::new(case.doctor())
        .log("/var/log/flanneld.log")
        .text("flags.txt", format!("--etcd-password={SECRET}"));
    let bundle = bundle.redactor(Redactor::new().knowing([SECRET.to_owned()]));
    check(&case, &bundle, true);
    // Without knowing it only the bare word stays, which nothing marks as a password.
    check(&case, &bundle.redactor(Redactor::new()), false);
}

#[track_caller]
fn check(case: &Case, bundle: &Bundle, is_known: bool) {
    let path = case.path("/b.tar.gz");
    block_on(bundle.write(&path)).unwrap();
    let files = unpack(&path);
    for name in [
        "agent/state.json",
        "agent/processes.txt",
        "cni/calico-kubeconfig",
        "cni/10-x.conflist",
        "logs/0-flanneld.log",
        "flags.txt",
        "agent/status.json",
        "kernel/sysctls.txt",
    ] {
        assert!(files[name].contains("***"), "{name}: {}", files[name]);
    }
    for (name, text) in &files {
        let bare = if is_known { 0 } else { usize::from(name.starts_with("logs/")) };
        assert_eq!(text.matches(SECRET).count(), bare, "{name}: {text}");
        assert!(!name.contains("kubeconfig") || name.starts_with("cni/"), "{name}");
    }
}
