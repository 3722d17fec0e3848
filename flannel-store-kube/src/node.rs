//! A node object, reduced to what leases need: of ten kilobytes a few fields are kept.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};

use flannel_core::addr::{Family, PerFamily, Subnet};
use flannel_core::lease::{Lease, LeaseAttrs, LeaseKey, brief};
use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::annotations::{Annotation, AnnotationPrefix, Annotations, is_managed, read, receives};
use super::view::View;

/// The names of our annotations, with the prefix.
#[derive(Debug)]
pub(super) struct Names(BTreeMap<String, Annotation>);

impl Names {
    pub(super) fn new(prefix: &AnnotationPrefix) -> Self {
        Self(Annotation::ALL.into_iter().map(|it| (prefix.name(it.suffix()), it)).collect())
    }

    /// The whole name of an annotation.
    pub(super) fn full(&self, annotation: Annotation) -> &str {
        let found = self.0.iter().find(|(_, it)| **it == annotation);
        found.map(|(name, _)| name.as_str()).expect("all are there")
    }
}

/// The fields of a node object that we need.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct NodeObject {
    pub(super) name: Box<str>,
    pub(super) uid: Box<str>,
    /// When it was created, as a number from the digits of the time: only the order matters.
    pub(super) created: u64,
    pub(super) annotations: Annotations,
    /// `None` if only the metadata was sent.
    pub(super) pod_cidrs: Option<Vec<Box<str>>>,
    /// See [`WireNode::print`].
    pub(super) print: u64,
}

/// The fields of an object that are not part of a lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Condition {
    /// `status` of `NetworkUnavailable`; `None` without that condition.
    Seen(Option<String>),
    /// Only the metadata of this revision was sent.
    Unseen(Option<u64>),
}

/// An object that can't be decoded as a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct BadObject {
    /// Its name, if that could be read.
    pub(super) name: Option<Box<str>>,
    pub(super) reason: String,
}

impl NodeObject {
    /// Reads the JSON of an object.
    pub(super) fn decode(json: &str, names: &Names) -> Result<Self, BadObject> {
        let wire: WireNode<'_> = serde_json::from_str(json).map_err(|error| bad_object(json, &error))?;
        Ok(Self::of(wire, names))
    }

    /// Converts the decoded JSON.
    pub(super) fn of(wire: WireNode<'_>, names: &Names) -> Self {
        let (print, is_whole) = (wire.print(names), wire.is_whole());
        let WireMeta { name, uid, creation_timestamp, annotations, .. } = wire.metadata;
        let mut ours = Annotations::new();
        for (name, value) in annotations.unwrap_or_default().0 {
            let Some(annotation) = names.0.get(&*name) else { continue };
            // An API server has only string values.
            let value: String = serde_json::from_str(value.get()).unwrap_or_else(|_| value.get().to_owned());
            ours.insert(*annotation, value);
        }
        let spec = wire.spec.unwrap_or_default();
        let pod_cidrs = is_whole.then(|| spec.cidrs().map(Box::from).collect());
        Self {
            name: name.into(),
            uid: uid.unwrap_or_default().into(),
            created: creation_timestamp.as_deref().map_or(0, order_of),
            annotations: ours,
            pod_cidrs,
            print,
        }
    }

    /// The condition `NetworkUnavailable` in the JSON of an object.
    pub(super) fn condition(json: &str) -> Condition {
        let Ok(wire) = serde_json::from_str::<WireNode<'_>>(json) else { return Condition::Seen(None) };
        if !wire.is_whole() {
            return Condition::Unseen(wire.metadata.resource_version.as_deref().and_then(revision_number));
        }
        let status: Option<WireStatus> = wire.status.and_then(|raw| serde_json::from_str(raw.get()).ok());
        let all = status.and_then(|status| status.conditions).unwrap_or_default();
        let ours = all.into_iter().find(|condition| condition.kind == "NetworkUnavailable");
        Condition::Seen(ours.map(|condition| condition.status))
    }

    /// Whether subnets were sent.
    pub(super) fn has_cidrs(&self) -> bool {
        self.pod_cidrs.as_ref().is_some_and(|cidrs| !cidrs.is_empty())
    }

    /// The subnets of the enabled families that the cluster assigned to the node.
    pub(super) fn assigned(&self, families: &[Family]) -> Result<PerFamily<Subnet>, String> {
        let cidrs = self.pod_cidrs.as_deref().unwrap_or_default();
        if cidrs.len() > 2 {
            return Err(format!("spec.podCIDRs has {} elements; two are the most", cidrs.len()));
        }
        let mut subnets = PerFamily::default();
        for cidr in cidrs {
            let subnet: Subnet =
                cidr.parse().map_err(|_| format!("spec.podCIDRs: {:?} is no CIDR", brief(cidr)))?;
            let first = subnets.get_mut(subnet.family());
            if families.contains(&subnet.family()) && first.is_none() {
                *first = Some(subnet);
            }
        }
        Ok(subnets)
    }

