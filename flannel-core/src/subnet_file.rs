//! The subnet file (`/run/flannel/subnet.env`), from which the CNI plugin and container runtimes learn this node's
//! subnets. Upstream: `pkg/subnet/subnet.go`, `WriteSubnetFile`.

use std::fmt::Write as _;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::addr::{Family, Mtu, PerFamily, Subnet};
use crate::atomic_file;
use crate::guarded::{self, Dir};
use crate::lease::LeaseKey;

/// The largest file that is read. An agent writes some hundred bytes.
pub const MAX_BYTES: u64 = 64 << 10;

/// The content of the subnet file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SubnetFile {
    /// The overlay network of each enabled family.
    pub networks: PerFamily<Subnet>,
    /// This node's subnet in each network.
    pub subnets: PerFamily<Subnet>,
    /// The largest pod packet in bytes.
    pub mtu: Mtu,
    /// Whether the agent masquerades pod traffic; a runtime must do it if not.
    pub ip_masq: bool,
}

/// The subnet file can't be written.
#[derive(Debug, thiserror::Error)]
#[error("can't write the subnet file {}", path.display())]
#[non_exhaustive]
pub struct SubnetFileError {
    /// The path of the file.
    pub path: PathBuf,
    /// Why not.
    #[source]
    pub source: io::Error,
}

/// The names of a family's two keys.
fn keys(family: Family) -> (&'static str, &'static str) {
    match family {
        Family::V4 => ("FLANNEL_NETWORK", "FLANNEL_SUBNET"),
        Family::V6 => ("FLANNEL_IPV6_NETWORK", "FLANNEL_IPV6_SUBNET"),
    }
}

impl SubnetFile {
    /// The text of the file. Shell scripts, systemd and CNI plugins read exactly this format.
    pub fn render(&self) -> String {
        let mut text = String::new();
        let mut line = |key: &str, value: &dyn std::fmt::Display| {
            writeln!(text, "{key}={value}").expect("writing to a string can't fail");
        };
        for family in Family::ALL {
            let (network_key, subnet_key) = keys(family);
            if let Some(network) = self.networks.get(family) {
                line(network_key, network);
            }
            if let Some(subnet) = self.subnets.get(family) {
                line(subnet_key, &subnet.with_host(subnet.gateway()));
            }
        }
        line("FLANNEL_MTU", &self.mtu);
        line("FLANNEL_IPMASQ", &self.ip_masq);
        text
    }

    /// Replaces the file atomically, with mode 0644. Returns whether it was written: a file that has the same content
    /// is left alone.
    pub fn write(&self, path: &Path) -> Result<bool, SubnetFileError> {
        let text = self.render();
        if is_current(path, &text) {
            return Ok(false);
        }
        atomic_file::make_folder_of(path)
            .and_then(|()| atomic_file::replace(path, text.as_bytes(), 0o644))
            .map_err(|source| SubnetFileError { path: path.to_owned(), source })?;
        Ok(true)
    }
}

fn is_current(path: &Path, text: &str) -> bool {
    let read = || {
        let (dir, name) = Dir::of(path)?;
        let mut file = dir.file(name)?;
        Ok::<_, io::Error>((guarded::read_open(&mut file, MAX_BYTES)?, file.metadata()?.permissions().mode()))
    };
    read().is_ok_and(|(old, mode)| mode & 0o7777 == 0o644 && old == text.as_bytes())
}

/// What the subnet file of an earlier run says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Previous {
    /// The subnets that this node had; `None` if they are unknown.
    pub key: Option<LeaseKey>,
    /// The networks of those subnets, as far as they are known.
    pub networks: PerFamily<Subnet>,
    /// Parts of the file that could not be used, for the log.
    pub problems: Vec<String>,
}

