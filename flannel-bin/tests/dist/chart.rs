//! `dist/helm/flannel`, rendered by Helm's own template engine (`dist/helm/render`).

use std::env;
use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;

use flannel_backend_wireguard::WireguardConfig;
use flannel_core::config::{LeaseSource, NetworkConfig};
use serde_json::{Value, json};

use crate::manifest;
use crate::objects::{allowed, called, command_line, config, container, meaning, of_kind, parse};
use crate::path;

/// Builds the renderer, from Debian's packages.
fn renderer() -> &'static PathBuf {
    static RENDERER: OnceLock<PathBuf> = OnceLock::new();
    RENDERER.get_or_init(|| {
        let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
        let program = folder.join("helm-render");
        let built = Command::new("go")
            .args(["build", "-o"])
            .arg(&program)
            .arg("./dist/helm/render")
            .current_dir(path(""))
            .env("GO111MODULE", "off")
            .env("GOPATH", "/usr/share/gocode")
            .env("GOCACHE", folder.join("go-cache"))
            .output();
        let built = built.expect("Go is there; .ci/install installs it");
        assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
        program
    })
}

/// The text that comes of these values, or why there is none.
fn render(values: &str) -> Result<String, String> {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("values.yaml");
    std::fs::write(&file, values).unwrap();
    let mut command = Command::new(renderer());
    let output =
        command.args(["-n", "kube-flannel"]).arg(path("dist/helm/flannel")).arg(file).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    if output.status.success() { Ok(text(output.stdout)) } else { Err(text(output.stderr)) }
}

fn objects(values: &str) -> Vec<Value> {
    parse(&render(values).unwrap_or_else(|error| panic!("{values}: {error}")))
}

/// The agent's container.
fn agent(objects: &[Value]) -> &Value {
    container(of_kind(objects, "DaemonSet"), "kube-flannel").unwrap()
}

/// The pods' part of the `DaemonSet`.
fn pod(objects: &[Value]) -> &Value {
    &of_kind(objects, "DaemonSet")["spec"]["template"]["spec"]
}

/// Takes the label `k8s-app` away wherever there is one, and label lists that are empty then.
fn without_k8s_app(value: &mut Value) {
    match value {
        Value::Object(object) => {
            object.remove("k8s-app");
            object.values_mut().for_each(without_k8s_app);
            if object.get("labels").is_some_and(|labels| labels == &json!({})) {
                object.remove("labels");
            }
        }
        Value::Array(list) => list.iter_mut().for_each(without_k8s_app),
        _ => {}
    }
}

/// As with Go flannel's, two things differ: Helm makes the namespace itself, and the manifest has a label `k8s-app`,
/// which is in its selector, too; neither's selector can be changed.
#[test]
fn the_default_values_give_the_manifest() {
    let mut manifest = meaning(&manifest::objects());
    manifest.remove("Namespace").unwrap();
    manifest.values_mut().for_each(without_k8s_app);
    assert_eq!(meaning(&objects("")), manifest);
}

