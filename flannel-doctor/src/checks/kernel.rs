//! What the kernel can do, by trials, and what the agent may ask of it.

use crate::facts::Facts;
use crate::finding::{Checked, Finding, Skip, Verdict};
use crate::host::{Trial, Tried};

/// `CAP_NET_ADMIN` and `CAP_NET_RAW` of `linux/capability.h`.
const NET_ADMIN: u32 = 12;
pub(super) const NET_RAW: u32 = 13;

/// A feature that counts as a failure only for hosts whose backend needs it.
async fn feature(facts: &Facts, trial: Trial, missing: Verdict, fix: &str) -> Checked {
    match facts.host.tried(trial).await {
        Tried::Works(seen) => Ok(Finding::ok(seen)),
        Tried::Untried(why) => Err(Skip(why)),
        Tried::Fails(why) => Ok(match missing {
            Verdict::Failure => Finding::failure(why, fix),
            Verdict::Warning => Finding::warning(why, fix),
            _ => Finding::note(why, fix),
        }),
    }
}

pub(super) async fn vxlan(facts: &Facts) -> Checked {
    let is_needed = matches!(facts.backend(), None | Some("vxlan"));
    let missing = if is_needed { Verdict::Failure } else { Verdict::Note };
    feature(
        facts,
        Trial::Vxlan,
        missing,
        "load the module vxlan (`modprobe vxlan`), or take a kernel that has it",
    )
    .await
}

pub(super) async fn tun(facts: &Facts) -> Checked {
    let missing = if facts.backend() == Some("udp") { Verdict::Failure } else { Verdict::Note };
    let fix = "load the module tun (`modprobe tun`); a container needs the device /dev/net/tun, too";
    feature(facts, Trial::Tun, missing, fix).await
}

pub(super) async fn ipip(facts: &Facts) -> Checked {
    // With its module each network namespace gets a device `tunl0`, so it is tried only where it is needed.
    if facts.backend() != Some("ipip") {
        return Err(Skip::new("only the ipip backend needs it"));
    }
    feature(
        facts,
        Trial::Ipip,
        Verdict::Failure,
        "load the module ipip (`modprobe ipip`), or take another backend",
    )
    .await
}

pub(super) async fn wireguard(facts: &Facts) -> Checked {
    // The device of an agent that encrypts in user space is a TUN.
    let has_device = facts.overlay_links().any(|link| link.kind.as_deref() == Some("wireguard"));
    let missing = if has_device { Verdict::Failure } else { Verdict::Note };
    let fix = "load the module wireguard (`modprobe wireguard`; Linux 5.6 and later have it); without it the agent encrypts in user \
               space, unless it was started with --wireguard=kernel";
    feature(facts, Trial::Wireguard, missing, fix).await
}

pub(super) async fn nf_tables(facts: &Facts) -> Checked {
    let fix = "load the modules nf_tables, nft_masq and nft_chain_nat, or use iptables (EnableNFTables false in the network config)";
    feature(facts, Trial::NfTables, Verdict::Warning, fix).await
}

pub(super) async fn next_hops(facts: &Facts) -> Checked {
    let fix = "nothing: plain routes do the same, more slowly at the start of large clusters; Linux 5.3 and later have the objects";
    feature(facts, Trial::NextHops, Verdict::Note, fix).await
}

pub(super) async fn checksums(facts: &Facts) -> Checked {
    let fix = "take a newer kernel; until then `ethtool -K DEVICE tx-checksum-ip-generic off` for each device of flannel";
    let is_needed = matches!(facts.backend(), None | Some("vxlan"));
    feature(facts, Trial::Checksums, if is_needed { Verdict::Failure } else { Verdict::Note }, fix).await
}

/// Whether the agent has its capabilities; without a running agent, whether this process has them.
pub(super) async fn capabilities(facts: &Facts) -> Checked {
    let (whose, set) = if let Some(agent) = facts.agents.first() {
        (format!("the agent (pid {})", agent.pid), agent.capabilities)
    } else {
        let read = facts.host.look(|files| files.text("/proc/self/status")).await?;
        let status = read.map_err(|error| Skip::unread("/proc/self/status", &error))?;
        ("this process".to_owned(), crate::facts::capabilities(&status))
    };
    let set = set.ok_or_else(|| Skip::new(format!("the capabilities of {whose} can't be read")))?;
    let has = |number: u32| set >> number & 1 == 1;
    let seen = format!("{whose} has the effective capabilities {set:#x}");
    Ok(match (has(NET_ADMIN), has(NET_RAW)) {
        (false, _) => Finding::failure(
            format!("{seen}, without CAP_NET_ADMIN"),
            "give it CAP_NET_ADMIN (a container: securityContext.capabilities.add; a unit: AmbientCapabilities)",
        ),
        (true, false) => Finding::note(
            format!("{seen}, without CAP_NET_RAW"),
            "add CAP_NET_RAW if this host uses iptables' legacy variant, and for pings of the doctor",
        ),
        (true, true) => Finding::ok(seen),
    })
}
