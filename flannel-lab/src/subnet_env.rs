//! `subnet.env`: what an agent tells the CNI plugin. Read strictly, as the file's contract is exact.

use std::fmt::Display;
use std::fs;
use std::path::Path;
use std::str::FromStr;

use ipnetwork::{IpNetwork, Ipv4Network, Ipv6Network};

use crate::LabError;

/// One family's pair: the overlay network, and this node's gateway with the subnet's length.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FamilySubnet<N> {
    /// The network of all pods.
    pub network: N,
    /// The bridge's address: the subnet's first, with the subnet's length.
    pub gateway: N,
}

/// The content of `subnet.env`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SubnetEnv {
    /// `FLANNEL_NETWORK` and `FLANNEL_SUBNET`.
    pub v4: Option<FamilySubnet<Ipv4Network>>,
    /// `FLANNEL_IPV6_NETWORK` and `FLANNEL_IPV6_SUBNET`.
    pub v6: Option<FamilySubnet<Ipv6Network>>,
    /// `FLANNEL_MTU`: the pods' MTU in bytes, encap overhead taken off.
    pub mtu: u32,
    /// `FLANNEL_IPMASQ`: whether the agent masquerades.
    pub ipmasq: bool,
}

impl SubnetEnv {
    /// Reads and parses a file.
    pub fn read(path: &Path) -> Result<Self, LabError> {
        let text = fs::read_to_string(path)
            .map_err(LabError::io(format!("reading {}", path.display())))?;
        text.parse()
    }

    /// The pair of each family present, IPv4 first.
    pub fn families(&self) -> Vec<FamilySubnet<IpNetwork>> {
        let v4 = self
            .v4
            .map(|at| (IpNetwork::from(at.network), IpNetwork::from(at.gateway)));
        let v6 = self
            .v6
            .map(|at| (IpNetwork::from(at.network), IpNetwork::from(at.gateway)));
        let families = v4.into_iter().chain(v6);
        families
            .map(|(network, gateway)| FamilySubnet { network, gateway })
            .collect()
    }
}

impl FromStr for SubnetEnv {
    type Err = LabError;

    /// Takes the known keys, each once, in their order, and nothing else.
    fn from_str(text: &str) -> Result<Self, LabError> {
        let mut lines = Lines { text, rest: text };
        let env = Self {
            v4: lines.family("FLANNEL_NETWORK", "FLANNEL_SUBNET")?,
            v6: lines.family("FLANNEL_IPV6_NETWORK", "FLANNEL_IPV6_SUBNET")?,
            mtu: lines.required("FLANNEL_MTU")?,
            ipmasq: lines.required("FLANNEL_IPMASQ")?,
        };
        match (lines.rest, &env) {
            (
                "",
                Self {
                    v4: None, v6: None, ..
                },
            ) => Err(lines.error("no subnet in any family")),
            ("", _) => Ok(env),
            (rest, _) => Err(lines.error(&format!("{rest:?} where the end should be"))),
        }
    }
}

/// The part of the file that is still to be read.
struct Lines<'a> {
    text: &'a str,
    rest: &'a str,
}

impl Lines<'_> {
    fn family<N: FromStr + Network>(
        &mut self,
        network: &str,
        subnet: &str,
    ) -> Result<Option<FamilySubnet<N>>, LabError> {
        let Some(first) = self.value::<N>(network)? else {
            return Ok(None);
        };
        let gateway = self.required::<N>(subnet)?;
        if !first.is_base() || !first.covers(&gateway) || gateway.is_base() {
            return Err(self.error(&format!("{subnet} isn't a gateway within {network}")));
        }
        Ok(Some(FamilySubnet {
            network: first,
            gateway,
        }))
    }

    fn required<T: FromStr>(&mut self, key: &str) -> Result<T, LabError> {
        self.value(key)?
            .ok_or_else(|| self.error(&format!("{key} isn't where it should be")))
    }

    /// The value of the next line, if that has the key.
    fn value<T: FromStr>(&mut self, key: &str) -> Result<Option<T>, LabError> {
        let Some((line, rest)) = self.rest.split_once('\n') else {
            return Ok(None);
        };
        let Some(value) = line
            .strip_prefix(key)
            .and_then(|rest| rest.strip_prefix('='))
        else {
            return Ok(None);
        };
        self.rest = rest;
        let value = value
            .parse()
            .map_err(|_| self.error(&format!("bad value in {line:?}")))?;
        Ok(Some(value))
    }

    fn error(&self, what: &(impl Display + ?Sized)) -> LabError {
        LabError::unexpected(format!("subnet.env, {what}"), self.text)
    }
}

