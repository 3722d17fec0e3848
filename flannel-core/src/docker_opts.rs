//! Options of the Docker daemon from the subnet file, as upstream's `mk-docker-opts.sh` writes them, byte for byte where
//! both know the same.
//!
//! ```
//! use flannel_core::docker_opts::DockerOptions;
//!
//! let file = "FLANNEL_SUBNET=10.1.74.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n";
//! let options = DockerOptions::parse(file)?;
//! assert_eq!(options.combined("DOCKER_OPTS", ""), "DOCKER_OPTS=\" --bip=10.1.74.1/24 --ip-masq=false --mtu=1450\"\n");
//! # Ok::<_, flannel_core::docker_opts::DockerOptionsError>(())
//! ```

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io;
use std::net::IpAddr;
use std::path::Path;

use crate::addr::{Family, Subnet};
use crate::kernel::Kernel;
use crate::{guarded, subnet_file};

/// What the names of the variables begin with, one variable an option.
pub const PREFIX: &str = "DOCKER_OPT_";

/// Options of the Docker daemon by the name of their variable.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DockerOptions(BTreeMap<String, String>);

/// The subnet file says something that can't be meant.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DockerOptionsError {
    /// Whether the agent masquerades is neither `true` nor `false`.
    #[error("Invalid value of FLANNEL_IPMASQ: {0}; it is true or false in a file that flanneld wrote")]
    IpMasq(String),
    /// This value would be more than a word where a shell reads it.
    #[error("{0} in the subnet file is no plain word; flanneld writes a new file at its start")]
    NotPlain(&'static str),
}

impl DockerOptions {
    /// Reads the text of a subnet file. What it does not name gives no option, so an empty one gives none.
    pub fn parse(file: &str) -> Result<Self, DockerOptionsError> {
        let value = |name: &'static str| {
            let value = subnet_file::value_of(file, name).filter(|value| !value.is_empty());
            let is_plain =
                |value: &String| value.chars().all(|it| it.is_ascii_alphanumeric() || "./:-_".contains(it));
            match value {
                Some(value) if !is_plain(&value) => Err(DockerOptionsError::NotPlain(name)),
                value => Ok(value),
            }
        };
        let mut options = Self::default();
        let mut put = |name: &str, option| options.0.insert(format!("{PREFIX}{name}"), option);
        if let Some(subnet) = value("FLANNEL_SUBNET")? {
            put("BIP", format!("--bip={subnet}"));
        }
        if let Some(subnet) = value("FLANNEL_IPV6_SUBNET")? {
            // Docker takes the network here, and the first address of it for its bridge.
            let network = subnet.parse::<Subnet>().map_or(subnet, |subnet| subnet.to_string());
            put("FIXED_CIDR_V6", format!("--fixed-cidr-v6={network}"));
            put("IPV6", "--ipv6".to_owned());
        }
        if let Some(mtu) = value("FLANNEL_MTU")? {
            put("MTU", format!("--mtu={mtu}"));
        }
        if let Some(ip_masq) = value(IP_MASQ)? {
            // Of agent and Docker one masquerades.
            let docker = match ip_masq.as_str() {
                "true" => "false",
                "false" => "true",
                _ => return Err(DockerOptionsError::IpMasq(ip_masq)),
            };
            put("IPMASQ", format!("--ip-masq={docker}"));
        }
        Ok(options)
    }

    /// The same without `--ip-masq`, which old versions of Docker don't know, whatever the file says of it.
    pub fn parse_without_ip_masq(file: &str) -> Result<Self, DockerOptionsError> {
        let is_other = |line: &&str| subnet_file::value_of(line, IP_MASQ).is_none();
        Self::parse(&file.lines().filter(is_other).collect::<Vec<_>>().join("\n"))
    }

    /// The same with options of other origin, by the names of their variables. Those whose name does not begin with
    /// [`PREFIX`] are left out; where both have a name, the subnet file's counts.
    pub fn with<'a>(mut self, others: impl IntoIterator<Item = (&'a String, &'a String)>) -> Self {
        for (name, option) in others.into_iter().filter(|(name, _)| name.starts_with(PREFIX)) {
            self.0.entry(name.clone()).or_insert_with(|| option.clone());
        }
        self
    }

    /// A line of each option, such as `DOCKER_OPT_MTU="--mtu=1450"`, for shells and systemd.
    pub fn individual(&self) -> String {
        let mut text = String::new();
        for (name, option) in &self.0 {
            writeln!(text, "{name}=\"{option}\"").expect("writing to a string can't fail");
        }
        text
    }

    /// One line with all options, behind what the variable `name` was before.
    pub fn combined(&self, name: &str, before: &str) -> String {
        let options = self.0.values().flat_map(|option| [" ", option.as_str()]).collect::<String>();
        format!("{name}=\"{before}{options}\"\n")
    }
}

const IP_MASQ: &str = "FLANNEL_IPMASQ";

