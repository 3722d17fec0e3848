//! The prober: sends the packets, takes in the answers, and publishes what follows from them.
//!
//! It is one task with one set of sockets, whatever the number of peers. Each target (a peer in one family) is either
//! waiting for its next visit or for the answers of its present one, so there is one point in time a target.

mod answer;
mod neighbours;
mod peers;
mod send;
mod sessions;
mod target;
#[cfg(test)]
mod tests;
mod visit;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::convert::Infallible;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use self::neighbours::Neighbours;
use self::sessions::TunnelsWord;
use self::target::{Sent, Target};
use super::gate::{Look, PeersGate};
use super::options::{ProbeInterval, ProbeOptions};
use super::pace::{Budget, Rate, wake_up};
use super::sockets::{self, Arrival, FamilySockets, What};
use super::status::{ProbeStatus, Verdict};
use crate::addr::{Family, Mtu, PerFamily};
use crate::backend::{Answers, NetworkStatus, Probing};
use crate::events::MOST_SINGLE;
use crate::lease::LeaseKey;
use crate::netns::Netns;
use crate::status::PeerList;

/// How often results are published, at most.
const PUBLISHED: Duration = Duration::from_millis(250);
/// How often the list of peers is read, at most.
const LISTED: Duration = Duration::from_millis(500);
/// Largest packet that is read.
const BUFFER: usize = 1 << 16;

/// What a prober has to tell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ProbeEvent {
    /// The verdict about a peer changed.
    Judged {
        lease: LeaseKey,
        family: Family,
        before: Verdict,
        verdict: Verdict,
        text: String,
        evidence: Vec<String>,
        remedy: Option<String>,
    },
    /// Those about many peers changed at once.
    ManyJudged { changed: usize, trouble: usize },
}

/// Probes the peers of one network.
pub(crate) struct Prober {
    netns: Netns,
    options: ProbeOptions,
    probing: Probing,
    tunnels_word: TunnelsWord,
    own: LeaseKey,
    network: watch::Receiver<NetworkStatus>,
    status: watch::Sender<ProbeStatus>,
    shown: ProbeStatus,
    is_changed: bool,
    changes: Vec<ProbeEvent>,
    /// Of whom it was told last that packets are lost. They stay while their lease does, whatever becomes of the target: its
    /// end is news.
    troubled: BTreeSet<(LeaseKey, Family)>,
    sockets: PerFamily<FamilySockets>,
    secret: u64,
    next_number: u32,
    next_target: u32,
    /// Each has a place of its own: the free places of a large table would have its size, too.
    targets: HashMap<u32, Box<Target>>,
    index: BTreeMap<(LeaseKey, Family), u32>,
    /// How many targets count as neighbours.
    on_link: PerFamily<usize>,
    neighbours: Neighbours,
    /// The peers as they were read last.
    peers: PeerList,
    /// When visits are over.
    ends: BTreeSet<(Instant, u32)>,
    /// When visits begin, and the time before which the budget has nothing left for one.
    starts: BTreeSet<(Instant, u32)>,
    resumed: Instant,
    sent: HashMap<u32, Sent>,
    budget: Budget,
    /// Thorough rounds of peers without a verdict against them.
    suspects: Rate,
    gate: Option<PeersGate>,
    overlay_mtu: Mtu,
    readings: u64,
    connecting: JoinSet<Option<u32>>,
}

impl Prober {
    /// A prober of this node's network. `overlay_mtu` is the one to begin with.
    pub(crate) fn new(
        netns: Netns,
        options: ProbeOptions,
        probing: Option<Probing>,
        own: LeaseKey,
        overlay_mtu: Mtu,
        network: watch::Receiver<NetworkStatus>,
    ) -> Self {
        let now = Instant::now();
        let mut shown = ProbeStatus::default();
        if probing.is_none() {
            shown.notes.push("the backend does not say how its network is probed".to_owned());
        }
        let probing = probing.unwrap_or_else(|| Probing::new(Answers::Base));
        let tunnels_word = TunnelsWord::new(probing.sessions.clone());
        let mut gate = options.ready.map(|ready| PeersGate::new(ready, now));
        match gate.as_mut().map(|gate| gate.look(now)) {
            Some(Look::Waits(why)) => shown.waiting = Some(why),
            Some(Look::Open | Look::Same) | None => gate = None,
        }
        let neighbours = Neighbours::new(&netns);
        let families = own.subnets();
        let mut sockets = PerFamily::default();
        if shown.notes.is_empty() {
            (sockets, shown.notes) = sockets::open(&netns, families.families());
        }
        Self {
            netns,
            options,
            probing,
            tunnels_word,
            own,
            network,
            status: watch::Sender::new(shown.clone()),
            shown,
            is_changed: false,
            changes: Vec::new(),
            troubled: BTreeSet::new(),
            sockets,
            secret: fastrand::u64(..),
            next_number: 0,
            next_target: 0,
            targets: HashMap::new(),
            index: BTreeMap::new(),
            on_link: PerFamily::default(),
            neighbours,
            peers: PeerList::default(),
            ends: BTreeSet::new(),
            starts: BTreeSet::new(),
            resumed: now,
            sent: HashMap::new(),
            budget: Budget::new(now),
            suspects: Rate::new(now),
            gate,
            overlay_mtu,
            readings: 0,
            connecting: JoinSet::new(),
        }
    }