    /// The key of the node's lease; `None` while no subnet is assigned.
    pub(super) fn key(&self, families: &[Family]) -> Result<Option<LeaseKey>, String> {
        let subnets = self.assigned(families)?;
        if subnets.is_empty() {
            return Ok(None);
        }
        let key = LeaseKey::new(subnets);
        let cidrs = self.pod_cidrs.as_deref().unwrap_or_default();
        key.map(Some).ok_or_else(|| format!("spec.podCIDRs {cidrs:?} leave no room for pods"))
    }

    /// Whether the node takes part, or will once it has a subnet.
    pub(super) fn is_managed(&self) -> bool {
        is_managed(&self.annotations)
    }

    /// What the node means as a lease with a key: [`Self::key`], or what is known of it if only the metadata was sent.
    pub(super) fn judge(
        &self,
        key: Result<Option<LeaseKey>, String>,
        prefix: &AnnotationPrefix,
    ) -> Judgement {
        if !self.is_managed() {
            return Judgement::Apart;
        }
        let key = match key {
            Ok(Some(key)) => key,
            Ok(None) => return Judgement::Apart,
            Err(reason) => return Judgement::Bad { key: None, reason },
        };
        match read(&self.annotations) {
            Ok(attrs) => Judgement::Lease(Lease { key, attrs, created: self.created }),
            Err(error) => Judgement::Bad { key: Some(key), reason: error.named(prefix) },
        }
    }

    /// Whether a lease that it means has all that the annotations say: by which other backends the node receives is passed
    /// over if it is unreadable.
    pub(super) fn is_whole(&self) -> bool {
        receives(&self.annotations).is_ok()
    }

    /// What the node publishes, as far as it is readable: one broken part does not hide the others.
    pub(super) fn published(&self) -> Option<LeaseAttrs> {
        self.is_managed().then(|| {
            let part = |keep: &dyn Fn(&Annotation) -> bool| {
                let some = self.annotations.iter().filter(|(name, _)| keep(name));
                read(&some.map(|(name, value)| (*name, value.clone())).collect()).unwrap_or_default()
            };
            let one = |family| {
                let ip = part(&|name| *name == Annotation::PublicIp(family)).public_ips;
                let data = part(&|name| *name == Annotation::BackendData(family)).backend_data;
                (ip.get(family).copied(), data.get(family).cloned())
            };
            let (v4, v6) = (one(Family::V4), one(Family::V6));
            LeaseAttrs {
                public_ips: PerFamily { v4: v4.0, v6: v6.0 },
                backend_type: self.annotations.get(&Annotation::BackendType).cloned().unwrap_or_default(),
                backend_data: PerFamily { v4: v4.1, v6: v6.1 },
                receives: receives(&self.annotations).unwrap_or_default(),
            }
        })
    }
}

/// What a node is to its peers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Judgement {
    /// It does not take part: it lacks the annotation, or no subnet is assigned yet.
    Apart,
    Lease(Lease),
    /// It takes part, but its annotations or subnets can't be used.
    Bad {
        key: Option<LeaseKey>,
        reason: String,
    },
}

/// The revision in the JSON of an object.
pub(super) fn revision_of(json: &str) -> Option<u64> {
    let wire: WireNode<'_> = serde_json::from_str(json).ok()?;
    revision_number(&wire.metadata.resource_version?)
}

/// A revision as a number. It is one in every server, although clients should treat it as opaque. Without a number no
/// step backwards is noticed.
pub(super) fn revision_number(text: &str) -> Option<u64> {
    text.parse().ok()
}

fn bad_object(json: &str, error: &serde_json::Error) -> BadObject {
    #[derive(Deserialize)]
    struct Named {
        metadata: Name,
    }
    #[derive(Deserialize)]
    struct Name {
        name: Box<str>,
    }
    let named: Option<Named> = serde_json::from_str(json).ok();
    BadObject {
        name: named.map(|it| it.metadata.name),
        reason: format!("no node object: {}", brief(&error.to_string())),
    }
}

/// `2026-11-23T06:23:51Z` as 20261123062351.
fn order_of(time: &str) -> u64 {
    let digits: String = time.chars().filter(char::is_ascii_digit).take(14).collect();
    digits.parse().unwrap_or(0)
}

/// The parts of a node's JSON that are decoded.
#[derive(Deserialize)]
pub(super) struct WireNode<'a> {
    /// Items of a list have none if they are whole.
    #[serde(borrow, default)]
    kind: Option<Cow<'a, str>>,
    #[serde(borrow)]
    pub(super) metadata: WireMeta<'a>,
    #[serde(borrow)]
    spec: Option<WireSpec<'a>>,
    #[serde(borrow)]
    status: Option<&'a RawValue>,
}

