//! The network config that the runtime passes on stdin.

use std::collections::BTreeSet;
use std::path::PathBuf;

use serde_json::{Map, Value};

use crate::args::Attachment;
use crate::error::{CniError, code};
use crate::version;

/// A JSON object; its keys are sorted, as in what upstream's plugin writes.
pub type Object = Map<String, Value>;

/// The folder of records, which is upstream's, too.
pub const DATA_DIR: &str = "/var/lib/cni/flannel";

/// The agent's file, at its default place.
pub const SUBNET_FILE: &str = "/run/flannel/subnet.env";

/// The network config. Other keys are ignored, and not passed to the delegate.
#[derive(Debug, Clone, PartialEq)]
pub struct NetConf {
    /// The version of the specification; `None` if the config has none.
    pub cni_version: Option<String>,
    /// The network's name.
    pub name: String,
    /// The path of the agent's file.
    pub subnet_file: PathBuf,
    /// The folder of records.
    pub data_dir: PathBuf,
    /// What the delegate's config begins with.
    pub delegate: Object,
    /// What the delegate's `ipam` begins with.
    pub ipam: Object,
    /// The runtime's values for capabilities of the delegate.
    pub runtime_config: Option<Object>,
    /// The result of this attachment's ADD; CHECK needs it.
    pub prev_result: Option<Value>,
    /// For GC: the attachments that stay. `None` if the key is absent.
    pub valid_attachments: Option<BTreeSet<Attachment>>,
}

impl NetConf {
    /// Reads and checks it. As in Go, the case of the top-level keys does not matter.
    pub fn parse(bytes: &[u8]) -> Result<Self, CniError> {
        let object: Object = serde_json::from_slice(bytes).map_err(|error| {
            CniError::new(code::DECODING, format!("failed to load netconf: {error}"))
                .with_details("the network config on stdin has to be a JSON object")
        })?;
        let conf = Fields(object);
        let cni_version = conf.text("cniVersion")?.filter(|version| !version.is_empty());
        cni_version.as_deref().map_or(Ok(()), version::check)?;
        let name = conf.text("name")?.unwrap_or_default();
        check_name(&name)?;
        let path = |key, default: &str| {
            let text = conf.text(key)?.filter(|text| !text.is_empty());
            Ok(PathBuf::from(text.unwrap_or_else(|| default.to_owned())))
        };
        let delegate = conf.object("delegate")?.unwrap_or_default();
        check_delegate(&delegate)?;
        let ipam = conf.object("ipam")?.unwrap_or_default();
        check_ipam(&ipam)?;
        Ok(Self {
            subnet_file: path("subnetFile", SUBNET_FILE)?,
            data_dir: path("dataDir", DATA_DIR)?,
            runtime_config: conf.object("runtimeConfig")?,
            prev_result: conf.get("prevResult").cloned(),
            valid_attachments: conf.attachments()?,
            cni_version,
            name,
            delegate,
            ipam,
        })
    }

    /// The version to use: as upstream, a config without one has the oldest.
    pub fn version(&self) -> &str {
        self.cni_version.as_deref().unwrap_or(version::SUPPORTED[0])
    }

    /// The delegate's type, `bridge` unless the config has another.
    pub fn delegate_type(&self) -> &str {
        self.delegate.get("type").and_then(Value::as_str).unwrap_or("bridge")
    }

    /// The `ipam` plugin's type, `host-local` unless the config has another.
    pub fn ipam_type(&self) -> &str {
        self.ipam.get("type").and_then(Value::as_str).unwrap_or("host-local")
    }
}

/// The version in a config, even if the rest is broken, for the error object.
pub fn version_of(bytes: &[u8]) -> &'static str {
    let conf = serde_json::from_slice(bytes).map_or_else(|_| Fields(Object::new()), Fields);
    let named = conf.text("cniVersion").ok().flatten();
    let ours = |named: String| version::SUPPORTED.iter().find(|version| **version == named);
    named.and_then(ours).copied().unwrap_or(version::CURRENT)
}

struct Fields(Object);

impl Fields {
    /// A value that is there and not null.
    fn get(&self, key: &str) -> Option<&Value> {
        let folded =
            || self.0.iter().find(|(name, _)| name.eq_ignore_ascii_case(key)).map(|(_, value)| value);
        self.0.get(key).or_else(folded).filter(|value| !value.is_null())
    }

    fn text(&self, key: &str) -> Result<Option<String>, CniError> {
        let text = |value: &Value| {
            value
                .as_str()
                .map(str::to_owned)
                .ok_or_else(|| decoding(&format!("{key} is {value} and not a string")))
        };
        self.get(key).map(text).transpose()
    }

