//! The JSON of status and events is what `docs/status-json.md` says: no field is missing there, and none is too many.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::*;
use crate::addr::{Family, LinkIndex, Mtu};
use crate::agent::AgentEvent;
use crate::backend::Underlay;
use crate::dataplane::{NamedObject, ObjectKey};
use crate::events::{MemoryEvent, NetworkEvent, RepairCause};
use crate::firewall::FirewallEvent;
use crate::firewall::gate::{self, GateCounters, GateReading};
use crate::lease::{Lease, LeaseAttrs, LeaseKey, Reception, UnreadableRecord, UnreadableSample};
use crate::probe::{FamilyProbe, PeerProbe, ProbeStatus, Verdict, WayProbe};
use crate::status::{
    Counters, DeviceStatus, PeerPath, Reach, Reason, RefusedObject, RejectedLease, RepairCounts, RepairKind,
    Session, SessionPath, Sessions, Traffic, TrafficCounters,
};
use crate::subnet::{LeaseTerm, StoreRequests};

const DOCUMENT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/status-json.md");

fn both<T: Copy>(value: T) -> PerFamily<T> {
    PerFamily { v4: Some(value), v6: Some(value) }
}

fn key() -> LeaseKey {
    "10.5.1.0-24".parse().unwrap()
}

/// A route has all fields of an object but the MAC, which an FDB entry has.
fn objects() -> [NamedObject; 2] {
    let fdb = crate::dataplane::FdbEntry {
        link: LinkIndex(7),
        mac: "02:00:00:00:00:09".parse().unwrap(),
        dst: "192.0.2.9".parse().unwrap(),
        port: None,
        vni: None,
        via: None,
    };
    [ObjectKey::Route("10.5.2.0/24".parse().unwrap(), 0), ObjectKey::Fdb(fdb)]
        .map(|key| NamedObject::new(key, Some("flannel.1".to_owned())))
}

fn obstacle() -> Obstacle {
    Obstacle {
        realm: Realm::Legacy,
        family: "ip".to_owned(),
        table: "filter".to_owned(),
        chain: "FORWARD".to_owned(),
        ends_in: "FORWARD".to_owned(),
        rule: Some("-j DROP".to_owned()),
        cuts: both(Cuts { to_peers: true, ..Cuts::default() }),
        advice: "accept pods there".to_owned(),
    }
}

