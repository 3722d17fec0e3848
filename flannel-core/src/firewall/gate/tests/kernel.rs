//! The gate in the real kernel, seen by the real `nft`.

use std::net::UdpSocket;
use std::process::Command;
use std::time::Duration;

use flannel_lab::sandbox::in_sandbox;
use flannel_lab::test_name;
use flannel_lab::wait::patiently;
use futures::FutureExt;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::super::{
    Desk, Gate, GateOptions, GateReading, GateStatus, Mode, Tunnels, present, remove, table_name,
};
use super::desk::lease;
use crate::addr::{LinkIndex, PerFamily, Vni};
use crate::events::{NetworkEvent, NetworkEventSender, NetworkEvents, RepairCause};
use crate::lease::{Lease, LeaseTable, LeaseUpdate, UnreadableRecords};
use crate::netlink::nftables::{NfTables, TableEvents, TableFamily};
use crate::netns::Netns;

const VNI: u32 = 7;

fn run(program: &str, args: &str) -> String {
    let output = Command::new(program).args(args.split(' ')).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{program} {args}: {said}");
    String::from_utf8(output.stdout).unwrap()
}

fn listing() -> String {
    ["inet", "netdev"].map(|family| run("nft", &format!("list table {family} flannel-underlay-7"))).concat()
}

/// The devices of the tunnels, as far as a gate needs them.
const DEVICES: [&str; 2] = ["flannel.7", "flannel-v6.7"];

fn plug(device: &str) -> LinkIndex {
    run("ip", &format!("link add {device} type bridge"));
    run("ip", &format!("link set {device} up"));
    let shown = run("ip", &format!("-o link show {device}"));
    LinkIndex(shown.split(':').next().unwrap().parse().unwrap())
}

fn vni() -> Vni {
    Vni::new(VNI).unwrap()
}

fn tunnels() -> Tunnels {
    Tunnels {
        vni: vni(),
        port: 8472,
        devices: PerFamily { v4: Some(DEVICES[0].to_owned()), v6: Some(DEVICES[1].to_owned()) },
        links: PerFamily::default(),
        subnets: PerFamily {
            v4: Some("10.1.16.0/20".parse().unwrap()),
            v6: Some("fd00:1:16::/61".parse().unwrap()),
        },
    }
}

/// A gate that runs.
struct Bed {
    desk: Desk,
    table: LeaseTable,
    status: watch::Receiver<GateStatus>,
    events: NetworkEvents,
    cancel: CancellationToken,
    task: tokio::task::JoinHandle<()>,
}

impl Bed {
    async fn new(mode: Mode, allow_from: &[&str]) -> Self {
        let allow_from = allow_from.iter().map(|it| it.parse().unwrap()).collect();
        let (gate, desk) =
            Gate::open(&Netns::current().unwrap(), GateOptions { mode, allow_from }).await.unwrap();
        let (cancel, status) = (CancellationToken::new(), desk.status());
        desk.tunnels(Some(tunnels()));
        let events = NetworkEventSender::default();
        let task = tokio::spawn(gate.run(events.clone(), cancel.clone()));
        Self { desk, table: LeaseTable::default(), status, events: events.subscribe(), cancel, task }
    }

    /// What happened until now.
    fn told(&mut self) -> Vec<NetworkEvent> {
        std::iter::from_fn(|| self.events.recv().now_or_never().flatten()).collect()
    }

    fn say(&mut self, update: LeaseUpdate) {
        let changes = self.table.apply(update);
        self.desk.leases(&changes, self.table.is_synced(), false);
    }

    async fn tell(&mut self, update: LeaseUpdate) {
        self.say(update);
        let number = self.desk.shared.known().number;
        self.desk.done.wait_for(|done| *done >= number).await.unwrap();
    }

    async fn snapshot(&mut self, leases: Vec<Lease>) {
        self.tell(LeaseUpdate::Snapshot { leases, unreadable: UnreadableRecords::default() }).await;
    }

    async fn until(&mut self, what: impl Fn(&GateStatus) -> bool) -> GateStatus {
        let met = self.status.wait_for(what);
        tokio::time::timeout(patiently(Duration::from_secs(30)), met).await.expect("in time").unwrap().clone()
    }

