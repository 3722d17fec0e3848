//! The annotations with which nodes publish their addresses and backend data: names, and what a node has to write.
//! Upstream: `pkg/subnet/kube/annotations.go`, `kube.go`.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use flannel_core::addr::{Family, PerFamily};
use flannel_core::lease::{BackendData, LeaseAttrs, Reception, brief};

/// The prefix of our annotations' names, such as `flannel.alpha.coreos.com/`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AnnotationPrefix(String);

impl AnnotationPrefix {
    /// Upstream's default.
    pub const DEFAULT: &str = "flannel.alpha.coreos.com";

    /// Parses a prefix: a domain, or a domain, `/` and the beginning of a name. `a.com` means `a.com/`, and `a.com/x`
    /// means `a.com/x-`.
    pub fn parse(text: &str) -> Result<Self, AnnotationPrefixError> {
        let bad = || AnnotationPrefixError(text.to_owned());
        let (domain, name) = text.split_once('/').unwrap_or((text, ""));
        let is_word = |word: &str| {
            !word.is_empty() && word.chars().all(|it| matches!(it, 'a'..='z' | '0'..='9' | '_' | '-'))
        };
        let labels: Vec<&str> = domain.split('.').collect();
        if labels.len() < 2
            || !labels.into_iter().all(is_word)
            || !(name.is_empty() || is_word(name) && name != "-")
        {
            return Err(bad());
        }
        let dash = if name.is_empty() || name.ends_with('-') { "" } else { "-" };
        Ok(Self(format!("{domain}/{name}{dash}")))
    }

    /// The whole name of an annotation.
    pub fn name(&self, suffix: &str) -> String {
        format!("{}{suffix}", self.0)
    }
}

impl Default for AnnotationPrefix {
    fn default() -> Self {
        Self::parse(Self::DEFAULT).expect("the default is one")
    }
}

impl fmt::Display for AnnotationPrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The error for a prefix that annotations can't have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "annotation prefix {0:?} is none: give a lower-case domain such as flannel.alpha.coreos.com, with at most one \
     slash and the beginning of a name after it"
)]
pub struct AnnotationPrefixError(pub String);

/// Our annotations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Annotation {
    /// `true` on nodes that take part.
    Managed,
    BackendType,
    BackendData(Family),
    PublicIp(Family),
    /// By which other backends the node receives. Go flannel neither reads nor writes it.
    Receives,
    /// The address that an operator wants published instead of the detected one.
    Overwrite(Family),
    /// The address that an operator wants used as `--public-ip`.
    NodePublicIp(Family),
}

impl Annotation {
    pub(super) const ALL: [Self; 11] = [
        Self::Managed,
        Self::BackendType,
        Self::BackendData(Family::V4),
        Self::BackendData(Family::V6),
        Self::PublicIp(Family::V4),
        Self::PublicIp(Family::V6),
        Self::Receives,
        Self::Overwrite(Family::V4),
        Self::Overwrite(Family::V6),
        Self::NodePublicIp(Family::V4),
        Self::NodePublicIp(Family::V6),
    ];

    pub(super) fn suffix(self) -> &'static str {
        match self {
            Self::Managed => "kube-subnet-manager",
            Self::BackendType => "backend-type",
            Self::BackendData(Family::V4) => "backend-data",
            Self::BackendData(Family::V6) => "backend-v6-data",
            Self::PublicIp(Family::V4) => "public-ip",
            Self::PublicIp(Family::V6) => "public-ipv6",
            Self::Receives => "receives",
            Self::Overwrite(Family::V4) => "public-ip-overwrite",
            Self::Overwrite(Family::V6) => "public-ipv6-overwrite",
            Self::NodePublicIp(Family::V4) => "node-public-ip",
            Self::NodePublicIp(Family::V6) => "node-public-ipv6",
        }
    }

    /// Whether an agent writes it; operators write the others.
    fn is_written(self) -> bool {
        !matches!(self, Self::Overwrite(_) | Self::NodePublicIp(_))
    }
}

/// The annotations of ours that a node has.
pub(super) type Annotations = BTreeMap<Annotation, String>;

