//! The systemd unit and the Debian package.

use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;

use serde_json::Value;

use crate::{file, flags, path};

/// `[package.metadata.deb]`, as cargo-deb reads it.
pub(crate) fn deb() -> Value {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--offline", "--no-deps", "--format-version=1", "--manifest-path"])
        .arg(path("flannel-bin/Cargo.toml"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let all: Value = serde_json::from_slice(&output.stdout).unwrap();
    let packages = all["packages"].as_array().unwrap();
    packages.iter().find(|package| package["name"] == "flannel-bin").unwrap()["metadata"]["deb"].clone()
}

/// Where the package puts its files.
fn installed(deb: &Value) -> Vec<String> {
    let assets = deb["assets"].as_array().unwrap().iter();
    let to = assets.map(|asset| {
        let (from, to) = (asset[0].as_str().unwrap(), asset[1].as_str().unwrap());
        let name = from.rsplit('/').next().unwrap();
        if to.ends_with('/') { format!("/{to}{name}") } else { format!("/{to}") }
    });
    to.collect()
}

/// The values of a key of a unit.
fn values<'a>(unit: &'a str, key: &str) -> Vec<&'a str> {
    let pairs = unit.lines().filter_map(|line| line.split_once('='));
    pairs.filter(|(it, _)| *it == key).map(|(_, value)| value).collect()
}

#[test]
fn the_package_has_every_file_that_it_names() {
    let deb = deb();
    for asset in deb["assets"].as_array().unwrap() {
        let from = asset[0].as_str().unwrap();
        // Those are built.
        if !from.contains("target/") && !from.contains('*') {
            assert!(path("flannel-bin").join(from).is_file(), "{from}");
        }
    }
    let installed = installed(&deb);
    for conf in deb["conf-files"].as_array().unwrap() {
        assert!(installed.iter().any(|path| path == conf), "{conf}");
    }
    for script in ["postinst", "prerm", "postrm", "build"] {
        let script = path("dist/debian").join(script);
        assert_eq!(script.metadata().unwrap().permissions().mode() & 0o111, 0o111, "{script:?}");
    }
}

#[test]
fn the_unit_runs_what_the_package_installs() {
    let unit = file("dist/flanneld.service");
    let installed = installed(&deb());
    let environment = values(&unit, "EnvironmentFile")[0].trim_start_matches('-');
    for path in [values(&unit, "ExecStart")[0], environment] {
        assert!(installed.iter().any(|it| it == path), "{path}");
    }
    // What pods' traffic rests on: subnet.env stays, and nothing that the kernel holds is in the way of a restart.
    assert_eq!(values(&unit, "RuntimeDirectoryPreserve"), ["yes"]);
    assert_eq!(values(&unit, "Type"), ["notify"]);
    // Longer than any pass of the loop, and one that hangs is started anew.
    assert_eq!((values(&unit, "WatchdogSec"), values(&unit, "Restart")), (vec!["60"], vec!["on-failure"]));
    // Two that every start reads.
    assert_eq!(values(&unit, "Environment"), ["FLANNELD_HEALTHZ_IP=127.0.0.1"]);
    assert!(
        unit.find("\nEnvironment=").unwrap() < unit.find("\nEnvironmentFile=").unwrap(),
        "an operator's wins"
    );
}

/// The unit and its drop-ins, by systemd's own eyes.
#[test]
fn the_unit_has_few_rights() {
    let unit = file("dist/flanneld.service");
    for key in ["AmbientCapabilities", "CapabilityBoundingSet"] {
        assert_eq!(values(&unit, key), ["CAP_NET_ADMIN"], "{key}");
    }
    let postinst = file("dist/debian/postinst");
    let user = values(&unit, "User")[0];
    assert!(
        user != "root"
            && postinst.contains(&format!(
                "--user-group --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin {user}"
            ))
    );
    let folder = tempfile::tempdir().unwrap();
    let exposure = |drop_in: Option<&str>| -> f64 {
        let path = folder.path().join("flanneld.service");
        std::fs::write(&path, format!("{unit}\n{}", drop_in.map(file).unwrap_or_default())).unwrap();
        let output = Command::new("systemd-analyze")
            .args(["security", "--offline=true", "--no-pager"])
            .arg(&path)
            .output();
        let output = output.expect("systemd-analyze is there; .ci/install installs it");
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let stderr = String::from_utf8_lossy(&output.stderr);
        // It names each key that it does not know.
        assert!(output.status.success() && stderr.is_empty(), "{stderr}");
        let line = said.lines().find(|line| line.contains("Overall exposure level")).unwrap();
        line.split_once(": ").unwrap().1.split(' ').next().unwrap().parse().unwrap()
    };
    assert!(exposure(None) <= 1.5);
    assert!(exposure(Some("dist/flanneld-net-raw.conf")) <= 1.6);
    // As it was before there was a user.
    let as_root = exposure(Some("dist/flanneld-as-root.conf"));
    assert!((1.6..=2.9).contains(&as_root), "{as_root}");
}

#[test]
fn variables_are_those_of_the_agent() {
    let known: Vec<_> = flags().into_iter().map(|(_, variable)| variable).collect();
    let default = file("dist/debian/default");
    let drop_in = file("dist/flanneld-kubernetes.conf");
    let of_default = default.lines().map(|line| line.trim_start_matches('#'));
    let of_drop_in = values(&drop_in, "Environment");
    let names = of_default.chain(of_drop_in).filter_map(|line| line.split_once('=')).map(|(name, _)| name);
    let names: Vec<_> = names.filter(|name| name.starts_with("FLANNELD_")).collect();
    assert!(names.len() > 10, "{names:?}");
    for name in names {
        assert!(known.iter().any(|it| it == name), "{name}");
    }
    // Nothing is set that somebody did not set.
    let set = default.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
    assert_eq!(set.count(), 0);
}

/// What an operator pastes is what the page shows, and names every kind of device that pods' traffic goes through.
#[test]
fn the_files_for_other_programs_of_a_host_are_in_the_page_and_in_the_package() {
    let (page, package) = (file("docs/hosts.md"), file("flannel-bin/Cargo.toml"));
    for (path, names_devices) in [
        ("dist/host/NetworkManager/flannel.conf", true),
        ("dist/host/networkd/10-flannel.network", true),
        ("dist/host/networkd.conf.d/flannel.conf", false),
        ("dist/host/dhcpcd/flannel.conf", true),
    ] {
        let text = file(path);
        let lines: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
        assert!(!lines.is_empty() && page.contains(lines.join("\n").trim()), "{path}");
        let devices = ["flannel*", "cni*", "veth*"].iter().filter(|device| text.contains(**device)).count();
        assert_eq!(devices, if names_devices { 3 } else { 0 }, "{path}");
        let folder = std::path::Path::new(path).parent().unwrap().display();
        assert!(package.contains(&format!("[\"../{folder}/*\", ")), "{path}");
    }
    let docker: serde_json::Value = serde_json::from_str(&file("dist/host/docker/daemon.json")).unwrap();
    for key in docker.as_object().unwrap().keys() {
        assert!(page.contains(key.as_str()), "{key}");
    }
}