    async fn end(self) {
        self.cancel.cancel();
        self.task.await.unwrap();
    }
}

async fn nodes() -> Vec<String> {
    let mut tables = NfTables::open().unwrap();
    let elements = tables.elements(TableFamily::Inet, &table_name(vni()), "nodes4").await.unwrap();
    let mut list: Vec<String> = elements.iter().map(|it| it.addr.to_string()).collect();
    list.sort();
    list
}

fn in_kernel<F: Future<Output = ()>>(test: &str, body: impl FnOnce() -> F) {
    in_sandbox(test, || {
        for device in DEVICES {
            plug(device);
        }
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(body());
    });
}

/// Whether what is sent from one of our addresses with a VNI arrives.
fn arrives(from: &str, vni: u8) -> bool {
    let ear = UdpSocket::bind("192.0.2.1:8472").unwrap();
    ear.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    let mouth = UdpSocket::bind((from, 0)).unwrap();
    mouth.send_to(&[8, 0, 0, 0, 0, 0, vni, 0, 1, 2, 3, 4], "192.0.2.1:8472").unwrap();
    ear.recv_from(&mut [0; 64]).is_ok()
}

fn give_addresses(addrs: &[&str]) {
    for addr in addrs {
        run("ip", &format!("address add {addr}/32 dev lo"));
    }
}

#[test]
fn nft_shows_the_table_as_it_is_meant() {
    in_kernel(test_name!(), || async {
        let mut bed = Bed::new(Mode::Enforce, &["198.51.100.0/25", "2001:db8::/32"]).await;
        bed.snapshot(vec![lease(1, "192.0.2.1")]).await;
        let listing = listing();
        for line in [
            "type filter hook input priority -200; policy accept;",
            "type filter hook ingress device \"flannel.7\" priority filter; policy accept;",
            "type filter hook ingress device \"flannel-v6.7\" priority filter; policy accept;",
            "meta nfproto ipv4 udp dport 8472 @th,96,24 0x7 jump tunnel4",
            "meta nfproto ipv6 udp dport 8472 @th,96,24 0x7 jump tunnel6",
            "elements = { 192.0.2.1 }",
            "udp dport 8472 ip saddr @nodes4 return",
            "udp dport 8472 ip6 saddr @nodes6 return",
            "ip saddr 198.51.100.0/25 return",
            "ip6 saddr 2001:db8::/32 return",
            "meta nfproto ipv4 counter packets 0 bytes 0 update @strangers4 { ip saddr counter }",
            "jump overlay",
            "ip daddr 10.1.16.0/20 return",
            "fib daddr type != unicast return",
            "update @strays4 { ip saddr . ip daddr counter }",
        ] {
            assert!(listing.contains(line), "{line} in {listing}");
        }
        assert_eq!(listing.matches("drop comment").count(), 4, "{listing}");
        bed.end().await;
        assert_eq!(self::listing(), listing, "it stays");
        run("nft", "add table inet flannel-underlay-x");
        assert_eq!(present(&Netns::current().unwrap()).await.unwrap(), [vni()]);
        remove(&Netns::current().unwrap(), vni()).await.unwrap();
        assert_eq!(present(&Netns::current().unwrap()).await.unwrap(), []);
        remove(&Netns::current().unwrap(), vni()).await.unwrap();
    });
}

#[test]
fn tables_of_an_earlier_run_need_no_trial() {
    in_kernel(test_name!(), || async {
        let netns = Netns::current().unwrap();
        let open = || async { Gate::open(&netns, GateOptions::default()).await.unwrap() };
        let mut tables = NfTables::open().unwrap();
        let first = tables.generation().await.unwrap();
        open().await;
        let tried = tables.generation().await.unwrap();
        assert_ne!(tried, first, "the kernel was asked");
        let mut bed = Bed::new(Mode::Observe, &[]).await;
        bed.snapshot(vec![lease(1, "192.0.2.1")]).await;
        bed.end().await;
        let made = tables.generation().await.unwrap();
        open().await;
        assert_eq!(tables.generation().await.unwrap(), made, "nothing was changed");
        run("nft", "flush table netdev flannel-underlay-7");
        let flushed = tables.generation().await.unwrap();
        open().await;
        assert_ne!(tables.generation().await.unwrap(), flushed, "a table without rules shows nothing");
    });
}

