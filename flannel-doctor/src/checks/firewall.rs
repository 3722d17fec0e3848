//! The firewalls of this host.

use flannel_core::addr::{Family, PerFamily, Subnet};
use flannel_core::firewall::iptables::{self, UnseenRules};
use flannel_core::firewall::obstacles;
use flannel_core::firewall::rules::{Range, Wanted};

use super::kernel::NET_RAW;
use crate::facts::{Facts, capabilities};
use crate::finding::{Checked, Finding, Skip, is_denied};

/// The programs that keep rules.
const PROGRAMS: [&str; 2] = ["nft", "iptables"];

/// Chains of others that drop what pods send.
pub(super) async fn forward_chains(facts: &Facts) -> Checked {
    let (networks, subnets) = (facts.networks(), facts.subnets());
    let ranges = PerFamily::from_fn(|family| Some(Range::new(*networks.get(family)?, *subnets.get(family)?)));
    if ranges.is_empty() {
        return Err(Skip::new("neither state file nor subnet file names a network and a subnet"));
    }
    if !has_any(facts, &PROGRAMS).await {
        return Err(Skip::new("neither nft nor iptables is installed here, so no rules can be read"));
    }
    readable(facts).await?;
    let world = facts.subnet_value("FLANNEL_IPMASQ").as_deref() == Some("true");
    let mut want = Wanted::default();
    (want.ranges, want.masquerade) = (ranges, world);
    let found = obstacles(facts.host.netns(), &want).await.into_iter().map(|obstacle| {
        let fix = obstacle.advice.clone();
        if obstacle.cuts_pods_off(world) {
            Finding::failure(obstacle.seen(), fix)
        } else {
            Finding::warning(obstacle.seen(), fix)
        }
    });
    let found: Vec<Finding> = found.collect();
    if found.is_empty() {
        legacy_readable(facts).await?;
    }
    Ok(Finding::of_all(found, || "no chain surely drops what pods send to nodes or to the world".to_owned()))
}

/// Fails if this process may not see the rules of this host: then what it does not see may be there.
async fn readable(facts: &Facts) -> Result<(), Skip> {
    // Without nft, iptables shows the rules of both variants.
    for (program, args) in [("nft", ["list", "tables"]), ("iptables-save", ["-t", "filter"])] {
        let Ok(ran) = facts.host.run(program, &args).await else { continue };
        let is_denied = ["not permitted", "denied", "must be root"].iter().any(|part| ran.err.contains(part));
        if !ran.status.success() && is_denied {
            let said = ran.err.trim().replace('\n', "; ");
            return Err(Skip::denied(format!(
                "this user may not see the rules of this host ({program}: {said})"
            )));
        }
        return Ok(());
    }
    Ok(())
}

/// Fails if there may be rules of iptables' legacy variant that this process can't see.
async fn legacy_readable(facts: &Facts) -> Result<(), Skip> {
    let netns = facts.host.netns().clone();
    let unseen = facts.host.look(move |files| {
        let status = files.text("/proc/self/status").ok();
        let set = status.and_then(|status| capabilities(&status));
        let has_net_raw = set.is_none_or(|set| set >> NET_RAW & 1 == 1);
        iptables::unseen_rules(&netns, has_net_raw)
    });
    match unseen.await? {
        None => Ok(()),
        Some(UnseenRules::NoNetRaw) => {
            Err(Skip::denied("rules of iptables' legacy variant are not seen without CAP_NET_RAW"))
        }
        Some(_) => Err(Skip::denied(
            "rules of iptables' legacy variant, if there are any, are not seen by this user",
        )),
    }
}

async fn has_any(facts: &Facts, programs: &[&str]) -> bool {
    for program in programs {
        if facts.host.run(program, &["--version"]).await.is_ok() {
            return true;
        }
    }
    false
}

pub(super) async fn programs(facts: &Facts) -> Checked {
    let mut seen = Vec::new();
    for program in PROGRAMS {
        if let Ok(text) = facts.host.run(program, &["--version"]).await.and_then(|ran| ran.success(program)) {
            seen.push(text.trim().to_owned());
        }
    }
    Ok(if seen.is_empty() {
        Finding::failure(
            "neither nft nor iptables is installed: no masquerading and no forward rules",
            "install nftables (or iptables) where the agent runs",
        )
    } else {
        Finding::ok(seen.join("; "))
    })
}

