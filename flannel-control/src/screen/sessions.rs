//! What the tunnel itself knows of its peers.

use std::collections::BTreeMap;

use super::Look;
use super::paint::Style;
use super::table::Cell;
use super::units::{age, bytes, count};
use crate::wire::{Network, Session, SessionPath};

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

/// By which way packets reach a peer, if some session has another than the plain one.
pub(super) fn way(sessions: &[&Session]) -> Option<String> {
    let paths: Vec<&SessionPath> = sessions.iter().filter_map(|session| session.path.as_ref()).collect();
    let relay = paths.iter().find_map(|path| match path {
        SessionPath::Relay(relay) => Some(format!("relay via {}", relay.replace('-', "/"))),
        SessionPath::Nat => None,
    });
    relay.or_else(|| (!paths.is_empty()).then(|| "nat".to_owned()))
}

/// A session in full, in a few lines.
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
    let way = session.path.as_ref().map(|path| match path {
        SessionPath::Nat => "through a NAT, straight".into(),
        SessionPath::Relay(relay) => {
            let relay = relay.replace('-', "/");
            Cell::new(format!("by the relay {relay}, which can read the packets"), Style::Fair)
        }
    });
    [Cell::new(first, style), place.into()].into_iter().chain(way).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_relay_is_named_before_a_nat_and_a_plain_way_is_not() {
        let session = |path: &str| serde_json::from_str::<Session>(&format!("{{{path}}}")).unwrap();
        let (plain, nat) = (session(""), session(r#""path":"nat""#));
        let relay = session(r#""path":{"relay":"10.5.8.0-24"}"#);
        for (sessions, want) in [
            (&[&plain, &plain][..], None),
            (&[&plain, &nat], Some("nat")),
            (&[&nat, &relay], Some("relay via 10.5.8.0/24")),
        ] {
            assert_eq!(way(sessions).as_deref(), want);
        }
    }
}
