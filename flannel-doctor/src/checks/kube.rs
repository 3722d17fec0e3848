//! What the Kubernetes API says about this node.

use flannel_core::addr::{Family, Subnet};
use flannel_core::subnet::{NodeFacts, NodeRecord, RightAnswer};

use crate::facts::{Answers, Config, Facts, vtep_mac};
use crate::finding::{Checked, Finding, Skip};

fn node(answers: &Answers) -> Result<&NodeFacts, Skip> {
    match &answers.examination.node {
        NodeRecord::Read(node) => Ok(node),
        NodeRecord::Unread(why) => Err(Skip::new(format!("the node can't be read: {why}"))),
        NodeRecord::None => Err(Skip::new("the store is not Kubernetes")),
    }
}

/// The subnets that the cluster assigned, against the network.
pub(super) async fn pod_cidrs(facts: &Facts) -> Checked {
    let answers = facts.answered().await?;
    let node = node(answers)?;
    let Config::Read(config) = &answers.config else {
        return Err(Skip::new("the network config can't be read"));
    };
    let subnets: Vec<Subnet> = node.subnets.iter().filter_map(|text| text.parse().ok()).collect();
    let name = &node.name;
    let mut found = Vec::new();
    for (family, network) in config.networks.iter() {
        let network = network.network;
        match subnets.iter().find(|subnet| subnet.family() == family) {
            None => found.push(Finding::failure(
                format!("node {name} has no {family} subnet in spec.podCIDRs ({})", node.subnets.join(", ")),
                "start the controller manager with --allocate-node-cidrs and a --cluster-cidr of each family",
            )),
            Some(subnet) if !network.covers(*subnet) => found.push(Finding::failure(
                format!("spec.podCIDRs of node {name} has {subnet}, and the network is {network}: other nodes don't reach its pods"),
                "make Network of the config the same as --cluster-cidr of the controller manager; a podCIDR changes only when the node registers anew",
            )),
            Some(_) => {}
        }
    }
    Ok(Finding::of_all(found, || format!("spec.podCIDRs of node {name}: {}", node.subnets.join(", "))))
}

/// What the node publishes, against this host.
pub(super) async fn annotations(facts: &Facts) -> Checked {
    let answers = facts.answered().await?;
    let node = node(answers)?;
    let Some(published) = &node.published else {
        return Ok(Finding::failure(
            format!("node {} has no annotations of flannel: other nodes don't reach its pods", node.name),
            "start the agent on this node; if it runs, see its log",
        ));
    };
    facts.links()?;
    let mut found = Vec::new();
    for (family, ip) in published.public_ips.iter() {
        if facts.link_with(*ip).is_none() {
            found.push(Finding::warning(
                format!(
                    "node {} publishes the {family} address {ip}, which is on no link of this host",
                    node.name
                ),
                "if no NAT in front of this host has it, restart the agent; is NODE_NAME this node?",
            ));
        }
    }
    for family in Family::ALL {
        let lease = |key| flannel_core::lease::Lease { key, attrs: published.clone(), created: 0 };
        let device = facts.vtep(family);
        let key = facts.own().map(|own| own.key).or(facts.previous.key);
        let Some((mac, device)) = key.and_then(|key| vtep_mac(&lease(key), family)).zip(device) else {
            continue;
        };
        if device.mac != Some(mac) {
            found.push(Finding::failure(
                format!("node {} publishes the VTEP MAC {mac}, and {} has another", node.name, device.name),
                "restart the agent, which writes the annotation anew; is NODE_NAME this node?",
            ));
        }
    }
    Ok(Finding::of_all(found, || format!("what node {} publishes is what this host has", node.name)))
}

/// What the API server allows, by its own word.
pub(super) async fn rights(facts: &Facts) -> Checked {
    let answers = facts.answers().await?;
    let rights = &answers.examination.rights;
    if rights.is_empty() {
        facts.answered().await?;
        return Err(Skip::new("the store is not Kubernetes"));
    }
    let fix = "apply the ClusterRole and its binding of dist/kubernetes/flannel.yaml (or the chart) for this service account";
    let mut found = Vec::new();
    let mut unknown = Vec::new();
    for right in rights {
        match &right.answer {
            RightAnswer::Allowed => {}
            RightAnswer::Denied(why) => {
                let why = if why.is_empty() { String::new() } else { format!(" ({why})") };
                found.push(Finding::failure(
                    format!("the API server does not let us {}{why}", right.what),
                    fix,
                ));
            }
            RightAnswer::Unknown(why) => unknown.push(why.clone()),
        }
    }
    if let (Some(why), true) = (unknown.first(), found.is_empty()) {
        return Err(Skip::new(format!("the API server does not say what we may do: {why}")));
    }
    Ok(Finding::of_all(found, || {
        format!("allowed: {}", rights.iter().map(|right| right.what.as_str()).collect::<Vec<_>>().join(", "))
    }))
}
