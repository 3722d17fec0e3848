//! Agents as they are shipped: an ordinary user with one capability, on a root that can't be written to.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use flannel_lab::cluster::{Cluster, Families};
use flannel_lab::ping::system_ping;
use flannel_lab::pod::Pod;
use flannel_lab::sandbox::in_sandbox_within;
use flannel_lab::test_name;
use flannel_lab::wait::eventually;

use crate::backends::{BackendCase, HOST_GW, UDP, VXLAN, WIREGUARD_USERSPACE};
use crate::harness::{Bed, FLANNELD, Folder, SOON, Traffic, env_of, full_payload, new_folder, subnet_file};

/// `nobody`, the user of the pods. Their group is root's, which may read what tables the legacy variant of iptables has.
const USER: u32 = 65534;

/// Bits of the sets in `/proc/<pid>/status`.
const NET_ADMIN: u64 = 1 << 12;
const NET_RAW: u64 = 1 << 13;

/// The lock of iptables' legacy variant.
const LOCK: &str = "/run/xtables.lock";

/// The agent where every user may execute it, as in `/usr/bin`.
const PROGRAM: &str = "/run/bin/flanneld";

/// Device node of a TUN as udev makes it: for all, since it is the capability that counts.
const TUN: &str = "/run/bin/tun";

/// Rules, and a look at them every second: changes of the legacy variant are announced by nobody.
const FLAGS: [&str; 2] = ["--ip-masq", "--iptables-resync=1"];

/// How the agent gets its capability.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum By {
    /// As the unit says: ambient, and nothing else can be had.
    Supervisor,
    /// As a pod has it: in the bounding set, and taken by what the program's file grants.
    File,
}

/// What keeps the rules: as the config says, and as others on the host do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rules {
    Nftables,
    IptablesNft,
    /// It needs a second capability, and leave to open the lock.
    IptablesLegacy,
}

impl Rules {
    /// The capabilities that it takes, as bits and as setpriv(1) writes them.
    fn capabilities(self) -> (u64, &'static str) {
        match self {
            Self::Nftables | Self::IptablesNft => (NET_ADMIN, "-all,+net_admin"),
            Self::IptablesLegacy => (NET_ADMIN | NET_RAW, "-all,+net_admin,+net_raw"),
        }
    }

    /// Commands that take the rules away and list them, and a word of them.
    fn commands(self) -> (String, String, &'static str) {
        let program = match self {
            Self::Nftables => {
                let [wipe, list] = ["delete", "list"].map(|verb| format!("nft {verb} table ip flannel-ipv4"));
                return (wipe, list, "masquerade");
            }
            Self::IptablesNft => "iptables-nft",
            Self::IptablesLegacy => "iptables-legacy",
        };
        let [wipe, list] = ["F", "S"].map(|verb| format!("{program} -w 5 -t nat -{verb} FLANNEL-POSTRTG"));
        (wipe, list, "MASQUERADE")
    }
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
fn launcher(by: By, case: &BackendCase, rules: Rules) -> Vec<String> {
    fs::create_dir_all(Path::new(PROGRAM).parent().unwrap()).unwrap();
    fs::copy(FLANNELD, PROGRAM).unwrap();
    fs::set_permissions(PROGRAM, fs::Permissions::from_mode(0o755)).unwrap();
    let mut script = vec!["mount --make-rprivate /".to_owned()];
    let mut user = String::new();
    if has_user() {
        // What a container and ProtectSystem=strict make of it: only /run is not.
        let read_only = ["mount -o remount,bind,ro /", "mount --bind /proc/sys /proc/sys"];
        script.extend(read_only.into_iter().chain(["mount -o remount,bind,ro /proc/sys"]).map(str::to_owned));
        user = format!("--reuid={USER} --regid=0 --clear-groups");
    }
    if !case.in_kernel && has_user() {
        if !Path::new(TUN).exists() {
            run("mknod", &["--mode=666", TUN, "c", "10", "200"]);
        }
        script.push(format!("mount --bind {TUN} /dev/net/tun"));
    }
    let (_, may) = rules.capabilities();
    let capabilities = match by {
        By::Supervisor => format!("--inh-caps={may} --ambient-caps={may} --no-new-privs"),
        By::File => "--inh-caps=-all --ambient-caps=-all".to_owned(),
    };
    if by == By::File {
        // As the Dockerfile does.
        run("setcap", &["cap_net_admin,cap_net_raw=p", PROGRAM]);
    }
    script.push(format!("exec setpriv {user} --bounding-set={may} {capabilities} \"$@\""));
    let script = script.join("\n");
    ["unshare", "--mount", "sh", "-ec", &script, "sh", PROGRAM].map(str::to_owned).to_vec()
}

/// Gives the agent's files to its user, as the unit's `RuntimeDirectory=` does, or opens them to its group, as the manifest's
/// init container does.
fn give_files(by: By, numbers: impl IntoIterator<Item = u8>) {
    if !has_user() {
        return;
    }
    for number in numbers {
        let folder = subnet_file(number).parent().unwrap().to_owned();
        fs::create_dir_all(&folder).unwrap();
        let folder = folder.to_str().unwrap();
        match by {
            By::Supervisor => run("chown", &["--recursive", &USER.to_string(), folder]),
            By::File => run("find", &[folder, "-user", "root", "-exec", "chmod", "g+rwX", "{}", "+"]),
        }
    }
    run("chown", &["--recursive", &USER.to_string(), "/run/flannel-store"]);
}

/// The sets of capabilities of an agent and the programs that it starts.
#[track_caller]
fn assert_unprivileged(bed: &Bed<Folder>, number: u8, by: By, rules: Rules) {
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
            assert_eq!(has, rules.capabilities().0, "{set}: {status}");
        }
    }
    assert_eq!(field("NoNewPrivs") == "1", by == By::Supervisor);
}