/// Both variants of iptables have rules: each sees its own alone, and packets pass both.
pub(super) async fn variants(facts: &Facts) -> Checked {
    let legacy = facts.host.look(|files| {
        // Without the module there is no such table.
        let table = |name: &str| match files.proc_net(name) {
            Err(error) if is_denied(&error) => {
                Err(Skip::unread(format!("the kernel's table {name}"), &error))
            }
            read => Ok(read.unwrap_or_default()),
        };
        Ok::<_, Skip>([table("ip_tables_names")?, table("ip6_tables_names")?].concat())
    });
    let legacy = legacy.await??;
    let legacy: Vec<&str> = legacy.split_whitespace().collect();
    readable(facts).await?;
    let tables = facts.host.run("nft", &["list", "tables"]).await?.success("nft list tables")?;
    let of_iptables = |line: &&str| {
        let mut words = line.split_whitespace().skip(1);
        matches!(words.next(), Some("ip" | "ip6"))
            && matches!(words.next(), Some("filter" | "nat" | "mangle" | "raw"))
    };
    let nft: Vec<&str> = tables.lines().filter(of_iptables).collect();
    Ok(match (legacy.is_empty(), nft.is_empty()) {
        (false, false) => Finding::warning(
            format!(
                "both variants of iptables have rules here: legacy in {}; nft in {}",
                legacy.join(", "),
                nft.join(", ")
            ),
            "let all programs of this host use one variant (`update-alternatives --config iptables`) and reboot",
        ),
        (false, true) => Finding::ok(format!("iptables' legacy variant has rules: {}", legacy.join(", "))),
        (true, false) => Finding::ok(format!("iptables' nft variant has rules: {}", nft.join(", "))),
        (true, true) => Finding::ok("no rules of iptables"),
    })
}

/// Whether the rules are there that the agent says it keeps.
pub(super) async fn masquerade(facts: &Facts) -> Checked {
    match facts.subnet_value("FLANNEL_IPMASQ").as_deref() {
        Some("true") => {}
        Some(_) => return Err(Skip::new("the agent does not masquerade (FLANNEL_IPMASQ is not true)")),
        None => return Err(Skip::new("there is no subnet file that says whether the agent masquerades")),
    }
    let networks = facts.networks();
    if networks.is_empty() {
        return Err(Skip::new("neither state file nor subnet file names the network"));
    }
    readable(facts).await?;
    let mut missing = Vec::new();
    for (family, network) in networks.iter() {
        if !is_masqueraded(facts, *network).await? {
            missing.push(Finding::failure(
                format!("no rule masquerades {family} of pods ({network}), though FLANNEL_IPMASQ is true: pods don't reach the world"),
                "start the agent with --ip-masq, and see its log for what refuses the rules",
            ));
        }
    }
    if !missing.is_empty() {
        legacy_readable(facts).await?;
    }
    Ok(Finding::of_all(missing, || "rules masquerade what pods send to the world".to_owned()))
}

/// Whether a rule masquerades this network. Agents with other networks have theirs in the same table or chain.
async fn is_masqueraded(facts: &Facts, network: Subnet) -> Result<bool, Skip> {
    let network_text = network.to_string();
    let is_ours = |line: &str| line.split_whitespace().any(|word| word == network_text);
    let (nft, save) = match network.family() {
        Family::V4 => (["list", "table", "ip", "flannel-ipv4"], "iptables-save"),
        Family::V6 => (["list", "table", "ip6", "flannel-ipv6"], "ip6tables-save"),
    };
    let by_nft = facts.host.run("nft", &nft).await;
    let has_rule = |rules: &str| rules.lines().any(|line| line.contains("masquerade") && is_ours(line));
    if by_nft.as_ref().is_ok_and(|ran| ran.status.success() && has_rule(&ran.out)) {
        return Ok(true);
    }
    match facts.host.run(save, &["-t", "nat"]).await.and_then(|ran| ran.success(save)) {
        Ok(rules) => {
            let is_rule = |line: &str| line.contains("FLANNEL-POSTRTG") && line.contains("MASQUERADE");
            Ok(rules.lines().any(|line| is_rule(line) && is_ours(line)))
        }
        Err(why) => by_nft.map(|_| false).map_err(|_| why),
    }
}
