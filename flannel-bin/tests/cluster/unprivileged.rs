//! Agents as they are shipped: an ordinary user with one capability, on a root that can't be written to.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use flannel_lab::cluster::{Cluster, Families};
use flannel_lab::pod::Pod;
use flannel_lab::sandbox::in_sandbox_within;
use flannel_lab::test_name;
use flannel_lab::wait::eventually;

use crate::backends::{BackendCase, HOST_GW, UDP, VXLAN};
use crate::harness::{Bed, FLANNELD, LocalFolder, SOON, Traffic, assert_all_reach_all, env_of, subnet_file};

/// `nobody`, the user of the pods.
const USER: u32 = 65534;

/// Bit 12 of the sets in `/proc/<pid>/status`.
const NET_ADMIN: u64 = 1 << 12;

/// The agent where every user may execute it, as in `/usr/bin`.
const PROGRAM: &str = "/run/bin/flanneld";

/// Device node of a TUN as udev makes it: for all, since it is the capability that counts.
const TUN: &str = "/run/bin/tun";

/// How the agent gets its capability.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum By {
    /// As the unit says: ambient, and nothing else can be had.
    Supervisor,
    /// As a pod has it: in the bounding set, and taken by what the program's file grants.
    File,
}

/// Whether this sandbox has the user. One that an ordinary user made has root alone; then the agent is that, with the
/// same capability and no other.
fn has_user() -> bool {
    let map = fs::read_to_string("/proc/self/uid_map").unwrap();
    map.lines().any(|line| {
        let numbers: Vec<u64> = line.split_whitespace().map(|number| number.parse().unwrap()).collect();
        (numbers[0]..numbers[0] + numbers[2]).contains(&u64::from(USER))
    })
}

