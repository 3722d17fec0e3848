//! How many instructions the hot functions of the library take, against what they took when `instructions.txt` was
//! written: a change that makes one of them dearer by more than a tenth has to say so in that file.
//!
//! They are counted by valgrind in the build that tests use, so nothing else is compiled, and the machine's load does not
//! matter. It is no measure of speed: that is what the benches are for. A count belongs to one compiler and one architecture;
//! with another one the test says that it compared nothing.
//!
//! `INSTRUCTIONS=write cargo test --workspace --all-features --test instructions` writes the file anew.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::hint::black_box;
use std::path::{Path, PathBuf};
use std::process::Command;

use flannel_benches::leases;
use flannel_core::addr::{LinkIndex, MacAddr};
use flannel_core::dataplane::{Dataplane, FdbEntry, Neighbour, Object, Route, plan};
use flannel_core::lease::{Lease, LeaseTable, LeaseUpdate};
use flannel_core::testing::fuzz;

/// Names what is counted in this process, which runs below valgrind.
const ALONE: &str = "INSTRUCTIONS_ALONE";
/// By how much a count may differ, in percent.
const TOLERANCE: f64 = 10.0;
/// How many peers there are.
const PEERS: u32 = 500;

/// What is counted, by its name: a function that sets it up.
type Work = (&'static str, fn() -> Box<dyn FnMut()>);

const WORKS: [Work; 7] = [
    ("decode 500 lease records", || {
        let records: Vec<_> = (0..PEERS).map(record).collect();
        Box::new(move || {
            for (key, value) in &records {
                _ = black_box(Lease::decode(key, value, 7));
            }
        })
    }),
    ("lease table: 500 listed, each written again, half of them removed", || {
        let all: Vec<_> = (0..PEERS).map(lease).collect();
        Box::new(move || {
            let mut table = LeaseTable::default();
            table.apply(LeaseUpdate::Snapshot { leases: all.clone(), unreadable: Vec::new().into() });
            for lease in &all {
                black_box(table.apply(LeaseUpdate::Put(lease.clone())));
            }
            for n in 0..PEERS / 2 {
                black_box(table.apply(LeaseUpdate::Removed(leases::key(n))));
            }
        })
    }),
    ("plan: 500 peers, nothing there", || {
        let (want, have) = (objects(0), Dataplane::default());
        Box::new(move || assert_eq!(black_box(plan(&want, &have)).len(), want.len()))
    }),
    ("plan: 500 peers, all there but one", || {
        let (want, have) = (objects(0), objects(1));
        Box::new(move || assert_eq!(black_box(plan(&want, &have)).len(), want.len() - have.len()))
    }),
    ("netlink: decode and encode", || seeds("flannel-core/fuzz/seeds/netlink", fuzz::netlink)),
    ("nftables: decode, recognise and encode rules", || seeds("flannel-core/fuzz/seeds/nft", fuzz::nft)),
    ("udp: packets and datagrams", || {
        seeds("flannel-backend-udp/fuzz/seeds/packet_path", flannel_backend_udp::testing::packet_path)
    }),
];

fn record(n: u32) -> (String, Vec<u8>) {
    (leases::key(n), leases::value("vxlan", n).into_bytes())
}

fn lease(n: u32) -> Lease {
    let (key, value) = record(n);
    Lease::decode(&key, &value, u64::from(n)).unwrap()
}

/// The objects of all peers but the first `without`.
fn objects(without: u32) -> Dataplane {
    let link = LinkIndex(7);
    let mut objects = Dataplane::default();
    for n in without..PEERS {
        let (addr, mac): (_, MacAddr) = (leases::base(n).parse().unwrap(), leases::mac(n).parse().unwrap());
        let subnet = leases::subnet(n).parse().unwrap();
        let dst = leases::underlay("vxlan", n).parse().unwrap();
        objects.insert(Object::Route(Route::by_node(subnet, addr, link)));
        objects.insert(Object::Neighbour(Neighbour { link, addr, mac }));
        objects.insert(Object::Fdb(FdbEntry { link, mac, dst, port: None, vni: None, via: None }));
    }
    objects
}

/// Gives a function each file of a folder, in the order of their names.
fn seeds(folder: &str, take: fn(&[u8])) -> Box<dyn FnMut()> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(folder);
    let mut files: Vec<PathBuf> = fs::read_dir(folder).unwrap().map(|file| file.unwrap().path()).collect();
    files.sort();
    assert!(!files.is_empty());
    let files: Vec<_> = files.into_iter().map(|file| fs::read(file).unwrap()).collect();
    Box::new(move || files.iter().for_each(|data| take(black_box(data))))
}

/// Valgrind counts from here to the end of this function.
#[inline(never)]
fn counted_from_here(work: &mut dyn FnMut()) {
    work();
}

/// How many instructions a work takes.
fn count(name: &str) -> u64 {
    let mut valgrind = Command::new("valgrind");
    valgrind.args([
        "--tool=callgrind",
        "--callgrind-out-file=/dev/null",
        "--toggle-collect=*counted_from_here*",
    ]);
    valgrind.arg(std::env::current_exe().unwrap());
    valgrind.args(["--exact", "hot_functions_take_no_more_instructions"]).env(ALONE, name);
    let output = valgrind.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{name}: {said}");
    let count = said.lines().find_map(|line| line.split_once("Collected : "));
    let count = count.and_then(|(_, count)| count.trim().parse().ok());
    count.unwrap_or_else(|| panic!("{name}: no count in {said}"))
}

fn compiler() -> String {
    let output = Command::new("rustc").arg("--version").output().unwrap();
    format!("{} on {}", String::from_utf8_lossy(&output.stdout).trim(), std::env::consts::ARCH)
}

#[test]
fn hot_functions_take_no_more_instructions() {
    if let Ok(name) = std::env::var(ALONE) {
        let (_, set_up) = WORKS.iter().find(|(known, _)| *known == name).unwrap();
        return counted_from_here(&mut *set_up());
    }
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("instructions.txt");
    let known = fs::read_to_string(&file).unwrap_or_default();
    let mut lines = known.lines();
    let by = lines.next().unwrap_or_default();
    let writes = std::env::var("INSTRUCTIONS").as_deref() == Ok("write");
    if !writes && by != compiler() {
        println!("NOT COMPARED: the counts are by {by:?}, and this is {:?}", compiler());
        return;
    }
    let known: BTreeMap<&str, u64> =
        lines.filter_map(|line| line.split_once("  ")).map(|(n, name)| (name, n.parse().unwrap())).collect();
    let (mut now, mut wrong) = (compiler() + "\n", Vec::new());
    for (name, _) in WORKS {
        let count = count(name);
        writeln!(now, "{count}  {name}").unwrap();
        let Some(before) = known.get(name) else {
            wrong.push(format!("{name}: {count}, and nothing is known of before"));
            continue;
        };
        let change = (count as f64 / *before as f64 - 1.0) * 100.0;
        println!("{name}: {count}, {change:+.1} %");
        if change.abs() > TOLERANCE {
            wrong.push(format!("{name}: {before} before, {count} now, {change:+.1} %"));
        }
    }
    if writes {
        fs::write(file, now).unwrap();
        return;
    }
    assert!(wrong.is_empty(), "{wrong:#?}\nif that is meant, write instructions.txt anew");
}