    /// What it finds out. The receiver stays valid after [`Self::run`] has consumed the prober.
    pub(crate) fn status(&self) -> watch::Receiver<ProbeStatus> {
        self.status.subscribe()
    }

    /// Probes for as long as it is polled.
    pub(crate) async fn run(mut self, tell: impl Fn(ProbeEvent)) -> Infallible {
        self.network.mark_changed();
        let mut buffer = vec![0; BUFFER];
        let began = Instant::now();
        let (mut list_at, mut publish_at) = (began, began);
        let mut is_listed = false;
        loop {
            let gate = self.gate.as_ref().map(PeersGate::deadline);
            let end = self.ends.first().map(|(at, _)| *at);
            let start = self.starts.first().map(|(at, _)| self.resumed.max(*at));
            let due = [end, start, self.is_changed.then_some(publish_at), gate];
            let due = due.into_iter().flatten().min();
            let due =
                due.map(|due| began + wake_up(due.saturating_duration_since(began), self.targets.len()));
            let mut has_arrived = false;
            tokio::select! {
                () = arrival(self.sockets.v4.as_ref()) => has_arrived = true,
                () = arrival(self.sockets.v6.as_ref()) => has_arrived = true,
                Some(done) = self.connecting.join_next() => {
                    if let Ok(Some(number)) = done {
                        self.answer(Arrival { number, from: None, what: What::Reply });
                    }
                }
                changed = changed(&mut self.network, list_at) => {
                    // After the end of the network its peers stay as they are.
                    is_listed = changed;
                }
                () = until(due) => {}
            }
            let now = Instant::now();
            // What has arrived counts before anything is called late. Otherwise nothing is read that is not announced.
            if has_arrived || end.is_some_and(|end| end <= now) {
                self.drain(&mut buffer);
            }
            if std::mem::take(&mut is_listed) {
                self.list(now).await;
                list_at = now + LISTED;
            }
            self.go_on(now).await;
            if gate.is_some() {
                self.look_at_gate(now);
            }
            if self.is_changed && now >= publish_at {
                self.publish(&tell);
                publish_at = now + PUBLISHED;
            }
        }
    }

    fn drain(&mut self, buffer: &mut [u8]) {
        let mut arrived = Vec::new();
        for (_, sockets) in self.sockets.iter() {
            sockets.drain(self.secret, buffer, |arrival| arrived.push(arrival));
        }
        for arrival in arrived {
            self.answer(arrival);
        }
    }

    /// Opens the gate of readiness once enough peers have answered, or its time is over.
    fn look_at_gate(&mut self, now: Instant) {
        let waiting = match self.gate.as_mut().map(|gate| gate.look(now)) {
            None | Some(Look::Same) => return,
            Some(Look::Waits(why)) => Some(why),
            Some(Look::Open) => {
                self.gate = None;
                None
            }
        };
        (self.shown.waiting, self.is_changed) = (waiting, true);
    }

    fn publish(&mut self, tell: &impl Fn(ProbeEvent)) {
        self.is_changed = false;
        self.status.send_replace(self.shown.clone());
        let changes = std::mem::take(&mut self.changes);
        if changes.len() > MOST_SINGLE {
            let (count, trouble) = (changes.len(), self.shown.counts.trouble());
            tell(ProbeEvent::ManyJudged { changed: count, trouble });
        } else {
            changes.into_iter().for_each(tell);
        }
    }
}

async fn arrival(sockets: Option<&FamilySockets>) {
    match sockets {
        Some(sockets) => sockets.arrival().await,
        None => std::future::pending().await,
    }
}

/// Waits for a change of the network, and not before this time. Returns whether there is one.
async fn changed(network: &mut watch::Receiver<NetworkStatus>, not_before: Instant) -> bool {
    if network.changed().await.is_err() {
        return std::future::pending().await;
    }
    network.mark_changed();
    sleep_until(not_before).await;
    true
}

async fn until(due: Option<Instant>) {
    match due {
        Some(due) => sleep_until(due).await,
        None => std::future::pending().await,
    }
}

impl ProbeOptions {
    /// Whether anything is to be probed.
    pub(crate) fn is_on(&self) -> bool {
        self.interval != ProbeInterval::Off
    }
}