#[test]
fn values_get_to_their_places() {
    let network = json!({ "Network": "10.244.0.0/16", "EnableNFTables": false });
    let of = |backend: Value| {
        let mut config = network.clone();
        config["Backend"] = backend;
        config
    };
    let both = json!({ "Network": "10.42.0.0/16", "EnableIPv6": true, "IPv6Network": "fd00:42::/56",
        "EnableNFTables": true, "Backend": { "Type": "vxlan" } });
    let six = json!({ "EnableIPv4": false, "EnableIPv6": true, "IPv6Network": "fd00:42::/56",
        "EnableNFTables": false, "Backend": { "Type": "vxlan" } });
    let full = json!({ "Type": "vxlan", "Port": 4789, "MTU": 9000, "VNI": 16_777_215, "GBP": true,
        "DirectRouting": true, "MacPrefix": "0E-2A" });
    for (values, want) in [
        ("flannel: {backendPort: 0, vni: 0, mtu: 0, GBP: false, psk: 0}", of(json!({ "Type": "vxlan" }))),
        (
            "flannel: {backendPort: 4789, mtu: 9000, vni: 16777215, GBP: true, directRouting: true, macPrefix: 0E-2A}",
            of(full),
        ),
        ("flannel: {backend: host-gw}", of(json!({ "Type": "host-gw" }))),
        (
            "flannel: {backend: ipip, directRouting: true}",
            of(json!({ "Type": "ipip", "DirectRouting": true })),
        ),
        ("flannel: {backend: wireguard}", of(json!({ "Type": "wireguard" }))),
        (
            "flannel: {backend: wireguard, backendPort: 9000, backendPortv6: 9001, mtu: 1400, tunnelMode: auto, \
             keepaliveInterval: 25, psk: FpCyhws9cxwWoV4xELtfJvjJN+zQVRPISllRWgeopVE=}",
            of(
                json!({ "Type": "wireguard", "ListenPort": 9000, "ListenPortV6": 9001, "MTU": 1400, "Mode": "auto",
                "PersistentKeepaliveInterval": 25, "PSK": "FpCyhws9cxwWoV4xELtfJvjJN+zQVRPISllRWgeopVE=" }),
            ),
        ),
        ("flannel: {backend: udp, backendPort: 9000}", of(json!({ "Type": "udp", "Port": 9000 }))),
        ("{podCidr: 10.42.0.0/16, podCidrv6: 'fd00:42::/56', flannel: {enableNFTables: true}}", both),
        ("{podCidr: '', podCidrv6: 'fd00:42::/56'}", six),
    ] {
        let config = config(&objects(values), "net-conf.json");
        assert_eq!(config, want, "{values}");
        let config = NetworkConfig::parse(&config.to_string(), LeaseSource::Assigned).unwrap();
        if config.backend.kind == "wireguard" {
            WireguardConfig::parse(&config.backend).unwrap();
        }
    }

    let objects = objects(
        "{global: {imagePullSecrets: [{name: registry}], other: 1}, flannel: {\
           image: {repository: example.org/flannel, tag: v9}, cniBinDir: /usr/lib/cni, cniConfDir: /etc/cni,\
           args: [--kube-subnet-mgr, '--iface=eth1'], nodeSelector: {disk: ssd}, tolerations: null, resources: null,\
           cniConf: '{\"name\": \"mine\", \"plugins\": []}',\
           healthz: {ip: 192.0.2.1, port: 9000, livenessProbe: {periodSeconds: 7, timeoutSeconds: 3}}}}",
    );
    let (pod, agent) = (pod(&objects), agent(&objects));
    assert_eq!(pod["imagePullSecrets"], json!([{ "name": "registry" }]));
    assert_eq!(pod["nodeSelector"], json!({ "disk": "ssd" }));
    assert_eq!((pod.get("tolerations"), agent.get("resources")), (None, None));
    for name in ["install-cni-plugin", "install-cni", "kube-flannel"] {
        let container = container(of_kind(&objects, "DaemonSet"), name).unwrap();
        assert_eq!(container["image"], "example.org/flannel:v9");
    }
    let volumes = pod["volumes"].as_array().unwrap();
    let volume = |name: &str| volumes.iter().find(|volume| volume["name"] == name).unwrap();
    assert_eq!(volume("cni-plugin")["hostPath"]["path"], "/usr/lib/cni");
    assert_eq!(volume("cni")["hostPath"]["path"], "/etc/cni");
    let words = ["/opt/bin/flanneld", "--kube-subnet-mgr", "--iface=eth1", "--healthz-ip=192.0.2.1"];
    let words = [&words[..], &["--healthz-port=9000"]].concat();
    assert_eq!(command_line(agent), words);
    assert_eq!(agent["ports"][0]["containerPort"], 9000);
    let live = json!({ "httpGet": { "host": "192.0.2.1", "path": "/healthz", "port": "healthz" }, "initialDelaySeconds": 10,
        "periodSeconds": 7, "timeoutSeconds": 3 });
    assert_eq!(agent["livenessProbe"], live);
    assert_eq!(config(&objects, "cni-conf.json"), json!({ "name": "mine", "plugins": [] }));
}