#[test]
fn one_lease_costs_one_element() {
    in_kernel(test_name!(), || async {
        let mut bed = Bed::new(Mode::Enforce, &[]).await;
        bed.snapshot((1..=200).map(|node| lease(node, &format!("192.0.2.{node}"))).collect()).await;
        assert_eq!(nodes().await.len(), 200);
        let mut events = TableEvents::open().unwrap();
        bed.tell(LeaseUpdate::Put(lease(201, "192.0.2.201"))).await;
        bed.tell(LeaseUpdate::Removed("10.1.201.0-24".to_owned())).await;
        // Nobody else is left out: what we did is announced like all else.
        let name = table_name(vni());
        let heard = events.next(&name, &["nodes4", "nodes6"], 0).await;
        assert!(heard.elements && !heard.structure, "rules and sets stay as they are");
        let second = events.next(&name, &["nodes4", "nodes6"], 0).await;
        assert!(second.elements && !second.structure);
        let more = events.next(&name, &["nodes4", "nodes6"], 0);
        assert!(
            tokio::time::timeout(Duration::from_millis(50), more).await.is_err(),
            "two changes, two events"
        );
        assert_eq!(nodes().await.len(), 200);
        bed.end().await;
    });
}

#[test]
fn nobody_is_kept_out_before_the_snapshot() {
    in_kernel(test_name!(), || async {
        give_addresses(&["192.0.2.1", "192.0.2.2", "192.0.2.9"]);
        let mut bed = Bed::new(Mode::Enforce, &[]).await;
        bed.tell(LeaseUpdate::Recalled { leases: vec![lease(2, "192.0.2.2")], saved: 1 }).await;
        assert!(arrives("192.0.2.9", 7) && arrives("192.0.2.2", 7), "known and unknown alike");
        assert_eq!(bed.status.borrow().in_force, None);
        bed.snapshot(vec![lease(2, "192.0.2.2")]).await;
        bed.until(|it| it.in_force == Some(Mode::Enforce)).await;
        assert!(arrives("192.0.2.2", 7), "a node");
        assert!(!arrives("192.0.2.9", 7), "a stranger");
        assert!(arrives("192.0.2.9", 8), "a VNI that is none of ours");
        bed.end().await;

        // A restart without a store keeps rules and nodes in place, and lets nobody new out.
        let mut bed = Bed::new(Mode::Enforce, &[]).await;
        bed.tell(LeaseUpdate::Recalled { leases: vec![lease(3, "192.0.2.3")], saved: 1 }).await;
        bed.until(|it| it.in_force == Some(Mode::Enforce)).await;
        assert!(arrives("192.0.2.2", 7) && !arrives("192.0.2.9", 7));
        assert_eq!(nodes().await, ["192.0.2.2", "192.0.2.3"]);
        bed.snapshot(vec![lease(3, "192.0.2.3")]).await;
        assert_eq!(nodes().await, ["192.0.2.3"]);
        bed.end().await;

        // Rules of another version, or for another subnet, keep nobody out until the store has listed all.
        let text = "add rule inet flannel-underlay-7 tunnel4 drop comment \"of another version\"";
        run("nft", text);
        let mut bed = Bed::new(Mode::Enforce, &[]).await;
        bed.until(|it| it.in_force == Some(Mode::Observe)).await;
        assert!(arrives("192.0.2.9", 7));
        bed.snapshot(vec![lease(3, "192.0.2.3")]).await;
        bed.until(|it| it.in_force == Some(Mode::Enforce)).await;
        assert!(!arrives("192.0.2.9", 7));
        bed.end().await;

        // Less is done at once, without waiting for a store.
        let mut bed = Bed::new(Mode::Observe, &[]).await;
        bed.until(|it| it.in_force == Some(Mode::Observe)).await;
        assert!(arrives("192.0.2.9", 7));
        bed.end().await;
        let mut bed = Bed::new(Mode::Off, &[]).await;
        bed.until(|it| it.in_force == Some(Mode::Off)).await;
        assert_eq!(present(&Netns::current().unwrap()).await.unwrap(), []);
        bed.end().await;
    });
}

