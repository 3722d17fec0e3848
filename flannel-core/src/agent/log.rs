//! The log lines of the agent's own events.

use tracing::{debug, error, info, warn};

use super::event::AgentEvent;
use crate::probe::Verdict;

pub(super) fn write(event: &AgentEvent) {
    match event {
        AgentEvent::CleanupRuns { path } => {
            info!(path = %path.display(), "flanneld cleanup runs on this host; waiting for its end");
        }
        AgentEvent::LockUnusable { path, reason } => {
            warn!(path = %path.display(), error = reason, "flanneld cleanup won't see that this agent runs");
        }
        AgentEvent::DraftsStay { path, reason } => {
            warn!(path = %path.display(), error = reason, "temporary files of earlier runs can't be removed");
        }
        AgentEvent::OldSubnetFile { problem } => warn!(problem, "earlier subnet file can't be used"),
        AgentEvent::StateFileUnusable { path, problem } => warn!(
            path = %path.display(),
            problem,
            "state file can't be used; waiting for the store. Leftovers that only the file could prove to be ours stay"
        ),
        AgentEvent::StateFileOfAnotherHost { lease } => warn!(
            lease,
            "the state file was stored on a host with other NICs, as after a copy of its disk; its lease is not taken for \
             ours by it"
        ),
        AgentEvent::NoStandIn { why } => {
            info!(why, "no start without the store: the stored state can't be used");
        }
        AgentEvent::Waiting { step, why } => warn!(error = why, "{step}"),
        AgentEvent::ConfigRead { networks, backend } => {
            let networks: Vec<_> = networks.iter().map(ToString::to_string).collect();
            info!(networks = networks.join(","), backend, "network config read");
        }
        AgentEvent::UnderlayChosen { link, mtu, local, published, reason } => info!(
            link,
            mtu = mtu.0,
            local = local.join(","),
            published = published.join(","),
            reason,
            "underlay chosen"
        ),
        AgentEvent::PublishedAddressesChanged { published } => {
            debug!(published = published.join(","), "published addresses changed");
        }
        AgentEvent::AddressAmongPods { remark } => {
            warn!(remark, "underlay address among the pods' addresses");
        }
        AgentEvent::LeaseAcquired { lease, overlay_mtu } => {
            debug!(subnet = lease, overlay_mtu = overlay_mtu.0, "lease acquired");
        }
        // Stores log these themselves, since they can be used without an agent.
        AgentEvent::LeaseRenewed { .. } | AgentEvent::StoreLost { .. } | AgentEvent::StoreBack { .. } => {}
        AgentEvent::LeaseLost { why } => {
            error!(error = why, "lease lost; the datapath stays, and the agent ends in a minute");
        }
        AgentEvent::FirewallKept { manager: _, choice, masquerade, forward } => {
            info!(manager = choice, masquerade, forward, "firewall rules are kept");
        }
        AgentEvent::SubnetFileWritten { path, overlay_mtu, written } => {
            info!(path = %path.display(), overlay_mtu = overlay_mtu.0, written, "subnet file is in place");
        }
        AgentEvent::SubnetFileRefused { why } => {
            warn!(error = why, "subnet file can't be written; trying again");
        }
        AgentEvent::MtuChanged { before, overlay_mtu } => {
            warn!(
                before = before.0,
                overlay_mtu = overlay_mtu.0,
                "pod MTU changed; running pods keep theirs"
            );
        }
        AgentEvent::PeerJudged { lease, family, verdict, text, evidence, remedy, .. } => {
            let evidence = evidence.join(", ");
            if *verdict == Verdict::Bridged {
                warn!(subnet = %lease, %family, verdict = %text, evidence, remedy, "peer is reached by a detour");
            } else if verdict.is_trouble() {
                warn!(subnet = %lease, %family, verdict = %text, evidence, remedy, "peer is not reached");
            } else {
                info!(subnet = %lease, %family, verdict = %text, evidence, "verdict about a peer changed");
            }
        }
        AgentEvent::PeersJudged { changed, trouble } => {
            warn!(changed, trouble, "verdicts about many peers changed");
        }
        AgentEvent::Ready => debug!("ready"),
        AgentEvent::NotReady { reasons } => debug!(reasons = reasons.join("; "), "not ready"),
        AgentEvent::Stopping => debug!("stopping"),
        // Whoever runs the agent gets the error, and says what it means for the process.
        AgentEvent::Ended { error } => debug!(error, "the agent has ended"),
        AgentEvent::StopFailed { part, why } => {
            warn!(part, error = why, "a part of the agent failed while it stopped");
        }
        // Their senders have logged them when they happened (`events/ring.rs`).
        AgentEvent::Network(_) | AgentEvent::Firewall(_) | AgentEvent::Memory(_) => {}
        // For readers who were too slow.
        AgentEvent::LeftOut { .. } => {}
    }
}
