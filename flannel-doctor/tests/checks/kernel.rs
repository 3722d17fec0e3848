//! What the kernel can do, and what the agent may do.

use std::sync::Arc;

use flannel_core::netns::Netns;
use flannel_core::state_file::Device;
use flannel_doctor::Verdict::{Failure, Note, Warning};
use flannel_doctor::{Trial, Trials, Tried};
use flannel_lab::sandbox::in_sandbox;
use flannel_lab::test_name;

use super::common::{Case, sh, state};

/// A kernel that can do nothing, or does not let us try.
struct Without(bool);

#[async_trait::async_trait]
impl Trials for Without {
    async fn tried(&self, what: Trial) -> Tried {
        if self.0 {
            Tried::Fails(format!("no {what:?}: Operation not supported"))
        } else {
            Tried::Untried("EPERM".to_owned())
        }
    }
}

/// A kernel that can do everything.
struct Able;

#[async_trait::async_trait]
impl Trials for Able {
    async fn tried(&self, _: Trial) -> Tried {
        Tried::Works("it was made".to_owned())
    }
}

#[test]
fn the_real_kernel_does_all_of_it() {
    in_sandbox(test_name!(), || {
        let case = Case::of_netns(Netns::current().unwrap());
        assert!(case.is_real());
        let before = links();
        case.passes("kernel-vxlan");
        case.passes("kernel-tun");
        case.passes("kernel-nf-tables");
        case.passes("kernel-next-hop-objects");
        case.passes("kernel-checksums");
        assert_eq!(links(), before, "trials leave nothing in the namespace of the host");
    });
}

#[test]
fn nothing_to_keep_rules_with() {
    in_sandbox(test_name!(), || {
        // Whoever looks for iptables in here finds an empty folder.
        sh("mkdir -p /run/empty; mount --bind /run/empty /usr/sbin; mount --bind /run/empty /sbin");
        let case = Case::of_netns(Netns::current().unwrap()).with_trials(Arc::new(Without(true)));
        case.fails("firewall-programs", Failure, "iptables is not installed, and the kernel does not keep");
    });
}

fn links() -> String {
    std::fs::read_to_string("/proc/thread-self/net/dev")
        .unwrap()
        .lines()
        .filter_map(|line| line.split(':').next())
        .collect()
}

#[test]
fn a_kernel_without_features() {
    let case = Case::of_files().with_trials(Arc::new(Without(true)));
    case.fails("kernel-vxlan", Failure, "not supported");
    case.fails("kernel-tun", Note, "not supported");
    case.fails("kernel-nf-tables", Warning, "not supported");
    case.fails("kernel-next-hop-objects", Note, "not supported");
    case.fails("kernel-checksums", Failure, "not supported");
    let mut udp = state();
    udp.backend = "udp".to_owned();
    case.agent_files(&udp);
    case.fails("kernel-tun", Failure, "not supported");
    case.fails("kernel-vxlan", Note, "not supported");
    let mut ipip = state();
    ipip.backend = "ipip".to_owned();
    case.skips("kernel-ipip", "only the ipip backend");
    case.agent_files(&ipip);
    case.fails("kernel-ipip", Failure, "not supported");
    case.fails("kernel-wireguard", Note, "not supported");
    let mut wireguard = state();
    wireguard.backend = "wireguard".to_owned();
    wireguard.devices = vec![Device::of_kind("flannel-wg", "wireguard")];
    case.agent_files(&wireguard).kernel.add_link("flannel-wg", 1420);
    case.kernel.edit_link("flannel-wg", true, |link| link.kind = Some("wireguard".to_owned()));
    case.fails("kernel-wireguard", Failure, "not supported");
    let fix = case.finding("kernel-wireguard").fix.unwrap();
    assert!(fix.contains("the agent encrypts in user space"), "{fix}");
    let able = Case::of_files().with_trials(Arc::new(Able));
    able.passes("kernel-wireguard");
    able.agent_files(&ipip);
    able.passes("kernel-ipip");
    let untried = Case::of_files().with_trials(Arc::new(Without(false)));
    untried.skips("kernel-vxlan", "EPERM");
}

#[test]
fn capabilities_of_the_agent_or_of_us() {
    let case = Case::of_files();
    case.skips("capabilities", "can't be read");
    case.file("/proc/self/status", "Name:\tx\nCapEff:\t0000000000003000\n");
    case.passes("capabilities");
    case.file("/proc/self/status", "CapEff:\t0000000000001000\n");
    case.fails("capabilities", Note, "without CAP_NET_RAW");
    // An agent's own count.
    case.file("/proc/7/cmdline", "/usr/bin/flanneld\0-v=1\0")
        .file("/proc/7/status", "PPid:\t1\nCapEff:\t0000000000000001\n");
    case.fails("capabilities", Failure, "the agent (pid 7) has");
}