#[test]
fn strangers_are_counted_and_named_in_both_modes() {
    in_kernel(test_name!(), || async {
        give_addresses(&["192.0.2.1", "192.0.2.2", "192.0.2.3", "192.0.2.9", "198.51.100.7"]);
        for (mode, gets_in, fate) in [(Mode::Observe, true, "let in"), (Mode::Enforce, false, "dropped")] {
            let mut bed = Bed::new(mode, &["198.51.100.0/24"]).await;
            bed.snapshot(vec![lease(2, "192.0.2.2")]).await;
            bed.until(|it| it.in_force == Some(mode)).await;
            assert_eq!(arrives("192.0.2.3", 7), gets_in, "it gets its lease in a moment");
            bed.tell(LeaseUpdate::Put(lease(3, "192.0.2.3"))).await;
            assert_eq!(arrives("192.0.2.9", 7), gets_in);
            assert_eq!(arrives("192.0.2.9", 7), gets_in);
            assert!(arrives("192.0.2.2", 7) && arrives("198.51.100.7", 7), "a node, and one that is allowed");
            let status = bed.until(|it| !it.strangers.is_empty()).await;
            assert_eq!(status.strangers.len(), 1, "{status:?}");
            let line = &status.strangers[0];
            let told = bed.told();
            let is_news = |it: &NetworkEvent| matches!(it, NetworkEvent::StrangersSeen { report } if report.contains("192.0.2.9"));
            assert_eq!(told.iter().filter(|event| is_news(event)).count(), 1, "{told:?}");
            assert!(line.starts_with("192.0.2.9 has no lease and sent 2 VXLAN packets"), "{line}");
            assert!(line.contains(fate) && line.contains("--vxlan-allow-from=192.0.2.9/32"), "{line}");
            // The one of the node that had no lease yet, too; and whoever asks again asks the kernel again.
            let counters = bed.desk.counters();
            assert_eq!(counters.read(), Some(GateReading::new(mode, 3, 0)));
            arrives("192.0.2.9", 7);
            assert_eq!(counters.read(), Some(GateReading::new(mode, 4, 0)));
            bed.end().await;
            remove(&Netns::current().unwrap(), vni()).await.unwrap();
            assert_eq!(counters.read(), Some(GateReading::new(mode, 0, 0)), "there is nothing that counts");
        }
    });
}

/// Rules of a version that did not count are replaced in place: nobody is let in or kept out meanwhile.
#[test]
fn rules_without_counters_get_them_in_place() {
    in_kernel(test_name!(), || async {
        give_addresses(&["192.0.2.1", "192.0.2.2", "192.0.2.9"]);
        let mut bed = Bed::new(Mode::Enforce, &[]).await;
        bed.snapshot(vec![lease(2, "192.0.2.2")]).await;
        bed.until(|it| it.in_force == Some(Mode::Enforce)).await;
        let whole = listing();
        bed.end().await;
        let rules = run("nft", "-a list chain inet flannel-underlay-7 tunnel4");
        let counting = rules.lines().find(|line| line.contains(" counter ")).unwrap();
        let handle = counting.rsplit(' ').next().unwrap();
        let older = "update @strangers4 { ip saddr counter } comment \"flannel: ipv4 note in @strangers4\"";
        run(
            "nft",
            &format!(
                "replace rule inet flannel-underlay-7 tunnel4 handle {handle} meta nfproto ipv4 {older}"
            ),
        );
        assert!(!arrives("192.0.2.9", 7), "it drops as before");

        let mut bed = Bed::new(Mode::Enforce, &[]).await;
        bed.snapshot(vec![lease(2, "192.0.2.2")]).await;
        bed.until(|it| it.in_force == Some(Mode::Enforce)).await;
        assert_eq!(bed.desk.counters().read(), Some(GateReading::new(Mode::Enforce, 0, 0)));
        assert!(!arrives("192.0.2.9", 7) && arrives("192.0.2.2", 7));
        assert_eq!(bed.desk.counters().read(), Some(GateReading::new(Mode::Enforce, 1, 0)));
        let repaired = |it: &NetworkEvent| matches!(it, NetworkEvent::GateRepaired { .. });
        assert!(!bed.told().iter().any(repaired), "nobody damaged anything");
        let same = listing().replace("counter packets 1 bytes 40", "counter packets 0 bytes 0");
        let of_set = |text: &str| {
            text.lines().filter(|line| !line.contains("elements = ")).collect::<Vec<_>>().join("\n")
        };
        assert_eq!(of_set(&same), of_set(&whole));
        bed.end().await;
    });
}

