//! The agent's firewall rules.

use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::{Failure, Life};
use crate::addr::PerFamily;
use crate::agent::event::AgentEvent;
use crate::agent::firewall::ranges;
use crate::config::NetworkConfig;
use crate::error::chain;
use crate::firewall::rules::{Ours, Range, Wanted};
use crate::firewall::{Firewall, FirewallError, FirewallStatus, ManagerChoice, Managers};
use crate::netns::Netns;
use crate::subnet_file::SubnetFile;

/// The task that finds a manager for the firewall rules.
pub(super) type Opening = JoinHandle<Result<Managers, FirewallError>>;

/// The managers if there is none, for rules that are not required: the status only mentions that.
fn missed(netns: &Netns, error: &FirewallError, resync: Duration) -> Managers {
    let missed = format!(
        "forwarded traffic of pods is not accepted by rules of ours, which matters where others drop it \
         (an agent that is not asked for such rules, as by --iptables-forward-rules=false, does not say so): {}",
        chain(error)
    );
    // One of the programs may be installed, and can show what other firewalls do.
    Managers::none(missed).watching(netns, resync)
}

impl Life {
    /// Finds a manager for the firewall rules: before anything else if they are required, since a failure ends the
    /// agent, otherwise while the network starts.
    pub(super) async fn open_managers(&self, config: &NetworkConfig) -> Result<Opening, Failure> {
        let choice = match config.nftables {
            Some(true) => ManagerChoice::Nftables,
            Some(false) => ManagerChoice::Iptables,
            None => ManagerChoice::Either,
        };
        let opening =
            self.place.open_managers(&self.netns, choice, config.families().collect(), self.firewall);
        if self.firewall.are_required() {
            let masquerade = self.firewall.masquerade;
            let opened = opening.await.map_err(|source| Failure::Firewall { masquerade, source })?;
            return Ok(tokio::spawn(async { Ok(opened) }));
        }
        Ok(tokio::spawn(opening))
    }

    /// The networks for which earlier runs wrote rules, by the subnet file, which Go agents also write, and by the
    /// state file.
    pub(super) fn written_before(&self) -> Vec<PerFamily<Range>> {
        let stored = self.previous.as_ref().and_then(|state| {
            let own = state.own.as_ref()?;
            Some(ranges(state.networks, own.key.subnets()))
        });
        [self.written_for].into_iter().chain(stored).collect()
    }

    /// Starts to keep the rules for these subnets, once a manager is found.
    pub(super) async fn firewall(
        &self,
        opening: Opening,
        file: &SubnetFile,
        mut before: Vec<PerFamily<Range>>,
    ) -> Result<Firewall, Failure> {
        let managers = match self.shutdown.run_until_cancelled(opening).await {
            Some(opened) => opened
                .map_err(Failure::Crashed)?
                .unwrap_or_else(|error| missed(&self.netns, &error, self.firewall.resync)),
            None => Managers::none("stopping"),
        };
        let now = ranges(file.networks, file.subnets);
        let keeps_none = Wanted { ranges: now, ..Wanted::default() };
        let wanted = if managers.keeps_any() { self.firewall.wanted(now) } else { keeps_none };
        if !wanted.is_empty() {
            let Wanted { masquerade, forward, .. } = wanted;
            let (manager, choice) = (managers.kind(), managers.choice().to_owned());
            self.board.emit(AgentEvent::FirewallKept { manager, choice, masquerade, forward });
        }
        before.push(now);
        Ok(Firewall::new(managers, wanted, Ours::Of(before)).telling(self.board.sender()))
    }

    /// Waits until masquerading is in place, if it was asked for.
    pub(super) async fn wait_for_rules(&self, mut status: watch::Receiver<FirewallStatus>) {
        if self.firewall.masquerade {
            self.board.starting("writing firewall rules");
            let ready = status.wait_for(|status| status.in_place).await.is_ok();
            debug_assert!(ready, "the firewall runs as long as the agent");
        }
    }
}
