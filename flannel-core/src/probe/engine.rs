//! The prober: sends the packets, takes in the answers, and publishes what follows from them.
//!
//! It is one task with one set of sockets, whatever the number of peers. Each target (a peer in one family) is either
//! waiting for its next visit or for the answers of its present one, so there is one point in time a target.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, SystemTime};

use tokio::net::TcpSocket;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};

use super::CLOSED_PORT;
use super::gate::PeersGate;
use super::options::{ProbeInterval, ProbeOptions};
use super::pace::{self, Budget};
use super::packet::{self, Token};
use super::sockets::{self, Arrival, FamilySockets, Route, What};
use super::status::{FamilyProbe, PeerProbe, ProbeStatus, Verdict, WayProbe};
use super::track::{Round, Track};
use super::verdict::{Answer, Findings};
use crate::addr::{Family, MacAddr, Mtu, PerFamily, Subnet};
use crate::backend::{Answers, NetworkStatus, Probing};
use crate::events::MOST_SINGLE;
use crate::lease::LeaseKey;
use crate::netns::Netns;
use crate::status::{PeerList, PeerState, PeerStatus};

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
    Judged { lease: LeaseKey, family: Family, before: Verdict, verdict: Verdict, evidence: Vec<String> },
    /// Those about many peers changed at once.
    ManyJudged { changed: usize, trouble: usize },
}

/// The kind of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Small,
    Full,
    Offloaded,
    Software,
    Tcp,
    UnderEcho,
    UnderUdp,
    UnderTcp,
    Closed,
    Sideways,
    AnyMac,
    AtLargest(u32),
    Rung(u32),
}

impl Kind {
    /// Whether it is the peer's node on the underlay that answers.
    fn is_underlay(self) -> bool {
        matches!(self, Self::UnderEcho | Self::UnderUdp | Self::UnderTcp | Self::Closed)
    }
}

/// A packet that was sent.
#[derive(Debug, Clone, Copy)]
struct Sent {
    target: u32,
    kind: Kind,
    at: Instant,
}

/// A visit whose answers are awaited.
#[derive(Debug)]
struct Visit {
    round: Round,
    at: Instant,
    numbers: Vec<u32>,
    unanswered: usize,
    found: Findings,
    at_largest: Answer,
    rungs: Vec<u32>,
}

/// A peer in one family.
#[derive(Debug)]
struct Target {
    lease: LeaseKey,
    family: Family,
    overlay: IpAddr,
    underlay: IpAddr,
    /// The MAC of its VTEP, if it has one.
    vtep: Option<MacAddr>,
    /// Whether it is reached through the tunnel.
    tunnelled: bool,
    track: Track,
    visit: Option<Visit>,
    /// When the visit is over, or the next one begins.
    wake: Instant,
    /// Whether it answers by ICMP errors alone, of which there are not many.
    by_errors: bool,
    /// In which reading of the list it was seen last.
    seen: u64,
}

