//! A container host, and a runtime on it that drives plugins as libcni and cnitool do.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use flannel_lab::cluster::{Cluster, Families};
use flannel_lab::netns::Netns;
use flannel_lab::ping::{PingOptions, ping};
use ipnetwork::IpNetwork;
use serde_json::{Value, json};

/// Debian's plugins.
pub(crate) const PLUGINS: &str = "/usr/lib/cni";

pub(crate) const V4: &str = "FLANNEL_NETWORK=10.42.0.0/16\nFLANNEL_SUBNET=10.42.3.1/24\n";
pub(crate) const V6: &str = "FLANNEL_IPV6_NETWORK=fd00:42::/56\nFLANNEL_IPV6_SUBNET=fd00:42:0:3::1/64\n";

/// A plugin's stdout as JSON, or its error object.
pub(crate) type Answer = Result<Value, Value>;

pub(crate) struct Host {
    pub(crate) cluster: Cluster,
    /// Where all files are: `subnet.env`, `records`, `ipam`, and scripts of the test in `bin`.
    pub(crate) dir: PathBuf,
}

/// A container: a namespace, and the id that the runtime gave it.
pub(crate) struct Container {
    pub(crate) id: String,
    pub(crate) netns: Netns,
}

impl Host {
    /// With a `subnet.env` of these lines and the usual rest.
    pub(crate) fn new(families: &[&str]) -> Self {
        let cluster = Cluster::builder().nodes(1).families(Families::Dual).build().unwrap();
        let host = Self { cluster, dir: PathBuf::from("/run/cni") };
        let _ = fs::remove_dir_all(&host.dir);
        fs::create_dir_all(host.dir.join("bin")).unwrap();
        host.write_env(families);
        host
    }

    pub(crate) fn write_env(&self, families: &[&str]) {
        let text = format!("{}FLANNEL_MTU=1400\nFLANNEL_IPMASQ=true\n", families.concat());
        fs::write(self.dir.join("subnet.env"), text).unwrap();
    }

    pub(crate) fn node(&self) -> &Netns {
        self.cluster.node(1).netns()
    }

    pub(crate) fn records(&self) -> PathBuf {
        self.dir.join("records")
    }

    /// A network config whose files are in the host's folder.
    pub(crate) fn conf(&self, version: &str) -> Value {
        json!({
            "cniVersion": version, "name": "cbr0", "type": "flannel",
            "subnetFile": self.dir.join("subnet.env"), "dataDir": self.records(),
            "delegate": { "hairpinMode": true, "isDefaultGateway": true },
            "ipam": { "dataDir": self.dir.join("ipam") },
        })
    }

    /// Puts a script into the folder that comes first in `CNI_PATH`.
    pub(crate) fn script(&self, name: &str, text: &str) {
        let path = self.dir.join("bin").join(name);
        // Never seen half written, nor busy while one still runs.
        let draft = path.with_extension("new");
        fs::write(&draft, format!("#!/bin/sh\ndir={}\n{text}\n", self.dir.display())).unwrap();
        fs::set_permissions(&draft, fs::Permissions::from_mode(0o755)).unwrap();
        fs::rename(draft, path).unwrap();
    }

    pub(crate) fn touch(&self, name: &str) {
        fs::write(self.dir.join(name), "").unwrap();
    }

    /// Not attached to anything yet.
    #[expect(clippy::unused_self, reason = "containers run on a host")]
    pub(crate) fn container(&self, id: &str) -> Container {
        let netns = Netns::add(&format!("pod-{id}")).unwrap();
        netns.sysctl("net.ipv6.conf.all.disable_ipv6", "0").unwrap();
        netns.sysctl("net.ipv6.conf.default.disable_ipv6", "0").unwrap();
        netns.sysctl("net.ipv6.conf.default.accept_dad", "0").unwrap();
        Container { id: id.to_owned(), netns }
    }

    /// Any plugin, ready to be run for an attachment.
    pub(crate) fn command(&self, plugin: &Path, verb: &str, container: &Container, ifname: &str) -> Command {
        let mut command = self.node().command(plugin);
        command
            .env("CNI_COMMAND", verb)
            .env("CNI_CONTAINERID", &container.id)
            .env("CNI_NETNS", container.netns.path())
            .env("CNI_IFNAME", ifname)
            .env("CNI_PATH", format!("{}:{PLUGINS}", self.dir.join("bin").display()));
        command
    }

