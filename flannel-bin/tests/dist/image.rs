//! `Dockerfile`, and what manifests expect in the image.

use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;

use serde_json::Value;

use crate::manifest::objects;
use crate::objects::{command_line, container, of_kind, text};
use crate::{FLANNELD, file, path};

/// The words of the last stage's lines of a kind.
fn lines<'a>(dockerfile: &'a str, kind: &str) -> Vec<Vec<&'a str>> {
    let stage = dockerfile.rfind("\nFROM ").map_or("", |start| &dockerfile[start..]);
    let words = stage.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    words.filter(|words| words.first() == Some(&kind)).collect()
}

#[test]
fn every_file_that_it_copies_is_there() {
    let dockerfile = file("Dockerfile");
    let mut copied = Vec::new();
    for words in lines(&dockerfile, "COPY") {
        let [_, from @ .., to] = words.as_slice() else { panic!("{words:?}") };
        if from[0].starts_with("--from=") {
            continue;
        }
        for from in from {
            assert!(path(from).is_file(), "{from}");
            let name = from.rsplit('/').next().unwrap();
            copied.push(if to.ends_with('/') { format!("{to}{name}") } else { (*to).to_owned() });
        }
    }
    // With what the first stage builds, all that either manifest executes.
    copied.extend(["/opt/bin/flanneld", "/flannel"].map(str::to_owned));
    for built in ["/out/opt/bin/flanneld", "/out/flannel"] {
        assert!(dockerfile.contains(built), "{built}");
    }
    let objects = objects();
    let ours = ["install-cni-plugin", "install-cni", "kube-flannel"]
        .map(|name| command_line(container(of_kind(&objects, "DaemonSet"), name).unwrap())[0].clone());
    let of_go = ["/opt/bin/flanneld", "/opt/bin/install-conf", "/opt/bin/mk-docker-opts.sh", "/flannel"];
    for program in ours.iter().map(String::as_str).chain(of_go) {
        assert!(copied.iter().any(|path| path == program), "{program}: {copied:?}");
    }
    assert_eq!(lines(&dockerfile, "ENTRYPOINT"), [["ENTRYPOINT", "[\"/opt/bin/flanneld\"]"]]);
}

#[test]
fn it_has_what_the_agent_runs() {
    let dockerfile = file("Dockerfile");
    let stage = &dockerfile[dockerfile.rfind("\nFROM ").unwrap()..];
    for package in ["nftables", "iptables", "iproute2", "ca-certificates", "libcap2-bin"] {
        assert!(stage.replace('\n', " ").contains(&format!(" {package} ")), "{package}");
    }
}

#[test]
fn all_name_one_image_of_this_version() {
    let version = concat!("v", env!("CARGO_PKG_VERSION"));
    let objects = objects();
    for name in ["install-cni-plugin", "install-cni", "open-run", "kube-flannel"] {
        let image = text(container(of_kind(&objects, "DaemonSet"), name).unwrap(), "/image");
        assert_eq!(image, format!("registry.example.org/flannel:{version}"));
    }
    let values: Value = serde_saphyr::from_str(&file("dist/helm/flannel/values.yaml")).unwrap();
    assert_eq!(values["flannel"]["image"]["tag"], version);
    let chart: Value = serde_saphyr::from_str(&file("dist/helm/flannel/Chart.yaml")).unwrap();
    assert_eq!(
        (&chart["appVersion"], &chart["version"]),
        (&version.into(), &env!("CARGO_PKG_VERSION").into())
    );
}

/// The wrappers run the program at its place in the image; here it is put there by its name.
#[test]
fn the_wrappers_are_those_of_go_flannel() {
    let root = tempfile::tempdir().unwrap();
    let wrapper = |name: &str| {
        let text = file(&format!("dist/docker/{name}"));
        assert!(text.contains("exec /opt/bin/flanneld "), "{name}");
        let mode = std::fs::metadata(path(&format!("dist/docker/{name}"))).unwrap().permissions().mode();
        assert_eq!(mode & 0o111, 0o111, "{name} can be executed");
        let moved = root.path().join(name);
        std::fs::write(&moved, text.replace("/opt/bin/flanneld", FLANNELD)).unwrap();
        let mut command = Command::new("sh");
        command.arg(moved).current_dir(root.path());
        command
    };
    let at = |name: &str| root.path().join(name);
    std::fs::write(at("conf"), r#"{"name":"x","plugins":[{"type":"flannel"}]}"#).unwrap();
    assert!(wrapper("install-conf").args(["conf", "net.d/10-flannel.conflist"]).status().unwrap().success());
    assert_eq!(std::fs::read(at("conf")).unwrap(), std::fs::read(at("net.d/10-flannel.conflist")).unwrap());
    let one = wrapper("install-conf").arg("conf").output().unwrap();
    assert_eq!(one.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&one.stderr).starts_with("usage: "));

    std::fs::write(at("subnet.env"), "FLANNEL_SUBNET=10.1.74.1/24\nFLANNEL_MTU=1472\n").unwrap();
    let status =
        wrapper("mk-docker-opts.sh").args(["-f", "subnet.env", "-d", "opts", "-c", "-k", "X"]).status();
    assert!(status.unwrap().success());
    assert_eq!(std::fs::read_to_string(at("opts")).unwrap(), "X=\" --bip=10.1.74.1/24 --mtu=1472\"\n");
}
