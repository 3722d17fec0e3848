//! `flanneld docker-opts`: writes options of the Docker daemon from the subnet file, as upstream's `mk-docker-opts.sh`
//! does, with the same bytes for the same input.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use flannel_core::addr::{Family, Subnet};
use flannel_core::error::chain;
use flannel_core::kernel::{Kernel, KernelError};
use flannel_core::netlink::Netlink;
use flannel_core::{atomic_file, guarded, subnet_file};

/// What the operator asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DockerOptions {
    /// The subnet file; one that is not there counts as empty.
    pub(crate) subnet_file: PathBuf,
    /// Where to write.
    pub(crate) output: PathBuf,
    /// Whether to write each option as a variable of its own.
    pub(crate) individual: bool,
    /// Whether to write all together in one variable.
    pub(crate) combined: bool,
    /// The name of that variable.
    pub(crate) key: String,
    /// Whether to leave out `--ip-masq`, which old Dockers don't know.
    pub(crate) without_ip_masq: bool,
}

/// Docker's options can't be written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DockerOptsError {
    /// The subnet file has an invalid value.
    #[error("Invalid value of FLANNEL_IPMASQ: {0}; it is true or false in a file that flanneld wrote")]
    IpMasq(String),
    /// A shell would not read a value as one word.
    #[error("{0} in the subnet file is no plain word; flanneld writes a new file at its start")]
    NotPlain(&'static str),
    /// The file can't be read.
    #[error("can't read the subnet file {}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The output can't be written.
    #[error("can't write {}", path.display())]
    Write {
        /// Which.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The runtime.
    #[error("can't set up the process")]
    Process(#[source] io::Error),
    /// The kernel could not be reached by netlink.
    #[error("can't ask the kernel for routes")]
    Kernel(#[from] KernelError),
    /// The subnet is another node's.
    #[error(
        "subnet {subnet} is reached through {via}, so it is another node's; start flanneld before, or delete {file}"
    )]
    Elsewhere {
        /// Which.
        subnet: Subnet,
        /// The gateway.
        via: IpAddr,
        /// The subnet file.
        file: String,
    },
}

/// Writes the file, and reports errors to the operator.
pub(crate) fn main(options: &DockerOptions) -> ExitCode {
    let environment = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect();
    let written = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let written = written.map_err(DockerOptsError::Process).and_then(|runtime| {
        runtime.block_on(async { write(options, &environment, &mut Netlink::open()?).await })
    });
    match written {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(io::stderr(), "flanneld docker-opts: {}", chain(&error));
            ExitCode::FAILURE
        }
    }
}

/// The prefix of the variables.
const PREFIX: &str = "DOCKER_OPT_";

/// The text of the output.
///
/// `environment` is that of the script: variables whose names begin with `DOCKER_OPT_` are added, and the combined
/// value begins with the variable's old value.
pub(crate) fn render(
    file: &str,
    environment: &BTreeMap<String, String>,
    options: &DockerOptions,
) -> Result<String, DockerOptsError> {
    let value = |name: &'static str| {
        let value = subnet_file::value_of(file, name).filter(|value| !value.is_empty());
        let is_plain =
            |value: &String| value.chars().all(|it| it.is_ascii_alphanumeric() || "./:-_".contains(it));
        match value {
            Some(value) if !is_plain(&value) => Err(DockerOptsError::NotPlain(name)),
            value => Ok(value),
        }
    };
    let of_docker = environment.iter().filter(|(name, _)| name.starts_with(PREFIX));
    let mut all: BTreeMap<String, String> =
        of_docker.map(|(name, value)| (name.clone(), value.clone())).collect();
    let mut put = |name: &str, option: String| all.insert(format!("{PREFIX}{name}"), option);
    if let Some(subnet) = value("FLANNEL_SUBNET")? {
        put("BIP", format!("--bip={subnet}"));
    }
    if let Some(subnet) = value("FLANNEL_IPV6_SUBNET")? {
        // Docker expects the network here, and uses its first address for its bridge.
        let network = subnet.parse::<Subnet>().map_or(subnet, |subnet| subnet.to_string());
        put("FIXED_CIDR_V6", format!("--fixed-cidr-v6={network}"));
        put("IPV6", "--ipv6".to_owned());
    }
    if let Some(mtu) = value("FLANNEL_MTU")? {
        put("MTU", format!("--mtu={mtu}"));
    }
    if let Some(ip_masq) = value("FLANNEL_IPMASQ")?.filter(|_| !options.without_ip_masq) {
        // Only one of the two may masquerade.
        let docker = match ip_masq.as_str() {
            "true" => "false",
            "false" => "true",
            _ => return Err(DockerOptsError::IpMasq(ip_masq)),
        };
        put("IPMASQ", format!("--ip-masq={docker}"));
    }
    let mut text = String::new();
    if options.individual {
        for (name, option) in &all {
            let _ = writeln!(text, "{name}=\"{option}\"");
        }
    }
    if options.combined {
        let before = environment.get(&options.key).cloned().unwrap_or_default();
        let options_of_all = all.values().flat_map(|option| [" ", option.as_str()]).collect::<String>();
        let _ = writeln!(text, "{}=\"{before}{options_of_all}\"", options.key);
    }
    Ok(text)
}

