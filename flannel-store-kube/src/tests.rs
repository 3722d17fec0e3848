//! The fold of node objects against a model: random nodes, edits, disconnects and lists.

use std::collections::BTreeMap;

use flannel_core::addr::Family;
use flannel_core::lease::{Lease, LeaseTable, LeaseUpdate, Reception, UnreadableRecord};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::annotations::AnnotationPrefix;
use super::known::{Folded, Known};
use super::node::{BadObject, Names, NodeObject};

/// Nodes below this number contend for few subnets; the others have one each, and can be broken.
const RIVALS: u8 = 4;
const NODES: u8 = 8;
const OWN: &str = "n2";
/// That a node receives by udp, too.
const UDP: &str = r#"[{"Type":"udp","Data":1}]"#;

/// What a node can be.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Node {
    number: u8,
    /// Which subnet it has; of those that contend.
    subnet: u8,
    created: u8,
    managed: bool,
    assigned: bool,
    ip: Ip,
    further: Further,
    beat: u8,
}

/// What it says of other backends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Further {
    None,
    Udp,
    Garbage,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ip {
    Good(u8),
    Missing,
    Garbage,
}

impl Node {
    fn name(&self) -> String {
        format!("n{}", self.number)
    }

    fn cidr(&self) -> String {
        format!("10.244.{}.0/24", if self.number < RIVALS { self.subnet % 2 } else { 100 + self.number })
    }

    fn object(&self) -> Result<NodeObject, BadObject> {
        decode(&self.json())
    }

    /// What a watch of metadata alone shows.
    fn metadata(&self) -> Result<NodeObject, BadObject> {
        let metadata = &self.json()["metadata"];
        decode(
            &json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": metadata}),
        )
    }

    fn json(&self) -> Value {
        let mut annotations = json!({"beat": self.beat.to_string()});
        let mut put = |name: &str, value: String| {
            annotations[format!("flannel.alpha.coreos.com/{name}")] = value.into();
        };
        if self.managed {
            put("kube-subnet-manager", "true".into());
        }
        match self.ip {
            Ip::Good(byte) => put("public-ip", format!("192.0.2.{byte}")),
            Ip::Garbage => put("public-ip", "garbage".into()),
            Ip::Missing => {}
        }
        match self.further {
            Further::Udp => put("receives", UDP.into()),
            Further::Garbage => put("receives", "udp".into()),
            Further::None => {}
        }
        let spec = if self.assigned { json!({"podCIDRs": [self.cidr()]}) } else { json!({}) };
        // Another subnet is that of another object.
        let uid = format!("{}-{}", self.cidr(), self.assigned);
        json!({
            "metadata": {
                "name": self.name(),
                "uid": uid,
                "creationTimestamp": format!("2026-01-01T00:00:{:02}Z", self.created),
                "annotations": annotations,
            },
            "spec": spec,
            "status": {"conditions": [{"type": "Ready", "status": "True", "lastHeartbeatTime": self.beat.to_string()}]},
        })
    }

    fn is_broken(&self) -> bool {
        self.managed && self.assigned && self.ip == Ip::Garbage
    }

    /// Whether it has a lease, without what it says of other backends.
    fn lacks_further(&self) -> bool {
        self.managed && self.assigned && self.ip != Ip::Garbage && self.further == Further::Garbage
    }
}

fn decode(value: &Value) -> Result<NodeObject, BadObject> {
    NodeObject::decode(&value.to_string(), &Names::new(&AnnotationPrefix::default()))
}

#[derive(Debug, Clone)]
enum Op {
    Put(Node),
    Delete(u8),
    /// The same again, with another heartbeat.
    Beat(u8),
    /// Nothing is heard until the next list.
    Disconnect,
    List,
}

fn nodes() -> impl Strategy<Value = Node> {
    let ip = prop_oneof![4 => (1..5_u8).prop_map(Ip::Good), 1 => Just(Ip::Missing), 2 => Just(Ip::Garbage)];
    let further = prop::sample::select(vec![Further::None, Further::Udp, Further::Garbage]);
    (0..NODES, 0..4_u8, 0..3_u8, prop::bool::weighted(0.85), prop::bool::weighted(0.85), ip, further)
        .prop_map(|(number, subnet, created, managed, assigned, ip, further)| {
            // Who contends is never broken: what stays of two of them would be a matter of order.
            let contends = number < RIVALS;
            let ip = if contends && ip == Ip::Garbage { Ip::Missing } else { ip };
            let further = if contends && further == Further::Garbage { Further::None } else { further };
            Node { number, subnet, created, managed, assigned, ip, further, beat: 0 }
        })
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let op = prop_oneof![
        8 => nodes().prop_map(Op::Put),
        3 => (0..NODES).prop_map(Op::Delete),
        3 => (0..NODES).prop_map(Op::Beat),
        1 => Just(Op::Disconnect),
        1 => Just(Op::List),
    ];
    prop::collection::vec(op, 1..60)
}

