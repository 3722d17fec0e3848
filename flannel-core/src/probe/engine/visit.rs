//! When targets are visited, and what a visit begins with.

use tokio::time::Instant;

use super::Prober;
use super::target::{Sent, Visit, packets};
use crate::probe::kind::Kind;
use crate::probe::sockets::FamilySockets;
use crate::probe::track::Round;
use crate::probe::verdict::{Answer, Findings};

impl Prober {
    pub(super) fn wake_at(&mut self, id: u32, at: Instant) {
        let Some(target) = self.targets.get_mut(&id) else { return };
        self.ends.remove(&(target.wake, id));
        self.starts.remove(&(target.wake, id));
        target.wake = at;
        let wakes = if target.visit.is_some() { &mut self.ends } else { &mut self.starts };
        wakes.insert((at, id));
    }

    /// Ends the visits whose time is over, and begins those that are due.
    pub(super) async fn go_on(&mut self, now: Instant) {
        let is_due = |(at, _): &(Instant, u32)| *at <= now;
        while let Some((at, id)) = self.ends.first().copied().filter(is_due) {
            self.ends.remove(&(at, id));
            self.conclude(id, now);
        }
        while let Some((_, id)) = self.starts.first().copied().filter(is_due) {
            // The others wait, too: to ask for each of them would cost more than to visit it.
            if self.resumed > now {
                return;
            }
            self.look_at_hop(id, now).await;
            if !self.visit(id, now) {
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
        if matches!(round, Round::Thorough { .. }) && !target.track.verdict.is_against() {
            self.suspects.count(now);
        }
        let found = Findings {
            mtu: self.overlay_mtu.0,
            node_answered: target.track.underlay.last_answer.is_some(),
            overlay_answered: target.track.overlay.last_answer.is_some(),
            port: self
                .probing
                .tunnel
                .as_ref()
                .filter(|_| target.tunnelled)
                .map(|tunnel| tunnel.port(target.family)),
            detour: target.detour.clone(),
            is_limited: self.probing.proofs.is_some(),
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
                // By hand: whatever refuses it, it does not get through.
                Err(_) if matches!(kind, Kind::Sideways | Kind::AnyMac) => visit.set(kind, Answer::No),
                // No device has room for it: so it is lost.
                Err(error) if error.raw_os_error() == Some(libc::EMSGSIZE) => visit.set(kind, Answer::No),
                // The link's other end dropped it, as that of a veth device with a smaller MTU does.
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) && kind.is_large() => {
                    visit.set(kind, Answer::No);
                }
                Err(error) if !kind.is_underlay() => visit.found.refused = error.raw_os_error(),
                Err(_) => {}
            }
        }
        if let Some(target) = self.targets.get_mut(&id) {
            self.starts.remove(&(target.wake, id));
            target.visit = Some(Box::new(visit));
        }
        self.wake_at(id, now + patience);
        true
    }
}