/// Reads the subnets that an earlier run wrote. It never fails: without them the node may only get other subnets.
pub fn read_previous(path: &Path) -> Previous {
    match guarded::read(path, MAX_BYTES) {
        Ok(bytes) => parse_previous(&String::from_utf8_lossy(&bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Previous::default(),
        Err(error) => {
            let problems = vec![format!("{}: {error}", path.display())];
            Previous { problems, ..Previous::default() }
        }
    }
}

pub(crate) fn parse_previous(text: &str) -> Previous {
    let mut problems = Vec::new();
    let subnets = PerFamily::from_fn(|family| {
        let name = keys(family).1;
        let value = value_of(text, name)?;
        let valid = subnets_in(&value, family, name, &mut problems);
        if valid.len() > 1 {
            problems.push(format!("{name}: {} subnets where one is expected; none is used", valid.len()));
        }
        valid.first().copied().filter(|_| valid.len() == 1)
    });
    // A Go agent may have written several networks. Then its firewall rules for them are not recognised as ours.
    let networks = PerFamily::from_fn(|family| {
        let network: Subnet = value_of(text, keys(family).0)?.parse().ok()?;
        (network.family() == family).then_some(network)
    });
    Previous { key: LeaseKey::new(subnets), networks, problems }
}

/// The valid subnets of a comma-separated list.
fn subnets_in(value: &str, family: Family, name: &str, problems: &mut Vec<String>) -> Vec<Subnet> {
    let mut valid = Vec::new();
    for item in value.split(',').map(str::trim).filter(|item| !item.is_empty()) {
        match item.parse::<Subnet>() {
            Ok(subnet) if LeaseKey::new(of_family(family, subnet)).is_some() => valid.push(subnet),
            Ok(_) => problems.push(format!("{name}: {item} is no {family} subnet of a node")),
            Err(error) => problems.push(format!("{name}: {error}")),
        }
    }
    valid
}

fn of_family(family: Family, subnet: Subnet) -> PerFamily<Subnet> {
    PerFamily::from_fn(|other| (other == family).then_some(subnet))
}

/// The last value of a name in a file of dotenv syntax: comments, quotes and `export` are tolerated.
pub fn value_of(text: &str, name: &str) -> Option<String> {
    let value = |line: &str| {
        let line = line.trim();
        let line = line.strip_prefix("export ").unwrap_or(line);
        let (key, value) = line.split_once(['=', ':'])?;
        (key.trim() == name).then(|| unquote(value.trim()).to_owned())
    };
    text.lines().rev().find_map(value)
}

fn unquote(value: &str) -> &str {
    for quote in ['"', '\''] {
        if let Some((inner, _)) = value.strip_prefix(quote).and_then(|rest| rest.split_once(quote)) {
            return inner;
        }
    }
    value.split('#').next().unwrap_or_default().trim_end()
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};

    use proptest::prelude::*;

    use super::*;

    fn some(text: &str) -> Option<Subnet> {
        text.parse().ok()
    }

    fn file() -> SubnetFile {
        SubnetFile {
            networks: PerFamily { v4: some("10.42.0.0/16"), v6: some("fd00:42::/56") },
            subnets: PerFamily { v4: some("10.42.3.0/24"), v6: some("fd00:42:0:3::/64") },
            mtu: Mtu(1450),
            ip_masq: true,
        }
    }

    #[test]
    fn renders_the_bytes_of_upstream() {
        let text = "FLANNEL_NETWORK=10.42.0.0/16\nFLANNEL_SUBNET=10.42.3.1/24\n\
                    FLANNEL_IPV6_NETWORK=fd00:42::/56\nFLANNEL_IPV6_SUBNET=fd00:42:0:3::1/64\n\
                    FLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n";
        assert_eq!(file().render(), text);
        let v4 = SubnetFile {
            networks: PerFamily { v6: None, ..file().networks },
            subnets: PerFamily { v6: None, ..file().subnets },
            ip_masq: false,
            ..file()
        };
        let text = "FLANNEL_NETWORK=10.42.0.0/16\nFLANNEL_SUBNET=10.42.3.1/24\n\
                    FLANNEL_MTU=1450\nFLANNEL_IPMASQ=false\n";
        assert_eq!(v4.render(), text);
    }

    #[test]
    fn writes_once_with_mode_0644_and_leaves_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run/flannel/subnet.env");
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
        assert!(file().write(&path).unwrap());
        assert_eq!(fs::read_to_string(&path).unwrap(), file().render());
        assert_eq!(mode(&path), 0o644);
        let written = fs::metadata(&path).unwrap().modified().unwrap();
        assert!(!file().write(&path).unwrap(), "the same bytes are not written again");
        assert_eq!(fs::metadata(&path).unwrap().modified().unwrap(), written);
        fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
        assert!(file().write(&path).unwrap());
        assert_eq!(mode(&path), 0o644);
        assert!(SubnetFile { mtu: Mtu(1400), ..file() }.write(&path).unwrap());
        let names: Vec<_> = fs::read_dir(path.parent().unwrap()).unwrap().collect();
        assert_eq!(names.len(), 1, "{names:?}");
    }

    #[test]
    fn says_which_file_could_not_be_written() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("file"), "").unwrap();
        let error = file().write(&folder.path().join("file/subnet.env")).unwrap_err();
        assert!(error.to_string().ends_with("file/subnet.env"), "{error}");
    }

    #[test]
    fn lists_keep_the_valid_elements() {
        for (value, family, want) in [
            ("10.0.0.1/24,bad,10.0.1.1/24", Family::V4, 2),
            ("fd00::1/64,bad,fd00:1::1/64", Family::V6, 2),
            ("bad", Family::V4, 0),
            ("bad", Family::V6, 0),
            ("fd00::1/64", Family::V4, 0),
            ("10.0.0.0/0,10.0.0.0/32", Family::V4, 0),
            ("", Family::V4, 0),
        ] {
            let mut problems = Vec::new();
            assert_eq!(subnets_in(value, family, "X", &mut problems).len(), want, "{value:?}");
        }
    }

    #[test]
    fn reads_what_an_earlier_run_left() {
        let key = |text: &str| parse_previous(text).key.map(|key| key.to_string());
        for (text, want) in [
            (file().render().as_str(), Some("10.42.3.0-24&fd00:42:0:3::-64")),
            ("FLANNEL_SUBNET=10.42.3.1/24", Some("10.42.3.0-24")),
            ("FLANNEL_SUBNET=10.42.3.1/24\r\n", Some("10.42.3.0-24")),
            ("export FLANNEL_SUBNET=\"10.42.3.1/24\" # ours", Some("10.42.3.0-24")),
            ("# FLANNEL_SUBNET=10.42.9.1/24\n FLANNEL_SUBNET = '10.42.3.1/24'", Some("10.42.3.0-24")),
            ("FLANNEL_SUBNET=10.42.3.1/24 # ours", Some("10.42.3.0-24")),
            ("FLANNEL_SUBNET=10.42.3.1/24,nonsense", Some("10.42.3.0-24")),
            ("FLANNEL_SUBNET=10.42.3.1/24,10.42.4.1/24", None),
            (
                "FLANNEL_SUBNET=10.42.3.1/24,10.42.4.1/24\nFLANNEL_IPV6_SUBNET=fd00::1/64",
                Some("0.0.0.0-0&fd00::-64"),
            ),
            ("FLANNEL_SUBNET=\nFLANNEL_MTU=1", None),
            ("FLANNEL_SUBNET", None),
            ("", None),
        ] {
            assert_eq!(key(text).as_deref(), want, "{text:?}");
        }
        let two = parse_previous("FLANNEL_SUBNET=10.42.3.1/24,10.42.4.1/24,x");
        assert_eq!(two.problems.len(), 2, "{:?}", two.problems);
    }

    #[test]
    fn networks_are_read_back() {
        let previous = parse_previous(&file().render());
        assert_eq!((previous.networks, previous.problems.len()), (file().networks, 0));
        let previous = parse_previous("FLANNEL_NETWORK=fd00::/48\nFLANNEL_IPV6_NETWORK=nonsense");
        assert!(previous.networks.is_empty(), "{previous:?}");
    }

    #[test]
    fn a_missing_file_is_no_problem_and_an_unreadable_one_no_error() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(read_previous(&folder.path().join("none")), Previous::default());
        let previous = read_previous(folder.path());
        assert!(previous.key.is_none() && previous.problems.len() == 1);
    }

    proptest! {
        #[test]
        fn never_panics(text in "((export )?FLANNEL_(IPV6_)?SUBNET[=:][\"'0-9a-f.:/,# ]{0,20}\n){0,3}|.*") {
            parse_previous(&text);
        }
    }
}
