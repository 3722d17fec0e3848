//! What this node does about leases of others that conflict with its own record. It judges the record as other nodes
//! do. If it lost, it chooses another value where the backend can; otherwise it reports the lost conflict.
//!
//! Among honest nodes the one whose claim came later chooses another value at once. If two nodes saw the claims in
//! different order, both may believe that they were first, and some agents never choose another value. So a node that
//! believes it was first also yields: after half a minute if its record is the younger one, else after five minutes.
//! Each further change waits longer, so a hostile record that copies each new value costs this node a few changes an
//! hour.

use std::time::Duration;

use tokio::time::Instant;

use super::{Driver, Reconciler};
use crate::addr::{Family, PerFamily};
use crate::events::NetworkEvent;
use crate::lease::{BackendData, Field, Lease, is_same_data};
use crate::peers::{Claim, Rival};
use crate::state_file::State;
use crate::subnet::{Identity, Remedy};

/// How long this node waits for the other one to choose another value, if only the age of its record gives the other
/// precedence.
const GRACE: Duration = Duration::from_secs(30);
/// How long it waits if this node's record is the older one, or if the other record is a former one of this node.
const LONG_GRACE: Duration = Duration::from_mins(5);
/// The pause after the first change of a value, which doubles with each further change, and the longest pause.
const PAUSE: (Duration, Duration) = (Duration::from_mins(1), Duration::from_hours(1));
/// After this time without a change, the next change counts as the first again.
const CALM: Duration = Duration::from_hours(2);
/// How many conflicts are named.
const MOST_NAMED: usize = 8;

/// A lease that contradicts this node's own record.
#[derive(Debug, Clone, Copy)]
struct Contender {
    rival: Rival,
    /// Whether it is a former record of this node.
    is_former: bool,
}

/// The conflicts of this node's own record.
#[derive(Debug, Default)]
pub(super) struct OwnClaims {
    /// What an operator does about a record that is wrong.
    pub(super) remedy: Remedy,
    /// What this node published before.
    identity: Identity,
    /// Since when another node has our backend data, with a random number from 0 to 1 (jitter).
    contested: Option<(Instant, f64)>,
    changes: u32,
    last_change: Option<Instant>,
    due: Option<Instant>,
    /// The conflicts that this node has lost.
    lost: Vec<String>,
}

impl OwnClaims {
    pub(super) fn new(previous: Option<&State>, place: &str) -> Self {
        let known = previous.filter(|previous| previous.store == place);
        let identity = known.map(|previous| Identity {
            published: previous.own.clone(),
            former_ips: previous.former_ips.clone(),
            ..Identity::default()
        });
        Self { identity: identity.unwrap_or_default(), ..Self::default() }
    }

    /// When to look again although nothing changed.
    pub(super) fn due(&self) -> Option<Instant> {
        self.due
    }

    /// The conflicts that this node has lost, as texts.
    pub(super) fn lost(&self) -> &[String] {
        &self.lost
    }

    /// When this node may choose another value because of these rivals; `None` if none of them makes that necessary.
    fn change_at(&mut self, contenders: &[Contender], now: Instant) -> Option<Instant> {
        let of_data = |it: &&Contender| matches!(it.rival.field(), Field::BackendData(_));
        let Some(least) = contenders.iter().filter(of_data).map(Contender::grace).min() else {
            self.contested = None;
            return None;
        };
        let (since, spread) = *self.contested.get_or_insert_with(|| (now, fastrand::f64()));
        if self.last_change.is_some_and(|last| now.saturating_duration_since(last) >= CALM) {
            self.changes = 0;
        }
        let pause = match self.changes {
            0 => Duration::ZERO,
            changes => PAUSE.0.saturating_mul(1 << (changes - 1).min(16)).min(PAUSE.1),
        };
        let rested = self.last_change.map_or(now, |last| last + pause);
        Some(rested.max(since + least.mul_f64(1.0 + spread / 2.0)))
    }
}