/// What the check of a pair asks of a prefix, in either family.
trait Network {
    fn is_base(&self) -> bool;
    fn covers(&self, other: &Self) -> bool;
}

impl Network for Ipv4Network {
    fn is_base(&self) -> bool {
        self.ip() == self.network()
    }

    fn covers(&self, other: &Self) -> bool {
        self.contains(other.ip()) && self.prefix() <= other.prefix()
    }
}

impl Network for Ipv6Network {
    fn is_base(&self) -> bool {
        self.ip() == self.network()
    }

    fn covers(&self, other: &Self) -> bool {
        self.contains(other.ip()) && self.prefix() <= other.prefix()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DUAL: &str = "FLANNEL_NETWORK=10.42.0.0/16\nFLANNEL_SUBNET=10.42.3.1/24\n\
        FLANNEL_IPV6_NETWORK=fd00:42::/56\nFLANNEL_IPV6_SUBNET=fd00:42:0:3::1/64\n\
        FLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n";

    #[test]
    fn all_families_are_read() {
        let env: SubnetEnv = DUAL.parse().unwrap();
        assert_eq!(env.v4.unwrap().gateway.to_string(), "10.42.3.1/24");
        assert_eq!(env.v6.unwrap().network.to_string(), "fd00:42::/56");
        assert_eq!((env.mtu, env.ipmasq, env.families().len()), (1450, true, 2));
        let v4 = DUAL.lines().filter(|line| !line.contains("IPV6"));
        let v4: String = v4.flat_map(|line| [line, "\n"]).collect();
        assert_eq!(v4.parse::<SubnetEnv>().unwrap().v6, None);
        let v6: String = DUAL.lines().skip(2).flat_map(|line| [line, "\n"]).collect();
        assert_eq!(v6.parse::<SubnetEnv>().unwrap().v4, None);
    }

    #[test]
    fn anything_else_is_refused() {
        for (from, to) in [
            ("FLANNEL_MTU=1450\n", ""),
            ("FLANNEL_MTU=1450", "FLANNEL_MTU=\"1450\""),
            ("FLANNEL_MTU=1450", "FLANNEL_MTU=-1"),
            ("FLANNEL_IPMASQ=true", "FLANNEL_IPMASQ=yes"),
            ("FLANNEL_IPMASQ=true\n", "FLANNEL_IPMASQ=true"),
            ("FLANNEL_IPMASQ=true\n", "FLANNEL_IPMASQ=true\nMORE=1\n"),
            ("FLANNEL_SUBNET=10.42.3.1/24\n", ""),
            ("10.42.3.1/24", "10.43.3.1/24"),
            ("10.42.3.1/24", "10.42.3.0/24"),
            ("10.42.0.0/16", "10.42.0.1/16"),
            ("fd00:42:0:3::1/64", "fd00:42:0:3::/64"),
            ("FLANNEL_NETWORK", " FLANNEL_NETWORK"),
        ] {
            let text = DUAL.replacen(from, to, 1);
            assert_ne!(text, DUAL);
            assert!(text.parse::<SubnetEnv>().is_err(), "{text}");
        }
        assert!(
            "FLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n"
                .parse::<SubnetEnv>()
                .is_err()
        );
        assert!("".parse::<SubnetEnv>().is_err());
    }
}
