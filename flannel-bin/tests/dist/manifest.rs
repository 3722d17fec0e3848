//! `dist/kubernetes/flannel.yaml`.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt as _;
use std::process::{Command, Stdio};
use std::time::Duration;

use flannel_cni::netconf::NetConf;
use flannel_core::config::{LeaseSource, NetworkConfig};
use flannel_lab::sandbox::in_sandbox;
use flannel_lab::test_name;
use flannel_lab::wait::eventually;
use serde_json::{Value, json};

use crate::objects::{allowed, called, command_line, config, container, of_kind, parse, text};
use crate::{FLANNELD, file, flags, flanneld, success};

pub(crate) fn objects() -> Vec<Value> {
    parse(&file("dist/kubernetes/flannel.yaml"))
}

/// What the manifest of Go flannel's releases has, and whoever applies the one over the other relies on: the names by
/// which `kubectl apply` finds objects, containers, volumes and mounts again, what can't be changed, and what other
/// nodes, plugins and runtimes look for.
#[test]
fn names_labels_and_paths_are_those_of_go_flannel() {
    let labels = json!({ "app": "flannel", "k8s-app": "flannel", "tier": "node" });
    let ours = json!({ "k8s-app": "flannel" });
    let account = json!({ "kind": "ServiceAccount", "name": "flannel", "namespace": "kube-flannel" });
    let role = json!({ "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "flannel" });
    let namespace = json!({ "k8s-app": "flannel", "pod-security.kubernetes.io/enforce": "privileged" });
    let pod = "/spec/template/spec";
    let table = [
        ("Namespace", "/metadata", json!({ "name": "kube-flannel", "labels": namespace })),
        (
            "ServiceAccount",
            "/metadata",
            json!({ "name": "flannel", "namespace": "kube-flannel", "labels": ours }),
        ),
        ("ClusterRole", "/metadata", json!({ "name": "flannel", "labels": ours })),
        ("ClusterRoleBinding", "/metadata", json!({ "name": "flannel", "labels": ours })),
        ("ClusterRoleBinding", "/roleRef", role),
        ("ClusterRoleBinding", "/subjects", json!([account])),
        (
            "ConfigMap",
            "/metadata",
            json!({ "name": "kube-flannel-cfg", "namespace": "kube-flannel", "labels": labels }),
        ),
        (
            "DaemonSet",
            "/metadata",
            json!({ "name": "kube-flannel-ds", "namespace": "kube-flannel", "labels": labels }),
        ),
        ("DaemonSet", "/spec/selector", json!({ "matchLabels": { "app": "flannel", "k8s-app": "flannel" } })),
        ("DaemonSet", "/spec/template/metadata/labels", labels.clone()),
        ("DaemonSet", &format!("{pod}/hostNetwork"), json!(true)),
        ("DaemonSet", &format!("{pod}/priorityClassName"), json!("system-node-critical")),
        ("DaemonSet", &format!("{pod}/serviceAccountName"), json!("flannel")),
        ("DaemonSet", &format!("{pod}/initContainers/0/name"), json!("install-cni-plugin")),
        ("DaemonSet", &format!("{pod}/initContainers/1/name"), json!("install-cni")),
        ("DaemonSet", &format!("{pod}/initContainers/2/name"), json!("open-run")),
        ("DaemonSet", &format!("{pod}/containers/0/name"), json!("kube-flannel")),
        (
            "DaemonSet",
            &format!("{pod}/volumes"),
            json!([
                { "name": "run", "hostPath": { "path": "/run/flannel" } },
                { "name": "cni-plugin", "hostPath": { "path": "/opt/cni/bin" } },
                { "name": "cni", "hostPath": { "path": "/etc/cni/net.d" } },
                { "name": "flannel-cfg", "configMap": { "name": "kube-flannel-cfg" } },
                { "name": "xtables-lock", "hostPath": { "path": "/run/xtables.lock", "type": "FileOrCreate" } },
            ]),
        ),
        (
            "DaemonSet",
            &format!("{pod}/initContainers/0/volumeMounts"),
            json!([{ "name": "cni-plugin", "mountPath": "/opt/cni/bin" }]),
        ),
        (
            "DaemonSet",
            &format!("{pod}/initContainers/1/volumeMounts"),
            json!([
                { "name": "cni", "mountPath": "/etc/cni/net.d" },
                { "name": "flannel-cfg", "mountPath": "/etc/kube-flannel/" },
            ]),
        ),
        (
            "DaemonSet",
            &format!("{pod}/containers/0/volumeMounts"),
            json!([
                { "name": "run", "mountPath": "/run/flannel" },
                { "name": "flannel-cfg", "mountPath": "/etc/kube-flannel/" },
                { "name": "xtables-lock", "mountPath": "/run/xtables.lock" },
            ]),
        ),
        ("DaemonSet", &format!("{pod}/containers/0/ports/0/name"), json!("healthz")),
        ("DaemonSet", &format!("{pod}/containers/0/ports/0/containerPort"), json!(8081)),
    ];
    let objects = objects();
    for (kind, pointer, want) in table {
        assert_eq!(of_kind(&objects, kind).pointer(pointer), Some(&want), "{kind} {pointer}");
    }
    let data = of_kind(&objects, "ConfigMap")["data"].as_object().unwrap();
    assert_eq!(data.keys().collect::<Vec<_>>(), ["cni-conf.json", "net-conf.json"]);
}

#[test]
fn the_role_allows_what_the_agent_calls_and_nothing_else() {
    assert_eq!(allowed(of_kind(&objects(), "ClusterRole")), called());
    let document = file("docs/kubernetes.md");
    for (_, resource, verb) in called() {
        let row = document.lines().find(|line| line.starts_with(&format!("| `{resource}` |")));
        let row = row.unwrap_or_else(|| panic!("docs/kubernetes.md has no row for {resource}"));
        assert!(row.contains(verb.as_str()), "docs/kubernetes.md: {resource} {verb}");
    }
}

#[test]
fn both_configs_can_be_read_and_are_those_of_go_flannel() {
    let objects = objects();
    let net = json!({ "Network": "10.244.0.0/16", "EnableNFTables": false, "Backend": { "Type": "vxlan" } });
    assert_eq!(config(&objects, "net-conf.json"), net);
    let parsed = NetworkConfig::parse(&net.to_string(), LeaseSource::Assigned).unwrap();
    assert_eq!((parsed.backend.kind.as_str(), parsed.nftables), ("vxlan", Some(false)));

    let list = config(&objects, "cni-conf.json");
    // A runtime gives each plugin its part, with the name and the version of the list.
    let mut part = list["plugins"][0].clone();
    part["name"] = list["name"].clone();
    part["cniVersion"] = list["cniVersion"].clone();
    let conf = NetConf::parse(part.to_string().as_bytes()).unwrap();
    assert_eq!((part["type"].as_str(), conf.delegate_type()), (Some("flannel"), "bridge"));
    // It is what flanneld installs by itself, too.
    let folder = tempfile::tempdir().unwrap();
    let to = format!("--conf-dir={}", folder.path().display());
    success(&flanneld(&["install-cni", "--only=conf", &to]));
    let installed = fs::read_to_string(folder.path().join("10-flannel.conflist")).unwrap();
    assert_eq!(serde_json::from_str::<Value>(&installed).unwrap(), list);
}

/// The init containers' own words, with another root.
#[test]
fn the_init_containers_install_plugin_and_config() {
    let objects = objects();
    let root = tempfile::tempdir().unwrap();
    let at = |path: &str| root.path().join(path.trim_start_matches('/'));
    fs::create_dir_all(at("/etc/kube-flannel")).unwrap();
    fs::write(at("/flannel"), "the plugin").unwrap();
    let conf = text(of_kind(&objects, "ConfigMap"), "/data/cni-conf.json");
    fs::write(at("/etc/kube-flannel/cni-conf.json"), conf).unwrap();
    for name in ["install-cni-plugin", "install-cni"] {
        let words = command_line(container(of_kind(&objects, "DaemonSet"), name).unwrap());
        assert_eq!(words[0], "/opt/bin/flanneld");
        let moved =
            words[1..].iter().map(|word| word.replacen("=/", &format!("={}/", root.path().display()), 1));
        success(&flanneld(&moved.collect::<Vec<_>>()));
    }
    assert_eq!(fs::read_to_string(at("/opt/cni/bin/flannel")).unwrap(), "the plugin");
    assert_eq!(fs::read_to_string(at("/etc/cni/net.d/10-flannel.conflist")).unwrap(), conf);
}

#[test]
fn the_agent_knows_all_that_it_is_given() {
    let objects = objects();
    let agent = container(of_kind(&objects, "DaemonSet"), "kube-flannel").unwrap();
    let words = command_line(agent);
    let known: Vec<_> = flags().into_iter().map(|(name, _)| name).collect();
    for word in &words[1..] {
        let name = word.trim_start_matches('-').split('=').next().unwrap().to_owned();
        assert!(known.contains(&name), "{word}");
    }
    // It gets as far as asking where the API server is, which a pod's environment says.
    in_sandbox(test_name!(), || {
        let folder = tempfile::tempdir().unwrap();
        let file = format!("--subnet-file={}", folder.path().join("subnet.env").display());
        let output = flanneld(&[&words[1..], &[file]].concat());
        let log = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{log}");
        let kube = if cfg!(feature = "kube") {
            "nothing says where the Kubernetes API is"
        } else {
            "no Kubernetes store"
        };
        assert!(log.contains(kube), "{log}");
    });
    let variables: Vec<_> = agent["env"].as_array().unwrap().iter().map(|it| text(it, "/name")).collect();
    // Go's EVENT_QUEUE_DEPTH and CONT_WHEN_CACHE_NOT_READY have nothing to set here.
    assert_eq!(variables, ["NODE_NAME", "POD_NAME", "POD_NAMESPACE"]);
    let from = |index: usize| text(&agent["env"][index], "/valueFrom/fieldRef/fieldPath");
    assert_eq!([from(0), from(1), from(2)], ["spec.nodeName", "metadata.name", "metadata.namespace"]);
}

/// The agent with the manifest's own flag for health answers where its probes ask.
#[test]
fn the_probes_are_served() {
    in_sandbox(test_name!(), || {
        let objects = objects();
        let agent = container(of_kind(&objects, "DaemonSet"), "kube-flannel").unwrap();
        let flags = command_line(agent).into_iter().filter(|word| word.starts_with("--healthz-"));
        let folder = tempfile::tempdir().unwrap();
        let mut daemon = Command::new(FLANNELD)
            .env_clear()
            .args(flags)
            .arg(format!("--store=local:{}", folder.path().display()))
            .arg(format!("--subnet-file={}", folder.path().join("subnet.env").display()))
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        // A folder without a config: alive, and not ready.
        for (probe, want) in [("livenessProbe", "200"), ("readinessProbe", "503")] {
            let get = &agent[probe]["httpGet"];
            let host = text(get, "/host");
            let port = &agent["ports"].as_array().unwrap().iter().find(|port| port["name"] == get["port"]);
            let port = u16::try_from(port.unwrap()["containerPort"].as_u64().unwrap()).unwrap();
            let mut stream = eventually(Duration::from_secs(10), "the health server", || {
                TcpStream::connect((host, port)).ok()
            });
            let path = text(get, "/path");
            write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).unwrap();
            assert_eq!(answer.split(' ').nth(1), Some(want), "{path}: {answer}");
        }
        daemon.kill().unwrap();
        daemon.wait().unwrap();
    });
}

/// What each container may do.
#[test]
fn it_has_no_more_rights_than_it_needs() {
    let objects = objects();
    let pod = &of_kind(&objects, "DaemonSet")["spec"]["template"]["spec"];
    assert_eq!(pod["securityContext"], json!({ "seccompProfile": { "type": "RuntimeDefault" } }));
    let context = |name| container(of_kind(&objects, "DaemonSet"), name).unwrap()["securityContext"].clone();
    // root, whose the host's folders are, without a capability.
    let init = json!({
        "allowPrivilegeEscalation": false,
        "readOnlyRootFilesystem": true,
        "capabilities": { "drop": ["ALL"] },
    });
    for name in ["install-cni-plugin", "install-cni", "open-run"] {
        assert_eq!(context(name), init, "{name}");
    }
    let agent = json!({
        "privileged": false,
        "runAsNonRoot": true,
        "runAsUser": 65534,
        "runAsGroup": 0,
        // By its file alone, in an image that has nothing else to escalate by.
        "allowPrivilegeEscalation": true,
        "readOnlyRootFilesystem": true,
        "capabilities": { "add": ["NET_ADMIN", "NET_RAW"], "drop": ["ALL"] },
    });
    assert_eq!(context("kube-flannel"), agent);
    let limits =
        container(of_kind(&objects, "DaemonSet"), "kube-flannel").unwrap()["resources"]["limits"].clone();
    assert_eq!(limits, json!({ "memory": "1Gi" }));
    let dockerfile = file("Dockerfile");
    assert!(dockerfile.contains("setcap cap_net_admin,cap_net_raw=p /opt/bin/flanneld"));
    assert!(dockerfile.contains("-perm /6000 -exec chmod ug-s"));
    // What dist/docker/check runs the agent with.
    let check = file("dist/docker/check");
    assert!(check.contains("--reuid=65534 --regid=0 --clear-groups --bounding-set=-all,+net_admin,+net_raw"));
}

/// The init container's own words: what root's agent left is opened for the group, and links are not followed.
#[test]
fn the_init_container_opens_what_the_agent_of_root_left() {
    in_sandbox(test_name!(), || {
        let words = {
            let objects = objects();
            command_line(container(of_kind(&objects, "DaemonSet"), "open-run").unwrap())
        };
        fs::create_dir("/run/flannel").unwrap();
        for (name, mode) in [("subnet.env", 0o644), ("subnet.env.state", 0o600), ("subnet.env.lock", 0o600)] {
            let path = format!("/run/flannel/{name}");
            fs::write(&path, "").unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        }
        fs::write("/run/xtables.lock", "").unwrap();
        fs::set_permissions("/run/xtables.lock", fs::Permissions::from_mode(0o600)).unwrap();
        // It has no capabilities, as the container says.
        for _ in 0..2 {
            let mut setpriv = Command::new("setpriv");
            setpriv.args(["--bounding-set=-all", "--inh-caps=-all", "--no-new-privs", FLANNELD]);
            assert_eq!(words[0], "/opt/bin/flanneld");
            success(&setpriv.args(&words[1..]).output().unwrap());
        }
        for (path, want) in [
            ("/run/flannel", 0o775),
            ("/run/flannel/subnet.env", 0o664),
            ("/run/flannel/subnet.env.state", 0o660),
            ("/run/flannel/subnet.env.lock", 0o660),
            ("/run/xtables.lock", 0o660),
        ] {
            assert_eq!(fs::metadata(path).unwrap().permissions().mode() & 0o7777, want, "{path}");
        }
    });
}
