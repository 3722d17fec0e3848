//! Rules of the legacy variant that this process can't see.

use std::fmt;
use std::io;

use super::variant::legacy_tables;
use crate::addr::Family;
use crate::netns::Netns;

/// Why rules of iptables' legacy variant are not seen. They may drop what pods send, and decide which variant the agent's
/// own rules belong in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum UnseenRules {
    /// The kernel's list of tables is for root's group, which this process is not in.
    ListClosed,
    /// There are such rules, and the programs that list them need `CAP_NET_RAW`.
    NoNetRaw,
}

impl fmt::Display for UnseenRules {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ListClosed => {
                "rules of iptables' legacy variant, if there are any, are not seen: /proc/net/ip_tables_names is for root's \
                 group; run the agent with that group"
            }
            Self::NoNetRaw => {
                "this host has rules of iptables' legacy variant, and the agent does not see them without CAP_NET_RAW; add \
                 that"
            }
        })
    }
}

/// Looks whether rules in a network namespace can't be seen by a process that has `CAP_NET_RAW` or not.
pub fn unseen_rules(netns: &Netns, has_net_raw: bool) -> Option<UnseenRules> {
    unseen(has_net_raw, &Family::ALL.map(|family| legacy_tables(netns, family)))
}

fn unseen(has_net_raw: bool, tables: &[io::Result<Vec<String>>]) -> Option<UnseenRules> {
    let closed =
        |it: &io::Result<_>| it.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::PermissionDenied);
    let in_use = |it: &io::Result<Vec<String>>| it.as_ref().is_ok_and(|names| !names.is_empty());
    if tables.iter().any(closed) {
        return Some(UnseenRules::ListClosed);
    }
    (!has_net_raw && tables.iter().any(in_use)).then_some(UnseenRules::NoNetRaw)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_that_are_not_seen_are_told() {
        let none = || Err(io::Error::from(io::ErrorKind::NotFound));
        let closed = || Err(io::Error::from(io::ErrorKind::PermissionDenied));
        let tables = |names: &[&str]| Ok(names.iter().map(|name| (*name).to_owned()).collect());
        for (has_net_raw, tables, want) in [
            (false, [none(), none()], None),
            (false, [tables(&[]), none()], None),
            (true, [tables(&["nat"]), none()], None),
            (false, [none(), tables(&["filter"])], Some(UnseenRules::NoNetRaw)),
            (true, [closed(), none()], Some(UnseenRules::ListClosed)),
        ] {
            assert_eq!(unseen(has_net_raw, &tables), want, "{has_net_raw} {tables:?}");
        }
        assert!(UnseenRules::NoNetRaw.to_string().ends_with("without CAP_NET_RAW; add that"));
    }
}