#[test]
fn parts_can_be_left_out_added_and_replaced() {
    let without = objects("flannel: {healthz: {port: 0}, skipCNIConfigInstallation: true}");
    let quiet = agent(&without);
    assert_eq!(command_line(quiet), ["/opt/bin/flanneld", "--ip-masq", "--kube-subnet-mgr"]);
    for key in ["ports", "livenessProbe", "readinessProbe"] {
        assert_eq!(quiet.get(key), None, "{key}");
    }
    assert_eq!(container(of_kind(&without, "DaemonSet"), "install-cni"), None);

    // The Go plugin's images have a cp and no flanneld.
    let other = objects("flannel: {flannel_cni: {image: {repository: example.org/plugin, tag: v1}}}");
    let plugin = container(of_kind(&other, "DaemonSet"), "install-cni-plugin").unwrap();
    assert_eq!(plugin["image"], "example.org/plugin:v1");
    assert_eq!(command_line(plugin), ["cp", "-f", "/flannel", "/opt/cni/bin/flannel"]);

    // All addresses of the node: the kubelet asks at the pod's.
    for ip in ["0.0.0.0", "'::'", "''"] {
        let open = objects(&format!("flannel: {{healthz: {{ip: {ip}}}}}"));
        assert_eq!(agent(&open)["livenessProbe"]["httpGet"].get("host"), None, "{ip}");
    }
    let without = objects("flannel: {ownNodePolicy: false}");
    assert!(!without.iter().any(|object| object["kind"] == "ValidatingAdmissionPolicy"));

    let policies = objects("netpol: {enabled: true, image: {tag: v2}}");
    let container = container(of_kind(&policies, "DaemonSet"), "kube-network-policies").unwrap();
    assert_eq!(container["image"], "registry.k8s.io/networking/kube-network-policies:v2");
    let role = allowed(of_kind(&policies, "ClusterRole"));
    assert!(role.is_superset(&called()) && role.len() > called().len());
    assert_eq!(allowed(of_kind(&objects(""), "ClusterRole")), called());
}

#[test]
fn a_prometheus_finds_the_agents_by_annotation_or_service_monitor() {
    let quiet = objects("");
    let annotations = |objects: &[Value]| {
        of_kind(objects, "DaemonSet").pointer("/spec/template/metadata/annotations").cloned()
    };
    assert_eq!(annotations(&quiet), None);
    assert!(!quiet.iter().any(|object| object["kind"] == "Service"));

    let noted =
        objects("flannel: {healthz: {ip: 0.0.0.0, port: 9000}, metrics: {annotations: true, perPeer: true}}");
    let want = json!({ "prometheus.io/scrape": "true", "prometheus.io/port": "9000", "prometheus.io/path": "/metrics" });
    assert_eq!(annotations(&noted), Some(want));
    assert!(command_line(agent(&noted)).iter().any(|word| word == "--metrics-per-peer"));

    let watched = objects(
        "flannel: {healthz: {ip: '::'}, metrics: {serviceMonitor: {enabled: true, interval: 30s, labels: {release: p}}}}",
    );
    assert_eq!(annotations(&watched), None);
    let (service, monitor) = (of_kind(&watched, "Service"), of_kind(&watched, "ServiceMonitor"));
    // The service's port leads to the container's, and the monitor's to the service's, whose labels it selects.
    let port = &service["spec"]["ports"][0];
    assert_eq!((&port["targetPort"], &port["port"]), (&agent(&watched)["ports"][0]["name"], &json!(8081)));
    let pods = of_kind(&watched, "DaemonSet").pointer("/spec/template/metadata/labels").unwrap();
    let is_in =
        |some: &Value, all: &Value| some.as_object().unwrap().iter().all(|(name, value)| all[name] == *value);
    assert!(is_in(&service["spec"]["selector"], pods));
    assert!(is_in(&monitor["spec"]["selector"]["matchLabels"], &service["metadata"]["labels"]));
    let endpoint = &monitor["spec"]["endpoints"][0];
    assert_eq!((&endpoint["port"], &endpoint["interval"]), (&port["name"], &json!("30s")));
    assert_eq!(monitor["metadata"]["labels"]["release"], "p");
}

/// By backend: nobody is privileged.
#[test]
fn containers_have_what_their_backend_needs() {
    for (values, user, raw, has_tun) in [
        ("", 65534, true, false),
        ("flannel: {backend: host-gw}", 65534, true, false),
        ("flannel: {enableNFTables: true}", 65534, false, false),
        ("flannel: {backend: wireguard}", 65534, true, true),
        ("flannel: {backend: wireguard, wireguard: kernel}", 65534, true, false),
        ("flannel: {backend: wireguard, wireguard: userspace}", 0, true, true),
        // Hosts without udev have the TUN for root alone; NET_RAW is for its ICMP errors.
        ("flannel: {backend: udp, enableNFTables: true}", 0, true, true),
    ] {
        let objects = objects(values);
        let context = &agent(&objects)["securityContext"];
        assert_eq!(
            (&context["privileged"], &context["runAsUser"]),
            (&json!(false), &json!(user)),
            "{values}"
        );
        assert_eq!(context.get("runAsNonRoot").is_some(), user != 0);
        assert_eq!(context["allowPrivilegeEscalation"], json!(user != 0));
        let add = if raw { json!(["NET_ADMIN", "NET_RAW"]) } else { json!(["NET_ADMIN"]) };
        assert_eq!(context["capabilities"], json!({ "add": add, "drop": ["ALL"] }), "{values}");
        // The device alone comes from the host, and only where it is used.
        let tun = json!({ "name": "tun", "hostPath": { "path": "/dev/net/tun", "type": "CharDevice" } });
        assert_eq!(pod(&objects)["volumes"].as_array().unwrap().contains(&tun), has_tun);
        let mount = json!({ "name": "tun", "mountPath": "/dev/net/tun" });
        assert_eq!(agent(&objects)["volumeMounts"].as_array().unwrap().contains(&mount), has_tun);
        assert_eq!(container(of_kind(&objects, "DaemonSet"), "open-run").is_some(), user != 0);
        let command = agent(&objects)["command"].to_string();
        let given = values
            .split("wireguard: ")
            .nth(1)
            .map(|rest| format!("--wireguard={}", rest.trim_end_matches('}')));
        assert!(given.is_none_or(|flag| command.contains(&flag)), "{values}: {command}");
    }
}

