//! What nftables takes: no program, a kernel that has it, and tables that nobody else has to himself.

use std::fs;
use std::io::Write;
use std::process::{Command, Stdio};
use std::time::Duration;

use flannel_lab::agent::Agent;
use flannel_lab::bed;
use flannel_lab::cluster::{Cluster, Families};
use flannel_lab::sandbox::in_sandbox_within;
use flannel_lab::test_name;
use flannel_lab::wait::eventually;

use super::{Manager, sh};
use crate::backends::VXLAN;
use crate::harness::{FLANNELD, Folder, SOON, Store, http_get, new_folder, subnet_file};

/// Runs a program for which the kernel has no netlink of netfilter (`NETLINK_NETFILTER`), by a filter of its system calls.
const WITHOUT_NETFILTER: &str = r#"
import ctypes, os, platform, struct, sys
SOCKET = {"x86_64": 41, "aarch64": 198}[platform.machine()]
AF_NETLINK, NETLINK_NETFILTER, EPROTONOSUPPORT = 16, 12, 93
load, equal, ret = 0x20, 0x15, 0x06
program = b"".join(struct.pack("HBBI", *step) for step in (
    (load, 0, 0, 0), (equal, 0, 5, SOCKET),
    (load, 0, 0, 16), (equal, 0, 3, AF_NETLINK),
    (load, 0, 0, 32), (equal, 0, 1, NETLINK_NETFILTER),
    (ret, 0, 0, 0x00050000 | EPROTONOSUPPORT), (ret, 0, 0, 0x7fff0000)))
held = ctypes.create_string_buffer(program)
prog = ctypes.create_string_buffer(struct.pack("HxxxxxxQ", len(program) // 8, ctypes.addressof(held)))
libc = ctypes.CDLL(None, use_errno=True)
if libc.prctl(22, 2, prog, 0, 0) != 0:
    sys.exit("no filter: %s" % os.strerror(ctypes.get_errno()))
os.execvp(sys.argv[1], sys.argv[1:])
"#;

/// One node whose agent is to masquerade by nftables.
fn node() -> (Cluster, Folder) {
    let cluster = Cluster::builder().nodes(1).families(Families::Dual).build().unwrap();
    let store = new_folder();
    store.put_config(&Manager::Nftables.config(&VXLAN)).unwrap();
    (cluster, store)
}

fn start(cluster: &Cluster, store: &Folder, program: &[&str]) -> Agent {
    let agent = bed::flanneld(cluster.node(1), program, store, &subnet_file(1));
    agent.args(["--iface=eth0", "--ip-masq"]).start().unwrap()
}

/// Waits until the agent is not ready and says this, in its log, too.
fn is_named(cluster: &Cluster, agent: &Agent, parts: &[&str]) {
    eventually(SOON, "what is missing to be named", || {
        let said = http_get(cluster.node(1).netns(), 8471, "/readyz");
        let is_said = |text: &str| parts.iter().all(|part| text.contains(part));
        let right = said.starts_with("HTTP/1.1 503") && is_said(&said) && is_said(&agent.log());
        if right { Ok(()) } else { Err(format!("{said}\n{}", agent.log())) }
    });
    assert!(!subnet_file(1).exists(), "pods would speak to the world under addresses of their own");
}

fn is_ready(cluster: &Cluster) {
    eventually(SOON, "the agent to be ready", || {
        let said = http_get(cluster.node(1).netns(), 8471, "/readyz");
        if said.starts_with("HTTP/1.1 200") { Ok(()) } else { Err(said) }
    });
    let rules = sh(cluster.node(1).netns(), "nft list table ip flannel-ipv4");
    assert!(rules.contains("masquerade fully-random"), "{rules}");
}

/// What is missing is named, and when it is there all goes on by itself.
#[test]
fn what_nftables_needs_and_this_agent_lacks_is_named() {
    in_sandbox_within(Duration::from_mins(2), test_name!(), || {
        let (cluster, store) = node();
        let script = "/run/without-netfilter.py";
        fs::write(script, WITHOUT_NETFILTER).unwrap();
        let agent = start(&cluster, &store, &["python3", script, FLANNELD]);
        is_named(&cluster, &agent, &["modprobe nf_tables", "EnableNFTables false"]);
        agent.terminate().unwrap();

        // As long as nft runs, it alone may change the table that it owns.
        let nft = cluster.node(1).netns().command("nft").arg("-i").stdin(Stdio::piped()).spawn();
        let mut owner = nft.unwrap();
        let mut stdin = owner.stdin.take().unwrap();
        writeln!(stdin, "add table ip flannel-ipv4 {{ flags owner; }}").unwrap();
        eventually(SOON, "the table", || {
            sh(cluster.node(1).netns(), "nft list tables").contains("flannel-ipv4")
        });
        let agent = start(&cluster, &store, &[FLANNELD]);
        is_named(&cluster, &agent, &["flags owner", "end that process"]);
        drop(stdin);
        owner.wait().unwrap();
        is_ready(&cluster);
        agent.terminate().unwrap();
    });
}

/// How many pages the processes touched that this one has run and waited for: 0 if it has run none.
fn faults_of_children(pid: u32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let (_, rest) = stat.rsplit_once(") ").unwrap();
    // `cminflt`, of which proc(5) counts the state as number 3.
    rest.split(' ').nth(11 - 3).unwrap().parse().unwrap()
}

/// From the start to the end no process is run, whatever happens to the rules.
#[test]
fn nftables_takes_no_program() {
    in_sandbox_within(Duration::from_mins(2), test_name!(), || {
        let (cluster, store) = node();
        let agent = start(&cluster, &store, &[FLANNELD]);
        is_ready(&cluster);
        sh(cluster.node(1).netns(), "nft flush ruleset");
        eventually(SOON, "a repair", || agent.log().contains("firewall rules repaired"));
        is_ready(&cluster);
        let file = format!("--subnet-file={}", subnet_file(1).display());
        let diff = Command::new(FLANNELD).args(["status", "--diff", &file]).output().unwrap();
        assert!(diff.status.success(), "{diff:?}");
        assert_eq!(faults_of_children(agent.pid()), 0, "{}", agent.log());
        assert!(faults_of_children(std::process::id()) > 0, "this process has run some, which shows");
    });
}