fn run(program: &str, args: &[&str]) {
    let output = Command::new(program).args(args).output().unwrap();
    assert!(output.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// What starts the agent.
fn launcher(by: By, case: &BackendCase) -> Vec<String> {
    fs::create_dir_all(Path::new(PROGRAM).parent().unwrap()).unwrap();
    fs::copy(FLANNELD, PROGRAM).unwrap();
    fs::set_permissions(PROGRAM, fs::Permissions::from_mode(0o755)).unwrap();
    let mut script = String::from("mount --make-rprivate /\n");
    let mut user = String::new();
    if has_user() {
        // What a container and ProtectSystem=strict make of it: only /run is not.
        script += "mount -o remount,bind,ro /\n";
        script += "mount --bind /proc/sys /proc/sys\nmount -o remount,bind,ro /proc/sys\n";
        user = format!("--reuid={USER} --regid={USER} --clear-groups");
    }
    if case.kind == "udp" && has_user() {
        if !Path::new(TUN).exists() {
            run("mknod", &["--mode=666", TUN, "c", "10", "200"]);
        }
        script += &format!("mount --bind {TUN} /dev/net/tun\n");
    }
    let capabilities = match by {
        By::Supervisor => "--inh-caps=-all,+net_admin --ambient-caps=-all,+net_admin --no-new-privs",
        By::File => "--inh-caps=-all --ambient-caps=-all",
    };
    if by == By::File {
        // As the Dockerfile does.
        run("setcap", &["cap_net_admin,cap_net_raw=p", PROGRAM]);
    }
    script += &format!("exec setpriv {user} --bounding-set=-all,+net_admin {capabilities} \"$@\"");
    ["unshare", "--mount", "sh", "-ec", &script, "sh", PROGRAM].map(str::to_owned).to_vec()
}

/// Gives the agent's files to its user, as the unit's RuntimeDirectory= and the manifest's init container do.
fn give_files(numbers: impl IntoIterator<Item = u8>) {
    if !has_user() {
        return;
    }
    let folders = numbers.into_iter().map(|number| subnet_file(number).parent().unwrap().to_owned());
    for folder in folders.chain(["/run/flannel-store".into()]) {
        fs::create_dir_all(&folder).unwrap();
        run("chown", &["--recursive", &format!("{USER}:{USER}"), folder.to_str().unwrap()]);
    }
}

/// The sets of capabilities of an agent and the programs that it starts.
#[track_caller]
fn assert_unprivileged(bed: &Bed<LocalFolder>, number: u8, by: By) {
    let status = fs::read_to_string(format!("/proc/{}/status", bed.agent(number).pid())).unwrap();
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.trim_start_matches(':').trim().to_owned()
    };
    let want = if has_user() { USER } else { 0 };
    assert_eq!(field("Uid"), [want; 4].map(|uid| uid.to_string()).join("\t"));
    for set in ["CapEff", "CapPrm", "CapBnd", "CapAmb", "CapInh"] {
        let has = u64::from_str_radix(&field(set), 16).unwrap();
        // Root needs no ambient set: it has all of its bounding set.
        if has_user() || !matches!(set, "CapAmb" | "CapInh") {
            assert_eq!(has, NET_ADMIN, "{set}: {status}");
        }
    }
    assert_eq!(field("NoNewPrivs") == "1", by == By::Supervisor);
}

/// Two nodes with such agents, and a pod each: traffic, rules, repairs, a restart.
fn works(case: &'static BackendCase, nftables: bool, by: By) {
    let families = case.widest();
    let cluster = Cluster::builder().nodes(2).families(families).build().unwrap();
    let config = case.config(families).replacen('{', &format!("{{\"EnableNFTables\":{nftables},"), 1);
    let mut bed = Bed::with_config(cluster, LocalFolder::new(), case, &config);
    bed.launcher = launcher(by, case);
    give_files([1, 2]);
    for number in [1, 2] {
        bed.spawn(number, &["--ip-masq"]);
    }
    for number in [1, 2] {
        bed.wait_ready(number);
        bed.wait_for_peers(number, 1);
        assert_unprivileged(&bed, number, by);
    }
    let pods = [1, 2].map(|number| Pod::attach_plain(bed.cluster.node(number), &env_of(number)).unwrap());
    assert_all_reach_all(&pods, case.mtu(families, 1500));

    // Rules are there, and come back.
    let (wipe, list, sign) = if nftables {
        ("nft delete table ip flannel-ipv4", "nft list table ip flannel-ipv4", "masquerade")
    } else {
        ("iptables-nft -t nat -F FLANNEL-POSTRTG", "iptables-nft -t nat -S FLANNEL-POSTRTG", "MASQUERADE")
    };
    let node = bed.netns(1);
    node.run("sh", &["-c", wipe]).unwrap();
    eventually(SOON, "the rules to be back", || {
        node.run("sh", &["-c", list]).is_ok_and(|rules| rules.contains(sign))
    });

    // The next start finds what this one left.
    let traffic = case.in_kernel.then(|| Traffic::between(&pods[0], &pods[1]));
    bed.kill(1);
    bed.spawn(1, &["--ip-masq"]);
    bed.wait_ready(1);
    if let Some(traffic) = traffic {
        traffic.go_on(50);
        traffic.assert_no_loss();
    }
    assert_all_reach_all(&pods, case.mtu(families, 1500));
    let log = bed.agent(1).log();
    for word in ["ermission denied", "not permitted", "Read-only", "CAP_NET_ADMIN"] {
        // The two that are of no use and nobody asked for have the level DEBUG, or no other way.
        let said: Vec<_> =
            log.lines().filter(|line| line.contains(word) && !line.contains("DEBUG")).collect();
        let icmp = |line: &&str| case.kind == "udp" && line.contains("no ICMP errors are sent");
        assert!(said.iter().all(icmp), "{said:#?}");
    }
    let state = subnet_file(1).with_extension("env.state");
    assert_eq!(fs::metadata(state).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(fs::metadata(subnet_file(1)).unwrap().permissions().mode() & 0o777, 0o644);
}

macro_rules! rows {
    ($($name:ident: $case:ident, $nftables:literal, $by:ident;)+) => {
        $(
            #[test]
            fn $name() {
                in_sandbox_within(Duration::from_mins(2), test_name!(), || works(&$case, $nftables, By::$by));
            }
        )+
    };
}

rows! {
    vxlan_works_with_one_capability_and_nftables: VXLAN, true, Supervisor;
    vxlan_works_with_one_capability_and_iptables: VXLAN, false, Supervisor;
    host_gw_works_with_one_capability_and_nftables: HOST_GW, true, Supervisor;
    host_gw_works_with_one_capability_and_iptables: HOST_GW, false, Supervisor;
    udp_works_with_one_capability_and_nftables: UDP, true, Supervisor;
    udp_works_with_one_capability_and_iptables: UDP, false, Supervisor;
    vxlan_works_in_a_pod_with_nftables: VXLAN, true, File;
    vxlan_works_in_a_pod_with_iptables: VXLAN, false, File;
}

/// What a root's agent left is taken over, as by an upgrade of package or manifest.
#[test]
fn a_node_of_root_is_taken_over_without_loss() {
    in_sandbox_within(Duration::from_mins(2), test_name!(), || {
        let cluster = Cluster::builder().nodes(2).families(Families::Dual).build().unwrap();
        let mut bed = Bed::new(cluster, LocalFolder::new(), &VXLAN, Families::Dual);
        bed.start_all();
        let pods = [1, 2].map(|number| Pod::attach_plain(bed.cluster.node(number), &env_of(number)).unwrap());
        let record = bed.record_of(1);
        let traffic = Traffic::between(&pods[0], &pods[1]);
        bed.stop(1);
        bed.launcher = launcher(By::Supervisor, &VXLAN);
        give_files([1]);
        // The other agent is root still, which owns nothing here that it could not write.
        bed.spawn(1, &[]);
        bed.wait_ready(1);
        assert_unprivileged(&bed, 1, By::Supervisor);
        traffic.go_on(50);
        traffic.assert_no_loss();
        assert_eq!(bed.record_of(1), record);
        let log = bed.agent(1).log();
        assert!(!log.contains("state file can't be used"), "{log}");
    });
}