impl WireNode<'_> {
    /// Whether spec and status would be here if the node had any.
    fn is_whole(&self) -> bool {
        self.kind.as_deref() != Some(View::METADATA_KIND)
    }

    /// A hash of all that a lease is made of, as it is written. Nearly all events are heartbeats, which don't change it, so
    /// nothing else has to be made of them. If somebody finds two sets of annotations with the same hash, peers miss a
    /// change of that one node, which could as well say nothing.
    pub(super) fn print(&self, names: &Names) -> u64 {
        let mut hasher = DefaultHasher::new();
        let WireMeta { uid, creation_timestamp, annotations, .. } = &self.metadata;
        (self.is_whole(), uid, creation_timestamp).hash(&mut hasher);
        for (name, value) in annotations.iter().flat_map(|all| &all.0) {
            if let Some(annotation) = names.0.get(&**name) {
                (annotation, value.get()).hash(&mut hasher);
            }
        }
        if let Some(spec) = self.spec.as_ref().filter(|_| self.is_whole()) {
            spec.cidrs().for_each(|cidr| cidr.hash(&mut hasher));
        }
        hasher.finish()
    }
}

/// What the metadata of any object has.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct WireMeta<'a> {
    #[serde(borrow, default)]
    pub(super) name: Cow<'a, str>,
    #[serde(borrow)]
    uid: Option<Cow<'a, str>>,
    #[serde(borrow)]
    pub(super) resource_version: Option<Cow<'a, str>>,
    #[serde(borrow)]
    creation_timestamp: Option<Cow<'a, str>>,
    #[serde(borrow)]
    annotations: Option<RawMap<'a>>,
}

impl WireMeta<'_> {
    /// Whether an annotation is `true`.
    pub(super) fn has(&self, annotation: &str) -> bool {
        let all = self.annotations.iter().flat_map(|all| &all.0);
        all.into_iter().any(|(name, value)| name == annotation && value.get() == "\"true\"")
    }
}

#[derive(Deserialize, Default)]
struct WireSpec<'a> {
    #[serde(rename = "podCIDR", borrow)]
    pod_cidr: Option<Text<'a>>,
    #[serde(rename = "podCIDRs", borrow)]
    pod_cidrs: Option<Vec<Text<'a>>>,
}

impl WireSpec<'_> {
    fn cidrs(&self) -> impl Iterator<Item = &str> {
        let all = self.pod_cidrs.as_deref().filter(|list| !list.is_empty());
        let all = all.unwrap_or(self.pod_cidr.as_slice());
        all.iter().map(|cidr| &**cidr).filter(|cidr| !cidr.is_empty())
    }
}

#[derive(Deserialize)]
struct WireStatus {
    conditions: Option<Vec<WireCondition>>,
}

#[derive(Deserialize)]
struct WireCondition {
    #[serde(rename = "type")]
    kind: String,
    status: String,
}

/// A string that is borrowed if possible; serde does that by itself only for direct members.
#[derive(Deserialize)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

impl std::ops::Deref for Text<'_> {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

/// An object whose values are decoded only if their names matter.
#[derive(Default)]
struct RawMap<'a>(Vec<(Cow<'a, str>, &'a RawValue)>);