    pub(crate) fn call(&self, verb: &str, container: &Container, ifname: &str, conf: &Value) -> Answer {
        self.call_plugin(Path::new(FLANNEL), verb, container, ifname, conf)
    }

    pub(crate) fn call_plugin(
        &self,
        plugin: &Path,
        verb: &str,
        container: &Container,
        ifname: &str,
        conf: &Value,
    ) -> Answer {
        finish(spawn(self.command(plugin, verb, container, ifname), conf))
    }

    /// A verb about the network and no container.
    pub(crate) fn ask(&self, verb: &str, conf: &Value) -> Answer {
        let mut command = self.node().command(FLANNEL);
        command.env("CNI_COMMAND", verb);
        command.env("CNI_PATH", format!("{}:{PLUGINS}", self.dir.join("bin").display()));
        finish(spawn(command, conf))
    }

    pub(crate) fn add(&self, container: &Container, conf: &Value) -> Value {
        self.call("ADD", container, "eth0", conf).unwrap()
    }

    pub(crate) fn del(&self, container: &Container, conf: &Value) {
        assert_eq!(self.call("DEL", container, "eth0", conf), Ok(Value::Null));
    }

    /// The files of host-local that are addresses in use.
    pub(crate) fn addresses_in_use(&self) -> Vec<String> {
        let names = names(&self.dir.join("ipam/cbr0")).into_iter();
        names.filter(|name| !name.starts_with("last_reserved_ip") && name != "lock").collect()
    }

    /// The ends of pods' links on the node's side.
    pub(crate) fn veths(&self) -> usize {
        let links = self.node().ip_json("link show type veth").unwrap();
        let names = links.as_array().unwrap().iter().filter_map(|link| link["ifname"].as_str());
        names.filter(|name| name.starts_with("veth")).count()
    }

    #[track_caller]
    pub(crate) fn assert_holds(&self, pods: usize, families: usize) {
        let held = (self.addresses_in_use().len(), self.veths(), names(&self.records()).len());
        assert_eq!(held, (pods * families, pods, pods), "addresses, veths and records");
    }

    #[track_caller]
    pub(crate) fn assert_empty(&self) {
        self.assert_holds(0, 1);
    }
}

impl Container {
    /// The addresses that the kernel has on a link of the container, IPv4 first, none of them link-local.
    pub(crate) fn addresses(&self, ifname: &str) -> Vec<IpNetwork> {
        let links = self.netns.ip_json(&format!("address show dev {ifname}")).unwrap();
        let infos = links[0]["addr_info"].as_array().cloned().unwrap_or_default();
        let global = infos.iter().filter(|info| info["scope"] == "global");
        let address = |info: &Value| format!("{}/{}", info["local"].as_str().unwrap(), info["prefixlen"]);
        let mut all: Vec<IpNetwork> = global.map(|info| address(info).parse().unwrap()).collect();
        all.sort_by_key(IpNetwork::is_ipv6);
        all
    }
}

/// Each address of one answers the other.
#[track_caller]
pub(crate) fn assert_ping(from: &Netns, to: &Container) {
    let addresses = to.addresses("eth0");
    assert!(!addresses.is_empty());
    for address in addresses {
        let report = ping(from, address.ip(), PingOptions::default()).unwrap();
        assert_eq!(report.lost, 0, "{address}: {report:?}");
    }
}

/// The plugin under test.
pub(crate) const FLANNEL: &str = env!("CARGO_BIN_EXE_flannel");

pub(crate) fn spawn(mut command: Command, conf: &Value) -> Child {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::inherit());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(conf.to_string().as_bytes()).unwrap();
    child
}

pub(crate) fn finish(child: Child) -> Answer {
    let output = child.wait_with_output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let said = if text.trim().is_empty() { Value::Null } else { text.parse().unwrap() };
    if output.status.success() { Ok(said) } else { Err(said) }
}

/// The names in a folder, sorted; none if it isn't there.
pub(crate) fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[track_caller]
pub(crate) fn assert_error(answer: &Answer, code: u64, words: &[&str]) {
    let error = answer.as_ref().unwrap_err();
    let text = |key: &str| error[key].as_str().unwrap_or_default();
    let said = format!("{} {}", text("msg"), text("details"));
    assert_eq!(error["code"], json!(code), "{error}");
    assert!(words.iter().all(|word| said.contains(word)), "{error} lacks one of {words:?}");
}