#[test]
fn what_others_take_away_comes_back() {
    in_kernel(test_name!(), || async {
        let mut bed = Bed::new(Mode::Enforce, &[]).await;
        bed.snapshot(vec![lease(1, "192.0.2.1"), lease(2, "192.0.2.2")]).await;
        bed.until(|it| it.in_force == Some(Mode::Enforce)).await;
        let whole = listing();
        let mut repairs = 0;
        // What is announced is there when `nft` ends, so that it comes before every limit of time.
        tokio::time::pause();
        for damage in [
            "flush ruleset",
            "delete table inet flannel-underlay-7",
            "flush set inet flannel-underlay-7 nodes4",
            "delete element inet flannel-underlay-7 nodes4 { 192.0.2.2 }",
            "flush chain inet flannel-underlay-7 tunnel4",
            "flush table inet flannel-underlay-7",
            "delete table netdev flannel-underlay-7",
            "flush chain netdev flannel-underlay-7 overlay",
            "flush chain netdev flannel-underlay-7 ingress6",
            "insert rule inet flannel-underlay-7 input accept",
            "add chain inet flannel-underlay-7 another",
            "add table inet flannel-underlay-7 { flags dormant ; }",
        ] {
            run("nft", damage);
            repairs += 1;
            bed.until(|it| it.repairs >= repairs && it.in_force == Some(Mode::Enforce)).await;
            assert_eq!(listing(), whole, "{damage}");
            repairs = bed.status.borrow().repairs;
        }
        let told = bed.told();
        assert_eq!(told[0], NetworkEvent::GateInForce { mode: Mode::Enforce });
        let announced = |it: &&NetworkEvent| matches!(it, NetworkEvent::GateRepaired { cause, .. } if *cause == RepairCause::Announced);
        assert_eq!(told.iter().filter(announced).count() as u64, repairs, "{told:?}");
        tokio::time::resume();
        // What is too much is taken away, and is no damage.
        run("nft", "add element inet flannel-underlay-7 nodes4 { 192.0.2.66 }");
        bed.tell(LeaseUpdate::Put(lease(3, "192.0.2.3"))).await;
        while nodes().await != ["192.0.2.1", "192.0.2.2", "192.0.2.3"] {
            tokio::task::yield_now().await;
        }
        // Tables of others are none of our business.
        run("nft", "add table inet flannel-underlay-71");
        bed.end().await;
        assert!(run("nft", "list tables").contains("flannel-underlay-71"));
    });
}

/// From 6.16 on the kernel hooks the chain to the new device itself; before that only we do.
#[test]
fn a_device_that_comes_back_is_looked_after_again() {
    in_kernel(test_name!(), || async {
        let mut bed = Bed::new(Mode::Enforce, &[]).await;
        bed.snapshot(vec![lease(1, "192.0.2.1")]).await;
        bed.until(|it| it.in_force == Some(Mode::Enforce)).await;
        let whole = listing();
        for device in DEVICES {
            run("ip", &format!("link del {device}"));
            // Nodes are let in while it is away.
            bed.say(LeaseUpdate::Put(lease(2, "192.0.2.2")));
            while nodes().await.len() != 2 {
                tokio::task::yield_now().await;
            }
            bed.say(LeaseUpdate::Removed("10.1.2.0-24".to_owned()));
            let index = plug(device);
            let links = PerFamily { v4: Some(index), v6: Some(index) };
            bed.desk.tunnels(Some(Tunnels { links, ..tunnels() }));
            let number = bed.desk.shared.known().number;
            bed.desk.done.wait_for(|done| *done >= number).await.unwrap();
            assert_eq!(listing(), whole, "{device}");
        }
        bed.end().await;
    });
}
