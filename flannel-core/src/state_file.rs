//! What an agent remembers over restarts, in a file beside the subnet file.
//!
//! It proves later what is ours although nothing in the kernel says so: the devices of a backend that the
//! node had before, routes of a network that it had before, routes that a Go agent wrote for a node that
//! has left since. Without it, or with a damaged one, an agent works all the same, and leaves alone what it
//! can't prove.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::addr::{Family, PerFamily, Subnet, Vni};
use crate::atomic_file;
use crate::lease::{Lease, LeaseKey};

/// A VXLAN device of a backend.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    /// Its name.
    pub name: String,
    /// Its VNI.
    pub vni: Vni,
}

/// What an agent remembers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct State {
    /// The kind of the backend.
    pub backend: String,
    /// The overlay networks.
    pub networks: PerFamily<Subnet>,
    /// The devices that the backend made.
    pub devices: Vec<Device>,
    /// The underlay addresses of the node that holds a lease, for every lease of other nodes.
    pub nodes: BTreeMap<LeaseKey, PerFamily<IpAddr>>,
}

impl State {
    /// Notes where the node of a lease is.
    pub fn note(&mut self, lease: &Lease) {
        self.nodes.insert(lease.key, lease.attrs.public_ips);
    }

    /// The bytes of the file.
    pub fn encode(&self) -> String {
        let wire = Wire {
            backend: self.backend.clone(),
            networks: list(&self.networks),
            devices: self.devices.clone(),
            nodes: self.nodes.iter().map(|(key, ips)| (key.to_string(), list(ips))).collect(),
        };
        let state = serde_json::value::to_raw_value(&wire).expect("strings and numbers always encode");
        let envelope = Envelope { version: VERSION, checksum: checksum(state.get()), state };
        let mut text = serde_json::to_string(&envelope).expect("strings and numbers always encode");
        text.push('\n');
        text
    }

    /// Reads the bytes of a file; the error says what is wrong with them.
    pub fn decode(bytes: &[u8]) -> Result<Self, String> {
        let bad = |error: serde_json::Error| format!("is no state of an agent: {error}");
        let envelope: Envelope = serde_json::from_slice(bytes).map_err(bad)?;
        if envelope.version != VERSION {
            return Err(format!("has version {}, this agent reads {VERSION}", envelope.version));
        }
        if envelope.checksum != checksum(envelope.state.get()) {
            return Err("is damaged: its checksum does not fit".to_owned());
        }
        let wire: Wire = serde_json::from_str(envelope.state.get()).map_err(bad)?;
        let node = |(key, ips): (String, Vec<IpAddr>)| {
            let key = key.parse().map_err(|error| format!("is no state of an agent: {error}"))?;
            Ok((key, per_family(&ips, Family::of)))
        };
        Ok(Self {
            backend: wire.backend,
            networks: per_family(&wire.networks, Subnet::family),
            devices: wire.devices,
            nodes: wire.nodes.into_iter().map(node).collect::<Result<_, String>>()?,
        })
    }

    /// Puts the file in place in one step, for its owner only.
    pub fn write(&self, path: &Path) -> Result<(), StateFileError> {
        atomic_file::replace(path, self.encode().as_bytes(), 0o600)
            .map_err(|source| StateFileError { path: path.to_owned(), source })
    }
}

/// The state file can't be written.
#[derive(Debug, thiserror::Error)]
#[error("can't write the state file {}", path.display())]
pub struct StateFileError {
    /// Where it was to be.
    pub path: PathBuf,
    /// Why not.
    #[source]
    pub source: io::Error,
}

/// What was found in a state file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Recalled {
    /// The state; `None` if there is none that can be used.
    pub state: Option<State>,
    /// Why a file that is there can't be used, for the log.
    pub problem: Option<String>,
}

/// Reads what an earlier run stored. It never fails: without it the agent merely can prove less.
pub fn read(path: &Path) -> Recalled {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Recalled::default(),
        Err(error) => return Recalled { state: None, problem: Some(format!("can't be read: {error}")) },
    };
    match State::decode(&bytes) {
        Ok(state) => Recalled { state: Some(state), problem: None },
        Err(problem) => Recalled { state: None, problem: Some(problem) },
    }
}

