//! Changes of a node's identity: other addresses, other names, new nodes in old places, false records.

use std::thread::sleep;

use flannel_lab::store::Store as _;

use crate::Fallible;
use crate::action::{Action, Victim};
use crate::lab::{LIMIT, Lab, NIC};
use crate::phantom::host;
use crate::tampering::Meanwhile;

/// A node gets other addresses while its agent runs.
pub(crate) fn renumber(lab: &Lab, number: u8, action: &Action) -> Fallible<()> {
    change_addresses(lab, number, action)?;
    lab.renumber(number);
    Ok(())
}

/// A node gets other addresses between two runs of its agent. It keeps its lease.
pub(crate) fn renumber_away(lab: &Lab, number: u8, action: &Action) -> Fallible<()> {
    lab.agent(number).terminate()?;
    change_addresses(lab, number, action)?;
    sleep(action.hold);
    lab.renumber(number);
    lab.start_agent(number)
}

/// A node leaves for good, and one that knows nothing comes in its place, at addresses that another node had.
pub(crate) fn use_again(lab: &Lab, number: u8, action: &Action) -> Fallible<()> {
    lab.agent(number).kill()?;
    wipe(lab, number)?;
    let before = lab.forget(number)?;
    change_addresses(lab, number, action)?;
    lab.start_agent(number)?;
    lab.wait_until_ready(number, LIMIT)?;
    lab.adopt(number, None)?;
    lab.expect_rules_of(number, &before);
    lab.furnish(number)
}

/// The NIC gets another name for a while, and everything goes on under it.
pub(crate) fn rename_nic(lab: &Lab, number: u8, action: &Action) -> Fallible<()> {
    lab.rename_nic(number, true)?;
    sleep(action.hold);
    // Whatever else begins meanwhile delays this no longer than itself.
    lab.wait_for_model(&[number], std::time::Instant::now() + 2 * LIMIT)?;
    lab.rename_nic(number, false)
}

/// A record claims what is another node's, for a while or until its node sets it right.
pub(crate) fn tamper(lab: &Lab, action: &Action) -> Fallible<()> {
    let tampering = action.tampering.ok_or("no record to tamper with")?;
    let lease = lab.lease(tampering.record).ok_or_else(|| format!("no lease of {:?}", tampering.record))?;
    let owner = lab.lease(Victim::Node(tampering.owner)).ok_or("the owner has no lease")?;
    let key = lease.key();
    let record = || -> Fallible<String> {
        let mut records = lab.store.records()?;
        Ok(records.remove(&key).ok_or_else(|| format!("the store lacks {key}"))?)
    };
    let right = record()?;
    let wrong = tampering.record(&right, &owner)?;
    let away = action.node.filter(|_| tampering.meanwhile != Meanwhile::Runs);
    if let Some(number) = away {
        lab.agent(number).terminate()?;
    }
    lab.store.rewrite(&key, &wrong)?;
    sleep(action.hold / 2);
    if let Some(number) = tampering.starts {
        lab.agent(number).kill()?;
        lab.start_agent(number)?;
        lab.wait_until_ready(number, LIMIT)?;
    }
    sleep(action.hold / 2);
    // Its agent may have been quicker.
    if !tampering.heals_by_itself() && is_same(&record()?, &wrong) {
        lab.store.rewrite(&key, &right)?;
    }
    if let Some(number) = away {
        lab.start_agent(number)?;
        lab.wait_until_ready(number, LIMIT)?;
        if tampering.heals_by_itself() {
            lab.adopt(number, Some(&key))?;
        }
    }
    Ok(())
}

/// Whether two records say the same, in whatever words.
fn is_same(one: &str, other: &str) -> bool {
    let read = |text: &str| serde_json::from_str::<serde_json::Value>(text).ok();
    read(one) == read(other)
}

/// Gives a node the addresses of its new host. All others forget who had them, as if it announced them.
fn change_addresses(lab: &Lab, number: u8, action: &Action) -> Fallible<()> {
    for v6 in &action.families {
        let address = host(action.host, *v6);
        lab.node(number).change_address(NIC, address)?;
        let others = lab.numbers().filter(|other| *other != number).map(|other| lab.node(other).netns());
        for netns in others.chain([lab.cluster.fabric()]) {
            netns.ip(&format!("neigh flush to {address}"))?;
        }
    }
    Ok(())
}

/// Takes everything away that the agent, its pods and others ever put on a node.
fn wipe(lab: &Lab, number: u8) -> Fallible<()> {
    let netns = lab.node(number).netns();
    for link in ["flannel.1", "flannel-v6.1", "flannel.ipip", crate::model::POD_BRIDGE] {
        if netns.link_index(link)?.is_some() {
            netns.ip(&format!("link del {link}"))?;
        }
    }
    for family in ["-4", "-6"] {
        netns.ip(&format!("{family} route flush proto 102"))?;
    }
    netns.run("nft", &["flush", "ruleset"])?;
    Ok(())
}
