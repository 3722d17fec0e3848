//! Reads `subnet.env`, in which the agent publishes this node's subnets. Upstream: flannel-io/cni-plugin, `flannel.go`,
//! `loadFlannelSubnetEnv`.

use std::path::Path;

use crate::cidr::Cidr;
use crate::error::{CniError, code};
use crate::guarded;

/// The largest file that is read, in bytes. An agent writes some hundred.
const MAX_BYTES: u64 = 64 << 10;

/// The content of the file. It is parsed as upstream's plugin does, more leniently than agents write it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SubnetEnv {
    /// The overlay's networks, IPv4 first; there is at least one.
    pub networks: Vec<Cidr>,
    /// This node's subnets, IPv4 first; one or two, of different families.
    pub subnets: Vec<Cidr>,
    /// The pods' MTU in bytes.
    pub mtu: u32,
    /// Whether the agent masquerades, so that the delegate need not.
    pub ip_masq: bool,
}

impl SubnetEnv {
    /// Reads a file. The most frequent error is that it does not exist, because the agent has no subnet yet.
    pub fn read(path: &Path) -> Result<Self, CniError> {
        let shown = path.display();
        // Links are followed: the operator's config names the file, and another agent may keep it elsewhere.
        let text = guarded::read_linked(path, MAX_BYTES).map_err(|error| {
            let code = if error.kind() == std::io::ErrorKind::NotFound { code::TRY_AGAIN } else { code::IO };
            // Operators search for this text.
            let msg = format!(
                "failed to load flannel 'subnet.env' file: open {shown}: {error}. \
                 Check the flannel pod log for this node."
            );
            CniError::new(code, msg).with_details(format!(
                "flanneld writes {shown} once it holds a subnet, so on this node it does not run, has found no \
                 subnet yet, or has another --subnet-file than the network config's subnetFile. {LOOK}"
            ))
        })?;
        Self::parse(&String::from_utf8_lossy(&text)).map_err(|problem| {
            let msg = format!("failed to load flannel 'subnet.env' file: {shown} {problem}");
            CniError::new(code::INVALID_CONFIG, msg)
                .with_details(format!("flanneld writes it anew when it is started again. {LOOK}"))
        })
    }

    /// Parses the text; the error says what is wrong with it, as the end of a sentence about the file.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (mut v4, mut v6) = (Family::default(), Family::default());
        let (mut mtu, mut ip_masq) = (None, None);
        for line in text.lines() {
            let (key, value) = line.split_once('=').map_or((line, None), |(key, value)| (key, Some(value)));
            let known = [
                "FLANNEL_NETWORK",
                "FLANNEL_SUBNET",
                "FLANNEL_IPV6_NETWORK",
                "FLANNEL_IPV6_SUBNET",
                "FLANNEL_MTU",
                "FLANNEL_IPMASQ",
            ];
            if !known.contains(&key) {
                continue;
            }
            let value = value.ok_or_else(|| format!("has {key} without a value"))?;
            let bad = |problem: String| format!("has a bad {key}: {problem}");
            match key {
                "FLANNEL_NETWORK" => v4.networks = networks(value, true).map_err(bad)?,
                "FLANNEL_SUBNET" => v4.subnet = Some(subnet(value, true).map_err(bad)?),
                "FLANNEL_IPV6_NETWORK" => v6.networks = networks(value, false).map_err(bad)?,
                "FLANNEL_IPV6_SUBNET" => v6.subnet = Some(subnet(value, false).map_err(bad)?),
                "FLANNEL_MTU" => mtu = Some(number(value).map_err(bad)?),
                _ => ip_masq = Some(value == "true"),
            }
        }
        let networks = [v4.networks, v6.networks].concat();
        let subnets: Vec<Cidr> = v4.subnet.into_iter().chain(v6.subnet).collect();
        match (mtu, ip_masq) {
            (Some(mtu), Some(ip_masq)) if !networks.is_empty() && !subnets.is_empty() => {
                Ok(Self { networks, subnets, mtu, ip_masq })
            }
            _ => {
                let missing = [
                    (networks.is_empty(), "FLANNEL_NETWORK, FLANNEL_IPV6_NETWORK"),
                    (subnets.is_empty(), "FLANNEL_SUBNET, FLANNEL_IPV6_SUBNET"),
                    (mtu.is_none(), "FLANNEL_MTU"),
                    (ip_masq.is_none(), "FLANNEL_IPMASQ"),
                ];
                let missing: Vec<_> = missing.iter().filter(|(is, _)| *is).map(|(_, keys)| *keys).collect();
                Err(format!("is missing {}", missing.join(", ")))
            }
        }
    }
}

/// Where the agent's errors are.
const LOOK: &str = "Its log says why: `journalctl -u flanneld`, or in Kubernetes \
    `kubectl -n kube-flannel logs -l app=flannel --prefix`";

