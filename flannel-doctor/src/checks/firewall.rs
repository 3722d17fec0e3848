//! The firewalls of this host.

use flannel_core::addr::{Family, PerFamily};
use flannel_core::firewall::obstacles;
use flannel_core::firewall::rules::{Range, Wanted};

use crate::facts::Facts;
use crate::finding::{Checked, Finding, Skip};

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
    let world = facts.subnet_value("FLANNEL_IPMASQ").as_deref() == Some("true");
    let mut want = Wanted::default();
    (want.ranges, want.masquerade) = (ranges, world);
    let found = obstacles(facts.host.netns(), &want).await.into_iter().map(|obstacle| {
        let fix = obstacle.advice.clone();
        if obstacle.cuts_pods_off(world) {
            Finding::failure(obstacle.to_string(), fix)
        } else {
            Finding::warning(obstacle.to_string(), fix)
        }
    });
    Ok(Finding::of_all(found, || "no chain surely drops what pods send to nodes or to the world".to_owned()))
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
        let table = |name: &str| files.proc_net(name).unwrap_or_default();
        [table("ip_tables_names"), table("ip6_tables_names")].concat()
    });
    let legacy = legacy.await?;
    let legacy: Vec<&str> = legacy.split_whitespace().collect();
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
    let mut missing = Vec::new();
    for family in facts.networks().families() {
        if !is_masqueraded(facts, family).await? {
            missing.push(Finding::failure(
                format!("no rule masquerades {family} of pods, though FLANNEL_IPMASQ is true: pods don't reach the world"),
                "start the agent with --ip-masq, and see its log for what refuses the rules",
            ));
        }
    }
    Ok(Finding::of_all(missing, || "rules masquerade what pods send to the world".to_owned()))
}

async fn is_masqueraded(facts: &Facts, family: Family) -> Result<bool, Skip> {
    let (nft, save) = match family {
        Family::V4 => (["list", "table", "ip", "flannel-ipv4"], "iptables-save"),
        Family::V6 => (["list", "table", "ip6", "flannel-ipv6"], "ip6tables-save"),
    };
    let by_nft = facts.host.run("nft", &nft).await;
    if by_nft.as_ref().is_ok_and(|ran| ran.status.success() && ran.out.contains("masquerade")) {
        return Ok(true);
    }
    match facts.host.run(save, &["-t", "nat"]).await.and_then(|ran| ran.success(save)) {
        Ok(rules) => {
            Ok(rules.lines().any(|line| line.contains("FLANNEL-POSTRTG") && line.contains("MASQUERADE")))
        }
        Err(why) => by_nft.map(|_| false).map_err(|_| why),
    }
}
