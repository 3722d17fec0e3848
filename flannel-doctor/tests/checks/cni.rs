//! Configs and plugins of a container runtime.

use std::fs;
use std::time::Duration;

use flannel_doctor::Verdict::{Failure, Warning};
use flannel_lab::wait::eventually;

use super::common::Case;

const CONF: &str = "/etc/cni/net.d/10-flannel.conflist";
const CONFLIST: &str = r#"{"name":"cbr0","cniVersion":"1.0.0","plugins":[{"type":"flannel","delegate":{"isDefaultGateway":true}},{"type":"portmap"}]}"#;

/// A plugin that says which versions it knows.
fn plugin(case: &Case, name: &str, versions: &str) {
    let path = format!("/opt/cni/bin/{name}");
    case.file(
        &path,
        &format!("#!/bin/sh\necho '{{\"cniVersion\":\"1.0.0\",\"supportedVersions\":[{versions}]}}'\n"),
    );
    case.mode(&path, 0o755);
}

#[test]
fn configs() {
    let case = Case::of_files();
    case.skips("cni-config", "no CNI config");
    case.file("/etc/cni/net.d/README", "no config")
        .file("/etc/cni/net.d/87-podman.conflist", r#"{"plugins":[{"type":"bridge"}]}"#);
    case.fails("cni-config", Failure, "none of 1 configs");
    case.skips("cni-order", "names the plugin flannel");
    case.file(CONF, CONFLIST);
    case.passes("cni-config");
    case.passes("cni-order");
    case.file("/etc/cni/net.d/05-cilium.conf", r#"{"type":"cilium-cni"}"#);
    case.fails("cni-order", Failure, "05-cilium.conf comes before 10-flannel.conflist");
    case.file("/etc/cni/net.d/05-cilium.conf", "{ \"password\": s3cret");
    case.fails("cni-config", Failure, "05-cilium.conf can't be read: line 1");
    case.remove("/etc/cni/net.d/05-cilium.conf");
    case.file(CONF, &CONFLIST.replace("\"flannel\",", "\"flannel\",\"subnetFile\":\"/else\","));
    case.fails("cni-config", Failure, "lets the plugin read /else");
}

#[test]
fn plugins() {
    let case = Case::of_files();
    case.file(CONF, CONFLIST);
    case.fails("cni-plugins", Failure, "/opt/cni/bin/flannel is missing");
    case.skips("cni-version", "no plugin could be asked");
    for name in ["flannel", "portmap", "bridge", "host-local", "loopback"] {
        plugin(&case, name, "\"0.3.1\",\"1.0.0\"");
    }
    case.passes("cni-plugins");
    case.passes("cni-version");
    case.mode("/opt/cni/bin/bridge", 0o644);
    case.fails("cni-plugins", Failure, "/opt/cni/bin/bridge can't be executed");
    plugin(&case, "bridge", "\"0.3.1\"");
    case.fails("cni-version", Failure, "wants CNI version 1.0.0, and the plugin bridge knows 0.3.1");
}

/// A plugin that hangs is named, and what it started ends with it.
#[test]
fn a_plugin_that_hangs() {
    let case = Case::of_files();
    case.file(CONF, CONFLIST);
    for name in ["portmap", "bridge", "host-local", "loopback"] {
        plugin(&case, name, "\"0.3.1\",\"1.0.0\"");
    }
    let path = "/opt/cni/bin/flannel";
    let child = case.path("/child");
    case.file(path, &format!("#!/bin/sh\nsleep 600 &\necho $! > {}\nwait\n", child.display()));
    case.mode(path, 0o755);
    case.fails("cni-version", Warning, "the plugin flannel does not say its versions");
    let pid = fs::read_to_string(&child).unwrap();
    eventually(Duration::from_secs(60), "the child to end", || {
        // One that ended may wait for somebody to notice; then it has no command line any more.
        let command = fs::read_to_string(format!("/proc/{}/cmdline", pid.trim())).unwrap_or_default();
        if command.is_empty() { Ok(()) } else { Err(command) }
    });
}
