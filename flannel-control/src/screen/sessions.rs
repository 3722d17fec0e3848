//! What the tunnel itself knows of its peers.

use std::collections::BTreeMap;

use super::Look;
use super::paint::Style;
use super::table::Cell;
use super::units::{age, bytes, count};
use crate::wire::{Network, Session};

/// The sessions of each peer, by lease; empty for backends without sessions.
pub(super) type ByLease<'a> = BTreeMap<&'a str, Vec<&'a Session>>;

pub(super) fn by_lease(network: &Network) -> ByLease<'_> {
    let mut found = ByLease::new();
    for session in &network.sessions {
        found.entry(session.lease.as_str()).or_default().push(session);
    }
    found
}

/// How many sessions there are in which state, the good ones first.
pub(super) fn summary(network: &Network) -> Option<Cell> {
    let states = [("alive", "alive"), ("over", "over"), ("none", "without a handshake")];
    let number =
        |state: &str| network.sessions.iter().filter(|session| session.state == state).count() as u64;
    let counts = states.map(|(state, words)| (number(state), words));
    let said: Vec<_> = counts
        .into_iter()
        .filter(|(number, _)| *number > 0)
        .map(|(number, words)| format!("{} {words}", count(number)))
        .collect();
    (!said.is_empty()).then(|| Cell::new(said.join(", "), Style::Plain))
}

/// When the last handshake was.
pub(super) fn handshake(sessions: &[&Session], look: Look) -> String {
    match sessions.iter().filter_map(|session| session.last_handshake).max() {
        Some(last) => format!("{} ago", age(last.age(look.now))),
        None if sessions.is_empty() => String::new(),
        None => "never".to_owned(),
    }
}

/// A sum over the sessions of a peer, in bytes.
pub(super) fn sum(sessions: &[&Session], of: fn(&Session) -> u64) -> String {
    if sessions.is_empty() { String::new() } else { bytes(sessions.iter().map(|session| of(session)).sum()) }
}

/// A session in full, in one line or two.
pub(super) fn lines(session: &Session, look: Look) -> Vec<Cell> {
    let Session { device, state, endpoint, published, sent_bytes, received_bytes, .. } = session;
    let (words, style) = match state.as_str() {
        "alive" => ("alive", Style::Good),
        "none" => ("no handshake yet", Style::Fair),
        state => (state, Style::Plain),
    };
    let last = session.last_handshake.map(|last| format!(", last handshake {} ago", age(last.age(look.now))));
    let carried = format!("sent {}, received {}", bytes(*sent_bytes), bytes(*received_bytes));
    let first = format!("{device} {words}{}, {carried}", last.unwrap_or_default());
    let place = match (endpoint, published) {
        (Some(at), Some(published)) if at == published => format!("at {at}, as published"),
        (Some(at), Some(published)) => format!("at {at}, published as {published}"),
        (Some(at), None) => format!("at {at}"),
        (None, Some(published)) => format!("published as {published}"),
        (None, None) => "it begins, and so tells where it is".to_owned(),
    };
    vec![Cell::new(first, style), place.into()]
}