impl Contender {
    /// How long this node waits for the other one to choose another value.
    fn grace(&self) -> Duration {
        match self {
            Self { is_former: true, .. } => LONG_GRACE,
            Self { rival: Rival { wins: true, .. }, .. } => Duration::ZERO,
            Self { rival: Rival { is_younger: true, .. }, .. } => LONG_GRACE,
            Self { .. } => GRACE,
        }
    }
}

impl<D: Driver> Reconciler<D> {
    /// Sets the advice to operators about a wrong record.
    pub(crate) fn advise(&mut self, remedy: Remedy) {
        self.claims.remedy = remedy;
    }

    /// Checks the conflicts of this node's record, if they may have changed.
    pub(super) fn look_at_claims(&mut self) {
        let now = Instant::now();
        if !self.work.begin_claims() && self.claims.due.is_none_or(|due| now < due) {
            return;
        }
        self.claims.due = None;
        let contenders = self.contenders();
        let winning = contenders.iter().filter(|it| it.rival.wins);
        let more = winning.clone().count().saturating_sub(MOST_NAMED);
        let words = winning.take(MOST_NAMED).filter_map(|it| self.describe(it));
        let mut words: Vec<String> = words.collect();
        if let Some(at) = self.claims.change_at(&contenders, now) {
            if now >= at && self.resign(&contenders) {
                self.claims.changes = self.claims.changes.saturating_add(1);
                self.claims.last_change = Some(now);
            } else if now < at {
                self.claims.due = Some(at);
            }
        }
        words.extend(
            (more > 0).then(|| format!("{more} more leases have precedence over this node's record")),
        );
        if words != self.claims.lost {
            for news in words.iter().filter(|word| !self.claims.lost.contains(word)) {
                self.events.send(NetworkEvent::OwnLeaseContested { reason: news.clone() });
            }
            if words.is_empty() {
                self.events.send(NetworkEvent::OwnLeaseUncontested { lease: self.own });
            }
            self.claims.lost = words;
        }
    }

    /// The leases that conflict with this node's record as it is in the store, and which of them are former records of
    /// this node.
    fn contenders(&self) -> Vec<Contender> {
        let Some(own) = self.leases.get(&self.own).filter(|_| self.leases.is_synced()) else {
            return Vec::new();
        };
        let rivals = self.peers.rivals(self.own, (&**own).into(), &self.claims_of(own));
        let published = self.driver.attrs();
        let is_former = |rival: &Rival| {
            let lease = self.leases.get(&rival.key);
            lease.is_some_and(|lease| self.claims.identity.is_former(lease, Some(self.own), &published))
        };
        rivals.into_iter().map(|rival| Contender { rival, is_former: is_former(&rival) }).collect()
    }

    /// What a record of this node claims, as others read it.
    pub(super) fn claims_of(&self, own: &Lease) -> Vec<Claim> {
        let mut claims = Vec::new();
        for (family, subnet) in own.key.subnets().iter() {
            claims.push(Claim::Subnet(*subnet));
            claims.extend(own.attrs.underlay(family).ok().map(Claim::Underlay));
        }
        let of_backend = self.driver.peer(own).map(|peer| peer.claims).unwrap_or_default();
        claims.extend(of_backend.into_iter().filter(|claim| claim.is_of_backend()));
        claims
    }

    /// The text about a rival; `None` if this node has precedence.
    fn describe(&self, contender: &Contender) -> Option<String> {
        let Contender { rival, is_former } = *contender;
        if !rival.wins {
            return None;
        }
        let what = format!("this node's {}", rival.tell());
        Some(match rival.field() {
            _ if is_former => format!(
                "{what}: a former record of this node, because of which peers may not reach its pods until it is gone"
            ),
            Field::BackendData(family) if self.is_published(family) => {
                format!("{what}; peers do not program this node until it has taken another")
            }
            Field::BackendData(_) => {
                format!("{what}; this node has taken another, which is not in the store yet")
            }
            Field::Subnet(_) | Field::PublicIp(_) => format!(
                "{what}; peers do not program this node; {}",
                self.claims.remedy.advise(rival.key, rival.theirs.field())
            ),
        })
    }

