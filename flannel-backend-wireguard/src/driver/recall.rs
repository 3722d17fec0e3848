//! What this node stored of its peers: at its first look at the devices it takes that as what was in force.

use flannel_core::reconcile::Driver as _;

use super::WireguardDriver;
use crate::roster::keys;

impl WireguardDriver {
    /// Takes the endpoints that peers had published when this node last stored them as those in force.
    pub(super) fn settle_recalled(&mut self) {
        let links = self.links();
        if self.recalled.is_empty() || links.is_empty() {
            return;
        }
        for lease in std::mem::take(&mut self.recalled) {
            let Ok(peer) = self.peer(&lease) else { continue };
            for (link, key, at) in keys(&peer) {
                let tunnel =
                    self.tunnels.iter_mut().find(|it| it.link.as_ref().is_some_and(|it| it.index == link));
                if let Some(tunnel) = tunnel {
                    tunnel.settled.entry(key).or_insert(at);
                }
            }
        }
    }

    /// Names the peers that had sessions before to devices that may have lost them.
    pub(super) fn expect_settled(&self) {
        for tunnel in &self.tunnels {
            if let Some(device) = &tunnel.device {
                device.expect(&tunnel.settled.keys().copied().collect::<Vec<_>>());
            }
        }
    }
}
