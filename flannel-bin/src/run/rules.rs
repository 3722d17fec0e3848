//! The firewall rules in the life of the agent.

use std::time::Duration;

use flannel_core::addr::PerFamily;
use flannel_core::config::NetworkConfig;
use flannel_core::firewall::rules::{Ours, Range, Wanted};
use flannel_core::firewall::{Choice, Firewall, FirewallError, FirewallStatus, Managers};
use flannel_core::netns::Netns;
use flannel_core::subnet_file::SubnetFile;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tracing::info;

use super::{Agent, RunError};
use crate::report::chain;
use crate::rules::ranges;

/// What keeps firewall rules is being looked for.
pub(super) type Opening = JoinHandle<Result<Managers, FirewallError>>;

/// The flags that ask for rules.
pub(super) fn asked_by(masquerade: bool) -> &'static str {
    if masquerade { "--ip-masq" } else { "--iptables-forward-rules" }
}

/// What was not asked for is only missed.
fn missed(netns: &Netns, error: &FirewallError, resync: Duration) -> Managers {
    let missed = format!(
        "forwarded traffic of pods is not accepted by rules of ours, which matters where others drop it \
         (--iptables-forward-rules=false silences this): {}",
        chain(error)
    );
    // One program may be there, and tell what others do.
    Managers::none(missed).watching(netns, resync)
}

impl Agent<'_> {
    /// Finds what is to keep the firewall rules: at once if they were asked for, since it can be the end, else
    /// while the network starts.
    pub(super) async fn open_managers(&self, config: &NetworkConfig) -> Result<Opening, RunError> {
        let choice = match config.nftables {
            Some(true) => Choice::Nftables,
            Some(false) => Choice::Iptables,
            None => Choice::Either,
        };
        let opening = (self.managers)(choice, config.families().collect(), self.rules);
        if self.rules.are_asked_for() {
            let masquerade = self.rules.masquerade;
            let opened = opening.await.map_err(|source| RunError::Firewall { masquerade, source })?;
            return Ok(tokio::spawn(async { Ok(opened) }));
        }
        Ok(tokio::spawn(opening))
    }

    /// What earlier runs wrote rules for: by the subnet file, which Go agents have, too, and by the state file.
    pub(super) fn written_before(&self) -> Vec<PerFamily<Range>> {
        let stored = self.previous.as_ref().and_then(|state| {
            let own = state.own.as_ref()?;
            Some(ranges(state.networks, own.key.subnets()))
        });
        [self.written_for].into_iter().chain(stored).collect()
    }

    /// What holds the rules of these subnets, once it is known what keeps them.
    pub(super) async fn firewall(
        &self,
        opening: Opening,
        file: &SubnetFile,
        mut before: Vec<PerFamily<Range>>,
    ) -> Result<Firewall, RunError> {
        let managers = match self.shutdown.run_until_cancelled(opening).await {
            Some(opened) => opened
                .map_err(RunError::Crashed)?
                .unwrap_or_else(|error| missed(&self.netns, &error, self.rules.resync)),
            None => Managers::none("stopping"),
        };
        let now = ranges(file.networks, file.subnets);
        let keeps_none = Wanted { ranges: now, ..Wanted::default() };
        let wanted = if managers.keeps_any() { self.rules.wanted(now) } else { keeps_none };
        if !wanted.is_empty() {
            let Wanted { masquerade, forward, .. } = wanted;
            info!(manager = managers.choice(), masquerade, forward, "firewall rules are kept");
        }
        before.push(now);
        Ok(Firewall::new(managers, wanted, Ours::Of(before)))
    }

    /// Waits until traffic of pods leaves as it should.
    pub(super) async fn wait_for_rules(&self, mut status: watch::Receiver<FirewallStatus>) {
        if self.rules.masquerade {
            self.board.starting("writing firewall rules");
            let ready = status.wait_for(|status| status.in_place).await.is_ok();
            debug_assert!(ready, "the firewall runs as long as the agent");
        }
    }
}