/// A status in this phase in which nothing is missing.
fn full(phase: Phase) -> AgentStatus {
    let text = || Some("text".to_owned());
    let now = SystemTime::now();
    let term = LeaseTerm::new(now, Duration::from_secs(60), Duration::from_secs(60));
    let addresses = both("192.0.2.1".parse().unwrap());
    let problem = |subject| Problem {
        peer: Some(key()),
        ..Problem::new(subject, Harm::Some, Reason::new("cause", "advice")).of(Family::V4)
    };
    let [route, fdb] = objects();
    let refused = RefusedObject { object: fdb.clone(), errno: 1, reason: "text".to_owned() };
    let rejected = RejectedLease { reason: "text".to_owned(), programmed: true };
    let peers = [
        PeerState::Programmed,
        PeerState::Refused(Box::new(refused)),
        PeerState::Rejected(Box::new(rejected)),
    ];
    let peer = |(n, state): (usize, PeerState)| PeerStatus {
        vteps: both("02:00:00:00:00:09".parse().unwrap()),
        receives: vec!["udp".to_owned()],
        path: PerFamily { v4: Some(PeerPath::new("vxlan")), v6: None },
        ..PeerStatus::new(format!("10.5.{n}.0-24").parse().unwrap(), addresses, state, now)
    };
    let traffic =
        TrafficCounters::new("flannel.1", Traffic::new(1, 1), Traffic::new(1, 1)).dropped("no_route", 1);
    let mut network = NetworkStatus {
        recalled: Some(7),
        repaired: {
            let mut repaired = RepairCounts::default();
            repaired.add(RepairKind::Route, RepairCause::Announced, 1);
            repaired
        },
        peer_list: peers.into_iter().enumerate().map(peer).collect(),
        devices: vec![DeviceStatus {
            name: "flannel.1".to_owned(),
            link: LinkIndex(7),
            mtu: Mtu(1450),
            usable: true,
            tx_checksum: Some(false),
        }],
        overlay_mtu: Some(Mtu(1450)),
        backends: vec!["vxlan".to_owned(), "host-gw".to_owned()],
        datapath: text(),
        last_repair: Some(Duration::from_micros(5)),
        counters: Counters::new(move || vec![traffic.clone()]),
        gate: GateCounters::new(|| Some(GateReading::new(gate::Mode::Enforce, 3, 0))),
        sessions: Sessions::new(move || vec![session(now), session(now).path(Some(SessionPath::Nat))]),
        ..network()
    };
    network.problems.node = vec![problem(Subject::Sysctl("net/ipv4/ip_forward".to_owned()))];
    network.problems.objects =
        Listed::new(2, [route, fdb].into_iter().map(|object| problem(Subject::Object(object))));
    network.problems.leases = Listed::new(1, [problem(Subject::Lease("x".to_owned()))].into_iter());
    network.problems.reach = both(Reach { expected: 2, cut: 1 });
    let requests = StoreRequests::default();
    requests.record("list leases", Duration::from_millis(1), true);
    let receives = Reception::parse_list(r#"[{"Type":"udp"}]"#).unwrap();
    let attrs = LeaseAttrs { receives, ..LeaseAttrs::default() };
    let underlay = Underlay {
        reason: "it has the default route".to_owned(),
        ..Underlay::new("eth0", LinkIndex(2), Mtu(1500), addresses)
    };
    AgentStatus {
        phase,
        node: Some(Node {
            lease: Lease { key: "10.5.1.0-24&fd00:1::-64".parse().unwrap(), attrs, created: 1 },
            networks: both("10.5.0.0/16".parse().unwrap()),
            backend: "vxlan".to_owned(),
            overlay_mtu: Mtu(1450),
            underlay,
        }),
        store: Some(StoreStatus {
            confirmed: Some(Instant::now()),
            unreadable: UnreadableSample {
                count: 1,
                records: vec![UnreadableRecord { key: "x".to_owned(), reason: "text".to_owned() }],
            },
            missing: vec!["10.5.3.0-24".to_owned()],
            missing_count: 1,
            lease_term: Some(term),
            lease_unkept: text(),
            lease_lost: text(),
            clock: text(),
            requests,
            ..store(false, "refused")
        }),
        network: Some(network),
        firewall: Some(FirewallStatus {
            manager: Some("nftables"),
            choice: "nftables; EnableNFTables is true".to_owned(),
            problem: text(),
            notes: text().into_iter().collect(),
            obstacles: vec![obstacle()],
            last_repair: Some(Duration::from_micros(5)),
            ..FirewallStatus::default()
        }),
        store_place: text(),
        probes: Some(probes(now)),
        remarks: text().into_iter().collect(),
        ..AgentStatus::new(FirewallOptions::masquerade())
    }
}

fn session(now: SystemTime) -> Session {
    let session = Session::new(key(), "flannel-wg", &[Family::V4], "192.0.2.9:51820".parse().ok());
    let session = session.path(Some(SessionPath::Relay(key())));
    session.endpoint("203.0.113.7:4711".parse().ok()).handshake(Some(now), Duration::from_secs(180), now)
}

/// Probes of one peer, whose way has the only verdict with a value.
fn probes(now: SystemTime) -> ProbeStatus {
    let way = || WayProbe {
        rtt: Some(Duration::from_micros(5).into()),
        last_answer: Some(now),
        ..WayProbe::new("192.0.2.1".parse().unwrap())
    };
    let probe = FamilyProbe {
        evidence: vec!["text".to_owned()],
        carriage: crate::probe::Carriage::direct(),
        ..FamilyProbe::new(Verdict::MtuHole { at_most: 1350 }, now, way(), way())
    };
    let mut status = ProbeStatus {
        interval: Duration::from_secs(10),
        notes: vec!["text".to_owned()],
        waiting: Some("text".to_owned()),
        ..ProbeStatus::default()
    };
    status.peers.put(PeerProbe { lease: key(), families: PerFamily { v4: Some(Box::new(probe)), v6: None } });
    status
}

/// One event of each kind, with all of its fields.
#[expect(clippy::too_many_lines, reason = "a list")]
fn events() -> Vec<AgentEvent> {
    use {AgentEvent as A, FirewallEvent as F, MemoryEvent as M, NetworkEvent as N};
    let (s, lease, mtu, took) = (String::new, key(), Mtu(1450), Duration::from_micros(1));
    let (path, underlay, time) = (std::path::PathBuf::new, PerFamily::default(), SystemTime::UNIX_EPOCH);
    let [object, route] = objects();
    let agent = [
        A::CleanupRuns { path: path() },
        A::LockUnusable { path: path(), reason: s() },
        A::DraftsStay { path: path(), reason: s() },
        A::OldSubnetFile { problem: s() },
        A::StateFileUnusable { path: path(), problem: s() },
        A::StateFileOfAnotherHost { lease: s() },
        A::NoStandIn { why: s() },
        A::Waiting { step: "", why: s() },
        A::ConfigRead { networks: Vec::new(), backend: s() },
        A::UnderlayChosen { link: s(), mtu, local: Vec::new(), published: Vec::new(), reason: s() },
        A::PublishedAddressesChanged { published: Vec::new() },
        A::AddressAmongPods { remark: s() },
        A::LeaseAcquired { lease: s(), overlay_mtu: mtu },
        A::LeaseRenewed { lease: s(), expires: time },
        A::LeaseLost { why: s() },
        A::FirewallKept { manager: Some("nftables"), choice: s(), masquerade: true, forward: true },
        A::SubnetFileWritten { path: path(), overlay_mtu: mtu, written: true },
        A::SubnetFileRefused { why: s() },
        A::MtuChanged { before: mtu, overlay_mtu: mtu },
        A::StoreLost { problem: s() },
        A::StoreBack { away: took },
        A::Ready,
        A::NotReady { reasons: Vec::new() },
        A::Stopping,
        A::Ended { error: None },
        A::StopFailed { part: "network", why: s() },
        A::PeerJudged {
            lease,
            family: Family::V4,
            before: "reachable",
            verdict: Verdict::MtuHole { at_most: 1350 },
            text: s(),
            evidence: Vec::new(),
            remedy: None,
        },
        A::PeersJudged { changed: 1, trouble: 1 },
        A::LeftOut { events: 1 },
    ];
    let network = [
        N::PeerAdded { lease, underlay },
        N::PeerChanged { lease, underlay },
        N::PeerRemoved { lease, underlay },
        N::PeersChanged { added: 1, changed: 1, removed: 1 },
        N::LeaseRejected { lease: s(), reason: s(), left_out: 1 },
        N::LeaseAccepted { lease },
        N::LeasesAccepted { leases: 1 },
        N::Repaired {
            objects: 1,
            object: Some(object.clone()),
            device: true,
            cause: RepairCause::Resync,
            took,
        },
        N::ObjectRefused { object: object.clone(), peer: Some(lease), errno: 1, reason: s(), conflict: true },
        N::ObjectAccepted { object },
        N::RouteReplaced { route, foreign: s() },
        N::DeviceCreated { link: s(), mtu, detail: s() },
        N::DeviceRecreated { link: s(), reason: s() },
        N::DeviceChanged { link: s(), detail: s() },
        N::DevicesNotReady { reason: s() },
        N::DevicesReady,
        N::FamilyOutOfService { family: Some(Family::V6), reason: s() },
        N::FamiliesInService,
        N::BackendStarted { backend: s() },
        N::BackendNotStarted { backend: s(), reason: s() },
        N::BackendEnded { backend: s() },
        N::BackendSwitchBegins { before: s(), after: s() },
        N::BackendSwitched { before: s(), after: s(), unable: 0 },
        N::UnderlayMoved { link: s(), before: underlay, local: underlay, published: underlay, reason: s() },
        N::UnderlayRenamed { before: s(), link: s() },
        N::UnderlayLost { reason: s() },
        N::UnderlayBack,
        N::ConfigApplied { live: Vec::new() },
        N::RestartNeeded { live: Vec::new(), reason: s() },
        N::ConfigUnusable { reason: s() },
        N::OwnLeaseContested { reason: s() },
        N::OwnLeaseUncontested { lease },
        N::BackendDataChanged { family: Family::V4, lease: s(), before: None, after: None },
        N::HostCutsPods { reason: s() },
        N::HostCutsNoMore { reason: s() },
        N::LeftoverSuspected { link: s() },
        N::LeftoverRemoved { link: s() },
        N::LeftoverStays { link: s(), reason: s() },
        N::GateInForce { mode: gate::Mode::Enforce },
        N::GateRepaired { cause: RepairCause::Announced, took },
        N::GateUnavailable { reason: s() },
        N::GateNotReady { reason: s() },
        N::GateReady,
        N::StrangersSeen { report: s() },
        N::KernelAway { reason: s() },
    ];
    let Obstacle { realm, family, table, chain, .. } = obstacle();
    let firewall = [
        F::RulesInPlace { changes: 1 },
        F::RulesRepaired { changes: 1, cause: RepairCause::Announced, took },
        F::RulesNotReady { reason: s() },
        F::RulesReady,
        F::RulesLimited { reason: s() },
        F::RulesMoved { manager: "iptables-legacy", choice: s() },
        F::LeftoverRulesRemoved { manager: "nftables" },
        F::LeftoverRulesUnclear { reason: s() },
        F::LeftoverRulesStay { reason: s() },
        F::ChainDropsPods(Box::new(obstacle())),
        F::ChainDropsNoMore { realm, family, table, chain },
    ];
    let memory = [
        M::StateFileRefused { reason: s() },
        M::StateFileBack,
        M::StartedFromMemory { lease, peers: 1, stored: 7, reason: s() },
        M::LeaseConfirmed { lease },
        M::BackendDataTaken { lease, other: s(), family: Family::V4 },
        M::NotConfirmed { reason: s() },
        M::StoredLeaseForeign { stored: s(), here: s() },
    ];
    let parts = network.map(A::from).into_iter().chain(firewall.map(A::from)).chain(memory.map(A::from));
    agent.into_iter().chain(parts).collect()
}

/// Collects the paths of all fields. `[]` stands for each element of a list, and `FAMILY` for `v4` and `v6`. What occurs
/// in several places has a path of its own.
fn collect(value: &Value, path: &str, paths: &mut BTreeSet<String>) {
    let path = match path {
        "network.problems.node[]"
        | "network.problems.objects.sample[]"
        | "network.problems.leases.sample[]" => {
            paths.insert(path.trim_end_matches("[]").to_owned());
            "problem"
        }
        "problem.subject.name" | "network.peer_list[].object" if value.is_object() => {
            paths.insert(path.to_owned());
            "object"
        }
        "probes.peers[].FAMILY.overlay" | "probes.peers[].FAMILY.underlay" => {
            paths.insert(path.to_owned());
            "way"
        }
        timed if timed.starts_with("network.timings.") && value.is_object() => {
            paths.insert(path.to_owned());
            "histogram"
        }
        path => path,
    };
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                let name = match &**name {
                    "v4" | "v6" => "FAMILY",
                    _ if path == "probes.counts" => "VERDICT",
                    name => name,
                };
                let path = if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
                collect(value, &path, paths);
            }
        }
        Value::Array(list) if !list.is_empty() => {
            for value in list {
                collect(value, &format!("{path}[]"), paths);
            }
        }
        _ => _ = paths.insert(path.to_owned()),
    }
}

