//! Shows what the plugin would give its delegate on this machine, without running it:
//!
//! ```sh
//! cargo run -p flannel-cni --example delegate_config -- /etc/cni/net.d/10-flannel.conflist [subnet.env]
//! ```
//!
//! Without a file it takes flannel's usual list and a subnet of its own.

use std::error::Error;
use std::{env, fs};

use flannel_cni::delegate;
use flannel_cni::netconf::NetConf;
use flannel_cni::subnet_env::SubnetEnv;
use serde_json::Value;

const LIST: &str = r#"{"name": "cbr0", "cniVersion": "0.3.1", "plugins": [
    {"type": "flannel", "delegate": {"hairpinMode": true, "isDefaultGateway": true}},
    {"type": "portmap", "capabilities": {"portMappings": true}}]}"#;
const ENV: &str =
    "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.7.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n";

fn main() -> Result<(), Box<dyn Error>> {
    let mut files = env::args_os().skip(1);
    let list = files.next().map_or_else(|| Ok(LIST.to_owned()), fs::read_to_string)?;
    let list: Value = serde_json::from_str(&list)?;
    // As a runtime does: the plugin's object, with the list's name and version.
    let plugins = list["plugins"].as_array().ok_or("this is no list of plugins")?;
    let ours = plugins.iter().find(|plugin| plugin["type"] == "flannel");
    let mut conf = ours.ok_or("the list has no plugin of the type flannel")?.clone();
    conf["name"] = list["name"].clone();
    conf["cniVersion"] = list["cniVersion"].clone();
    let conf = NetConf::parse(conf.to_string().as_bytes())?;

    let env = match files.next() {
        Some(path) => SubnetEnv::read(path.as_ref())?,
        None => SubnetEnv::parse(ENV)?,
    };
    println!("{}", serde_json::to_string_pretty(&delegate::config(&conf, &env))?);
    Ok(())
}
