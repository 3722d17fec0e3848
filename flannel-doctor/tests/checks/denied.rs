//! What this user may not see is no fault of the host: such a check is skipped, and says whom to ask as.

use std::env;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::Arc;

use flannel_core::netns::Netns;
use flannel_core::subnet::local::{LocalOptions, LocalSubnetManager};
use flannel_doctor::StoreToAsk;
use flannel_lab::sandbox::in_sandbox;
use flannel_lab::test_name;

use super::common::{Case, SUBNET_FILE, state};

const AS_ROOT: &str = "ask as root";

#[test]
fn files_of_others() {
    let mut case = Case::of_files();
    case.agent_files(&state());
    case.is_nobody = true;
    // The state file has the mode 0600.
    for check in ["state-file", "overlay-device", "vtep-mac", "underlay-address", "leftover-devices"] {
        case.skips(check, AS_ROOT);
    }
    case.skips("peer-routes", AS_ROOT);
    case.skips("mtu-path", AS_ROOT);
    case.mode(SUBNET_FILE, 0o600);
    case.skips("subnet-file", AS_ROOT);
    case.mode("/run/flannel", 0o700);
    case.skips("file-rights", AS_ROOT);
    case.mode("/run/flannel", 0o755);

    let conflist = "/etc/cni/net.d/10-flannel.conflist";
    case.file(conflist, r#"{"cniVersion":"1.0.0","plugins":[{"type":"flannel"}]}"#);
    case.file("/opt/cni/bin/flannel", "").mode("/opt/cni/bin", 0o700);
    case.skips("cni-plugins", AS_ROOT);
    case.mode(conflist, 0o600);
    case.skips("cni-config", AS_ROOT);
    case.skips("cni-order", AS_ROOT);
    case.mode(conflist, 0o644).mode("/etc/cni/net.d", 0o700);
    case.skips("cni-config", AS_ROOT);
}

#[test]
fn a_folder_as_the_store() {
    let mut case = Case::of_files();
    case.is_nobody = true;
    let config = r#"{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan"}}"#;
    case.file("/store/config", config).file("/store/subnets/x", "");
    case.mode("/store/subnets", 0o700);
    let strict = LocalSubnetManager::new(LocalOptions::new(case.path("/store")));
    let mut options = LocalOptions::new(case.path("/store"));
    options.allow_shared = true;
    let shared = LocalSubnetManager::new(options);
    case.store = Some(StoreToAsk::named(Arc::new(shared)));
    case.passes("network-config");
    // The reason, and not that nothing came for eight seconds.
    case.skips("store-leases", "Permission denied");
    case.mode("/store/config", 0o600);
    case.skips("store-reachable", AS_ROOT);
    case.skips("network-config", AS_ROOT);
    case.skips("store-leases", AS_ROOT);
    // What the agent refuses by itself is a fault.
    case.mode("/store/config", 0o644).mode("/store", 0o777);
    case.store = Some(StoreToAsk::named(Arc::new(strict)));
    case.fails("store-reachable", flannel_doctor::Verdict::Failure, "others can write");
    let denied = std::io::Error::from_raw_os_error(13);
    case.store = Some(StoreToAsk::refused(&denied));
    case.skips("store-reachable", AS_ROOT);
}

#[test]
fn rules_of_the_firewall() {
    const DENIED: &str = "WITHOUT_CAP_NET_ADMIN";
    if env::var_os(DENIED).is_some() {
        let case = Case::of_netns(Netns::current().unwrap());
        case.agent_files(&state());
        case.skips("forward-chains", AS_ROOT);
        case.skips("masquerade-rules", AS_ROOT);
        case.skips("firewall-variants", AS_ROOT);
        return;
    }
    in_sandbox(test_name!(), || {
        // The same program again, as one that may not ask for rules.
        let mut again = Command::new("setpriv");
        again.args(["--inh-caps=-all", "--bounding-set=-net_admin"]).arg(env::current_exe().unwrap());
        panic!("{}", again.args([test_name!(), "--exact", "--nocapture"]).env(DENIED, "1").exec());
    });
}