/// The world, and what of it is expected to be known.
#[derive(Default)]
struct Model {
    nodes: BTreeMap<String, Node>,
    /// What nodes that are broken now said last, as far as it was heard.
    last_good: BTreeMap<String, Lease>,
}

impl Model {
    /// Notes what is heard of a node now.
    fn hear(&mut self, name: &str) {
        let Some(node) = self.nodes.get(name) else { return drop(self.last_good.remove(name)) };
        if node.is_broken() {
            return;
        }
        self.last_good.remove(name);
        if let Some(lease) = lease(node) {
            self.last_good.insert(name.to_owned(), lease);
        }
    }

    /// All leases, worked out from nothing but what there is.
    fn leases(&self) -> Vec<Lease> {
        let mut all: BTreeMap<String, (bool, u8, String, Lease)> = BTreeMap::new();
        for node in self.nodes.values() {
            let name = node.name();
            let found = if node.is_broken() { self.last_good.get(&name).cloned() } else { lease(node) };
            let Some(lease) = found else { continue };
            let claim = (name != OWN, node.created, name, lease);
            let key = claim.3.key.to_string();
            match all.get(&key) {
                Some(held) if (held.0, held.1, &held.2) < (claim.0, claim.1, &claim.2) => {}
                _ => drop(all.insert(key, claim)),
            }
        }
        all.into_values().map(|claim| claim.3).collect()
    }
}

fn replace(
    known: &mut Known,
    objects: impl IntoIterator<Item = Result<NodeObject, BadObject>>,
) -> LeaseUpdate {
    let mut listing = known.list();
    objects.into_iter().for_each(|object| known.add(&mut listing, object));
    known.replace(listing)
}

/// What a watch of metadata alone leads to: a node that is wanted whole is read at once.
fn follow(known: &mut Known, node: &Node) -> Vec<LeaseUpdate> {
    let Folded { mut updates, wants } = known.fold(node.metadata());
    if let Some(wanted) = wants {
        assert_eq!(*wanted.name, *node.name());
        let whole = known.fold(node.object());
        assert_eq!(whole.wants, None);
        updates.extend(whole.updates);
    }
    updates
}

