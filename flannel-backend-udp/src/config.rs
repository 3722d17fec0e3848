//! The backend's keys in the network config. Upstream: `pkg/backend/udp/udp_amd64.go`.

use flannel_core::config::{BackendConfig, ConfigError};

/// The keys that this backend reads.
pub(crate) const KEYS: [&str; 1] = ["Port"];

/// Upstream's port.
const DEFAULT_PORT: u16 = 8285;

/// The keys of `"Backend": {"Type": "udp", ..}`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct UdpConfig {
    /// `Port`: the UDP port, the same on all nodes. Default 8285.
    pub port: u16,
}

impl UdpConfig {
    /// Reads and checks the keys.
    pub fn parse(backend: &BackendConfig) -> Result<Self, ConfigError> {
        let port: i64 = backend.get("Port")?.unwrap_or_else(|| DEFAULT_PORT.into());
        match u16::try_from(port) {
            Ok(port) if port > 0 => Ok(Self { port }),
            _ => {
                let problem = "must be from 1 to 65535, the same on all nodes";
                Err(ConfigError::new("Backend.Port", Some(port.to_string()), problem))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use flannel_core::config::{LeaseSource, NetworkConfig};

    use super::*;

    fn backend(keys: &str) -> BackendConfig {
        let text = format!(r#"{{"Network":"10.3.0.0/16","Backend":{{"Type":"udp"{keys}}}}}"#);
        NetworkConfig::parse(&text, LeaseSource::Store).unwrap().backend
    }

    #[test]
    fn reads_the_port() {
        assert_eq!(UdpConfig::parse(&backend("")), Ok(UdpConfig { port: 8285 }));
        assert_eq!(UdpConfig::parse(&backend(r#","PORT":9000"#)), Ok(UdpConfig { port: 9000 }));
        for port in ["0", "65536", "-1"] {
            let error = UdpConfig::parse(&backend(&format!(r#","Port":{port}"#))).unwrap_err();
            assert_eq!((error.key.as_str(), error.value.as_deref()), ("Backend.Port", Some(port)));
        }
    }
}