    /// Whether the store has the backend data that this node uses.
    fn is_published(&self, family: Family) -> bool {
        let published = self.leases.get(&self.own).and_then(|own| own.attrs.backend_data.get(family));
        is_same_data(published, self.driver.attrs().backend_data.get(family))
    }

    /// Chooses other backend data in place of the data that rivals have, if this node has published it. Returns whether
    /// the backend could.
    fn resign(&mut self, contenders: &[Contender]) -> bool {
        let contested =
            |family: &Family| contenders.iter().any(|it| it.rival.field() == Field::BackendData(*family));
        let families: Vec<Family> =
            Family::ALL.into_iter().filter(contested).filter(|family| self.is_published(*family)).collect();
        let others = self.leases.iter().filter(|lease| lease.key != self.own);
        let before = self.driver.attrs().backend_data;
        if families.is_empty() || !self.driver.resign(&families, &mut others.map(|lease| &lease.attrs)) {
            return false;
        }
        let after = self.driver.attrs().backend_data;
        for family in families {
            let of_family = |it: &&Contender| it.rival.field() == Field::BackendData(family);
            let lease = contenders.iter().find(of_family).map(|it| it.rival.key.to_string());
            let lease = lease.unwrap_or_default();
            let text = |data: &PerFamily<BackendData>| data.get(family).map(|data| data.as_str().to_owned());
            let (before, after) = (text(&before), text(&after));
            self.events.send(NetworkEvent::BackendDataChanged { family, lease, before, after });
        }
        self.desire_anew();
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addr::{LinkIndex, MacAddr};
    use crate::peers::Grounds;

    fn rival(wins: bool, is_younger: bool) -> Rival {
        let claim = |at: u8| Claim::Vtep(LinkIndex(1), MacAddr([2; 6]), [192, 0, 2, at].into());
        let key = "10.5.2.0-24".parse().unwrap();
        Rival { key, ours: claim(1), theirs: claim(2), wins, grounds: Grounds::First, is_younger }
    }

    /// The least and the most seconds until a change, after so many of them in a row.
    #[tokio::test(start_paused = true)]
    async fn who_came_later_yields_at_once_and_all_others_with_patience() {
        for (name, rival, is_former, changes, least, most) in [
            ("there first", rival(true, true), false, 0, 0, 0),
            ("there first, again", rival(true, true), false, 1, 60, 60),
            ("there first, for the fourth time", rival(true, true), false, 3, 240, 240),
            ("there first, for the umpteenth time", rival(true, true), false, u32::MAX, 3600, 3600),
            ("later, with an older record", rival(false, false), false, 0, 30, 45),
            ("later, with a younger record", rival(false, true), false, 0, 300, 450),
            ("a former record of this node", rival(true, false), true, 0, 300, 450),
        ] {
            let now = Instant::now();
            let last_change = (changes > 0).then_some(now);
            let mut claims = OwnClaims { changes, last_change, ..OwnClaims::default() };
            let at = claims.change_at(&[Contender { rival, is_former }], now).unwrap() - now;
            assert!((least..=most).contains(&at.as_secs()), "{name}: {at:?}");
            assert_eq!(claims.change_at(&[], now), None);
            assert_eq!(claims.contested, None, "the next one is another conflict");
        }
    }

    /// A record that is always rewritten to what this node has, from the first moment on.
    #[tokio::test(start_paused = true)]
    async fn a_record_that_follows_costs_a_few_changes_an_hour() {
        let (mut claims, mut changes) = (OwnClaims::default(), Vec::new());
        let start = Instant::now();
        while start.elapsed() < Duration::from_hours(24) {
            let at = claims
                .change_at(&[Contender { rival: rival(true, true), is_former: false }], Instant::now())
                .unwrap();
            tokio::time::sleep_until(at).await;
            changes.push(start.elapsed());
            (claims.changes, claims.last_change) = (claims.changes + 1, Some(Instant::now()));
        }
        let in_hour = |hour: u64| changes.iter().filter(|at| at.as_secs() / 3600 == hour).count();
        assert!(in_hour(0) <= 7 && (2..24).all(|hour| in_hour(hour) <= 1), "{changes:?}");
    }
}
