//! Plugins that come after ours in a list, as in flannel's usual `10-flannel.conflist`.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use flannel_lab::netns::Netns;
use flannel_lab::sandbox::in_sandbox;
use flannel_lab::test_name;
use serde_json::{Map, Value, json};

use crate::host::{Answer, Container, FLANNEL, Host, PLUGINS, V4, V6, assert_ping};

/// A list of plugins, run as libcni runs it.
struct List<'a> {
    host: &'a Host,
    version: &'static str,
    plugins: Vec<Value>,
    /// What the runtime gives plugins that declare the capability.
    capabilities: Value,
}

impl List<'_> {
    fn conf(&self, plugin: &Value, previous: Option<&Value>) -> Value {
        let mut conf = plugin.clone();
        conf["cniVersion"] = json!(self.version);
        conf["name"] = json!("cbr0");
        let declared = plugin["capabilities"].as_object().cloned().unwrap_or_default();
        let given: Map<String, Value> = (declared.keys())
            .filter_map(|key| Some((key.clone(), self.capabilities.get(key)?.clone())))
            .collect();
        conf.as_object_mut().unwrap().remove("capabilities");
        if !given.is_empty() {
            conf["runtimeConfig"] = Value::Object(given);
        }
        if let Some(previous) = previous {
            conf["prevResult"] = previous.clone();
        }
        conf
    }

    fn run(&self, verb: &str, plugin: &Value, container: &Container, previous: Option<&Value>) -> Answer {
        let program = match plugin["type"].as_str().unwrap() {
            "flannel" => PathBuf::from(FLANNEL),
            other => Path::new(PLUGINS).join(other),
        };
        self.host.call_plugin(&program, verb, container, "eth0", &self.conf(plugin, previous))
    }

    fn add(&self, container: &Container) -> Value {
        let step = |previous: Option<Value>, plugin: &Value| {
            Some(self.run("ADD", plugin, container, previous.as_ref()).unwrap())
        };
        self.plugins.iter().fold(None, step).unwrap()
    }

    fn check(&self, container: &Container, result: &Value) -> Answer {
        // portmap 1.1.1 looks for IPv4's rules among those of IPv6: its work shows by connections.
        let mut plugins = self.plugins.iter().filter(|plugin| plugin["type"] != "portmap");
        plugins.try_fold(Value::Null, |_, plugin| self.run("CHECK", plugin, container, Some(result)))
    }

    fn del(&self, container: &Container, result: &Value) {
        for plugin in self.plugins.iter().rev() {
            assert_eq!(self.run("DEL", plugin, container, Some(result)), Ok(Value::Null), "{plugin}");
        }
    }
}

fn list<'a>(host: &'a Host, version: &'static str) -> List<'a> {
    let mut flannel = host.conf(version);
    flannel["capabilities"] = json!({ "mac": true });
    List {
        host,
        version,
        plugins: vec![
            flannel,
            json!({ "type": "portmap", "capabilities": { "portMappings": true }, "snat": true }),
            json!({ "type": "bandwidth", "capabilities": { "bandwidth": true } }),
            json!({ "type": "tuning", "sysctl": { "net.core.somaxconn": "777" } }),
        ],
        capabilities: json!({
            "mac": "02:42:00:00:00:77",
            "portMappings": [{ "hostPort": 8080, "containerPort": 80, "protocol": "tcp" }],
            "bandwidth": { "ingressRate": 100_000_000, "ingressBurst": 8_000_000,
                           "egressRate": 100_000_000, "egressBurst": 8_000_000 },
        }),
    }
}

/// A server in a container that tells each client its address, until it was asked `clients` times.
fn serve(container: &Container, family: IpAddr, clients: usize) -> thread::JoinHandle<()> {
    let any = if family.is_ipv4() { "0.0.0.0:80" } else { "[::]:80" };
    let listener = container.netns.enter(|| TcpListener::bind(any)).unwrap().unwrap();
    thread::spawn(move || {
        for _ in 0..clients {
            let (mut stream, peer) = listener.accept().unwrap();
            stream.write_all(peer.ip().to_string().as_bytes()).unwrap();
        }
    })
}

fn ask(from: &Netns, address: IpAddr) -> String {
    let connect = || -> std::io::Result<String> {
        let address = SocketAddr::new(address, 8080);
        let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(10))?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(text)
    };
    from.enter(connect).unwrap().unwrap()
}

#[test]
fn portmap_bandwidth_and_tuning_work_after_us() {
    in_sandbox(test_name!(), || {
        let cases =
            [("0.3.1", vec![V4, V6]), ("0.4.0", vec![V4]), ("1.0.0", vec![V4, V6]), ("1.0.0", vec![V6])];
        for (version, families) in cases {
            println!("version {version}, {} families", families.len());
            let host = Host::new(&families);
            let list = list(&host, version);
            let (a, b) = (host.container("a"), host.container("b"));
            let result = list.add(&a);
            assert_eq!(result["cniVersion"], version);
            assert_ping(host.node(), &a);

            // From elsewhere to the host's port; from the container itself, which needs the hairpin; both families.
            let node = host.cluster.node(1);
            let addresses = [(V4, node.ipv4().unwrap()), (V6, node.ipv6().unwrap())];
            for (_, address) in addresses.iter().filter(|(family, _)| families.contains(family)) {
                let server = serve(&a, *address, 2);
                let outside = ask(host.cluster.fabric(), *address);
                let fabric =
                    host.cluster.fabric_addresses().iter().map(ToString::to_string).collect::<Vec<_>>();
                assert!(fabric.contains(&outside), "{outside} of {fabric:?}");
                let inside = ask(&a.netns, *address);
                assert!(!inside.is_empty());
                server.join().unwrap();
            }
            let ports = host.node().bridge("-d link show").unwrap();
            assert!(ports.contains("master cni0") && ports.contains("hairpin on"), "{ports}");

            // What the runtime says for capabilities of the delegate arrives, and what the others do shows.
            let link = a.netns.ip_json("link show dev eth0").unwrap();
            assert_eq!((&link[0]["address"], &link[0]["mtu"]), (&json!("02:42:00:00:00:77"), &json!(1400)));
            assert_eq!(a.netns.read_sysctl("net.core.somaxconn").unwrap(), "777");
            let limits = host.node().run("tc", &["qdisc", "show"]).unwrap();
            assert_eq!(limits.matches("qdisc tbf").count(), 2, "{limits}");

            if version != "0.3.1" {
                assert_eq!(list.check(&a, &result), Ok(Value::Null));
                a.netns.ip("link set eth0 address 02:42:00:00:00:78").unwrap();
                assert!(list.check(&a, &result).is_err());
            }
            list.del(&a, &result);
            list.del(&a, &result);
            host.assert_empty();
            assert!(!host.node().run("tc", &["qdisc", "show"]).unwrap().contains("tbf"));
            assert!(!host.node().run("iptables-save", &["-t", "nat"]).unwrap().contains("8080"));

            // The port is free again.
            let result = list.add(&b);
            list.del(&b, &result);
            host.assert_empty();
        }
    });
}
