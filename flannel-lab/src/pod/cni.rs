//! Pods by the real CNI plugins, driven as a container runtime drives them.

use std::path::{Path, PathBuf};

use ipnetwork::IpNetwork;
use serde_json::{Map, Value, json};

use crate::netns::Netns;
use crate::subnet_env::SubnetEnv;
use crate::{LabError, exec};

/// How the plugins are run.
#[derive(Debug, Clone)]
pub struct CniOptions {
    /// Where `bridge` and `host-local` are.
    pub plugin_dir: PathBuf,
    /// Keys put over those of the generated config, as `delegate` in the plugin's config has them.
    pub delegate: Map<String, Value>,
}

impl Default for CniOptions {
    /// The directory of the Debian package containernetworking-plugins, and nothing else.
    fn default() -> Self {
        Self {
            plugin_dir: "/usr/lib/cni".into(),
            delegate: Map::new(),
        }
    }
}

/// One pod's attachment: all that ADD and DEL need, and both need the same.
#[derive(Debug)]
pub(super) struct Attachment {
    node: Netns,
    pod: Netns,
    plugin_dir: PathBuf,
    config: Value,
}

impl Attachment {
    pub(super) fn new(node: &Netns, pod: &Netns, env: &SubnetEnv, options: &CniOptions) -> Self {
        let mut config = delegate_config(env, &options.delegate);
        // Every node has its own disk; ours share one.
        config["ipam"]["dataDir"] = json!(format!("/run/flannel-lab/{}/cni", node.name()));
        Self {
            node: node.clone(),
            pod: pod.clone(),
            plugin_dir: options.plugin_dir.clone(),
            config,
        }
    }

    /// Attaches and returns the addresses the plugin reports.
    pub(super) fn add(&self) -> Result<Vec<IpNetwork>, LabError> {
        let result = self.run("ADD")?;
        addresses(&result).ok_or_else(|| LabError::unexpected("the CNI result", result))
    }

    pub(super) fn del(&self) -> Result<(), LabError> {
        self.run("DEL").map(drop)
    }

    fn run(&self, cni_command: &str) -> Result<String, LabError> {
        let plugin = find_plugin(&self.plugin_dir, "bridge")?;
        find_plugin(&self.plugin_dir, "host-local")?;
        let mut command = self.node.command(plugin);
        command
            .env("CNI_COMMAND", cni_command)
            .env("CNI_CONTAINERID", self.pod.name())
            .env("CNI_NETNS", self.pod.path())
            .env("CNI_IFNAME", "eth0")
            .env("CNI_PATH", &self.plugin_dir);
        exec::output_with_input(command, &self.config.to_string())
    }
}

fn find_plugin(dir: &Path, name: &str) -> Result<PathBuf, LabError> {
    let plugin = dir.join(name);
    if plugin.is_file() {
        return Ok(plugin);
    }
    let program = plugin.display().to_string();
    Err(LabError::MissingProgram {
        program,
        package: "containernetworking-plugins",
    })
}

/// The config that flannel's CNI plugin gives its delegate. Upstream: flannel-io/cni-plugin,
/// `flannel_linux.go`, `doCmdAdd`; ours asks for no masquerading.
fn delegate_config(env: &SubnetEnv, delegate: &Map<String, Value>) -> Value {
    let families = env.families();
    let subnet = |gateway: IpNetwork| format!("{}/{}", gateway.network(), gateway.prefix());
    let ranges = families
        .iter()
        .map(|family| json!([{ "subnet": subnet(family.gateway) }]));
    let routes = families
        .iter()
        .map(|family| json!({ "dst": family.network }));
    let mut config = json!({
        "cniVersion": "0.3.1",
        "name": "cbr0",
        "type": "bridge",
        "mtu": env.mtu,
        "isGateway": true,
        "ipMasq": false,
    });
    for (key, value) in delegate {
        config[key] = value.clone();
    }
    config["ipam"] = json!({
        "type": "host-local",
        "ranges": ranges.collect::<Vec<_>>(),
        "routes": routes.collect::<Vec<_>>(),
    });
    config
}

fn addresses(result: &str) -> Option<Vec<IpNetwork>> {
    let result: Value = serde_json::from_str(result).ok()?;
    let ips = result.get("ips")?.as_array()?.iter();
    let addresses = ips.map(|ip| ip.get("address")?.as_str()?.parse().ok());
    let mut addresses = addresses.collect::<Option<Vec<IpNetwork>>>()?;
    addresses.sort_by_key(IpNetwork::is_ipv6);
    (!addresses.is_empty()).then_some(addresses)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_config_is_what_flannels_plugin_writes() {
        let env = "FLANNEL_NETWORK=10.1.0.0/16\nFLANNEL_SUBNET=10.1.17.1/24\n\
            FLANNEL_MTU=1472\nFLANNEL_IPMASQ=true\n";
        let config = delegate_config(&env.parse().unwrap(), &Map::new());
        let expected = json!({
            "cniVersion": "0.3.1", "name": "cbr0", "type": "bridge", "ipMasq": false,
            "isGateway": true, "mtu": 1472,
            "ipam": {
                "type": "host-local",
                "ranges": [[{ "subnet": "10.1.17.0/24" }]],
                "routes": [{ "dst": "10.1.0.0/16" }],
            },
        });
        assert_eq!(config, expected);
    }

    #[test]
    fn the_delegates_keys_win() {
        let env = "FLANNEL_IPV6_NETWORK=fd00::/48\nFLANNEL_IPV6_SUBNET=fd00:0:0:1::1/64\n\
            FLANNEL_MTU=1450\nFLANNEL_IPMASQ=false\n";
        let delegate = Map::from_iter([
            ("mtu".to_owned(), json!(1300)),
            ("hairpinMode".to_owned(), json!(true)),
        ]);
        let config = delegate_config(&env.parse().unwrap(), &delegate);
        assert_eq!(
            (&config["mtu"], &config["hairpinMode"]),
            (&json!(1300), &json!(true))
        );
        assert_eq!(
            config["ipam"]["ranges"],
            json!([[{ "subnet": "fd00:0:0:1::/64" }]])
        );
    }

    #[test]
    fn results_are_read_ipv4_first() {
        let result =
            r#"{"ips":[{"address":"fd00::2/64"},{"version":"4","address":"10.1.17.2/24"}]}"#;
        let read = addresses(result).unwrap();
        assert_eq!(
            read.iter().map(ToString::to_string).collect::<Vec<_>>(),
            ["10.1.17.2/24", "fd00::2/64"]
        );
        assert!(addresses("{}").is_none() && addresses(r#"{"ips":[]}"#).is_none());
    }
}