/// Writes the file atomically, and then fails if the subnet is reached through another node: Docker would use that
/// node's addresses.
pub(crate) async fn write(
    options: &DockerOptions,
    environment: &BTreeMap<String, String>,
    kernel: &mut dyn Kernel,
) -> Result<(), DockerOptsError> {
    let file = read(&options.subnet_file)?;
    let text = render(&file, environment, options)?;
    let path = options.output.clone();
    atomic_file::replace(&path, text.as_bytes(), 0o644)
        .map_err(|source| DockerOptsError::Write { path, source })?;
    for family in Family::ALL {
        let name = match family {
            Family::V4 => "FLANNEL_SUBNET",
            Family::V6 => "FLANNEL_IPV6_SUBNET",
        };
        let subnet = subnet_file::value_of(&file, name).and_then(|text| text.parse::<Subnet>().ok());
        let Some(subnet) = subnet.filter(|subnet| subnet.family() == family) else { continue };
        if let Some(via) = gateway_of(kernel, subnet).await {
            let file = options.subnet_file.display().to_string();
            return Err(DockerOptsError::Elsewhere { subnet, via, file });
        }
    }
    Ok(())
}

/// The gateway of the route to exactly this subnet, if there is one. An error of the kernel counts as none.
async fn gateway_of(kernel: &mut dyn Kernel, subnet: Subnet) -> Option<IpAddr> {
    let way = kernel.lookup(subnet.gateway()).await.ok()??;
    let defaults = kernel.default_routes(subnet.family()).await.ok()?;
    let is_default = defaults.iter().any(|route| (route.via, route.exit) == (way.via, way.exit));
    way.via.filter(|_| !is_default)
}