impl<'de: 'a, 'a> Deserialize<'de> for RawMap<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Pairs;
        impl<'de> Visitor<'de> for Pairs {
            type Value = RawMap<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut pairs = Vec::new();
                while let Some((name, value)) = map.next_entry::<Text<'de>, &'de RawValue>()? {
                    pairs.push((name.0, value));
                }
                Ok(RawMap(pairs))
            }
        }
        deserializer.deserialize_map(Pairs)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn node(value: &serde_json::Value) -> NodeObject {
        NodeObject::decode(&value.to_string(), &Names::new(&AnnotationPrefix::default())).unwrap()
    }

    fn judge(node: &NodeObject, families: &[Family]) -> Judgement {
        node.judge(node.key(families), &AnnotationPrefix::default())
    }

    fn golden() -> serde_json::Value {
        json!({
            "metadata": {
                "name": "n1", "uid": "u-1", "resourceVersion": "17", "creationTimestamp": "2026-11-23T06:23:51Z",
                "labels": {"a": "b"},
                "annotations": {
                    "flannel.alpha.coreos.com/backend-data": "{\"VNI\":1,\"VtepMAC\":\"06:a1:56:1b:e8:26\"}",
                    "flannel.alpha.coreos.com/backend-type": "vxlan",
                    "flannel.alpha.coreos.com/kube-subnet-manager": "true",
                    "flannel.alpha.coreos.com/public-ip": "192.168.77.11",
                    "volumes.kubernetes.io/controller-managed-attach-detach": "true",
                },
                "managedFields": [{"manager": "kubelet"}],
            },
            "spec": {"podCIDR": "10.244.1.0/24", "podCIDRs": ["10.244.1.0/24", "fd00:1::/64"], "taints": []},
            "status": {"conditions": [{"type": "Ready", "status": "True"}, {"type": "NetworkUnavailable", "status": "False"}]},
        })
    }

    #[test]
    fn reads_what_go_wrote() {
        let value = golden();
        let node = node(&value);
        assert_eq!((&*node.name, &*node.uid, node.created), ("n1", "u-1", 20_261_123_062_351));
        let Judgement::Lease(lease) = judge(&node, &[Family::V4]) else { panic!("{node:?}") };
        assert_eq!(lease.key.to_string(), "10.244.1.0-24");
        assert_eq!(
            lease.attrs.to_json(),
            r#"{"PublicIP":"192.168.77.11","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"06:a1:56:1b:e8:26"}}"#
        );
        let Judgement::Lease(dual) = judge(&node, &Family::ALL) else { panic!("{node:?}") };
        assert_eq!(dual.key.to_string(), "10.244.1.0-24&fd00:1::-64");
        assert_eq!(node.published().unwrap(), lease.attrs);
        let said = Condition::Seen(Some("False".to_owned()));
        assert_eq!(NodeObject::condition(&value.to_string()), said);
    }

    #[test]
    fn tells_apart_who_takes_no_part_from_who_is_broken() {
        let edited = |edit: &dyn Fn(&mut serde_json::Value)| {
            let mut value = golden();
            edit(&mut value);
            judge(&node(&value), &[Family::V4])
        };
        let annotation = |name: &str| format!("/metadata/annotations/flannel.alpha.coreos.com~1{name}");
        assert_eq!(edited(&|it| it["metadata"]["annotations"] = json!(null)), Judgement::Apart);
        assert_eq!(
            edited(&|it| it["metadata"].as_object_mut().unwrap().remove("annotations").map_or((), drop)),
            Judgement::Apart
        );
        assert_eq!(
            edited(&|it| *it.pointer_mut(&annotation("kube-subnet-manager")).unwrap() = json!("True")),
            Judgement::Apart
        );
        assert_eq!(edited(&|it| it["spec"] = json!({})), Judgement::Apart);
        assert_eq!(edited(&|it| it["spec"] = json!({"podCIDR": "", "podCIDRs": null})), Judgement::Apart);
        assert_eq!(edited(&|it| it["spec"] = json!({"podCIDRs": ["fd00:1::/64"]})), Judgement::Apart);
        let Judgement::Lease(lease) = edited(&|it| it["spec"] = json!({"podCIDR": "10.244.9.7/24"})) else {
            panic!()
        };
        assert_eq!(lease.key.to_string(), "10.244.9.0-24");
        for (spec, what) in [
            (json!({"podCIDRs": ["x"]}), "\"x\" is no CIDR"),
            (json!({"podCIDRs": ["10.1.1.0/24", "10.1.2.0/24", "fd00::/64"]}), "3 elements"),
            (json!({"podCIDRs": ["10.1.1.1/32"]}), "no room"),
        ] {
            let Judgement::Bad { key: None, reason } = edited(&|it| it["spec"] = spec.clone()) else {
                panic!("{spec}")
            };
            assert!(reason.contains(what), "{reason}");
        }
        let Judgement::Bad { key: Some(key), reason } =
            edited(&|it| *it.pointer_mut(&annotation("public-ip")).unwrap() = json!("x"))
        else {
            panic!()
        };
        assert_eq!(
            (key.to_string().as_str(), reason.as_str()),
            ("10.244.1.0-24", r#"annotation flannel.alpha.coreos.com/public-ip = "x" is no IPv4 address"#)
        );
    }

    #[test]
    fn one_broken_part_hides_no_other() {
        let mut value = golden();
        value["metadata"]["annotations"]["flannel.alpha.coreos.com/public-ip"] = json!("x");
        let published = node(&value).published().unwrap();
        assert_eq!(published.public_ips, PerFamily::default());
        assert!(published.backend_data.v4.is_some());
    }

    #[test]
    fn says_which_object_it_cannot_read() {
        let names = Names::new(&AnnotationPrefix::default());
        let bad = NodeObject::decode(r#"{"metadata":{"name":"n1"},"spec":[]}"#, &names).unwrap_err();
        assert_eq!(bad.name.as_deref(), Some("n1"));
        assert_eq!(NodeObject::decode("{", &names).unwrap_err().name, None);
        let odd = r#"{"metadata":{"name":"n1","annotations":{"flannel.alpha.coreos.com/public-ip":7}}}"#;
        assert!(NodeObject::decode(odd, &names).is_ok());
    }
}
