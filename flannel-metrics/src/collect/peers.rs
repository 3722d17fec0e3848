//! Peers: how many are in which state, and each of them if that is asked for.

use std::time::{Duration, SystemTime};

use flannel_core::addr::PerFamily;
use flannel_core::status::{PeerList, PeerState};

use crate::catalogue as all;
use crate::output::{Output, Written};

/// The states by the names of their text form.
const STATES: [&str; 6] = ["waiting", "programmed", "recalled", "repairing", "refused", "rejected"];

fn state(state: &PeerState) -> usize {
    match state {
        PeerState::Waiting => 0,
        PeerState::Programmed => 1,
        PeerState::Recalled => 2,
        PeerState::Repairing => 3,
        PeerState::Refused(_) => 4,
        // A state that this crate does not know is none of the good ones.
        _ => 5,
    }
}

pub(super) fn by_state(out: &mut Output<'_>, peers: &PeerList) -> Written {
    let mut counts = [0_u64; STATES.len()];
    peers.iter().for_each(|peer| counts[state(&peer.state)] += 1);
    out.values(&all::PEERS, STATES.into_iter().zip(counts).map(|(name, count)| ([name], count)))
}

pub(super) fn each(out: &mut Output<'_>, peers: &PeerList) -> Written {
    let rows: Vec<Row> = peers
        .iter()
        .map(|peer| Row {
            subnet: peer.lease.to_string(),
            underlay: texts(&peer.underlay),
            path: texts(&peer.path),
            state: STATES[state(&peer.state)],
            since: peer.since.duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO),
        })
        .collect();
    out.infos(&all::PEER, rows.iter().map(|row| [row.subnet.as_str(), &row.underlay, &row.path]))?;
    out.values(&all::PEER_STATE, rows.iter().map(|row| ([row.subnet.as_str(), row.state], 1_u32)))?;
    out.values(&all::PEER_SINCE, rows.iter().map(|row| ([row.subnet.as_str()], row.since.as_secs_f64())))
}

/// One peer as text.
struct Row {
    subnet: String,
    underlay: String,
    path: String,
    state: &'static str,
    since: Duration,
}

fn texts<T: ToString>(of: &PerFamily<T>) -> String {
    of.iter().map(|(_, value)| value.to_string()).collect::<Vec<_>>().join(",")
}
