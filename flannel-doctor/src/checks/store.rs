//! The store: whether it answers, how fast, and what it has.

mod usable;

use std::time::Duration;

use flannel_core::addr::Family;
use flannel_core::lease::LeaseKey;
use flannel_core::subnet::{ClockGap, ServerAnswer};

use crate::facts::{Answers, Config, Facts, Outage};
use crate::finding::{Checked, Finding, Skip};

/// Above this a request is slow: a join takes three of them.
const SLOW: Duration = Duration::from_millis(250);
/// Above this an agent's requests run into time-outs.
const TOO_SLOW: Duration = Duration::from_secs(2);
/// Clocks that differ by more let certificates and tokens fail.
const CLOCK_APART: Duration = Duration::from_secs(5);
const CLOCK_FAR_APART: Duration = Duration::from_secs(300);
/// The oldest etcd that this is tested with.
const OLDEST_ETCD: (u32, u32) = (3, 4);

pub(super) async fn reachable(facts: &Facts) -> Checked {
    let answers = facts.answers().await?;
    let servers = &answers.examination.servers;
    match answers.outage() {
        None => {}
        Some(Outage::Unusable(why)) => {
            return Ok(Finding::failure(
                format!("the store can't be asked: {why}"),
                "give the doctor the flags and variables that the agent has, and what the line names",
            ));
        }
        Some(Outage::Silent(why)) if answers.is_named => {
            return Ok(Finding::failure(
                format!("the store {} does not answer: {why}", answers.place),
                "start the store, correct the network on the way or the credentials; pods that run are not affected",
            ));
        }
        Some(Outage::Silent(why)) => {
            return Err(Skip::new(format!(
                "no store was named, and none answers at the usual place ({why}); give the flags that the agent was started with"
            )));
        }
        Some(Outage::Denied(why)) => return Err(Skip::denied(format!("the store can't be asked: {why}"))),
    }
    // Of the addresses that are tried where nobody names any, one answers.
    let away = servers.iter().filter(|_| !answers.has_usual_servers);
    let away = away.filter_map(|server| Some((&server.name, server.answer.as_ref().err()?)));
    let has_others = servers.iter().any(|server| server.answer.is_ok());
    let found = away.map(|(name, why)| {
        let rest = if has_others { "agents use the others meanwhile" } else { "the store answered other questions" };
        Finding::warning(
            format!("server {name} of the store does not answer: {why}"),
            format!("repair or replace the servers that don't answer, or take them out of the agents' flags; {rest}"),
        )
    });
    Ok(Finding::of_all(found, || format!("the store {} answers", answers.place)))
}

/// The answers of all servers that answered.
fn answered(answers: &Answers) -> Result<Vec<(&str, &ServerAnswer)>, Skip> {
    let servers = answers.examination.servers.iter();
    let all: Vec<_> =
        servers.filter_map(|server| Some((server.name.as_str(), server.answer.as_ref().ok()?))).collect();
    if all.is_empty() { Err(Skip::new("the store has no server that could be asked")) } else { Ok(all) }
}

pub(super) async fn latency(facts: &Facts) -> Checked {
    let answers = facts.answered().await?;
    let servers = answered(answers).unwrap_or_default().into_iter().map(|(name, answer)| (name, answer.took));
    let mut servers: Vec<(&str, Duration)> = servers.collect();
    if servers.is_empty() {
        servers.push((&answers.place, answers.took));
    }
    let text = |name: &str, took: Duration| format!("{name} answers in {:.1} ms", took.as_secs_f64() * 1e3);
    let found = servers.iter().filter_map(|(name, took)| {
        let fix = "find the cause: the disk of the server (fsync), its load, the way to it";
        match *took {
            took if took > TOO_SLOW => Some(Finding::failure(text(name, took), fix)),
            took if took > SLOW => Some(Finding::warning(text(name, took), fix)),
            _ => None,
        }
    });
    let all = || servers.iter().map(|(name, took)| text(name, *took)).collect::<Vec<_>>().join("; ");
    Ok(Finding::of_all(found.collect::<Vec<_>>(), all))
}