    fn object(&self, key: &str) -> Result<Option<Object>, CniError> {
        let object = |value: &Value| {
            value.as_object().cloned().ok_or_else(|| decoding(&format!("{key} is {value} and not an object")))
        };
        self.get(key).map(object).transpose()
    }

    /// `cni.dev/valid-attachments`, and its name in an early draft, which libcni sends, too. A Go runtime
    /// writes an empty list as null.
    fn attachments(&self) -> Result<Option<BTreeSet<Attachment>>, CniError> {
        let keys = ["cni.dev/valid-attachments", "cni.dev/attachments"];
        let Some((key, value)) = keys.iter().find_map(|key| Some((key, self.0.get(*key)?))) else {
            return Ok(None);
        };
        let bad = || decoding(&format!("{key} is not a list of objects with containerID and ifname"));
        let no_items = Vec::new();
        let items = if value.is_null() { &no_items } else { value.as_array().ok_or_else(bad)? };
        let attachment = |item: &Value| {
            let text = |key: &str| item.get(key).and_then(Value::as_str).ok_or_else(bad);
            Attachment::new(text("containerID")?, text("ifname")?)
        };
        items.iter().map(attachment).collect::<Result<_, _>>().map(Some)
    }
}

fn decoding(problem: &str) -> CniError {
    CniError::new(code::DECODING, format!("failed to load netconf: {problem}"))
}

/// The specification's rule for names of networks, which are also names of host-local's folders.
fn check_name(name: &str) -> Result<(), CniError> {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
    let msg = match name {
        "" => "missing network name".to_owned(),
        name if name.starts_with(|c: char| c.is_ascii_alphanumeric()) && name.chars().all(is_plain) => {
            return Ok(());
        }
        name => format!("invalid characters found in network name {name:?}"),
    };
    Err(CniError::new(code::INVALID_CONFIG, msg))
}

fn check_delegate(delegate: &Object) -> Result<(), CniError> {
    let field = |key: &str, problem: &str| {
        let msg = format!("'delegate' dictionary, if present, must {problem}");
        Err(CniError::new(code::INVALID_CONFIG, msg)
            .with_details(format!("correct delegate.{key} in the network config")))
    };
    for key in ["name", "ipam"] {
        if delegate.contains_key(key) {
            let problem = format!("not have '{key}' field, it'll be set by flannel");
            return field(key, &problem);
        }
    }
    match delegate.get("type") {
        None => {}
        Some(Value::String(name)) => check_plugin(name)?,
        Some(_) => return field("type", "have (string) 'type' field"),
    }
    // The keys of other delegates are unknown.
    if !matches!(delegate.get("type").and_then(Value::as_str), None | Some("bridge")) {
        return Ok(());
    }
    let is_wrong = |key: &str, is: fn(&Value) -> bool| delegate.get(key).is_some_and(|value| !is(value));
    match () {
        () if is_wrong("ipMasq", Value::is_boolean) => field("ipMasq", "have a boolean 'ipMasq'"),
        () if is_wrong("isGateway", Value::is_boolean) => field("isGateway", "have a boolean 'isGateway'"),
        () if is_wrong("mtu", |mtu| mtu.as_u64().is_some_and(|mtu| u32::try_from(mtu).is_ok())) => {
            field("mtu", "have a number of bytes as 'mtu'")
        }
        () => Ok(()),
    }
}

/// Checks a plugin's name: it must be a file name, and not our own, which would call itself without end.
pub fn check_plugin(name: &str) -> Result<(), CniError> {
    let problem = match name {
        "" | "." | ".." => "is no name of a plugin",
        "flannel" => "would call itself",
        name if name.contains(['/', '\0']) => "is a path and not the name of a plugin in CNI_PATH",
        _ => return Ok(()),
    };
    Err(CniError::new(code::INVALID_CONFIG, format!("the plugin type {name:?} {problem}")))
}

fn check_ipam(ipam: &Object) -> Result<(), CniError> {
    let bad = |problem: String| {
        CniError::new(code::INVALID_CONFIG, format!("bad ipam in the network config: {problem}"))
    };
    match ipam.get("type") {
        None => {}
        Some(Value::String(name)) => check_plugin(name)?,
        Some(other) => return Err(bad(format!("type is {other} and not a string"))),
    }
    let routes = match ipam.get("routes") {
        None | Some(Value::Null) => return Ok(()),
        Some(Value::Array(routes)) => routes,
        Some(other) => return Err(bad(format!("routes is {other} and not a list"))),
    };
    for route in routes {
        let dst = route.get("dst").and_then(Value::as_str).unwrap_or_default();
        dst.parse::<crate::cidr::Cidr>().map_err(|_| bad(format!("the route {route} has no valid dst")))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
