//! The keys of the store. Nothing else is ever written: Go nodes read all that begins with `<prefix>/subnets`
//! and stumble over what they can't decode.

use crate::lease::LeaseKey;

/// The keys below a prefix.
#[derive(Debug, Clone)]
pub(super) struct Keys {
    /// `<prefix>/config`.
    pub(super) config: String,
    /// `<prefix>/subnets/`, where the keys of leases begin.
    pub(super) first: String,
    /// `<prefix>/subnets0`: past all keys of leases, since `0` follows `/`.
    pub(super) end: String,
}

impl Keys {
    /// Joins with single slashes, as Go's `path.Join` does.
    pub(super) fn new(prefix: &str) -> Self {
        let mut parts: Vec<&str> = Vec::new();
        for part in prefix.split('/') {
            match part {
                "" | "." => {}
                ".." => drop(parts.pop()),
                part => parts.push(part),
            }
        }
        let join = |last: &str| {
            let root = if prefix.starts_with('/') { "/" } else { "" };
            let path: Vec<&str> = parts.iter().copied().chain([last]).collect();
            format!("{root}{}", path.join("/"))
        };
        Self { config: join("config"), first: join("subnets/"), end: join("subnets0") }
    }

    pub(super) fn lease(&self, key: LeaseKey) -> String {
        format!("{}{key}", self.first)
    }

    /// What follows `subnets/`, for the log and the parser.
    pub(super) fn name(&self, key: &[u8]) -> String {
        let rest = key.strip_prefix(self.first.as_bytes()).unwrap_or(key);
        String::from_utf8_lossy(rest).into_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn joins_like_go() {
        for (prefix, config) in [
            ("/coreos.com/network", "/coreos.com/network/config"),
            ("/coreos.com//network/", "/coreos.com/network/config"),
            ("coreos.com/network", "coreos.com/network/config"),
            ("/", "/config"),
            ("", "config"),
            ("/a/./b/../c", "/a/c/config"),
            ("/a(b", "/a(b/config"),
        ] {
            assert_eq!(Keys::new(prefix).config, config);
        }
        let keys = Keys::new("/n");
        assert_eq!(keys.lease("10.5.52.0-24".parse().unwrap()), "/n/subnets/10.5.52.0-24");
        assert_eq!(keys.name(b"/n/subnets/10.5.52.0-24"), "10.5.52.0-24");
        assert!(keys.first < keys.end && !keys.end.starts_with(&keys.first));
    }
}