/// What a node says, read by hand.
fn lease(node: &Node) -> Option<Lease> {
    let ip = match node.ip {
        Ip::Good(byte) => Some([192, 0, 2, byte].into()),
        Ip::Missing => None,
        Ip::Garbage => return None,
    };
    (node.managed && node.assigned).then(|| Lease {
        key: node.cidr().replace('/', "-").parse().unwrap(),
        attrs: flannel_core::lease::LeaseAttrs {
            public_ips: flannel_core::addr::PerFamily { v4: ip, v6: None },
            receives: match node.further {
                Further::Udp => Reception::parse_list(UDP).unwrap(),
                Further::None | Further::Garbage => Vec::new(),
            },
            ..Default::default()
        },
        created: 20_260_101_000_000 + u64::from(node.created),
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]
    #[test]
    fn whatever_came_in_between_the_table_is_what_the_nodes_say(ops in ops(), is_partial in any::<bool>()) {
        let fold = |known: &mut Known, node: &Node| {
            if is_partial { follow(known, node) } else { known.fold(node.object()).updates }
        };
        let mut known = Known::new(OWN, vec![Family::V4], AnnotationPrefix::default());
        let mut table = LeaseTable::default();
        let mut model = Model::default();
        let mut is_connected = false;
        for op in ops.into_iter().chain([Op::List]) {
            let name = |number: u8| format!("n{number}");
            match op {
                Op::Put(node) => {
                    let name = node.name();
                    model.nodes.insert(name.clone(), node.clone());
                    if is_connected {
                        model.hear(&name);
                        for update in fold(&mut known, &node) {
                            table.apply(update);
                        }
                    }
                }
                Op::Beat(number) => {
                    let Some(node) = model.nodes.get_mut(&name(number)) else { continue };
                    node.beat = node.beat.wrapping_add(1);
                    if is_connected {
                        prop_assert_eq!(fold(&mut known, node), vec![], "a heartbeat is no news");
                    }
                }
                Op::Delete(number) => {
                    model.nodes.remove(&name(number));
                    if is_connected {
                        model.hear(&name(number));
                        known.remove(&name(number)).into_iter().for_each(|it| drop(table.apply(it)));
                    }
                }
                Op::Disconnect => is_connected = false,
                Op::List => {
                    is_connected = true;
                    let heard: Vec<String> = model.last_good.keys().chain(model.nodes.keys()).cloned().collect();
                    for name in &heard {
                        model.hear(name);
                    }
                    let update = replace(&mut known, model.nodes.values().map(Node::object));
                    let is_snapshot = matches!(update, LeaseUpdate::Snapshot { .. });
                    prop_assert!(is_snapshot);
                    table.apply(update);
                    // A second list says nothing else, and one of metadata alone neither.
                    let mut partial = known.list();
                    model.nodes.values().for_each(|node| known.add(&mut partial, node.metadata()));
                    let has_no_subnet = |node: &&Node| node.managed && !node.assigned;
                    prop_assert_eq!(partial.wants.len(), model.nodes.values().filter(has_no_subnet).count());
                    prop_assert_eq!(table.apply(known.replace(partial)), vec![]);
                    let again = replace(&mut known, model.nodes.values().map(Node::object));
                    prop_assert_eq!(table.apply(again), vec![]);
                }
            }
            if is_connected {
                let have: Vec<Lease> = table.iter().map(|lease| Lease::clone(lease)).collect();
                let mut want = model.leases();
                want.sort_by_key(|lease| lease.key);
                prop_assert_eq!(have, want);
                let broken = model.nodes.values().filter(|node| node.is_broken()).count();
                let named = known.problems();
                prop_assert_eq!(named.named().filter(|it| it.reason.contains("garbage")).count(), broken);
                let lacking = model.nodes.values().filter(|node| node.lacks_further()).count();
                let of_receives = |it: &UnreadableRecord| it.reason.contains("/receives is no JSON list");
                prop_assert_eq!(named.named().filter(of_receives).count(), lacking);
                prop_assert_eq!(table.unreadable().named().filter(of_receives).count(), lacking);
            }
        }
    }

    #[test]
    fn no_object_makes_it_panic(text in "\\PC*|[\\{\\}\":,a-zA-Z0-9\\[\\]]*") {
        let names = Names::new(&AnnotationPrefix::default());
        let mut known = Known::new(OWN, Family::ALL.to_vec(), AnnotationPrefix::default());
        known.fold(NodeObject::decode(&text, &names));
        let _ = NodeObject::condition(&text);
    }
}

#[test]
fn an_object_that_cannot_be_read_keeps_what_its_node_said() {
    let mut known = Known::new(OWN, vec![Family::V4], AnnotationPrefix::default());
    let node = Node {
        number: 5,
        subnet: 0,
        created: 0,
        managed: true,
        assigned: true,
        ip: Ip::Good(1),
        further: Further::None,
        beat: 0,
    };
    let update = replace(&mut known, [node.object()]);
    assert!(matches!(update, LeaseUpdate::Snapshot { leases, .. } if leases.len() == 1));
    let broken = decode(&json!({"metadata": {"name": "n5"}, "spec": []}));
    let updates = known.fold(broken.clone()).updates;
    let [LeaseUpdate::Unreadable(record)] = &updates[..] else { panic!("{updates:?}") };
    assert_eq!(record.key, "10.244.105.0-24");
    let LeaseUpdate::Snapshot { leases, unreadable } = replace(&mut known, [broken]) else { panic!() };
    assert_eq!((leases.len(), unreadable.named().next().unwrap().key), (0, "10.244.105.0-24".to_owned()));
    assert_eq!(known.problems().named().next().unwrap().key, "node n5");
}

fn twin(number: u8, created: u8) -> Node {
    Node {
        number,
        subnet: 0,
        created,
        managed: true,
        assigned: true,
        ip: Ip::Good(number),
        further: Further::None,
        beat: 0,
    }
}

/// Three nodes with one subnet, as each of them and a fourth sees it: all agree who is the eldest.
#[test]
fn of_nodes_with_one_subnet_the_younger_are_named_to_all_and_know_it_themselves() {
    let nodes = [twin(0, 2), twin(1, 1), twin(2, 2)];
    for (own, holder, named, is_younger) in [
        ("n0", "192.0.2.0", &["node n2"][..], true),
        ("n1", "192.0.2.1", &["node n0", "node n2"], false),
        ("n2", "192.0.2.2", &["node n0"], true),
        ("n9", "192.0.2.1", &["node n0", "node n2"], false),
    ] {
        let mut listed = Known::new(own, vec![Family::V4], AnnotationPrefix::default());
        let update = replace(&mut listed, nodes.iter().map(Node::object));
        let LeaseUpdate::Snapshot { leases, unreadable } = update else { panic!() };
        assert_eq!(leases.len(), 1);
        assert_eq!(leases[0].attrs.public_ips.v4.unwrap().to_string(), holder, "{own}");
        let keys: Vec<String> = unreadable.named().map(|record| record.key).collect();
        assert_eq!(keys, named, "{own}");
        for record in unreadable.named() {
            let text = record.to_string();
            assert!(text.contains("10.244.0.0/24, which is that of node n1, too"), "{text}");
            assert!(text.contains("spec.podCIDRs of node") && !text.contains("delete"), "{text}");
        }
        assert_eq!(*listed.problems(), unreadable);
        assert_eq!(listed.rival().is_some(), is_younger, "{own}");
        // Event by event it ends the same, and each that goes takes its line along.
        let mut followed = Known::new(own, vec![Family::V4], AnnotationPrefix::default());
        let mut table = LeaseTable::default();
        table.apply(replace(&mut followed, []));
        for node in &nodes {
            followed.fold(node.object()).updates.into_iter().for_each(|it| drop(table.apply(it)));
        }
        assert_eq!(*table.unreadable(), unreadable, "{own}");
        assert_eq!(followed.rival(), listed.rival());
        followed.remove("n1").into_iter().for_each(|it| drop(table.apply(it)));
        assert_eq!(followed.rival().is_some(), own == "n2", "of one age the greater name is the younger");
        followed.remove("n2").into_iter().for_each(|it| drop(table.apply(it)));
        assert_eq!((table.unreadable().len(), followed.rival()), (0, None));
    }
}

/// What somebody else wrote is told in a few words, however long it is.
#[test]
fn a_reason_is_short_whatever_was_written() {
    let names = Names::new(&AnnotationPrefix::default());
    let long = "x".repeat(1 << 20);
    for json in [
        format!(r#"{{"metadata":{{"name":"n1"}},"spec":{{"podCIDRs":"{long}"}}}}"#),
        format!(r#"{{"metadata":{{"name":"n1"}},"spec":"{long}"}}"#),
        format!(r#""{long}""#),
    ] {
        let bad = NodeObject::decode(&json, &names).unwrap_err();
        assert!(
            bad.reason.starts_with("no node object: ") && bad.reason.len() < 400,
            "{} bytes",
            bad.reason.len()
        );
    }
}

/// Thousands of nodes that can't be read, and thousands with one subnet: one event costs a word about one node.
#[test]
fn one_event_among_thousands_of_bad_nodes_says_one_thing() {
    let mut known = Known::new(OWN, vec![Family::V4], AnnotationPrefix::default());
    let bad = |n: u32, why: &str| {
        let reason = why.to_owned();
        Err(BadObject { name: Some(format!("bad{n}").into()), reason })
    };
    let name = |n: u32| {
        decode(&json!({
            "metadata": {"name": format!("twin{n:04}"), "creationTimestamp": "2026-01-01T00:00:00Z", "annotations": {
                "flannel.alpha.coreos.com/kube-subnet-manager": "true",
                "flannel.alpha.coreos.com/public-ip": "192.0.2.1",
            }},
            "spec": {"podCIDRs": ["10.244.9.0/24"]},
        }))
    };
    replace(&mut known, (0..5000).map(|n| bad(n, "unreadable")));
    assert_eq!((known.problems().len(), known.problems().sample().records.len()), (5000, 20));
    for n in 0..2000 {
        let told = known.fold(name(n)).updates;
        assert_eq!(told.len(), 1, "{n}: {told:?}");
        assert_eq!(matches!(told[0], LeaseUpdate::Put(_)), n == 0, "{told:?}");
    }
    assert_eq!(known.problems().len(), 6999);
    assert_eq!(known.fold(name(1500)).updates, [], "a heartbeat");
    let news = known.news();
    assert_eq!((known.fold(bad(7, "unreadable")).updates, known.news()), (vec![], news));
    assert_eq!((known.fold(bad(7, "unreadable otherwise")).updates, known.news()), (vec![], news + 1));
    assert_eq!(known.remove("twin1500"), [LeaseUpdate::Removed("node twin1500".to_owned())]);
    // The eldest goes: the next one is the eldest, and all others are told its name.
    let told = known.remove("twin0000");
    assert_eq!((told.len(), known.problems().len()), (1 + 1997, 5000 + 1997));
    (0..5000).for_each(|n| assert_eq!(known.remove(&format!("bad{n}")), []));
    assert_eq!(known.problems().len(), 1997);
}