pub(super) async fn version(facts: &Facts) -> Checked {
    let answers = facts.answered().await?;
    let servers = answered(answers)?;
    let known: Vec<_> = servers.iter().filter(|(_, answer)| !answer.version.is_empty()).collect();
    if known.is_empty() {
        return Err(Skip::new("no server says its version"));
    }
    let is_etcd = answers.place.starts_with("etcd");
    let old = known.iter().filter(|(_, answer)| {
        is_etcd && number(&answer.version).is_some_and(|version| version < OLDEST_ETCD)
    });
    let found = old.map(|(name, answer)| {
        let (major, minor) = OLDEST_ETCD;
        Finding::warning(
            format!("{name} is etcd {}", answer.version),
            format!("flannel is tested with etcd {major}.{minor} and newer: upgrade"),
        )
    });
    let mut found: Vec<Finding> = found.collect();
    if known.iter().any(|(_, answer)| number(&answer.version) != number(&known[0].1.version)) {
        found.push(Finding::note("servers of the store have different versions", "finish the upgrade"));
    }
    Ok(Finding::of_all(found, || {
        known
            .iter()
            .map(|(name, answer)| format!("{name}: {}", answer.version))
            .collect::<Vec<_>>()
            .join("; ")
    }))
}

/// Major and minor number of a version such as `v1.33.0` or `3.5.16`.
fn number(version: &str) -> Option<(u32, u32)> {
    let mut parts = version.trim_start_matches('v').split('.');
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

pub(super) async fn clock(facts: &Facts) -> Checked {
    let answers = facts.answered().await?;
    let servers = answered(answers)?;
    let told: Vec<_> = servers.iter().filter_map(|(name, answer)| Some((*name, answer.clock?))).collect();
    if told.is_empty() {
        return Err(Skip::new("no server tells the time (etcd does so over plain HTTP alone)"));
    }
    let text = |name: &str, gap: ClockGap| {
        let way = if matches!(gap, ClockGap::Ahead(_)) { "ahead of" } else { "behind" };
        format!("the clock of {name} is {} s {way} this host's", gap.size().as_secs())
    };
    let fix =
        "let both hosts keep time (chrony, systemd-timesyncd): certificates and tokens are judged by it";
    let found = told.iter().filter_map(|(name, gap)| match gap.size() {
        size if size > CLOCK_FAR_APART => Some(Finding::failure(text(name, *gap), fix)),
        size if size > CLOCK_APART => Some(Finding::warning(text(name, *gap), fix)),
        _ => None,
    });
    Ok(Finding::of_all(found.collect::<Vec<_>>(), || {
        format!("clocks agree within {} s", CLOCK_APART.as_secs())
    }))
}

pub(super) async fn config(facts: &Facts) -> Checked {
    let answers = facts.answered().await?;
    let config = match &answers.config {
        Config::Read(config) => config,
        Config::Bad(why) => {
            return Ok(Finding::failure(
                why.clone(),
                "write the network config as docs/network-config.md has it; no node can join without",
            ));
        }
        // The store answered.
        Config::Unread(why) | Config::Unusable(why) | Config::Denied(why) => {
            return Err(Skip::new(why.clone()));
        }
    };
    let refused = usable::problems(facts, answers, config).await?;
    if !refused.is_empty() {
        return Ok(Finding::of_all(refused, String::new));
    }
    let used = facts.config();
    let text = format!(
        "{}, backend {}",
        config.networks.iter().map(|(_, it)| it.network.to_string()).collect::<Vec<_>>().join(" and "),
        config.backend.kind
    );
    Ok(match used {
        Some(used) if used.networks != config.networks || used.backend.kind != config.backend.kind => {
            Finding::warning(
                format!("the store has {text}, and the agent runs with an older config"),
                "restart the agent; networks and backend are read at the start alone",
            )
        }
        _ => Finding::ok(text),
    })
}

/// Records that nobody can read, and the own one.
pub(super) async fn leases(facts: &Facts) -> Checked {
    let answers = facts.answered().await?;
    let listing =
        answers.leases.as_ref().map_err(|why| Skip::new(format!("the leases can't be listed: {why}")))?;
    let bad = listing.unreadable.iter().map(|record| {
        Finding::warning(record.clone(), "delete the record if its node is gone, else restart its agent")
    });
    let mut found: Vec<Finding> = bad.collect();
    let key: Option<LeaseKey> = facts.own().map(|own| own.key).or(facts.previous.key);
    if let Some(key) = key
        && !listing.leases.iter().any(|lease| lease.key == key)
    {
        found.push(Finding::failure(
            format!("the store has no lease {key}, which this node uses: other nodes don't reach it"),
            "start the agent, which puts it back; if it runs, see its log for why it can't",
        ));
    }
    let taken = |family| {
        listing
            .leases
            .iter()
            .filter(move |lease: &&flannel_core::lease::Lease| lease.subnet(family).is_some())
            .count()
    };
    Ok(Finding::of_all(found, || {
        format!(
            "{} leases ({} with IPv4, {} with IPv6)",
            listing.leases.len(),
            taken(Family::V4),
            taken(Family::V6)
        )
    }))
}
