//! What somebody may do to the annotations of a node that are its agent's. Pure.

use std::fmt;

use crate::model::Backend;

/// One change. The agent puts back what was there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Meddling {
    /// The annotation without its prefix; `None` for all of them.
    pub(crate) annotation: Option<&'static str>,
    /// What it says then; `None` if it is removed.
    pub(crate) value: Option<&'static str>,
}

/// Values that nobody can read, whatever the annotation.
const UNREADABLE: [&str; 2] = ["nowhere", "{"];

impl Meddling {
    /// All that can be done, in these families.
    pub(crate) fn all(backend: Backend, families: &[bool]) -> Vec<Self> {
        let mut all = vec![(None, None)];
        let mut put = |annotation, values: &[Option<&'static str>]| {
            all.extend(values.iter().map(|value| (Some(annotation), *value)));
        };
        put("kube-subnet-manager", &[None, Some("false")]);
        put("backend-type", &[None, Some("extension")]);
        for v6 in families {
            let (ip, data) =
                if *v6 { ("public-ipv6", "backend-v6-data") } else { ("public-ip", "backend-data") };
            // A host that is none of the nodes and none of those that exist in the store alone.
            let elsewhere = if *v6 { "fd00:77::249" } else { "192.168.77.249" };
            put(ip, &[None, Some(elsewhere), Some(UNREADABLE[0])]);
            put(data, &[None, Some(UNREADABLE[1])]);
            if backend == Backend::Vxlan {
                put(data, &[Some(r#"{"VNI":1,"VtepMAC":"02:de:ad:00:be:ef"}"#)]);
            }
        }
        all.into_iter().map(|(annotation, value)| Self { annotation, value }).collect()
    }

    /// Whether others can tell that the record is broken, and so keep what it said last.
    pub(crate) fn is_unreadable(self) -> bool {
        self.value.is_some_and(|value| UNREADABLE.contains(&value))
    }
}

impl fmt::Display for Meddling {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.annotation, self.value) {
            (None, _) => write!(f, "all removed"),
            (Some(annotation), None) => write!(f, "{annotation} removed"),
            (Some(annotation), Some(value)) => write!(f, "{annotation}={value}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_can_be_done_depends_on_the_backend() {
        let shown = |backend, families: &[bool]| {
            let all = Meddling::all(backend, families);
            all.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        let dual = shown(Backend::Vxlan, &[false, true]);
        assert!(dual.contains(&"all removed".to_owned()) && dual.contains(&"public-ip removed".to_owned()));
        assert_eq!(dual.iter().filter(|text| text.contains("VtepMAC")).count(), 2);
        let v6 = shown(Backend::HostGw, &[true]);
        assert!(v6.contains(&"public-ipv6=fd00:77::249".to_owned()), "{v6:?}");
        assert!(!v6.iter().any(|text| text.contains("VtepMAC") || text.contains("public-ip=")), "{v6:?}");
        let unreadable = Meddling::all(Backend::Udp, &[false]).into_iter().filter(|one| one.is_unreadable());
        let unreadable = unreadable.map(|one| one.to_string()).collect::<Vec<_>>();
        assert_eq!(unreadable, ["public-ip=nowhere", "backend-data={"]);
    }
}