/// An annotation that can't be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("annotation {} = {value:?} {problem}", .annotation.suffix())]
pub(super) struct BadAnnotation {
    pub(super) annotation: Annotation,
    pub(super) value: String,
    pub(super) problem: &'static str,
}

impl BadAnnotation {
    /// The same with the full name of the annotation, as `kubectl` needs it.
    pub(super) fn named(&self, prefix: &AnnotationPrefix) -> String {
        let name = prefix.name(self.annotation.suffix());
        format!("annotation {name} = {:?} {}", self.value, self.problem)
    }
}

/// The address in an annotation; `None` if it is missing, empty, or the unspecified address, which means none.
pub(super) fn address(
    found: &Annotations,
    annotation: Annotation,
    family: Family,
) -> Result<Option<IpAddr>, BadAnnotation> {
    let Some(text) = found.get(&annotation).filter(|text| !text.is_empty()) else { return Ok(None) };
    let problem = match family {
        Family::V4 => "is no IPv4 address",
        Family::V6 => "is no IPv6 address",
    };
    let parsed = text.parse().ok().filter(|addr| Family::of(*addr) == family);
    let parsed = parsed.ok_or_else(|| BadAnnotation { annotation, value: text.clone(), problem })?;
    Ok(Some(parsed).filter(|addr: &IpAddr| !addr.is_unspecified()))
}

/// Whether the node takes part.
pub(super) fn is_managed(found: &Annotations) -> bool {
    found.get(&Annotation::Managed).is_some_and(|value| value == "true")
}

/// What a node publishes.
pub(super) fn read(found: &Annotations) -> Result<LeaseAttrs, BadAnnotation> {
    let data = |family| {
        let annotation = Annotation::BackendData(family);
        let Some(text) = found.get(&annotation).filter(|text| !text.is_empty()) else { return Ok(None) };
        let bad = |problem| BadAnnotation { annotation, value: brief(text), problem };
        if text.len() > LeaseAttrs::MAX_BYTES {
            return Err(bad("is longer than any"));
        }
        BackendData::parse(text).map_err(|_| bad("is no JSON"))
    };
    Ok(LeaseAttrs {
        public_ips: PerFamily::try_from_fn(|family| address(found, Annotation::PublicIp(family), family))?,
        backend_type: found.get(&Annotation::BackendType).cloned().unwrap_or_default(),
        backend_data: PerFamily::try_from_fn(data)?,
        // The node is reached by its own type without it.
        receives: receives(found).unwrap_or_default(),
    })
}

/// By which other backends a node receives.
pub(super) fn receives(found: &Annotations) -> Result<Vec<Reception>, BadAnnotation> {
    let annotation = Annotation::Receives;
    let Some(text) = found.get(&annotation).filter(|text| !text.is_empty()) else { return Ok(Vec::new()) };
    let bad = |problem| BadAnnotation { annotation, value: brief(text), problem };
    if text.len() > LeaseAttrs::MAX_BYTES {
        return Err(bad("is longer than any"));
    }
    Reception::parse_list(text).map_err(|_| bad("is no JSON list"))
}

/// The changes by which a node with the annotations `found` publishes `attrs`; `None` removes an annotation. Empty if
/// nothing has to change.
///
/// As in upstream, a node without IPv4 still has the IPv4 pair (`0.0.0.0`, `null`), except with VXLAN.
pub(super) fn changes(
    attrs: &LeaseAttrs,
    found: &Annotations,
) -> Result<BTreeMap<Annotation, Option<String>>, BadAnnotation> {
    let mut wanted = Annotations::new();
    wanted.insert(Annotation::Managed, "true".to_owned());
    wanted.insert(Annotation::BackendType, attrs.backend_type.clone());
    for family in Family::ALL {
        let detected = attrs.public_ips.get(family).copied();
        let data = attrs.backend_data.get(family);
        let stands_for_none = family == Family::V4 && attrs.backend_type != "vxlan";
        let is_there = match family {
            // Without data a peer could not use the address.
            _ if attrs.backend_type == "vxlan" => detected.is_some() && data.is_some(),
            _ => detected.is_some(),
        };
        if !is_there && !stands_for_none {
            continue;
        }
        let overwrite = address(found, Annotation::Overwrite(family), family)?;
        let ip = overwrite.or(detected).unwrap_or(family.unspecified());
        wanted.insert(Annotation::PublicIp(family), ip.to_string());
        let data = data.map_or("null", BackendData::as_str);
        wanted.insert(Annotation::BackendData(family), data.to_owned());
    }
    if !attrs.receives.is_empty() {
        wanted.insert(Annotation::Receives, Reception::write_list(&attrs.receives));
    }
    let put = wanted.iter().filter(|(name, value)| found.get(*name) != Some(*value));
    let put = put.map(|(name, value)| (*name, Some(value.clone())));
    let stale = found.keys().filter(|name| name.is_written() && !wanted.contains_key(*name));
    Ok(put.chain(stale.map(|name| (*name, None))).collect())
}