#[derive(Default)]
struct Family {
    networks: Vec<Cidr>,
    subnet: Option<Cidr>,
}

fn networks(list: &str, v4: bool) -> Result<Vec<Cidr>, String> {
    let mut networks = Vec::new();
    for item in list.split(',') {
        let network = subnet(item, v4)?;
        if !networks.contains(&network) {
            networks.push(network);
        }
    }
    Ok(networks)
}

fn subnet(text: &str, v4: bool) -> Result<Cidr, String> {
    let subnet: Cidr = text.parse()?;
    if subnet.is_ipv4() == v4 { Ok(subnet) } else { Err(format!("{text} is of the other family")) }
}

fn number(text: &str) -> Result<u32, String> {
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    let number = text.parse().ok().filter(|_| digits);
    number.ok_or_else(|| format!("{text:?} is no number of 32 bits"))
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(crate) const DUAL: &str = "FLANNEL_NETWORK=10.42.0.0/16\nFLANNEL_SUBNET=10.42.3.1/24\n\
        FLANNEL_IPV6_NETWORK=fd00:42::/56\nFLANNEL_IPV6_SUBNET=fd00:42:0:3::1/64\n\
        FLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n";

    fn texts(cidrs: &[Cidr]) -> Vec<String> {
        cidrs.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn both_families_are_read_ipv4_first() {
        let env = SubnetEnv::parse(DUAL).unwrap();
        assert_eq!(texts(&env.networks), ["10.42.0.0/16", "fd00:42::/56"]);
        assert_eq!(texts(&env.subnets), ["10.42.3.0/24", "fd00:42:0:3::/64"]);
        assert_eq!((env.mtu, env.ip_masq), (1450, true));
        let reversed: Vec<&str> = DUAL.lines().rev().collect();
        assert_eq!(SubnetEnv::parse(&reversed.join("\r\n")), Ok(env));
    }

    #[test]
    fn networks_are_lists_without_repetition() {
        let text = DUAL.replace("10.42.0.0/16", "10.42.0.0/16,10.43.0.0/16,10.42.1.1/16");
        let env = SubnetEnv::parse(&text).unwrap();
        assert_eq!(texts(&env.networks), ["10.42.0.0/16", "10.43.0.0/16", "fd00:42::/56"]);
    }

    #[test]
    fn other_lines_are_ignored_and_only_true_is_true() {
        let text = format!("# FLANNEL_MTU\nFLANNEL_MTUS\n\n{DUAL}MORE").replace("=true", "=TRUE");
        assert!(!SubnetEnv::parse(&text).unwrap().ip_masq);
    }

    #[test]
    fn all_that_is_missing_is_named() {
        let missing = |text: &str| SubnetEnv::parse(text).unwrap_err();
        assert_eq!(
            missing(""),
            "is missing FLANNEL_NETWORK, FLANNEL_IPV6_NETWORK, FLANNEL_SUBNET, FLANNEL_IPV6_SUBNET, \
             FLANNEL_MTU, FLANNEL_IPMASQ"
        );
        assert_eq!(missing(&DUAL.replace("FLANNEL_MTU", "X")), "is missing FLANNEL_MTU");
        for key in ["FLANNEL_NETWORK", "FLANNEL_SUBNET", "FLANNEL_MTU", "FLANNEL_IPMASQ"] {
            assert_eq!(missing(&format!("{DUAL}{key}\n")), format!("has {key} without a value"));
        }
    }

    #[test]
    fn what_upstream_refuses_is_refused() {
        for (from, to) in [
            ("=1450", "=\"1450\""),
            ("=1450", "=-1"),
            ("=1450", "=+1"),
            ("=1450", "="),
            ("=1450", "=4294967296"),
            ("10.42.3.1/24", "10.42.3.1"),
            ("10.42.3.1/24", " 10.42.3.1/24"),
            ("10.42.0.0/16", "10.42.0.0/16,"),
            ("10.42.0.0/16", "fd00::/16"),
            ("fd00:42:0:3::1/64", "10.0.0.0/8"),
        ] {
            let text = DUAL.replacen(from, to, 1);
            assert!(SubnetEnv::parse(&text).unwrap_err().starts_with("has a bad FLANNEL_"), "{text}");
        }
    }

    #[test]
    fn a_file_that_is_not_there_says_whom_to_ask() {
        let error = SubnetEnv::read(Path::new("/no/subnet.env")).unwrap_err();
        assert_eq!(error.code, code::TRY_AGAIN);
        assert!(
            error.msg.starts_with("failed to load flannel 'subnet.env' file: open /no/subnet.env: "),
            "{error}"
        );
        assert!(error.msg.ends_with("Check the flannel pod log for this node."), "{error}");
        assert!(error.details.contains("journalctl -u flanneld"), "{error}");
        assert_eq!(SubnetEnv::read(Path::new("/")).unwrap_err().code, code::IO);
    }
}
