//! What answers tell, and what is known when a visit is over.

use std::time::SystemTime;

use tokio::time::Instant;

use super::target::Target;
use super::{ProbeEvent, Prober};
use crate::addr::Mtu;
use crate::backend::{PathFact, Probing};
use crate::probe::advice;
use crate::probe::kind::Kind;
use crate::probe::packet;
use crate::probe::sockets::{Arrival, FamilySockets, What};
use crate::probe::status::{Carriage, FamilyProbe, PeerProbe, Verdict, WayProbe};
use crate::probe::track::{Round, Track, Way};
use crate::probe::verdict::Answer;

impl Prober {
    /// Takes in an answer.
    pub(super) fn answer(&mut self, arrival: Arrival) {
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
        // An answer to a packet sent by hand does not say that pods' packets get there and back, nor one of the link that
        // the node takes packets.
        if !matches!(sent.kind, Kind::Sideways | Kind::AnyMac | Kind::Solicit) {
            target.track.answered(sent.kind.is_underlay(), is_timed.then_some(rtt), SystemTime::now());
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
    pub(super) fn conclude(&mut self, id: u32, now: Instant) {
        let Some((family, on_link)) = self.targets.get(&id).map(|target| (target.family, target.on_link))
        else {
            return;
        };
        let gaps = self.gaps(family, on_link, now);
        let Some(target) = self.targets.get_mut(&id) else { return };
        let Some(mut visit) = target.visit.take() else { return };
        for number in &visit.numbers {
            self.sent.remove(number);
        }
        if target.tunnelled && matches!(visit.round, Round::Thorough { .. }) && visit.found.is_unreached() {
            visit.found.known = self.tunnels_word.of(target.lease, family, now);
        }
        let before = target.track.verdict;
        let totals = &mut self.shown.totals;
        for (answer, tried) in
            [(visit.found.small, &mut totals.overlay), (visit.found.under_echo, &mut totals.underlay)]
        {
            tried.probes += u64::from(answer != Answer::Untried);
            tried.lost += u64::from(answer == Answer::No);
        }
        let (detour, sideways, full) = (visit.found.detour.clone(), visit.found.sideways, visit.found.full);
        let wait = match &visit.round {
            Round::Ladder(sizes) => target.track.climb(sizes, |size| visit.rungs.contains(&size)),
            round => target.track.conclude(
                round,
                visit.found,
                (visit.at_largest, packet::ip_header_len(target.overlay) as u32 + 24),
                (visit.at, now),
                SystemTime::now(),
                gaps,
            ),
        };
        let verdict = target.track.verdict;
        if let Some(proofs) = &self.probing.proofs {
            let is_tried = target.tunnelled
                && matches!(visit.round, Round::First | Round::Regular { .. } | Round::Thorough { .. });
            let tell = |fact| proofs.tell(target.lease, family, &fact, now);
            if target.tunnelled && target.track.is_blocked(detour.is_some()) {
                tell(PathFact::Blocked { by: detour.clone() });
            }
            match (verdict, full) {
                (Verdict::MtuHole { at_most }, _) => tell(PathFact::Largest(Some(Mtu(at_most)))),
                (Verdict::Reachable | Verdict::Bridged, Answer::Yes) => tell(PathFact::Largest(None)),
                _ => {}
            }
            let is_open = match sideways {
                _ if detour.is_none() => Some(true),
                Answer::Yes => Some(true),
                Answer::No => Some(false),
                Answer::Untried => None,
            };
            if is_tried && (detour.is_some() || verdict == Verdict::Reachable) {
                tell(PathFact::Tunnel { is_open });
            }
        }
        // Some jitter, so that nodes that started together don't stay together.
        let wait = wait.mul_f64(0.95 + 0.1 * fastrand::f64());
        if before.severity() != verdict.severity() {
            let key @ (lease, family) = (target.lease, target.family);
            let was_troubled = if verdict.is_fault() {
                self.troubled.insert(key);
                false
            } else {
                self.troubled.remove(&key)
            };
            // That a new peer is reached is none.
            if before != Verdict::Untested || verdict.is_fault() || was_troubled {
                let evidence = target.track.evidence.clone();
                let carriage = carriage(&self.probing, target);
                let (text, remedy) =
                    (advice::text(verdict, carriage), advice::remedy(verdict, carriage, family));
                let judged = ProbeEvent::Judged { lease, family, before, verdict, text, evidence, remedy };
                self.changes.push(judged);
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
    pub(super) fn show(&mut self, id: u32) {
        let target = &self.targets[&id];
        let Track { verdict, evidence, since, overlay, underlay, .. } = &target.track;
        let way = |addr, way: &Way| WayProbe {
            rtt: way.rtt(),
            loss_percent: way.loss_percent(),
            last_answer: way.last_answer,
            ..WayProbe::new(addr)
        };
        let (overlay, underlay) = (way(target.overlay, overlay), way(target.underlay, underlay));
        let probe = FamilyProbe {
            evidence: evidence.clone(),
            carriage: carriage(&self.probing, target),
            ..FamilyProbe::new(*verdict, *since, overlay, underlay)
        };
        let entry = self.shown.peers.get(&target.lease).cloned();
        let mut entry = entry.unwrap_or_else(|| PeerProbe::new(target.lease));
        self.shown.counts.add(*verdict);
        if let Some(before) = entry.families.get_mut(target.family).replace(Box::new(probe)) {
            self.shown.counts.remove(before.verdict);
        }
        let lease = entry.lease;
        self.shown.peers.put(entry);
        self.tell_gate(&lease);
        self.is_changed = true;
    }
}

/// How packets to a target travel.
fn carriage(probing: &Probing, target: &Target) -> Carriage {
    if target.is_direct {
        return Carriage::direct();
    }
    let port = probing.tunnel.as_ref().map(|tunnel| tunnel.port(target.family));
    let carriage = Carriage::new(port, probing.overhead.get(target.family).copied());
    carriage.sessions(probing.sessions.are_kept())
}