/// The changes after which the node no longer takes part.
pub(super) fn removal(found: &Annotations) -> BTreeMap<Annotation, Option<String>> {
    found.keys().filter(|name| name.is_written()).map(|name| (*name, None)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_prefixes_as_upstream_does() {
        for (text, prefix) in [
            ("flannel.alpha.coreos.com", "flannel.alpha.coreos.com/"),
            ("flannel.alpha.coreos.com/", "flannel.alpha.coreos.com/"),
            ("org.com", "org.com/"),
            ("org.com/9", "org.com/9-"),
            ("a.com/x-", "a.com/x-"),
            ("a.com/x_y", "a.com/x_y-"),
            ("a-b.c_d.com/x-y", "a-b.c_d.com/x-y-"),
        ] {
            assert_eq!(AnnotationPrefix::parse(text).map(|it| it.to_string()), Ok(prefix.into()), "{text}");
        }
        for text in [
            "",
            "org",
            "org/",
            "org/p",
            "Org.com",
            "a.com/X",
            "a.com/b/c",
            "a..com",
            ".com",
            "a.com/b c",
            "a.com/é",
            "a.com/-",
        ] {
            let error = AnnotationPrefix::parse(text).unwrap_err();
            assert!(error.to_string().contains(&format!("{text:?}")), "{error}");
        }
    }

    fn found(pairs: &[(Annotation, &str)]) -> Annotations {
        pairs.iter().map(|(name, value)| (*name, (*value).to_owned())).collect()
    }

    fn vxlan(v4: Option<&str>, v6: Option<&str>) -> LeaseAttrs {
        let data =
            |byte| BackendData::parse(&format!(r#"{{"VNI":1,"VtepMAC":"0a:00:00:00:00:{byte}"}}"#)).unwrap();
        LeaseAttrs {
            public_ips: PerFamily {
                v4: v4.map(|ip| ip.parse().unwrap()),
                v6: v6.map(|ip| ip.parse().unwrap()),
            },
            backend_type: "vxlan".into(),
            backend_data: PerFamily { v4: v4.and_then(|_| data("04")), v6: v6.and_then(|_| data("06")) },
            ..LeaseAttrs::default()
        }
    }

    fn text(changes: &BTreeMap<Annotation, Option<String>>) -> Vec<String> {
        let show = |(name, value): (&Annotation, &Option<String>)| {
            format!("{}={}", name.suffix(), value.as_deref().unwrap_or("-"))
        };
        changes.iter().map(show).collect()
    }

    #[test]
    fn writes_what_upstream_writes() {
        let none = Annotations::new();
        assert_eq!(
            text(&changes(&vxlan(Some("192.0.2.1"), None), &none).unwrap()),
            [
                "kube-subnet-manager=true",
                "backend-type=vxlan",
                r#"backend-data={"VNI":1,"VtepMAC":"0a:00:00:00:00:04"}"#,
                "public-ip=192.0.2.1",
            ]
        );
        // VXLAN without IPv4 leaves its pair out, others don't.
        assert_eq!(
            text(&changes(&vxlan(None, Some("fd00::1")), &none).unwrap()),
            [
                "kube-subnet-manager=true",
                "backend-type=vxlan",
                r#"backend-v6-data={"VNI":1,"VtepMAC":"0a:00:00:00:00:06"}"#,
                "public-ipv6=fd00::1",
            ]
        );
        let host_gw = LeaseAttrs {
            backend_type: "host-gw".into(),
            backend_data: PerFamily::default(),
            ..vxlan(None, Some("fd00::1"))
        };
        assert_eq!(
            text(&changes(&host_gw, &none).unwrap()),
            [
                "kube-subnet-manager=true",
                "backend-type=host-gw",
                "backend-data=null",
                "backend-v6-data=null",
                "public-ip=0.0.0.0",
                "public-ipv6=fd00::1",
            ]
        );
    }

    #[test]
    fn writes_only_what_differs_and_takes_back_what_is_stale() {
        let dual = vxlan(Some("192.0.2.1"), Some("fd00::1"));
        let mut now = Annotations::new();
        for (name, value) in changes(&dual, &now).unwrap() {
            now.insert(name, value.unwrap());
        }
        assert_eq!(changes(&dual, &now).unwrap(), BTreeMap::new());
        assert_eq!(read(&now).unwrap(), dual);
        assert!(is_managed(&now));
        let v4 = vxlan(Some("192.0.2.9"), None);
        assert_eq!(
            text(&changes(&v4, &now).unwrap()),
            ["backend-v6-data=-", "public-ip=192.0.2.9", "public-ipv6=-"]
        );
        now.insert(Annotation::Overwrite(Family::V4), "198.51.100.7".into());
        assert_eq!(text(&changes(&dual, &now).unwrap()), ["public-ip=198.51.100.7"]);
        assert_eq!(removal(&now).len(), 6, "the operator's stays");
        now.insert(Annotation::Overwrite(Family::V4), "fd00::7".into());
        let error = changes(&dual, &now).unwrap_err();
        assert_eq!(error.to_string(), r#"annotation public-ip-overwrite = "fd00::7" is no IPv4 address"#);
    }

    #[test]
    fn further_ways_to_receive_have_an_annotation_only_while_there_are_some() {
        let list = r#"[{"Type":"udp"},{"Type":"wireguard","Data":{"Port":51820}}]"#;
        let plain = vxlan(Some("192.0.2.1"), None);
        let more = LeaseAttrs { receives: Reception::parse_list(list).unwrap(), ..plain.clone() };
        let mut now = found(&[]);
        for (name, value) in changes(&plain, &now).unwrap() {
            now.insert(name, value.unwrap());
        }
        let written = changes(&more, &now).unwrap();
        assert_eq!(text(&written), [format!("receives={list}")]);
        now.extend(written.into_iter().map(|(name, value)| (name, value.unwrap())));
        assert_eq!(read(&now).unwrap(), more);
        assert_eq!(
            (text(&changes(&plain, &now).unwrap()), removal(&now).len()),
            (vec!["receives=-".into()], 5)
        );
        for value in ["udp", "{}", "7", &format!("[{}1]", "1,".repeat(LeaseAttrs::MAX_BYTES / 2))] {
            now.insert(Annotation::Receives, value.to_owned());
            assert_eq!(read(&now).unwrap(), plain, "it is passed over");
            assert!(receives(&now).is_err());
            assert_eq!(text(&changes(&plain, &now).unwrap()), ["receives=-"], "its own node removes it");
        }
        now.insert(Annotation::Receives, String::new());
        assert_eq!((read(&now).unwrap(), receives(&now).unwrap()), (plain, Vec::new()));
    }

    #[test]
    fn names_what_it_cannot_read() {
        for (name, value, problem) in [
            (Annotation::PublicIp(Family::V4), "x", "public-ip = \"x\" is no IPv4 address"),
            (Annotation::PublicIp(Family::V6), "192.0.2.1", "public-ipv6 = \"192.0.2.1\" is no IPv6 address"),
            (Annotation::BackendData(Family::V4), "{", "backend-data = \"{\" is no JSON"),
            (Annotation::BackendData(Family::V6), "null 1", "backend-v6-data = \"null 1\" is no JSON"),
        ] {
            let error = read(&found(&[(name, value)])).unwrap_err().to_string();
            assert!(error.contains(problem), "{error}");
        }
        let nothing = read(&found(&[
            (Annotation::PublicIp(Family::V4), "0.0.0.0"),
            (Annotation::BackendData(Family::V4), "null"),
        ]));
        assert_eq!(nothing.unwrap(), LeaseAttrs::default());
    }
}
