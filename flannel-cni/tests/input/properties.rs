//! What must hold of any input, as functions of bytes. They panic if it doesn't. Shared by the tests here and
//! the targets in `fuzz`.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;

use flannel_cni::args::{Args, Verb};
use flannel_cni::cidr::Cidr;
use flannel_cni::error::CniError;
use flannel_cni::netconf::{NetConf, Object};
use flannel_cni::subnet_env::SubnetEnv;
use flannel_cni::{delegate, netconf, records, version};
use serde_json::{Value, json};

/// A network config, a line `---`, a `subnet.env`.
pub(crate) fn netconf(data: &[u8]) {
    let mark = b"\n---\n";
    let split = data.windows(mark.len()).position(|window| window == mark);
    let (conf, env) = split.map_or((data, &[][..]), |at| (&data[..at], &data[at + mark.len()..]));
    assert!(version::SUPPORTED.contains(&netconf::version_of(conf)));
    assert!(version::answer(conf)["supportedVersions"].is_array());
    let env = SubnetEnv::parse(&String::from_utf8_lossy(env));
    match (NetConf::parse(conf), env) {
        (Ok(conf), Ok(env)) => assert_valid(&conf, &env, &delegate::config(&conf, &env)),
        (Err(error), _) => assert!(error.code > 0 && !error.msg.is_empty()),
        (_, Err(problem)) => assert!(!problem.is_empty()),
    }
}

/// The environment of a call: `NAME=VALUE` lines.
pub(crate) fn args(data: &[u8]) {
    let lookup = |name: &str| {
        let lines = data.split(|byte| *byte == b'\n');
        let value =
            lines.filter_map(|line| line.strip_prefix(name.as_bytes())?.strip_prefix(b"=")).next_back();
        value.map(|value| OsString::from_vec(value.to_vec()))
    };
    match Args::read(lookup) {
        Ok(args) => {
            assert_eq!(args.attachment.is_some(), matches!(args.verb, Verb::Add | Verb::Del | Verb::Check));
            if let Some(attachment) = args.attachment {
                // Both are parts of the name of a file.
                for part in [attachment.container_id(), attachment.ifname()] {
                    assert!(
                        !part.is_empty() && !part.contains(['/', '\0', '\n']) && part != "." && part != ".."
                    );
                }
            }
            assert!(args.path.iter().all(|folder| !folder.as_os_str().is_empty()));
        }
        Err(error) => assert!(error.code > 0 && !error.msg.is_empty()),
    }
}

/// A record, or what a delegate said.
pub(crate) fn record(data: &[u8]) {
    if let Some(error) = CniError::from_json(data) {
        let json = error.to_json(version::CURRENT).to_string();
        let again = CniError::from_json(json.as_bytes()).unwrap();
        assert_eq!((again.code, &again.msg), (error.code, &error.msg));
        // One without details gets the usual advice.
        assert!(again.details == error.details || error.details.is_empty(), "{again:?}");
        assert!(!again.details.is_empty());
    }
    match records::parse(data) {
        Ok(config) => {
            assert!(config["name"].is_string() && config["type"].is_string());
            assert!(delegate::subnets(&config).len() <= data.len());
            assert_kept(&config);
        }
        Err(problem) => assert!(!problem.is_empty()),
    }
}

/// What the CNI specification and the standard plugins ask of a config.
pub(crate) fn assert_valid(conf: &NetConf, env: &SubnetEnv, config: &Object) {
    assert_eq!(config["name"], json!(conf.name));
    let name = config["type"].as_str().unwrap();
    assert!(!name.is_empty() && !name.contains('/') && name != "flannel");
    assert_eq!(config.get("cniVersion").and_then(Value::as_str), conf.cni_version.as_deref());
    if name == "bridge" {
        assert!(config["ipMasq"].is_boolean() && config["isGateway"].is_boolean());
        assert!(u32::try_from(config["mtu"].as_u64().unwrap()).is_ok());
    }
    assert!(config.contains_key("ipMasq") && config.contains_key("mtu"));
    assert!(
        config
            .get("runtimeConfig")
            .is_none_or(|runtime| conf.runtime_config.is_none() || runtime.is_object())
    );
    let ipam = config["ipam"].as_object().unwrap();
    assert!(ipam["type"].is_string());
    assert_eq!(delegate::subnets(config), env.subnets);
    for (range, subnet) in ipam["ranges"].as_array().unwrap().iter().zip(&env.subnets) {
        assert_eq!(range.as_array().unwrap().len(), 1);
        assert_eq!(range[0]["subnet"], json!(subnet.to_string()));
    }
    let routes = ipam["routes"].as_array().unwrap();
    assert!(routes.iter().all(|route| route["dst"].as_str().unwrap().parse::<Cidr>().is_ok()));
    assert!(env.networks.iter().all(|network| routes.contains(&json!({"dst": network.to_string()}))));
    assert_kept(config);
}

/// A record holds what was written. Numbers beyond 64 bits are floats, whose last digit may change.
fn assert_kept(config: &Object) {
    let kept = records::parse(&serde_json::to_vec(config).unwrap()).unwrap();
    assert!(kept.keys().eq(config.keys()));
    assert_eq!((&kept["name"], &kept["type"]), (&config["name"], &config["type"]));
    assert_eq!(delegate::subnets(&kept), delegate::subnets(config));
}
