//! Follows the addresses of the underlay: first the devices change, then the published attributes.

use tokio::sync::watch;
use tokio::time::Instant;

use super::{Driver, Reconciler};
use crate::addr::LinkIndex;
use crate::backend::Underlay;
use crate::events::NetworkEvent;
use crate::kernel::{KernelError, LinkAddress};
use crate::lease::{Lease, LeaseAttrs};
use crate::peers::Segments;
use crate::status::{Harm, Problem, Subject};
use crate::underlay::{Change, Follower, gather};

impl<D: Driver> Reconciler<D> {
    /// Chooses the underlay again from now on, when the chosen one is gone.
    pub(crate) fn follow(&mut self, underlay: Follower) {
        self.underlay = Some(underlay);
        // The underlay may have changed since it was chosen.
        self.work.check_underlay();
    }

    /// The attributes that this node has to publish; see [`crate::backend::Network::attrs`].
    pub fn attrs(&self) -> watch::Receiver<LeaseAttrs> {
        self.attrs.subscribe()
    }

    /// Records the subnets of the underlay's link. While the link has no address, the last ones stay.
    pub(crate) fn place(&mut self, link: LinkIndex, addresses: &[LinkAddress]) {
        let of_link = addresses.iter().filter(|own| own.link == link).map(|own| own.addr);
        let segments = Segments::new(of_link);
        if !segments.is_empty() && segments != self.segments {
            self.segments = segments;
            self.desire_anew();
        }
    }

    pub(super) fn underlay_problem(&self) -> Option<Problem> {
        let (why, family) = self.underlay.as_ref().and_then(Follower::problem)?;
        let problem = Problem::new(Subject::Underlay, Harm::All, why.to_owned());
        Some(Problem { family, ..problem })
    }

    /// Checks that the underlay's link and addresses still exist; changes to the replacement after it has been stable
    /// for a while.
    pub(super) async fn look_at_underlay(&mut self) -> Result<(), KernelError> {
        let Some(follower) = &mut self.underlay else { return Ok(()) };
        let host = gather(&mut *self.kernel, &follower.options).await?;
        let before = follower.problem().map(|(why, _)| why.to_owned());
        let (mut news, mut has_moved) = (None, false);
        if let Some(change) = follower.look(&host, Instant::now()) {
            let (Change::Renamed(next) | Change::Moved(next)) = &change;
            match self.driver.set_underlay(next) {
                Ok(()) => {
                    news = Some(event(&follower.current, &change));
                    self.work.check_devices();
                    match &change {
                        Change::Moved(_) => has_moved = true,
                        // The renamed link may have lost its addresses, too.
                        Change::Renamed(_) => self.work.check_underlay(),
                    }
                    follower.adopt(change);
                }
                Err(problem) => follower.refuse(problem.to_string()),
            }
        }
        let link = follower.current.link;
        let problem = follower.problem().map(|(why, _)| why.to_owned());
        if has_moved {
            self.desire_anew();
        }
        self.place(link, &host.addresses);
        // A device may have waited for this address.
        if !self.devices.problems.is_empty() {
            self.work.check_devices();
        }
        if let Some(event) = news {
            self.events.send(event);
        }
        match problem {
            Some(reason) if before.as_ref() != Some(&reason) => {
                self.events.send(NetworkEvent::UnderlayLost { reason });
            }
            None if before.is_some() => self.events.send(NetworkEvent::UnderlayBack),
            _ => {}
        }
        Ok(())
    }

    /// Publishes the attributes once the devices match them.
    pub(super) fn announce_attrs(&mut self) {
        if self.work.has_devices() || self.work.has_peers() || !self.devices.problems.is_empty() {
            return;
        }
        let attrs = self.driver.attrs();
        if *self.attrs.borrow() == attrs {
            return;
        }
        let next_age = self.leases.next_age();
        self.record.edit(|state| {
            if let Some(own) = &mut state.own {
                let after = Lease { attrs: attrs.clone(), ..own.clone() };
                state.own_ages = state.own_ages.follow(own, &after, next_age);
                let before = std::mem::replace(&mut own.attrs, after.attrs);
                state.remember_ips(before.public_ips.iter().map(|(_, ip)| *ip));
            }
        });
        self.attrs.send_replace(attrs);
    }
}

fn event(current: &Underlay, change: &Change) -> NetworkEvent {
    match change {
        Change::Renamed(next) => {
            NetworkEvent::UnderlayRenamed { before: current.name.clone(), link: next.name.clone() }
        }
        Change::Moved(next) => NetworkEvent::UnderlayMoved {
            link: next.name.clone(),
            before: current.local,
            local: next.local,
            published: next.published,
            reason: next.reason.clone(),
        },
    }
}