/// The words in backticks in the cells of each table row below a heading.
fn rows(heading: &str) -> Vec<Vec<Vec<String>>> {
    let document = std::fs::read_to_string(DOCUMENT).unwrap();
    let from = document.split_once(&format!("\n## {heading}\n")).expect("the document has the heading").1;
    let section = from.split("\n## ").next().unwrap_or_default();
    let words = |cell: &str| cell.split('`').skip(1).step_by(2).map(str::to_owned).collect();
    let rows = section.lines().filter(|line| line.starts_with("| `"));
    rows.map(|row| row.split('|').skip(1).map(words).collect()).collect()
}

#[tokio::test(start_paused = true)]
async fn the_document_names_every_field_of_a_status_and_no_other() {
    let phases = [
        Phase::Starting { waiting_for: "the store".to_owned() },
        Phase::Running,
        Phase::LeaseLost { why: "text".to_owned() },
        Phase::Stopping,
        Phase::Ended { error: Some("text".to_owned()) },
    ];
    let mut fields = BTreeSet::new();
    for phase in phases {
        collect(&serde_json::to_value(full(phase)).unwrap(), "", &mut fields);
    }
    // A list that is empty in one status has elements in another.
    for list in ["reasons", "notes"] {
        fields.remove(list);
        assert!(fields.contains(&format!("{list}[].kind")));
    }
    let documented: BTreeSet<String> = rows("The status").into_iter().map(|row| row[0][0].clone()).collect();
    let missing: Vec<_> = fields.difference(&documented).collect();
    let stale: Vec<_> = documented.difference(&fields).collect();
    assert!(
        missing.is_empty() && stale.is_empty(),
        "not in the document: {missing:?}; not in a status: {stale:?}"
    );
}

