//! Keeps the own node's annotations and its condition, for which the scheduling of pods waits: puts them back when
//! somebody removed or changed them.

use std::convert::Infallible;
use std::time::Duration;

use flannel_core::backoff::jitter;
use flannel_core::error::chain;
use flannel_core::lease::Lease;
use flannel_core::subnet::SubnetError;
use flannel_core::subnet::kit::Backoff;
use tracing::{debug, info, warn};

use super::Store;
use super::node::{Condition, NodeObject};
use super::own::{OwnNode, OwnObject, Recent, check_held};

/// How often the own node is read while there is no watch.
const LOOK: Duration = Duration::from_mins(1);
/// How long the own node counts as known after it was read or written.
const KNOWN: Duration = Duration::from_secs(10);
/// How often the whole own node is read at most, while its metadata changes all the time.
const OFTEN: Duration = Duration::from_secs(1);
/// How long everything must have been right before the backoff for putting something back is reset.
const CALM: Duration = Duration::from_secs(10);

impl Store {
    pub(super) async fn keep_renewed(&self, lease: &Lease) -> Result<Infallible, SubnetError> {
        let mut seen = self.own_seen.subscribe();
        let mut is_up = self.is_up.subscribe();
        let mut rival = self.rival.subscribe();
        let (mut outage, mut repairs) = (Backoff::new(), Backoff::new());
        let mut calm_since = self.options.clock.now();
        let (mut jumps, mut must_ask) = (self.options.clock.jumps(), false);
        loop {
            // What the watch saw before a suspend is out of date.
            let own = seen.borrow_and_update().clone().filter(|_| !must_ask);
            let elder = rival.borrow_and_update().clone();
            // Only a watch shows whether an older node has our subnet.
            let up = *is_up.borrow_and_update() && elder.is_none() && seen.borrow().is_some();
            let looked = self.look(lease, own, up).await;
            must_ask &= looked.is_err();
            match &looked {
                Ok(_) => self.health.set_unkept(elder),
                Err(lost @ SubnetError::LeaseLost { .. }) => {
                    self.health.set_unkept(None);
                    self.health.set_lost(Some(lost.to_string()));
                }
                // The outage was logged already.
                Err(SubnetError::Unavailable { .. }) if !self.health.is_connected() => {}
                Err(error) => self.health.set_unkept(Some(chain(error))),
            }
            let wait = match looked {
                Ok(Held::Well) => {
                    outage.reset();
                    if self.options.clock.now().since(calm_since) > CALM {
                        repairs.reset();
                    }
                    // Without a watch the node must be read.
                    if seen.borrow().is_none() { Some(jitter(LOOK, 0.25)) } else { None }
                }
                Ok(Held::Unsure) => Some(jitter(OFTEN, 0.25)),
                Ok(Held::Restored) => {
                    calm_since = self.options.clock.now();
                    Some(repairs.pause())
                }
                Err(lost @ SubnetError::LeaseLost { .. }) => return Err(lost),
                Err(_) => Some(outage.pause()),
            };
            let changed = async {
                // The senders live as long as the store.
                tokio::select! {
                    _ = seen.changed() => false,
                    _ = is_up.changed() => false,
                    _ = rival.changed() => false,
                    slept = jumps.suspended() => {
                        debug!(?slept, "looking at the own node after a suspend");
                        true
                    }
                }
            };
            must_ask |= match wait {
                Some(pause) => tokio::time::timeout(pause, changed).await.unwrap_or(false),
                None => changed.await,
            };
        }
    }

    /// Checks the node once, and puts back what is missing.
    ///
    /// A watch of metadata alone does not show the condition, so each change of the own node costs one read of it: a
    /// kubelet's heartbeat, every five minutes.
    async fn look(&self, lease: &Lease, mut seen: Option<OwnNode>, up: bool) -> Result<Held, SubnetError> {
        let last = self.recent(Duration::MAX);
        if let (Some(OwnNode::There(own)), Some(last)) = (&mut seen, &last) {
            own.complete_by(last);
        }
        let last = last.and_then(|last| last.revision);
        // What the watch saw can be older than what we wrote, so a problem is confirmed by reading the node.
        if let Some(OwnNode::There(own)) = &seen
            && self.is_held(&own.node, lease)?
            && self.lacks(own, lease, up)?.is_none()
        {
            return Ok(Held::Well);
        }
        // At a start the node was just read and written. If the watch shows that something is missing, that read must
        // show it, too.
        let recent = match (&seen, self.recent(KNOWN)) {
            (None, recent) => recent.map(|recent| recent.own),
            (Some(OwnNode::There(seen)), Some(Recent { own, .. }))
                if own.node.uid == seen.node.uid && self.lacks(&own, lease, up)?.is_some() =>
            {
                Some(own)
            }
            _ => None,
        };
        let own = match (recent, &seen) {
            (Some(own), _) => own,
            (None, Some(OwnNode::There(OwnObject { condition: Condition::Unseen(revision), node }))) => {
                if self.is_held(node, lease)? && self.recent(OFTEN).is_some() {
                    return Ok(Held::Unsure);
                }
                // Nor may it be older than what we read or wrote.
                self.read_own_at(revision.map(|seen| last.map_or(seen, |last| last.max(seen)))).await?
            }
            (None, _) => self.read_own().await?,
        };
        check_held(&own.node, lease.key)?;
        match self.lacks(&own, lease, up)? {
            None => Ok(Held::Well),
            Some(Lack::Annotations) => {
                warn!(node = %own.node.name, "annotations of the own node were changed; writing them again");
                self.publish(lease, &lease.attrs).await?;
                Ok(Held::Restored)
            }
            Some(Lack::Condition) => {
                self.patch_condition(&own.node).await?;
                info!(node = %own.node.name, "condition NetworkUnavailable set to False");
                Ok(Held::Restored)
            }
        }
    }

    /// Whether a node surely has the subnet, and all that we write to it but the condition.
    fn is_held(&self, node: &NodeObject, lease: &Lease) -> Result<bool, SubnetError> {
        let has_subnet = node.pod_cidrs.is_some() && check_held(node, lease.key).is_ok();
        Ok(has_subnet && self.missing_annotations(node, &lease.attrs)?.is_empty())
    }

    fn lacks(&self, own: &OwnObject, lease: &Lease, up: bool) -> Result<Option<Lack>, SubnetError> {
        if !self.missing_annotations(&own.node, &lease.attrs)?.is_empty() {
            return Ok(Some(Lack::Annotations));
        }
        // One that was not seen may be anything.
        let is_said = matches!(&own.condition, Condition::Seen(Some(status)) if status == "False");
        Ok((up && self.options.set_condition && !is_said).then_some(Lack::Condition))
    }
}

/// The result of one check of the node.
enum Held {
    /// Everything is right.
    Well,
    /// The node was read a moment ago, and has changed since.
    Unsure,
    /// Something was put back.
    Restored,
}

/// What is missing or wrong on the node.
enum Lack {
    Annotations,
    Condition,
}
