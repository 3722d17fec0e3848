//! Variables that look like the program's and are none: a misspelt one has no effect, which its author should know.

use crate::program::Program;

/// A variable of the environment that nobody reads.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Unread {
    /// Its name. Its value is not kept, since it may be a password.
    pub name: String,
    /// The variable that was probably meant.
    pub meant: Option<String>,
}

impl Program {
    /// The variables that look like the program's and that no flag has. Those that Kubernetes sets for a service of that
    /// name are left out.
    pub fn unread(&self, environment: impl IntoIterator<Item = (String, String)>) -> Vec<Unread> {
        let flags = self.command().get_arguments().filter_map(clap::Arg::get_long);
        let known: Vec<String> = flags.filter_map(|flag| self.variable_of(flag)).collect();
        let look = |(name, value): (String, String)| self.look_at(name, &value, &known);
        let mut unread: Vec<Unread> = environment.into_iter().filter_map(look).collect();
        unread.sort_by(|a, b| a.name.cmp(&b.name));
        unread
    }

    fn look_at(&self, name: String, value: &str, known: &[String]) -> Option<Unread> {
        let prefix = self.prefix;
        let upper = name.to_ascii_uppercase();
        let rest = upper.strip_prefix(prefix).or_else(|| {
            let rest = upper.strip_prefix(self.mistaken?)?;
            known.iter().any(|known| known.strip_prefix(prefix) == Some(rest)).then_some(rest)
        })?;
        // Go does not read the last one, and images have it.
        if prefix.is_empty() || known.contains(&name) || rest == "VERSION" || is_of_a_service(rest, value) {
            return None;
        }
        let wanted = format!("{prefix}{rest}").replace('-', "_");
        let distance = |known: &&String| strsim::levenshtein(&wanted, known);
        let meant = known.iter().min_by_key(distance);
        let meant = meant.filter(|meant| distance(meant) < rest.len().min(2 + rest.len() / 4)).cloned();
        Some(Unread { name, meant })
    }
}

/// Whether Kubernetes sets such a variable in every pod, for a service that is called as the prefix is, such as flanneld, or flanneld-something.
fn is_of_a_service(rest: &str, value: &str) -> bool {
    // `PORT_<number>_TCP`, and that with `_PROTO`, `_PORT` or `_ADDR` behind it.
    let of_port = |(at, port): (usize, &str)| {
        let mut words = rest[at + port.len()..].split('_');
        let is_number = words.next().is_some_and(|number| number.parse::<u16>().is_ok());
        is_number && matches!(words.next(), Some("TCP" | "UDP" | "SCTP"))
    };
    rest.ends_with("SERVICE_HOST")
        || rest.split_once("SERVICE_PORT").is_some_and(|(_, port)| port.is_empty() || port.starts_with('_'))
        || rest.ends_with("PORT") && ["tcp://", "udp://", "sctp://"].iter().any(|it| value.starts_with(it))
        || rest.match_indices("PORT_").any(of_port)
}

#[cfg(test)]
mod tests {
    use clap::{Arg, Command};

    use super::*;

    fn program() -> Program {
        let flags = ["etcd-endpoints", "etcd-prefix", "iface", "ip-masq", "healthz-port", "version"];
        let command = Command::new("flanneld").args(flags.map(|flag| Arg::new(flag).long(flag)));
        Program::new(command).variables("FLANNELD_").mistaken_prefix("FLANNEL_")
    }

    #[test]
    fn a_misspelt_variable_is_named_with_what_was_meant() {
        let told = |name: &str| {
            program().unread([(name.to_owned(), "8471".to_owned())]).pop().map(|unread| unread.meant)
        };
        for (name, meant) in [
            ("FLANNELD_ETCD_ENDPOINT", "FLANNELD_ETCD_ENDPOINTS"),
            ("FLANNELD_IPMASQ", "FLANNELD_IP_MASQ"),
            ("FLANNELD_etcd_prefix", "FLANNELD_ETCD_PREFIX"),
            ("FLANNELD_ETCD-PREFIX", "FLANNELD_ETCD_PREFIX"),
            ("flanneld_iface", "FLANNELD_IFACE"),
            ("FLANNEL_ETCD_PREFIX", "FLANNELD_ETCD_PREFIX"),
            ("FLANNELD_HEALTH_PORT", "FLANNELD_HEALTHZ_PORT"),
            ("FLANNELD_HEALTHZPORT", "FLANNELD_HEALTHZ_PORT"),
        ] {
            assert_eq!(told(name), Some(Some(meant.to_owned())), "{name}");
        }
        assert_eq!(told("FLANNELD_COMPLETELY_DIFFERENT"), Some(None));
        assert_eq!(told("FLANNELD_"), Some(None));
    }

    #[test]
    fn what_is_read_and_what_others_set_is_not_named() {
        let others = [
            ("PATH", "/bin"),
            ("NOFLANNELD_X", "1"),
            ("FLANNEL_NETWORK", "10.5.0.0/16"),
            ("FLANNEL_SUBNET", "10.5.1.1/24"),
            ("FLANNEL_IPV6_SUBNET", "fd00::1/64"),
            ("FLANNEL_MTU", "1450"),
            ("FLANNEL_IPMASQ", "true"),
            ("FLANNELD_VERSION", "0.1.0"),
            ("FLANNELD_SERVICE_HOST", "10.96.0.7"),
            ("FLANNELD_SERVICE_PORT", "80"),
            ("FLANNELD_METRICS_SERVICE_PORT_HTTP", "80"),
            ("FLANNELD_PORT", "tcp://10.96.0.7:80"),
            ("FLANNELD_METRICS_PORT", "tcp://10.96.0.7:80"),
            ("FLANNELD_PORT_80_TCP", "tcp://10.96.0.7:80"),
            ("FLANNELD_METRICS_PORT_80_TCP_ADDR", "10.96.0.7"),
        ];
        let others = others.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let known = ["FLANNELD_ETCD_PREFIX", "FLANNELD_IFACE"].map(|name| (name.to_owned(), "x".to_owned()));
        assert_eq!(program().unread(others.into_iter().chain(known)), []);
    }
}