fn read(path: &Path) -> Result<String, DockerOptsError> {
    // Links are followed, as by the script, since the operator names the file.
    match guarded::read_linked(path, subnet_file::MAX_BYTES) {
        Ok(bytes) => Ok(String::from_utf8_lossy(&bytes).into_owned()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        Err(source) => Err(DockerOptsError::Read { path: path.to_owned(), source }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const V4: &str =
        "FLANNEL_NETWORK=10.1.0.0/16\nFLANNEL_SUBNET=10.1.74.1/24\nFLANNEL_MTU=1472\nFLANNEL_IPMASQ=false\n";

    fn options() -> DockerOptions {
        DockerOptions {
            subnet_file: "/run/flannel/subnet.env".into(),
            output: "/run/docker_opts.env".into(),
            individual: true,
            combined: true,
            key: "DOCKER_OPTS".to_owned(),
            without_ip_masq: false,
        }
    }

    fn with(file: &str, environment: &[(&str, &str)], options: &DockerOptions) -> String {
        let pairs = environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        render(file, &pairs.collect(), options).unwrap()
    }

    const INDIVIDUAL: &str = "DOCKER_OPT_BIP=\"--bip=10.1.74.1/24\"\nDOCKER_OPT_IPMASQ=\"--ip-masq=true\"\nDOCKER_OPT_MTU=\"--mtu=1472\"\n";
    const COMBINED: &str = "DOCKER_OPTS=\" --bip=10.1.74.1/24 --ip-masq=true --mtu=1472\"\n";

    /// The cases of upstream's own test of the script.
    #[test]
    fn the_bytes_are_those_of_the_script() {
        let both = format!("{INDIVIDUAL}{COMBINED}");
        assert_eq!(with(V4, &[], &options()), both);
        assert_eq!(with(V4, &[], &DockerOptions { combined: false, ..options() }), INDIVIDUAL);
        let combined = DockerOptions { individual: false, ..options() };
        assert_eq!(with(V4, &[], &combined), COMBINED);
        let key = DockerOptions { key: "MY_OPTS".to_owned(), ..combined.clone() };
        assert_eq!(with(V4, &[], &key), COMBINED.replace("DOCKER_OPTS", "MY_OPTS"));
        let without = DockerOptions { without_ip_masq: true, ..combined };
        assert_eq!(with(V4, &[], &without), "DOCKER_OPTS=\" --bip=10.1.74.1/24 --mtu=1472\"\n");
        let masq = V4.replace("IPMASQ=false", "IPMASQ=true");
        assert!(with(&masq, &[], &options()).contains("--ip-masq=false"));
    }

    #[test]
    fn what_the_environment_has_joins_in() {
        let environment = [
            ("DOCKER_OPTS", "-D"),
            ("DOCKER_OPT_DNS", "--dns=10.0.0.53"),
            ("DOCKER_OPT_MTU", "--mtu=9"),
            ("OTHER", "x"),
        ];
        let combined = DockerOptions { individual: false, ..options() };
        let want = "DOCKER_OPTS=\"-D --bip=10.1.74.1/24 --dns=10.0.0.53 --ip-masq=true --mtu=1472\"\n";
        assert_eq!(with(V4, &environment, &combined), want);
    }

    #[test]
    fn ipv6_is_used_too() {
        let dual = format!("{V4}FLANNEL_IPV6_NETWORK=fd00:1::/56\nFLANNEL_IPV6_SUBNET=fd00:1:0:3::1/64\n");
        let combined = DockerOptions { individual: false, ..options() };
        let want = "DOCKER_OPTS=\" --bip=10.1.74.1/24 --fixed-cidr-v6=fd00:1:0:3::/64 --ip-masq=true --ipv6 --mtu=1472\"\n";
        assert_eq!(with(&dual, &[], &combined), want);
    }

    #[test]
    fn files_with_nothing_and_with_nonsense() {
        assert_eq!(with("", &[], &options()), "DOCKER_OPTS=\"\"\n");
        let error = render("FLANNEL_IPMASQ=perhaps", &BTreeMap::new(), &options()).unwrap_err();
        assert!(error.to_string().starts_with("Invalid value of FLANNEL_IPMASQ: perhaps"), "{error}");
        // A value that would end its quotes is no option.
        let error = render("FLANNEL_MTU=\"1;x$(y)\"", &BTreeMap::new(), &options());
        assert!(error.is_err(), "{error:?}");
    }

    /// Whatever the subnet file says, what a shell or systemd reads are plain words. A binary has no target for libFuzzer;
    /// the corpus is that of the subnet files.
    #[test]
    fn any_subnet_file_makes_plain_words_or_an_error() {
        let seeds =
            std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../flannel-core/fuzz/seeds/subnet_env");
        flannel_core::testing::fuzz::replay(&seeds, 20_000, |data| {
            let file = String::from_utf8_lossy(data);
            let Ok(text) = render(&file, &BTreeMap::new(), &options()) else { return };
            let is_plain = |c: char| c.is_ascii_alphanumeric() || " =./:-_".contains(c);
            for line in text.lines() {
                let value = line.split_once("=\"").and_then(|(name, rest)| {
                    name.starts_with("DOCKER_OPT").then_some(rest.strip_suffix('"')?)
                });
                assert!(value.is_some_and(|value| value.chars().all(is_plain)), "{line:?} of {file:?}");
            }
        });
    }
}