#[test]
fn the_document_names_every_event_with_its_fields_and_no_other() {
    let mut told = BTreeMap::new();
    for event in events() {
        let Value::Object(fields) = serde_json::to_value(event).unwrap() else { panic!("an object") };
        let name = fields["event"].as_str().unwrap().to_owned();
        let fields: BTreeSet<String> =
            fields.into_iter().map(|(name, _)| name).filter(|it| it != "event").collect();
        assert!(
            !["seq", "time"].iter().any(|name| fields.contains(*name)),
            "{name}: these are of the event as such"
        );
        assert_eq!(told.insert(name.clone(), fields), None, "two events are called {name}");
    }
    let documented: BTreeMap<String, BTreeSet<String>> =
        rows("Events").into_iter().map(|row| (row[0][0].clone(), row[1].iter().cloned().collect())).collect();
    for (name, fields) in &told {
        assert_eq!(documented.get(name), Some(fields), "{name}");
    }
    let stale: Vec<_> = documented.keys().filter(|name| !told.contains_key(*name)).collect();
    assert!(stale.is_empty(), "no events: {stale:?}");
}

/// The list above has all kinds of events: it is compared with the sources, since an enum can't be enumerated.
#[test]
fn the_list_of_events_is_complete() {
    let listed = |of: fn(&AgentEvent) -> bool| events().iter().filter(|event| of(event)).count();
    for (source, name, count, besides) in [
        // Those of network, firewall and memory.
        (include_str!("../../event.rs"), "AgentEvent", listed(is_own), 3),
        // Of the parts, who was too slow.
        (
            include_str!("../../../events.rs"),
            "NetworkEvent",
            listed(|it| matches!(it, AgentEvent::Network(_))),
            1,
        ),
        (
            include_str!("../../../firewall/event.rs"),
            "FirewallEvent",
            listed(|it| matches!(it, AgentEvent::Firewall(_))),
            1,
        ),
        (
            include_str!("../../../events/memory.rs"),
            "MemoryEvent",
            listed(|it| matches!(it, AgentEvent::Memory(_))),
            1,
        ),
    ] {
        let body = source.split_once(&format!("pub enum {name} {{")).unwrap().1.split_once("\n}").unwrap().0;
        let is_variant = |line: &&str| {
            line.strip_prefix("    ")
                .is_some_and(|rest| rest.starts_with(|first: char| first.is_ascii_uppercase()))
        };
        assert_eq!(body.lines().filter(is_variant).count(), count + besides, "{name}");
    }
}

fn is_own(event: &AgentEvent) -> bool {
    !matches!(event, AgentEvent::Network(_) | AgentEvent::Firewall(_) | AgentEvent::Memory(_))
}
