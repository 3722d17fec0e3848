//! The change of the backend that this node publishes.

use std::time::Duration;

use tokio::time::Instant;

use super::Drivers;
use crate::config::{BackendConfig, ConfigError};
use crate::events::NetworkEvent;
use crate::lease::LeaseAttrs;
use crate::reconcile::AppliedConfig;

/// How often a node looks at sessions, and at the time, while a change waits for other nodes.
const LOOK: Duration = Duration::from_millis(500);

impl Drivers {
    /// Begins the change to the backend of this config, or goes back. Nothing of it is needed to be up yet. A backend that can't
    /// share the node takes a restart.
    pub(super) fn begin_switch(
        &mut self,
        next: &BackendConfig,
        changed: Vec<String>,
    ) -> Result<AppliedConfig, ConfigError> {
        let Some(workshop) = &self.workshop else { return Ok(AppliedConfig::new(Vec::new(), changed)) };
        if workshop.is_encrypted(self.published)
            && !workshop.is_encrypted(&next.kind)
            && !next.mixing.leave_encryption
        {
            let problem = format!(
                "packets between nodes are encrypted by {} now and would not be by {}; if that is meant, set \
                 Backend.LeaveEncryption to true in the same change",
                self.published, next.kind
            );
            return Err(ConfigError::new("Backend.Type", Some(next.kind.clone()), problem));
        }
        let Some((kind, _)) = workshop.maker(&next.kind) else {
            return Ok(AppliedConfig::new(Vec::new(), changed));
        };
        let config = workshop.config_of(next);
        if let Some(backend) = workshop.backends.iter().find(|backend| backend.kind() == kind) {
            backend.check(&config)?;
        }
        super::check_further(&workshop.backends, &config)?;
        // It may be up already: as one that leases name, or since the operator takes a change back, maybe with other keys.
        let AppliedConfig { mut restart, .. } = self.apply_to(kind, next)?;
        if self.apply_to_accepted(next)? {
            restart.push("Backend.Accept".to_owned());
        }
        let Some(workshop) = &mut self.workshop else { return Ok(AppliedConfig::default()) };
        // The former one stays allowed, since leases name it until their nodes have changed, too.
        let former = std::mem::replace(&mut workshop.config.backend, next.clone());
        workshop.recalled.retain(|it| it.kind != former.kind && it.kind != next.kind);
        workshop.recalled.push(former);
        (self.target, self.offered) = (kind, None);
        if self.target == self.published {
            self.proofs.set_ways(next.mixing.detours());
        } else {
            let (before, after) = (self.published.to_owned(), kind.to_owned());
            self.events.push(NetworkEvent::BackendSwitchBegins { before, after });
        }
        Ok(AppliedConfig::new(changed, restart))
    }

    /// Publishes the configured backend once all nodes can receive by it, or have had the time. Returns whether it did.
    pub(super) fn advance(&mut self) -> bool {
        let Some(workshop) = self.workshop.as_ref().filter(|_| self.target != self.published) else {
            return false;
        };
        let Some(slot) = self.slot(self.target).filter(|slot| slot.is_offered) else { return false };
        let offers = |record: &LeaseAttrs| record.receives.iter().any(|it| it.kind == slot.kind);
        if !self.is_synced || !self.record.as_ref().is_some_and(offers) {
            return false;
        }
        // Where a tunnel has sessions, packets would wait for the first handshake.
        let unmet = slot.sessions.read().iter().filter(|session| session.last_handshake.is_none()).count();
        let unable = self.census.unable(slot.kind, &slot.published_type).max(unmet);
        let after = workshop.config.backend.mixing.switch_after;
        let now = Instant::now();
        self.look_at = now + LOOK;
        if unable > 0 && now < *self.offered.get_or_insert(now) + after {
            return false;
        }
        let ways = workshop.config.backend.mixing.detours();
        let (before, after) = (self.published.to_owned(), self.target.to_owned());
        self.events.push(NetworkEvent::BackendSwitched { before, after, unable });
        self.published = self.target;
        self.offered = None;
        self.proofs.change_tunnel(ways);
        true
    }

    /// When to look again at a change that waits for other nodes.
    pub(super) fn switch_due(&self) -> Option<Instant> {
        (self.offered.is_some() && self.target != self.published).then_some(self.look_at)
    }
}
