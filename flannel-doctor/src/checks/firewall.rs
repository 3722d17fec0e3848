//! The firewalls of this host.

use flannel_core::addr::{Family, PerFamily, Subnet};
use flannel_core::error::chain;
use flannel_core::firewall::iptables::{self, UnseenRules};
use flannel_core::firewall::rules::{Range, Wanted};
use flannel_core::firewall::{FirewallError, nft, obstacles};

use super::kernel::NET_RAW;
use crate::facts::{Facts, capabilities};
use crate::finding::{Checked, Finding, Skip, is_denied};
use crate::host::{Trial, Tried};

/// Chains of others that drop what pods send.
pub(super) async fn forward_chains(facts: &Facts) -> Checked {
    let (networks, subnets) = (facts.networks(), facts.subnets());
    let ranges = PerFamily::from_fn(|family| Some(Range::new(*networks.get(family)?, *subnets.get(family)?)));
    if ranges.is_empty() {
        return Err(Skip::new("neither state file nor subnet file names a network and a subnet"));
    }
    tables(facts).await?;
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

/// The tables of `nf_tables`, as `nft` names them; none on a kernel without. It fails if this process may not see the rules of
/// this host: then what it does not see may be there.
async fn tables(facts: &Facts) -> Result<Vec<String>, Skip> {
    match nft::tables(facts.host.netns()).await {
        Err(FirewallError::NotPermitted(error)) => {
            Err(Skip::denied(format!("this user may not see the rules of this host ({})", chain(&error))))
        }
        Err(FirewallError::NoNfTables(_)) => Ok(Vec::new()),
        tables => tables
            .map_err(|error| Skip::new(format!("the rules of this host can't be read: {}", chain(&error)))),
    }
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

/// What the rules can be kept with.
pub(super) async fn programs(facts: &Facts) -> Checked {
    let version = facts.host.run("iptables", &["--version"]).await.and_then(|ran| ran.success("iptables"));
    if let Ok(version) = version {
        return Ok(Finding::ok(version.trim()));
    }
    match facts.host.tried(Trial::NfTables).await {
        Tried::Works(_) => Ok(Finding::ok(
            "iptables is not installed; the kernel has nf_tables, for which no program is needed",
        )),
        Tried::Fails(why) => Ok(Finding::failure(
            format!(
                "iptables is not installed, and the kernel does not keep rules of nf_tables ({why}): no masquerading and no forward rules"
            ),
            "load the modules nf_tables, nft_masq and nft_chain_nat, or install iptables where the agent runs",
        )),
        Tried::Untried(why) => Err(Skip::new(format!("iptables is not installed; {why}"))),
    }
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
    let tables = tables(facts).await?;
    let of_iptables = |table: &&str| {
        let (family, name) = table.split_once(' ').unwrap_or_default();
        ["ip", "ip6"].contains(&family) && ["filter", "nat", "mangle", "raw"].contains(&name)
    };
    let nft: Vec<&str> = tables.iter().map(String::as_str).filter(of_iptables).collect();
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
    tables(facts).await?;
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
    let save = match network.family() {
        Family::V4 => "iptables-save",
        Family::V6 => "ip6tables-save",
    };
    let by_nft = nft::masquerades(facts.host.netns(), network).await;
    if matches!(by_nft, Ok(true)) {
        return Ok(true);
    }
    match facts.host.run(save, &["-t", "nat"]).await.and_then(|ran| ran.success(save)) {
        Ok(rules) => {
            let is_rule = |line: &str| line.contains("FLANNEL-POSTRTG") && line.contains("MASQUERADE");
            Ok(rules.lines().any(|line| is_rule(line) && is_ours(line)))
        }
        // Without the program there are no rules of iptables.
        Err(why) => by_nft.map_err(|_| why),
    }
}