/// Reads a subnet file that an operator names, through links, as the script did. One that is not there counts as empty.
pub fn read(path: &Path) -> io::Result<String> {
    match guarded::read_linked(path, subnet_file::MAX_BYTES) {
        Ok(bytes) => Ok(String::from_utf8_lossy(&bytes).into_owned()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        Err(error) => Err(error),
    }
}

/// A subnet of a subnet file that is reached through a gateway, and that gateway: the subnet is another node's by now, and
/// Docker would take its addresses. A kernel that can't be asked is no reason to refuse.
pub async fn subnet_elsewhere(file: &str, kernel: &mut dyn Kernel) -> Option<(Subnet, IpAddr)> {
    for (family, name) in [(Family::V4, "FLANNEL_SUBNET"), (Family::V6, "FLANNEL_IPV6_SUBNET")] {
        let subnet = subnet_file::value_of(file, name).and_then(|text| text.parse::<Subnet>().ok());
        let Some(subnet) = subnet.filter(|subnet| subnet.family() == family) else { continue };
        if let Some(via) = gateway_of(kernel, subnet).await {
            return Some((subnet, via));
        }
    }
    None
}

/// The gateway to a subnet, if it has a route of its own.
async fn gateway_of(kernel: &mut dyn Kernel, subnet: Subnet) -> Option<IpAddr> {
    let way = kernel.lookup(subnet.gateway()).await.ok()??;
    let defaults = kernel.default_routes(subnet.family()).await.ok()?;
    let is_default = defaults.iter().any(|route| (route.via, route.exit) == (way.via, way.exit));
    way.via.filter(|_| !is_default)
}

#[cfg(test)]
mod tests {
    use super::*;

    const V4: &str =
        "FLANNEL_NETWORK=10.1.0.0/16\nFLANNEL_SUBNET=10.1.74.1/24\nFLANNEL_MTU=1472\nFLANNEL_IPMASQ=false\n";

    fn of(file: &str) -> DockerOptions {
        DockerOptions::parse(file).unwrap()
    }

    const INDIVIDUAL: &str = "DOCKER_OPT_BIP=\"--bip=10.1.74.1/24\"\nDOCKER_OPT_IPMASQ=\"--ip-masq=true\"\nDOCKER_OPT_MTU=\"--mtu=1472\"\n";
    const COMBINED: &str = "DOCKER_OPTS=\" --bip=10.1.74.1/24 --ip-masq=true --mtu=1472\"\n";

    /// The cases of upstream's own test of the script.
    #[test]
    fn the_bytes_are_those_of_the_script() {
        assert_eq!(of(V4).individual(), INDIVIDUAL);
        assert_eq!(of(V4).combined("DOCKER_OPTS", ""), COMBINED);
        assert_eq!(of(V4).combined("MY_OPTS", ""), COMBINED.replace("DOCKER_OPTS", "MY_OPTS"));
        let without = DockerOptions::parse_without_ip_masq(V4).unwrap();
        assert_eq!(without.combined("DOCKER_OPTS", ""), "DOCKER_OPTS=\" --bip=10.1.74.1/24 --mtu=1472\"\n");
        let masq = V4.replace("IPMASQ=false", "IPMASQ=true");
        assert!(of(&masq).individual().contains("--ip-masq=false"));
    }

    #[test]
    fn what_the_environment_has_joins_in() {
        let environment =
            [("DOCKER_OPT_DNS", "--dns=10.0.0.53"), ("DOCKER_OPT_MTU", "--mtu=9"), ("OTHER", "x")];
        let environment: BTreeMap<_, _> =
            environment.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
        let want = "DOCKER_OPTS=\"-D --bip=10.1.74.1/24 --dns=10.0.0.53 --ip-masq=true --mtu=1472\"\n";
        assert_eq!(of(V4).with(&environment).combined("DOCKER_OPTS", "-D"), want);
    }

    #[test]
    fn ipv6_is_used_too() {
        let dual = format!("{V4}FLANNEL_IPV6_NETWORK=fd00:1::/56\nFLANNEL_IPV6_SUBNET=fd00:1:0:3::1/64\n");
        let want = "DOCKER_OPTS=\" --bip=10.1.74.1/24 --fixed-cidr-v6=fd00:1:0:3::/64 --ip-masq=true --ipv6 --mtu=1472\"\n";
        assert_eq!(of(&dual).combined("DOCKER_OPTS", ""), want);
    }

    #[test]
    fn files_with_nothing_and_with_nonsense() {
        assert_eq!(of("").individual() + &of("").combined("DOCKER_OPTS", ""), "DOCKER_OPTS=\"\"\n");
        let error = DockerOptions::parse("FLANNEL_IPMASQ=perhaps").unwrap_err();
        assert!(error.to_string().starts_with("Invalid value of FLANNEL_IPMASQ: perhaps"), "{error}");
        assert_eq!(
            DockerOptions::parse_without_ip_masq("FLANNEL_IPMASQ=perhaps"),
            Ok(DockerOptions::default())
        );
        // A value that would end its quotes is no option.
        let error = DockerOptions::parse("FLANNEL_MTU=\"1;x$(y)\"");
        assert_eq!(error, Err(DockerOptionsError::NotPlain("FLANNEL_MTU")));
    }

    /// Whatever the subnet file says, what a shell or systemd reads are plain words. The corpus is that of the subnet files.
    #[test]
    fn any_subnet_file_makes_plain_words_or_an_error() {
        let seeds = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds/subnet_env");
        crate::testing::fuzz::replay(&seeds, 20_000, |data| {
            let file = String::from_utf8_lossy(data);
            let Ok(options) = DockerOptions::parse(&file) else { return };
            let is_plain = |c: char| c.is_ascii_alphanumeric() || " =./:-_".contains(c);
            for line in (options.individual() + &options.combined("DOCKER_OPTS", "")).lines() {
                let value = line.split_once("=\"").and_then(|(name, rest)| {
                    name.starts_with("DOCKER_OPT").then_some(rest.strip_suffix('"')?)
                });
                assert!(value.is_some_and(|value| value.chars().all(is_plain)), "{line:?} of {file:?}");
            }
        });
    }
}