/// Both pods ping each other with packets that fill the MTU. The first ones may get lost, where a datapath or a neighbour
/// begins on a busy machine.
#[track_caller]
fn wait_until_both_reach(pods: &[Pod; 2], mtu: u32) {
    for (from, to) in [(0, 1), (1, 0)] {
        for dst in pods[to].addresses().iter().map(ipnetwork::IpNetwork::ip) {
            eventually(SOON, "full-size pings", || {
                let report = system_ping(pods[from].netns(), dst, full_payload(mtu, dst), 2).unwrap();
                if report.sent == report.received { Ok(()) } else { Err(report.output) }
            });
        }
    }
}

/// Two nodes with such agents, and a pod each: traffic, rules, repairs, a restart.
fn works(case: &'static BackendCase, rules: Rules, by: By) {
    let families = case.widest();
    let cluster = Cluster::builder().nodes(2).families(families).build().unwrap();
    let nftables = rules == Rules::Nftables;
    let config = case.config(families).replacen('{', &format!("{{\"EnableNFTables\":{nftables},"), 1);
    let mut bed = Bed::with_config(cluster, new_folder(), case, &config);
    bed.launcher = launcher(by, case, rules);
    give_files(by, [1, 2]);
    for number in [1, 2] {
        if rules == Rules::IptablesLegacy {
            // Others use it, so the agent should; and the lock is as they made it.
            let theirs = "iptables-legacy -w 5 -A FORWARD -s 192.0.2.0/24 -j ACCEPT";
            bed.netns(number).run("sh", &["-c", theirs]).unwrap();
            assert_eq!(fs::metadata(LOCK).unwrap().permissions().mode() & 0o777, 0o600);
        }
    }
    if rules == Rules::IptablesLegacy {
        // As the unit's drop-in and the manifest's init container do.
        run("chmod", &["g+r", LOCK]);
    }
    for number in [1, 2] {
        bed.spawn(number, &FLAGS);
    }
    for number in [1, 2] {
        bed.wait_ready(number);
        bed.wait_for_peers(number, 1);
        assert_unprivileged(&bed, number, by, rules);
    }
    let pods = [1, 2].map(|number| Pod::attach_plain(bed.cluster.node(number), &env_of(number)).unwrap());
    wait_until_both_reach(&pods, case.mtu(families, 1500));

    // Rules are there, and come back.
    let (wipe, list, sign) = rules.commands();
    let node = bed.netns(1);
    node.run("sh", &["-c", &wipe]).unwrap();
    eventually(SOON, "the rules to be back", || {
        node.run("sh", &["-c", &list]).is_ok_and(|rules| rules.contains(sign))
    });

    // The next start finds what this one left.
    let traffic = case.in_kernel.then(|| Traffic::between(&pods[0], &pods[1]));
    bed.kill(1);
    bed.spawn(1, &FLAGS);
    bed.wait_ready(1);
    if let Some(traffic) = traffic {
        traffic.go_on(50);
        traffic.assert_no_loss();
    }
    wait_until_both_reach(&pods, case.mtu(families, 1500));
    let log = bed.agent(1).log();
    for word in ["ermission denied", "not permitted", "Read-only", "CAP_NET_ADMIN"] {
        // The two that are of no use and nobody asked for have the level DEBUG, or no other way.
        let said: Vec<_> =
            log.lines().filter(|line| line.contains(word) && !line.contains("DEBUG")).collect();
        let icmp = |line: &&str| case.kind == "udp" && line.contains("no ICMP errors will be sent");
        assert!(said.iter().all(icmp), "{said:#?}");
    }
    let state = subnet_file(1).with_extension("env.state");
    assert_eq!(fs::metadata(state).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(fs::metadata(subnet_file(1)).unwrap().permissions().mode() & 0o777, 0o644);
}

macro_rules! rows {
    ($($name:ident: $case:ident, $rules:ident, $by:ident;)+) => {
        $(
            #[test]
            fn $name() {
                in_sandbox_within(Duration::from_mins(2), test_name!(), || works(&$case, Rules::$rules, By::$by));
            }
        )+
    };
}

rows! {
    vxlan_works_with_one_capability_and_nftables: VXLAN, Nftables, Supervisor;
    vxlan_works_with_one_capability_and_iptables: VXLAN, IptablesNft, Supervisor;
    vxlan_works_with_two_capabilities_and_legacy_iptables: VXLAN, IptablesLegacy, Supervisor;
    host_gw_works_with_one_capability_and_nftables: HOST_GW, Nftables, Supervisor;
    host_gw_works_with_one_capability_and_iptables: HOST_GW, IptablesNft, Supervisor;
    udp_works_with_one_capability_and_nftables: UDP, Nftables, Supervisor;
    udp_works_with_one_capability_and_iptables: UDP, IptablesNft, Supervisor;
    wireguard_works_in_user_space_with_one_capability: WIREGUARD_USERSPACE, Nftables, Supervisor;
    vxlan_works_in_a_pod_with_nftables: VXLAN, Nftables, File;
    vxlan_works_in_a_pod_with_iptables: VXLAN, IptablesNft, File;
    vxlan_works_in_a_pod_with_legacy_iptables: VXLAN, IptablesLegacy, File;
}

/// What root's agent left is taken over, as by an upgrade of package or manifest.
fn takes_over_from_root(by: By) {
    let cluster = Cluster::builder().nodes(2).families(Families::Dual).build().unwrap();
    let mut bed = Bed::new(cluster, new_folder(), &VXLAN, Families::Dual);
    bed.start_all();
    let pods = [1, 2].map(|number| Pod::attach_plain(bed.cluster.node(number), &env_of(number)).unwrap());
    let record = bed.record_of(1);
    let traffic = Traffic::between(&pods[0], &pods[1]);
    bed.stop(1);
    bed.launcher = launcher(by, &VXLAN, Rules::IptablesNft);
    give_files(by, [1]);
    bed.spawn(1, &[]);
    bed.wait_ready(1);
    assert_unprivileged(&bed, 1, by, Rules::IptablesNft);
    traffic.go_on(50);
    traffic.assert_no_loss();
    assert_eq!(bed.record_of(1), record);
    let log = bed.agent(1).log();
    for word in ["state file can't be used", "won't see that this agent runs", "ermission denied"] {
        assert!(!log.contains(word), "{log}");
    }
}

#[test]
fn a_unit_takes_over_from_root_without_loss() {
    in_sandbox_within(Duration::from_mins(2), test_name!(), || takes_over_from_root(By::Supervisor));
}

#[test]
fn a_pod_takes_over_from_root_without_loss() {
    in_sandbox_within(Duration::from_mins(2), test_name!(), || takes_over_from_root(By::File));
}
