//! What changes in the sets, without a kernel.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use tokio::sync::watch;

use super::super::desk::{Desk, Moves, Shared};
use super::super::{Gate, GateCounters, GateOptions, GateStatus, Mode};
use crate::addr::PerFamily;
use crate::kernel::KernelError;
use crate::lease::{Lease, LeaseTable, LeaseUpdate, UnreadableRecords};

fn desk() -> Desk {
    let (done, status) = (watch::Sender::new(0), watch::Sender::new(GateStatus::default()));
    let (done, status) = (done.subscribe(), status.subscribe());
    Desk { mode: Mode::Enforce, shared: Arc::default(), done, status, counters: GateCounters::default() }
}

pub(super) fn lease(node: u8, public_ip: &str) -> Lease {
    let value = format!(
        r#"{{"PublicIP":"{public_ip}","BackendType":"vxlan","BackendData":{{"VNI":1,"VtepMAC":"0a:00:00:00:00:{node:02x}"}}}}"#
    );
    Lease::decode(&format!("10.1.{node}.0-24"), value.as_bytes(), 1).unwrap()
}

/// A kernel without `nf_tables` ends no agent that was not told to enforce anything.
#[test]
fn without_nf_tables_only_enforce_is_refused() {
    let lacking = || KernelError::Refused {
        what: "read tables".to_owned(),
        errno: std::io::Error::from_raw_os_error(libc::EINVAL),
        reason: String::new(),
    };
    let with = |mode| Gate::with(GateOptions { mode, ..GateOptions::default() }, Err(lacking()));
    assert!(with(Mode::Enforce).is_err());
    let status = |mode| with(mode).unwrap().1.status().borrow().clone();
    assert_eq!(status(Mode::Off).problem, None);
    let problem = status(Mode::Observe).problem.unwrap();
    assert!(problem.contains("a kernel with nf_tables (`modprobe"), "{problem}");
}

#[tokio::test(start_paused = true)]
async fn the_loop_waits_for_the_gate_a_moment_at_most() {
    let (done, status) = (watch::Sender::new(0), watch::Sender::new(GateStatus::default()));
    let (shared, mut table) = (Arc::<Shared>::default(), LeaseTable::default());
    let counters = GateCounters::default();
    let (mode, told, shown) = (Mode::Enforce, done.subscribe(), status.subscribe());
    let mut desk = Desk { mode, shared, done: told, status: shown, counters };
    desk.leases(&table.apply(LeaseUpdate::Put(lease(1, "192.0.2.1"))), true, false);
    let begin = tokio::time::Instant::now();
    desk.admitted().await;
    assert_eq!(begin.elapsed(), Duration::from_millis(50));
    done.send_replace(desk.shared.known().number);
    desk.admitted().await;
    assert_eq!(begin.elapsed(), Duration::from_millis(50), "what is done is not waited for");
    desk.leases(&table.apply(LeaseUpdate::Put(lease(2, "192.0.2.2"))), true, false);
    status.send_modify(|status| status.problem = Some("no right".to_owned()));
    desk.admitted().await;
    assert_eq!(begin.elapsed(), Duration::from_millis(50), "routes matter more than a gate that fails");
    status.send_modify(|status| (status.problem, status.in_force) = (None, Some(Mode::Observe)));
    desk.admitted().await;
    assert_eq!(begin.elapsed(), Duration::from_millis(100), "it is about to keep strangers out");
    desk.mode = Mode::Observe;
    desk.admitted().await;
    assert_eq!(begin.elapsed(), Duration::from_millis(100), "nobody is kept out");
    status.send_modify(|status| status.in_force = None);
    desk.admitted().await;
    assert_eq!(begin.elapsed(), Duration::from_millis(150), "an earlier run may keep some out");
}

fn v4() -> PerFamily<String> {
    PerFamily { v4: Some("flannel.1".to_owned()), v6: None }
}

fn addrs(list: &[&str]) -> BTreeSet<IpAddr> {
    list.iter().map(|addr| addr.parse().unwrap()).collect()
}