#[test]
fn what_would_have_no_effect_is_refused_by_name() {
    for (values, want) in [
        ("flannel: {backend: ipsec}", "\"ipsec\" is not in this version"),
        ("flannel: {psk: abc}", "flannel.psk has no effect with the backend vxlan"),
        ("flannel: {wireguard: userspace}", "flannel.wireguard has no effect"),
        ("flannel: {backend: wireguard, wireguard: go}", "wireguard"),
        ("flannel: {tunnelMode: separate}", "flannel.tunnelMode has no effect"),
        ("flannel: {keepaliveInterval: 5}", "flannel.keepaliveInterval has no effect"),
        ("flannel: {backendPortv6: 51821}", "flannel.backendPortv6 has no effect"),
        ("flannel: {backend: wireguard, vni: 5}", "flannel.vni has no effect with the backend wireguard"),
        ("flannel: {backend: host-gw, vni: 5}", "flannel.vni has no effect with the backend host-gw"),
        ("flannel: {backend: udp, mtu: 1400}", "flannel.mtu has no effect with the backend udp"),
        ("flannel: {backend: udp, directRouting: true}", "flannel.directRouting has no effect"),
        ("flannel: {backend: host-gw, GBP: true}", "flannel.GBP has no effect"),
        ("flannel: {backend: host-gw, macPrefix: 0E-2A}", "flannel.macPrefix has no effect"),
        ("flannel: {backend: host-gw, backendPort: 1}", "flannel.backendPort has no effect"),
        (
            "flannel: {backend: ipip, backendPort: 1}",
            "flannel.backendPort has no effect with the backend ipip",
        ),
        ("flannel: {backend: ipip, vni: 5}", "flannel.vni has no effect"),
        ("podCidrv6: fd00::/48\nflannel: {backend: ipip}", "carries IPv4 only"),
        ("podCidr: ''", "both empty"),
        ("podCidr: 10.1.0.0/16,10.2.0.0/16", "one network each"),
        ("flannel: {args: [--healthz-port=9]}", "flannel.healthz.port"),
        ("flannel: {args: [-healthz-ip=::1]}", "flannel.healthz.ip"),
        ("flannel: {metrics: {annotations: true}}", "no Prometheus reaches the health server at 127.0.0.1"),
        ("flannel: {healthz: {ip: '::1'}, metrics: {serviceMonitor: {enabled: true}}}", "at ::1"),
        ("flannel: {healthz: {port: 0}, metrics: {perPeer: true}}", "no metrics without the health server"),
        ("flannel: {args: [--metrics-per-peer]}", "flannel.metrics.perPeer"),
        ("flannel: {metrics: {serviceMonitor: {interval: soon}}}", "interval"),
        ("flannel: {flannel_cni: {image: {tag: v1}}}", "a tag and no repository"),
        ("flannel: {flannel_cni: {image: {repository: x}}}", "a repository and no tag"),
        // The schema. The first is what older charts of Go flannel had.
        ("flannel: {image_cni: {tag: v1}}", "image_cni"),
        ("flannel: {enableNfTables: true}", "enableNfTables"),
        ("podCIDR: 10.1.0.0/16", "podCIDR"),
        ("flannel: {vni: 16777216}", "vni"),
        ("flannel: {directRouting: 'no'}", "directRouting"),
        ("flannel: {image: {tag: ''}}", "tag"),
    ] {
        let error = render(values).expect_err(values);
        assert!(error.contains(want), "{values}: {error}");
    }
}
