//! How nodes change their keys without losing a packet: which of two devices carries packets to a peer, and what a node
//! that changes its key does next. Pure.
//!
//! A WireGuard device has one key, and gives an allowed address to one peer. So for the time of a rotation each node has a
//! *second* device beside its *first*, on a port of its own, and receives on both:
//!
//! ```text
//!   node A, changes K1 to K2                                its peers
//!   offered:   second device has K2; record: K1, Next K2    make a second device, begin a handshake with K2 there,
//!                                                           and move their routes to A once it is complete; A likewise
//!   announced: all have moved; record: K2, Next K2          replace K1 by K2 on the first device
//!   switched:  the store has it: first device has K2        handshake on the first device, and move back; A likewise
//!   idle:      all are back; record: K2                     remove their second device
//! ```
//!
//! Nobody sends by a device before it has a session there, and nobody ends a session by which the other one sends. What a
//! node knows of where it is, is in its key files, its devices and its record: a restart goes on from there. Go flannel
//! ignores `Next`. It loses what is sent until its handshake with K2 is complete.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

use crate::key::PublicKey;
use crate::plan::STALE;

/// How long a node waits for peers that don't answer on its second device: Go flannel's nodes, nodes whose agent is down,
/// and those to which a firewall blocks the port. It is longer than an agent takes to restart, since a peer whose agent
/// is down when the key changes is cut off until the agent is back.
pub(crate) const PATIENCE: Duration = Duration::from_secs(300);
/// How long a node waits for peers that have answered, and still send by the first device. After that the old key goes
/// whatever they do: nobody must be able to keep it in force.
pub(crate) const LIMIT: Duration = Duration::from_secs(900);
/// How long no packet of pods must have come from a peer by the device that it left. A node moves its route within a second
/// or two after a handshake; until then a silent peer can't be told from one that has moved.
pub(crate) const QUIET: Duration = Duration::from_secs(6);
/// What WireGuard's own messages add to the received bytes: a keepalive, a handshake response, an initiation, and the last
/// two each with the keepalive that confirms it. A device sends them by itself for a while after its last packet. Packets of
/// pods add 64 bytes or more, in steps of 16 (paper section 5.4).
pub(crate) const CONTROL: [u64; 5] = [32, 92, 148, 92 + 32, 148 + 32];

/// One of the two devices of a rotation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Way {
    /// The one that is always there.
    First,
    /// The one that is there while a node changes its key.
    Second,
}

/// Where a node is in a change of its key, as its record or its files say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// It does not change its key.
    Idle,
    /// It offers the next key on its second device.
    Offered,
    /// Its first device has the next key, too.
    Switched,
}

impl Phase {
    /// The phase of a node with these keys.
    pub(crate) fn of(key: PublicKey, next: Option<PublicKey>) -> Self {
        match next {
            None => Self::Idle,
            Some(next) if next == key => Self::Switched,
            Some(_) => Self::Offered,
        }
    }
}

/// The time since the last handshake with a peer on each device; `None` if there was none with the present keys.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Sessions {
    pub(crate) first: Option<Duration>,
    pub(crate) second: Option<Duration>,
}

/// By which device this node sends to a peer.
pub(crate) fn way(ours: Phase, theirs: Phase, sessions: Sessions) -> Way {
    let is_offered = ours == Phase::Offered || theirs == Phase::Offered;
    match sessions {
        // Meanwhile the first device still has sessions of the former key.
        Sessions { second: Some(ago), .. } if is_offered && ago <= STALE => Way::Second,
        Sessions { first: None, second: Some(_) } if !is_offered => Way::Second,
        _ => Way::First,
    }
}

/// What keepalive packets of a device to a peer are for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Keepalive {
    /// What the config says.
    AsConfigured,
    /// Nothing: the device is to become quiet.
    Off,
    /// Beginning a handshake without a packet of pods, and again until it is complete.
    Handshake,
}

/// The keepalive packets of a device to a peer that has a second device. `used` is the device by which this node sends.
pub(crate) fn keepalive(device: Way, used: Way, ours: Phase, theirs: Phase) -> Keepalive {
    let is_offered = ours == Phase::Offered || theirs == Phase::Offered;
    match (device, used) {
        (Way::First, Way::First) if is_offered => Keepalive::AsConfigured,
        (Way::First, Way::Second) if is_offered => Keepalive::Off,
        (Way::Second, Way::First) if !is_offered => Keepalive::Off,
        _ => Keepalive::Handshake,
    }
}

/// A peer, as the node that changes its key sees it on one pair of devices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PeerView {
    /// Whether there was a handshake with it on the second device, not so long ago that its session is over.
    pub(crate) has_answered: bool,
    /// By which device this node sends to it.
    pub(crate) way: Way,
    /// For how long nothing has come from it by the device that it is to leave.
    pub(crate) quiet: Duration,
}

/// What a node that changes its key knows of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Own {
    pub(crate) phase: Phase,
    /// Whether it publishes the next key as its key already, which its first device does not have yet.
    pub(crate) is_announced: bool,
    /// Whether its record in the store is what it publishes.
    pub(crate) is_published: bool,
    /// Since when that has been so.
    pub(crate) waited: Duration,
}

/// What it does next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// It does not change its key.
    Rest,
    /// The store does not have what it publishes yet.
    AwaitStore,
    /// Peers have not moved yet.
    AwaitPeers,
    /// It publishes the next key as its key.
    Announce,
    /// It gives the next key to its first device.
    Switch,
    /// It ends the rotation.
    Finish,
}

/// Whether a node waits for a peer before it takes its next step.
pub(crate) fn is_awaited(own: Own, peer: PeerView) -> bool {
    let has_left = |way| peer.way == way && peer.quiet >= QUIET;
    match (own.phase, peer.has_answered) {
        (Phase::Idle, _) | (Phase::Switched, false) => false,
        (Phase::Offered, false) => own.waited < PATIENCE,
        (Phase::Offered, true) => !has_left(Way::Second) && own.waited < LIMIT,
        // There is no limit: as long as somebody sends by the second device it does no harm, and is needed.
        (Phase::Switched, true) => !has_left(Way::First),
    }
}

/// The next step of a node that waits for so many peers.
pub(crate) fn step(own: Own, awaited: usize) -> Step {
    match own {
        Own { phase: Phase::Idle, .. } => Step::Rest,
        Own { is_published: false, .. } => Step::AwaitStore,
        Own { phase: Phase::Offered, is_announced: true, .. } => Step::Switch,
        _ if awaited > 0 => Step::AwaitPeers,
        Own { phase: Phase::Offered, .. } => Step::Announce,
        Own { phase: Phase::Switched, .. } => Step::Finish,
    }
}

/// Since when devices have received no packets of pods from peers.
#[derive(Debug, Default)]
pub(crate) struct Quiet(BTreeMap<(Way, usize, PublicKey), (u64, Instant)>);

impl Quiet {
    /// Takes the bytes that device `at` of a kind has received from a peer. Returns for how long there was no packet of pods
    /// among them.
    pub(crate) fn observe(
        &mut self,
        way: Way,
        at: usize,
        peer: PublicKey,
        bytes: u64,
        now: Instant,
    ) -> Duration {
        let (before, since) = self.0.entry((way, at, peer)).or_insert((bytes, now));
        if bytes != *before && !bytes.checked_sub(*before).is_some_and(|more| CONTROL.contains(&more)) {
            *since = now;
        }
        *before = bytes;
        now.saturating_duration_since(*since)
    }

    /// Forgets everything.
    pub(crate) fn clear(&mut self) {
        self.0.clear();
    }
}

#[cfg(test)]
mod tests;