/// Probes the peers of one network.
pub(crate) struct Prober {
    netns: Netns,
    options: ProbeOptions,
    probing: Probing,
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
    targets: HashMap<u32, Target>,
    index: BTreeMap<(LeaseKey, Family), u32>,
    /// The peers as they were read last.
    peers: PeerList,
    /// When visits are over.
    ends: BTreeSet<(Instant, u32)>,
    /// When visits begin, and the time before which the budget has nothing left for one.
    starts: BTreeSet<(Instant, u32)>,
    resumed: Instant,
    sent: HashMap<u32, Sent>,
    budget: Budget,
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
        let gate = options.ready.map(|ready| PeersGate::new(ready, now));
        shown.waiting = gate.as_ref().and_then(|gate| gate.waiting(|_| None, now));
        let families = own.subnets();
        let mut sockets = PerFamily::default();
        if shown.notes.is_empty() {
            (sockets, shown.notes) = sockets::open(&netns, families.families());
        }
        Self {
            netns,
            options,
            probing,
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
            peers: PeerList::default(),
            ends: BTreeSet::new(),
            starts: BTreeSet::new(),
            resumed: now,
            sent: HashMap::new(),
            budget: Budget::new(now),
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
        let (mut list_at, mut publish_at) = (Instant::now(), Instant::now());
        let mut is_listed = false;
        loop {
            let gate = self.gate.as_ref().map(PeersGate::deadline);
            let end = self.ends.first().map(|(at, _)| *at);
            let start = self.starts.first().map(|(at, _)| self.resumed.max(*at));
            let due = [end, start, self.is_changed.then_some(publish_at), gate];
            let due = due.into_iter().flatten().min();
            tokio::select! {
                () = arrival(self.sockets.v4.as_ref()) => {}
                () = arrival(self.sockets.v6.as_ref()) => {}
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
            // What has arrived counts before anything is called late.
            self.drain(&mut buffer);
            let now = Instant::now();
            if std::mem::take(&mut is_listed) {
                self.list(now);
                list_at = now + LISTED;
            }
            self.go_on(now);
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

    /// Reads the list of peers.
    fn list(&mut self, now: Instant) {
        let status = self.network.borrow_and_update().clone();
        if let Some(mtu) = status.overlay_mtu {
            self.overlay_mtu = mtu;
        }
        if !status.peer_list.is_copy_of(&self.peers) {
            self.peers = status.peer_list;
            self.read_peers(now);
        }
        if status.synced
            && status.recalled.is_none()
            && let Some(gate) = &mut self.gate
        {
            gate.listed(self.index.keys().map(|(lease, _)| *lease));
        }
    }

    /// Brings the targets up to date with the list of peers.
    fn read_peers(&mut self, now: Instant) {
        self.readings += 1;
        let (peers, before) = (self.peers.clone(), self.index.len());
        let mut new = Vec::new();
        for peer in peers.iter().filter(|peer| is_programmed(&peer.state)) {
            for (family, _) in peer.path.iter() {
                new.extend(self.see(peer, family, now));
            }
        }
        let gone = self.index.iter().filter(|(_, id)| self.targets[id].seen != self.readings);
        let gone: Vec<u32> = gone.map(|(_, id)| *id).collect();
        for id in gone {
            self.forget(id);
        }
        self.troubled.retain(|(lease, _)| peers.get(lease).is_some());
        let sweep = pace::first_sweep(new.len(), self.gate.is_some());
        for id in new {
            self.wake_at(id, now + sweep.mul_f64(fastrand::f64()));
        }
        if before != self.index.len() || self.readings == 1 {
            self.shown.interval = self.interval();
            self.is_changed = true;
        }
    }

    fn interval(&self) -> Duration {
        pace::interval(self.options.interval, self.peers.len(), self.index.len(), self.probing.answers)
    }

    /// The time between two visits of a peer with a verdict against it. Few of them are looked after more often than the others;
    /// many would fill the kernel's table of neighbours, too.
    fn interval_of_unreached(&self) -> Duration {
        let counts = &self.shown.counts;
        let unreached = counts.trouble() + counts.of(Verdict::Unknown) + counts.of(Verdict::IcmpFiltered);
        pace::interval(self.options.interval, unreached, unreached, self.probing.answers)
    }

    /// Takes in a peer as the list shows it. Returns its target if that is new.
    fn see(&mut self, peer: &PeerStatus, family: Family, now: Instant) -> Option<u32> {
        self.sockets.get(family)?;
        let overlay = probed(peer.lease.subnet(family)?, self.probing.answers)?;
        let underlay = *peer.underlay.get(family)?;
        let vtep = peer.vteps.get(family).copied();
        let is_direct = peer.path.get(family).is_some_and(|path| path.as_str() == "direct");
        let tunnelled = self.probing.tunnel.is_some() && !is_direct;
        let key = (peer.lease, family);
        if let Some(target) = self.index.get(&key).and_then(|id| self.targets.get_mut(id)) {
            let is_same = (target.underlay, target.vtep) == (underlay, vtep);
            (target.seen, target.tunnelled) = (self.readings, tunnelled);
            if is_same {
                return None;
            }
            // What is known of the way to its former address says nothing of the new one.
            let id = self.index[&key];
            self.forget(id);
        }
        let id = self.next_target;
        self.next_target = self.next_target.wrapping_add(1);
        let track = Track::new(SystemTime::now());
        let (seen, lease, by_errors) = (self.readings, peer.lease, false);
        let target = Target {
            lease,
            family,
            overlay,
            underlay,
            vtep,
            tunnelled,
            track,
            visit: None,
            wake: now,
            by_errors,
            seen,
        };
        self.index.insert(key, id);
        self.starts.insert((now, id));
        self.targets.insert(id, target);
        self.show(id);
        Some(id)
    }

    fn forget(&mut self, id: u32) {
        let Some(target) = self.targets.remove(&id) else { return };
        self.ends.remove(&(target.wake, id));
        self.starts.remove(&(target.wake, id));
        self.index.remove(&(target.lease, target.family));
        for number in target.visit.iter().flat_map(|visit| &visit.numbers) {
            self.sent.remove(number);
        }
        if let Some(mut entry) = self.shown.peers.get(&target.lease).cloned() {
            if let Some(probe) = entry.families.get_mut(target.family).take() {
                self.shown.counts.remove(probe.verdict);
            }
            if entry.families.is_empty() {
                self.shown.peers.remove(&target.lease);
            } else {
                self.shown.peers.put(entry);
            }
        }
        self.is_changed = true;
    }

    fn wake_at(&mut self, id: u32, at: Instant) {
        let Some(target) = self.targets.get_mut(&id) else { return };
        self.ends.remove(&(target.wake, id));
        self.starts.remove(&(target.wake, id));
        target.wake = at;
        let wakes = if target.visit.is_some() { &mut self.ends } else { &mut self.starts };
        wakes.insert((at, id));
    }

    /// Ends the visits whose time is over, and begins those that are due.
    fn go_on(&mut self, now: Instant) {
        let is_due = |(at, _): &(Instant, u32)| *at <= now;
        while let Some((at, id)) = self.ends.first().copied().filter(is_due) {
            self.ends.remove(&(at, id));
            self.conclude(id, now);
        }
        while let Some((_, id)) = self.starts.first().copied().filter(is_due) {
            // The others wait, too: to ask for each of them would cost more than to visit it.
            if self.resumed > now || !self.visit(id, now) {
                return;
            }
        }
    }

    /// Sends the packets of a visit. Returns false if the budget has nothing left for it now.
    fn visit(&mut self, id: u32, now: Instant) -> bool {
        let target = &self.targets[&id];
        let round = target.track.round();
        let has_echo = self.sockets.get(target.family).is_some_and(FamilySockets::has_echo);
        let kinds = packets(&round, target, has_echo);
        if let Err(wait) = self.budget.take(kinds.len(), now) {
            self.resumed = now + wait;
            return false;
        }
        let found = Findings {
            mtu: self.overlay_mtu.0,
            node_answered: target.track.underlay.last_answer.is_some(),
            overlay_answered: target.track.overlay.last_answer.is_some(),
            port: self.probing.tunnel.as_ref().filter(|_| target.tunnelled).map(|tunnel| tunnel.port()),
            ..Findings::default()
        };
        let patience = target.track.patience();
        let mut visit = Visit {
            round,
            at: now,
            numbers: Vec::new(),
            unanswered: 0,
            found,
            at_largest: Answer::Untried,
            rungs: Vec::new(),
        };
        for kind in kinds {
            let number = self.next_number;
            self.next_number = self.next_number.wrapping_add(1);
            // As late as possible: the time that sending takes is none of the peer's.
            let at = Instant::now();
            match self.send(id, kind, number, patience) {
                Ok(true) => {
                    self.shown.totals.sent += 1;
                    self.sent.insert(number, Sent { target: id, kind, at });
                    visit.numbers.push(number);
                    visit.unanswered += 1;
                    visit.set(kind, Answer::No);
                }
                Ok(false) => {}
                // Too much waits to be sent already, which says nothing about this peer.
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                // No device has room for it: so it is lost.
                Err(error) if error.raw_os_error() == Some(libc::EMSGSIZE) => visit.set(kind, Answer::No),
                Err(error) if !kind.is_underlay() => visit.found.refused = error.raw_os_error(),
                Err(_) => {}
            }
        }
        if let Some(target) = self.targets.get_mut(&id) {
            self.starts.remove(&(target.wake, id));
            target.visit = Some(visit);
        }
        self.wake_at(id, now + patience);
        true
    }

    /// Sends one packet. Returns whether it did: some make no sense for some peers.
    fn send(&mut self, id: u32, kind: Kind, number: u32, patience: Duration) -> std::io::Result<bool> {
        let target = &self.targets[&id];
        let Some(sockets) = self.sockets.get(target.family) else { return Ok(false) };
        let token = Token { secret: self.secret, number };
        let overlay = match self.probing.answers {
            Answers::Base => {
                let own = self.own.subnet(target.family).map(Subnet::base);
                Route { source: own, hops: None }
            }
            Answers::Bridge => Route { source: None, hops: Some(1) },
        };
        let closed = |addr| SocketAddr::new(addr, CLOSED_PORT);
        let bytes = token.to_bytes();
        match kind {
            Kind::Small => sockets.send_echo(target.overlay, overlay, token, 0)?,
            Kind::Full => sockets.send_echo(target.overlay, overlay, token, self.overlay_mtu.0)?,
            Kind::AtLargest(size) | Kind::Rung(size) => {
                sockets.send_echo(target.overlay, overlay, token, size)?;
            }
            Kind::Offloaded => sockets.send_udp(closed(target.overlay), overlay, &bytes, false)?,
            Kind::Software => sockets.send_udp(closed(target.overlay), overlay, &bytes, true)?,
            Kind::UnderEcho => sockets.send_echo(target.underlay, Route::default(), token, 0)?,
            Kind::UnderUdp => sockets.send_udp(closed(target.underlay), Route::default(), &bytes, true)?,
            Kind::Closed => {
                let Some(tunnel) = &self.probing.tunnel else { return Ok(false) };
                let at = SocketAddr::new(target.underlay, tunnel.port());
                sockets.send_udp(at, Route::default(), &bytes, true)?;
            }
            Kind::Sideways | Kind::AnyMac => {
                let to = target.vtep.filter(|_| kind == Kind::Sideways);
                if kind == Kind::AnyMac && target.vtep.is_none() {
                    // A tunnel without MACs.
                    return Ok(false);
                }
                let source = sockets.source_to(target.underlay)?;
                let packet = packet::echo_packet(source, target.overlay, sockets.echo_id(), token);
                let tunnel = self.probing.tunnel.as_ref();
                let wrapped = tunnel.zip(packet).and_then(|(it, packet)| it.wrap(target.family, to, &packet));
                let Some((wrapped, tunnel)) = wrapped.zip(tunnel) else { return Ok(false) };
                let at = SocketAddr::new(target.underlay, tunnel.port());
                sockets.send_udp(at, Route::default(), &wrapped, true)?;
            }
            Kind::Tcp => {
                let source = overlay.source;
                self.connect(source, closed(target.overlay), number, patience)?;
            }
            Kind::UnderTcp => self.connect(None, closed(target.underlay), number, patience)?,
        }
        Ok(true)
    }

    /// Tries a TCP connection. One that is refused is an answer.
    fn connect(
        &mut self,
        source: Option<IpAddr>,
        dst: SocketAddr,
        number: u32,
        patience: Duration,
    ) -> std::io::Result<()> {
        let new = if dst.is_ipv4() { TcpSocket::new_v4 } else { TcpSocket::new_v6 };
        let socket = self.netns.run(new)??;
        if let Some(source) = source {
            socket.bind(SocketAddr::new(source, 0))?;
        }
        self.connecting.spawn(async move {
            let is_answer = match timeout(patience, socket.connect(dst)).await {
                Ok(Ok(_)) => true,
                Ok(Err(error)) => error.kind() == std::io::ErrorKind::ConnectionRefused,
                Err(_) => false,
            };
            is_answer.then_some(number)
        });
        Ok(())
    }

    /// Takes in an answer.
    fn answer(&mut self, arrival: Arrival) {
        let Some(sent) = self.sent.get(&arrival.number).copied() else { return };
        let Some(target) = self.targets.get_mut(&sent.target) else { return };
        let is_by_peer = arrival.from.is_none_or(|from| from == target.overlay || from == target.underlay);
        let Some(visit) = &mut target.visit else { return };
        if !is_by_peer {
            if arrival.what == What::Unreachable && sent.kind.is_underlay() {
                visit.found.unreachable = arrival.from;
            }
            return;
        }
        if sent.kind == Kind::Closed && arrival.what != What::PortClosed {
            // A filter answers, so nothing is known about the port.
            return;
        }
        self.sent.remove(&arrival.number);
        visit.unanswered -= 1;
        visit.set(sent.kind, Answer::Yes);
        if sent.kind == Kind::Closed {
            visit.found.under_udp = Answer::Yes;
        }
        let rtt = sent.at.elapsed();
        // Without echoes any answer tells the time.
        let has_echo = self.sockets.get(target.family).is_some_and(FamilySockets::has_echo);
        let is_timed = matches!(sent.kind, Kind::Small | Kind::UnderEcho) || !has_echo;
        let way =
            if sent.kind.is_underlay() { &mut target.track.underlay } else { &mut target.track.overlay };
        // An answer to a packet sent by hand does not say that pods' packets get there and back.
        if !matches!(sent.kind, Kind::Sideways | Kind::AnyMac) {
            way.answered(is_timed.then_some(rtt), SystemTime::now());
        }
        if sent.kind == Kind::Small {
            target.by_errors = arrival.what != What::Reply;
        }
        if sent.kind == Kind::Small || !has_echo && sent.kind == Kind::Offloaded {
            self.shown.totals.count_rtt(rtt);
        }
        if visit.unanswered == 0 {
            let id = sent.target;
            self.wake_at(id, Instant::now());
        }
    }

    /// Ends a visit.
    fn conclude(&mut self, id: u32, now: Instant) {
        let intervals = (self.interval(), self.interval_of_unreached());
        let Some(target) = self.targets.get_mut(&id) else { return };
        let Some(visit) = target.visit.take() else { return };
        for number in &visit.numbers {
            self.sent.remove(number);
        }
        let before = target.track.verdict;
        let totals = &mut self.shown.totals;
        for (answer, tried) in
            [(visit.found.small, &mut totals.overlay), (visit.found.under_echo, &mut totals.underlay)]
        {
            tried.probes += u64::from(answer != Answer::Untried);
            tried.lost += u64::from(answer == Answer::No);
        }
        let wait = match &visit.round {
            Round::Ladder(sizes) => target.track.climb(sizes, |size| visit.rungs.contains(&size)),
            round => target.track.conclude(
                round,
                visit.found,
                (visit.at_largest, packet::ip_header_len(target.overlay) as u32 + 24),
                (visit.at, now),
                SystemTime::now(),
                intervals,
            ),
        };
        let verdict = target.track.verdict;
        // Some jitter, so that nodes that started together don't stay together.
        let wait = wait.mul_f64(0.95 + 0.1 * fastrand::f64());
        if before.severity() != verdict.severity() {
            let key @ (lease, family) = (target.lease, target.family);
            let was_troubled = if verdict.is_trouble() {
                self.troubled.insert(key);
                false
            } else {
                self.troubled.remove(&key)
            };
            // That a new peer is reached is none.
            if before != Verdict::Untested || verdict.is_trouble() || was_troubled {
                let evidence = target.track.evidence.clone();
                self.changes.push(ProbeEvent::Judged { lease, family, before, verdict, evidence });
            }
        }
        if verdict == Verdict::ChecksumOffload
            && target.tunnelled
            && let Some(switch) = &self.probing.checksums
        {
            switch.turn_off(&format!("to {}: {}", target.lease, target.track.evidence.join(", ")));
        }
        self.wake_at(id, now + wait);
        self.show(id);
    }

    /// Puts what is known of a target into the status.
    fn show(&mut self, id: u32) {
        let target = &self.targets[&id];
        let Track { verdict, evidence, since, overlay, underlay, .. } = &target.track;
        let way = |addr, way: &super::track::Way| WayProbe {
            rtt: way.rtt,
            loss_percent: way.loss_percent(),
            last_answer: way.last_answer,
            ..WayProbe::new(addr)
        };
        let (overlay, underlay) = (way(target.overlay, overlay), way(target.underlay, underlay));
        let probe = FamilyProbe {
            evidence: evidence.clone(),
            ..FamilyProbe::new(*verdict, *since, overlay, underlay)
        };
        let entry = self.shown.peers.get(&target.lease).cloned();
        let mut entry = entry.unwrap_or_else(|| PeerProbe::new(target.lease));
        self.shown.counts.add(*verdict);
        if let Some(before) = entry.families.get_mut(target.family).replace(probe) {
            self.shown.counts.remove(before.verdict);
        }
        self.shown.peers.put(entry);
        self.is_changed = true;
    }

    /// Opens the gate of readiness once enough peers have answered, or its time is over.
    fn look_at_gate(&mut self, now: Instant) {
        let Some(gate) = &self.gate else { return };
        let answered = |lease: &LeaseKey| {
            let families = &self.shown.peers.get(lease)?.families;
            Some(families.iter().any(|(_, probe)| probe.overlay.last_answer.is_some()))
        };
        let waiting = gate.waiting(answered, now);
        if waiting.is_none() {
            self.gate = None;
        }
        if waiting != self.shown.waiting {
            self.shown.waiting = waiting;
            self.is_changed = true;
        }
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

impl Visit {
    fn set(&mut self, kind: Kind, answer: Answer) {
        let found = &mut self.found;
        let place = match kind {
            Kind::Small => &mut found.small,
            Kind::Full => &mut found.full,
            Kind::Offloaded => &mut found.offloaded,
            Kind::Software => &mut found.software,
            Kind::Tcp => &mut found.tcp,
            Kind::UnderEcho => &mut found.under_echo,
            Kind::UnderUdp => &mut found.under_udp,
            Kind::UnderTcp => &mut found.under_tcp,
            Kind::Closed => &mut found.closed,
            Kind::Sideways => &mut found.sideways,
            Kind::AnyMac => &mut found.any_mac,
            Kind::AtLargest(_) => &mut self.at_largest,
            Kind::Rung(size) => {
                if answer == Answer::Yes {
                    self.rungs.push(size);
                }
                return;
            }
        };
        // Of two packets of a kind one answer is enough.
        if *place != Answer::Yes {
            *place = answer;
        }
    }
}

/// The packets of a round, in the order in which they are sent. Errors are limited, so those that tell most come first.
fn packets(round: &Round, target: &Target, has_echo: bool) -> Vec<Kind> {
    let mut kinds = match round {
        Round::First => vec![Kind::Small],
        Round::Regular { udp: true } => vec![Kind::Small, Kind::Full, Kind::Offloaded, Kind::UnderEcho],
        Round::Regular { udp: false } => vec![Kind::Small, Kind::Full, Kind::UnderEcho],
        Round::Thorough { largest } => {
            let mut kinds = vec![
                Kind::Closed,
                Kind::Small,
                Kind::Small,
                Kind::Full,
                Kind::Full,
                Kind::Offloaded,
                Kind::Software,
                Kind::UnderEcho,
                Kind::UnderUdp,
                Kind::Sideways,
                Kind::AnyMac,
                Kind::Tcp,
                Kind::UnderTcp,
            ];
            kinds.extend(largest.map(Kind::AtLargest));
            kinds
        }
        Round::Ladder(sizes) => sizes.iter().copied().map(Kind::Rung).collect(),
    };
    if !target.tunnelled {
        kinds.retain(|kind| !matches!(kind, Kind::Closed | Kind::Sideways | Kind::AnyMac));
    }
    if target.by_errors {
        kinds.retain(|kind| !matches!(kind, Kind::Full | Kind::Offloaded | Kind::Software));
        kinds.dedup();
    }
    if !has_echo {
        let needs_echo = |kind: &Kind| {
            matches!(
                kind,
                Kind::Small
                    | Kind::Full
                    | Kind::UnderEcho
                    | Kind::Sideways
                    | Kind::AnyMac
                    | Kind::AtLargest(_)
                    | Kind::Rung(_)
            )
        };
        kinds.retain(|kind| !needs_echo(kind));
        if kinds.is_empty() {
            kinds.push(Kind::Offloaded);
        }
    }
    kinds
}

/// Whether packets to a peer's pods have a way.
fn is_programmed(state: &PeerState) -> bool {
    match state {
        PeerState::Programmed | PeerState::Recalled | PeerState::Repairing => true,
        PeerState::Rejected(rejected) => rejected.programmed,
        PeerState::Waiting | PeerState::Refused(_) => false,
    }
}

/// The address of a peer's subnet that is probed.
fn probed(subnet: Subnet, answers: Answers) -> Option<IpAddr> {
    let base = subnet.base();
    match answers {
        Answers::Base => Some(base),
        Answers::Bridge => Some(match base {
            IpAddr::V4(addr) => IpAddr::from(u32::from(addr).checked_add(1)?.to_be_bytes()),
            IpAddr::V6(addr) => IpAddr::from(u128::from(addr).checked_add(1)?.to_be_bytes()),
        }),
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