fn moves(desk: &Desk, there: &[&str], all: bool) -> (BTreeSet<IpAddr>, BTreeSet<IpAddr>) {
    let Moves { add, delete, .. } = desk.shared.known().moves(&addrs(there), all, &v4());
    (add.into_iter().collect(), delete.into_iter().collect())
}

#[test]
fn nothing_goes_before_the_snapshot_nor_while_a_record_is_unknown() {
    let (desk, mut table) = (desk(), LeaseTable::default());
    let put = LeaseUpdate::Recalled { leases: vec![lease(1, "192.0.2.1")], saved: 1 };
    desk.leases(&table.apply(put), false, false);
    let there = ["192.0.2.9"];
    assert_eq!(moves(&desk, &there, true), (addrs(&["192.0.2.1"]), addrs(&[])), "no snapshot yet");
    let listed = LeaseUpdate::Snapshot {
        leases: vec![lease(1, "192.0.2.1")],
        unreadable: UnreadableRecords::default(),
    };
    let changes = table.apply(listed);
    desk.leases(&changes, true, true);
    assert_eq!(moves(&desk, &there, true).1, addrs(&[]), "a record is unknown");
    desk.leases(&[], true, false);
    assert_eq!(moves(&desk, &there, true).1, addrs(&["192.0.2.9"]));
    assert_eq!(moves(&desk, &there, false).1, addrs(&[]), "what did not change is not looked at");
}

#[test]
fn a_lease_that_is_gone_is_kept_out_whatever_else_is_unknown() {
    let (desk, mut table) = (desk(), LeaseTable::default());
    let leases = vec![lease(1, "192.0.2.1"), lease(2, "192.0.2.2")];
    let changes = table.apply(LeaseUpdate::Snapshot { leases, unreadable: UnreadableRecords::default() });
    desk.leases(&changes, true, true);
    let there = ["192.0.2.1", "192.0.2.2"];
    assert_eq!(moves(&desk, &[], false).0, addrs(&there));
    desk.leases(&table.apply(LeaseUpdate::Removed("10.1.2.0-24".to_owned())), true, true);
    assert_eq!(moves(&desk, &there, false), (addrs(&[]), addrs(&["192.0.2.2"])));
}

#[test]
fn an_address_that_two_leases_have_goes_with_the_last() {
    let (desk, mut table) = (desk(), LeaseTable::default());
    for node in [1, 2] {
        desk.leases(&table.apply(LeaseUpdate::Put(lease(node, "192.0.2.1"))), true, false);
    }
    let there = ["192.0.2.1"];
    moves(&desk, &[], false);
    desk.leases(&table.apply(LeaseUpdate::Removed("10.1.1.0-24".to_owned())), true, false);
    assert_eq!(moves(&desk, &there, false).1, addrs(&[]));
    // It moves, and never goes in between.
    desk.leases(&table.apply(LeaseUpdate::Put(lease(2, "192.0.2.7"))), true, false);
    assert_eq!(moves(&desk, &there, false), (addrs(&["192.0.2.7"]), addrs(&there)));
}

proptest! {
    /// Whatever comes, what the changes lead to is what the leases publish.
    #[test]
    fn the_changes_lead_to_what_is_published(steps in prop::collection::vec((1..5_u8, 0..4_u8, any::<bool>()), 1..60)) {
        let (desk, mut table, mut there) = (desk(), LeaseTable::default(), BTreeSet::new());
        for (node, addr, resync) in steps {
            let update = match addr {
                0 => LeaseUpdate::Removed(format!("10.1.{node}.0-24")),
                addr => LeaseUpdate::Put(lease(node, &format!("192.0.2.{addr}"))),
            };
            desk.leases(&table.apply(update), true, false);
            let Moves { add, delete, .. } = desk.shared.known().moves(&there, resync, &v4());
            there.extend(add);
            for addr in delete {
                prop_assert!(there.remove(&addr), "it is there");
            }
            let published = table.iter().filter_map(|it| it.attrs.public_ips.v4).collect::<BTreeSet<_>>();
            prop_assert_eq!(&there, &published);
        }
    }
}