/// The form of the file. Another form gets another number.
const VERSION: u32 = 1;

#[derive(Serialize, Deserialize)]
struct Envelope {
    version: u32,
    /// Of the bytes of `state`, as they are written.
    checksum: String,
    state: Box<RawValue>,
}

#[derive(Serialize, Deserialize)]
struct Wire {
    backend: String,
    networks: Vec<Subnet>,
    devices: Vec<Device>,
    nodes: BTreeMap<String, Vec<IpAddr>>,
}

fn list<T: Copy>(values: &PerFamily<T>) -> Vec<T> {
    values.iter().map(|(_, value)| *value).collect()
}

/// The last value of each family.
fn per_family<T: Copy>(values: &[T], family_of: impl Fn(T) -> Family) -> PerFamily<T> {
    PerFamily::from_fn(|family| values.iter().rev().copied().find(|value| family_of(*value) == family))
}

/// FNV-1a of 64 bits, in hexadecimal: against damage, not against forgery.
fn checksum(text: &str) -> String {
    let step = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    format!("{:016x}", text.bytes().fold(0xcbf2_9ce4_8422_2325, step))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use proptest::prelude::*;

    use super::*;

    fn state() -> State {
        let ips = PerFamily { v4: "192.0.2.9".parse().ok(), v6: "2001:db8::9".parse().ok() };
        State {
            backend: "vxlan".into(),
            networks: PerFamily { v4: "10.5.0.0/16".parse().ok(), v6: "fd00:5::/48".parse().ok() },
            devices: vec![Device { name: "flannel.1".into(), vni: Vni::new(1).unwrap() }],
            nodes: [("10.5.9.0-24&fd00:5:0:9::-64".parse().unwrap(), ips)].into(),
        }
    }

    #[test]
    fn is_read_as_it_was_written() {
        let text = state().encode();
        assert_eq!(State::decode(text.as_bytes()), Ok(state()));
        assert!(
            text.contains(r#""nodes":{"10.5.9.0-24&fd00:5:0:9::-64":["192.0.2.9","2001:db8::9"]}"#),
            "{text}"
        );
    }

    #[test]
    fn any_damage_makes_it_none_with_a_word() {
        let text = state().encode();
        let cut = &text[..text.len() / 2];
        let changed = text.replace("192.0.2.9", "192.0.2.8");
        let newer = text.replace("\"version\":1", "\"version\":2");
        for (text, word) in [
            ("", "no state"),
            ("{}", "no state"),
            (cut, "no state"),
            (&changed, "damaged"),
            (&newer, "version 2"),
        ] {
            let error = State::decode(text.as_bytes()).unwrap_err();
            assert!(error.contains(word), "{text}: {error}");
        }
    }

    #[test]
    fn a_missing_file_is_no_problem_and_an_unreadable_one_no_error() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("subnet.env.state");
        assert_eq!(read(&path), Recalled::default());
        state().write(&path).unwrap();
        assert_eq!(read(&path), Recalled { state: Some(state()), problem: None });
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o600);
        fs::write(&path, "garbage").unwrap();
        let found = read(&path);
        assert!(found.state.is_none() && found.problem.is_some());
        assert!(read(folder.path()).problem.is_some());
        let error = state().write(&path.join("below")).unwrap_err();
        assert!(error.to_string().contains("subnet.env.state/below"), "{error}");
    }

    proptest! {
        #[test]
        fn no_changed_byte_goes_unseen(at in any::<prop::sample::Index>(), byte in any::<u8>()) {
            let good = state().encode();
            let mut bytes = good.clone().into_bytes();
            let at = at.index(bytes.len());
            bytes[at] = byte;
            // White space around the whole and case of the names of the envelope apart, nothing is accepted.
            if let Ok(read) = State::decode(&bytes) {
                prop_assert_eq!(read, state());
            }
        }
    }
}
