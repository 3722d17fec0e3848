//! What a node publishes about NATs beside its key, as `Nat` in its backend data. Go flannel ignores it. Pure.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use flannel_core::gojson::GoObject;
use serde::Serialize;

use crate::key::PublicKey;

/// The most peers of which a node publishes where it sees them. More are not read either.
pub const MOST_SEEN: usize = 64;
/// The most relays that a node says it reaches. More are not read either.
pub const MOST_RELAYS: usize = 8;

/// What a node publishes about NATs. The default is what a node has nothing to say of, and then nothing is published.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct NatData {
    /// Whether the node is behind a NAT: its published endpoint reaches it from its own network at most.
    pub is_behind: bool,
    /// Whether the node forwards packets between nodes behind NATs that can't reach each other.
    pub is_relay: bool,
    /// Where the node sees peers that are elsewhere than they publish. A handshake proved each of them.
    pub seen: BTreeMap<PublicKey, SocketAddr>,
    /// The relays that answer a node behind a NAT, with the round-trip time in milliseconds.
    pub relays: BTreeMap<PublicKey, u16>,
}

#[derive(Serialize)]
struct Wire<'a> {
    #[serde(rename = "Behind", skip_serializing_if = "is_false")]
    is_behind: bool,
    #[serde(rename = "Relay", skip_serializing_if = "is_false")]
    is_relay: bool,
    #[serde(rename = "Seen", skip_serializing_if = "BTreeMap::is_empty")]
    seen: BTreeMap<String, &'a SocketAddr>,
    #[serde(rename = "Relays", skip_serializing_if = "BTreeMap::is_empty")]
    relays: BTreeMap<String, u16>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
fn is_false(value: &bool) -> bool {
    !value
}

impl NatData {
    /// Whether there is nothing to publish.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Reads the member. What can't be used is left out: it only says where else a node may be tried.
    pub(crate) fn decode(text: &str) -> Self {
        let Ok(object) = GoObject::parse(text) else { return Self::default() };
        let flag = |name| object.get::<bool>(name).ok().flatten().unwrap_or_default();
        let seen = object.get::<BTreeMap<String, String>>("Seen").ok().flatten().unwrap_or_default();
        let seen = seen.iter().filter_map(|(key, at)| Some((key.parse().ok()?, at.parse().ok()?)));
        let relays = object.get::<BTreeMap<String, u16>>("Relays").ok().flatten().unwrap_or_default();
        let relays = relays.iter().filter_map(|(key, rtt)| Some((key.parse().ok()?, *rtt)));
        Self {
            is_behind: flag("Behind"),
            is_relay: flag("Relay"),
            seen: seen.take(MOST_SEEN).collect(),
            relays: relays.take(MOST_RELAYS).collect(),
        }
    }
}

impl Serialize for NatData {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let seen = self.seen.iter().map(|(key, at)| (key.to_string(), at)).collect();
        let relays = self.relays.iter().map(|(key, rtt)| (key.to_string(), *rtt)).collect();
        Wire { is_behind: self.is_behind, is_relay: self.is_relay, seen, relays }.serialize(serializer)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn key(n: u8) -> PublicKey {
        PublicKey([n; 32])
    }

    fn data() -> impl Strategy<Value = NatData> {
        let seen = prop::collection::btree_map((1u8..9).prop_map(key), any::<SocketAddr>(), 0..5);
        let seen = seen.prop_map(|mut seen| {
            // An IPv6 address in text has no flow label.
            for at in seen.values_mut() {
                *at = SocketAddr::new(at.ip(), at.port());
            }
            seen
        });
        let relays = prop::collection::btree_map((1u8..9).prop_map(key), any::<u16>(), 0..5);
        (any::<bool>(), any::<bool>(), seen, relays).prop_map(|(is_behind, is_relay, seen, relays)| NatData {
            is_behind,
            is_relay,
            seen,
            relays,
        })
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(data in data()) {
            prop_assert_eq!(NatData::decode(&serde_json::to_string(&data).unwrap()), data);
        }

        #[test]
        fn any_text_is_read_without_a_panic(text in ".{0,80}") {
            NatData::decode(&text);
        }
    }

    #[test]
    fn what_can_not_be_used_is_left_out_and_there_are_limits() {
        assert_eq!(NatData::decode("7"), NatData::default());
        let odd = format!(
            r#"{{"Behind":1,"Relay":true,"Seen":{{"x":"192.0.2.1:5","{0}":"nowhere"}},"Relays":{{"{0}":9}}}}"#,
            key(3)
        );
        let odd = NatData::decode(&odd);
        assert_eq!((odd.is_behind, odd.is_relay, odd.seen.len(), odd.relays[&key(3)]), (false, true, 0, 9));
        let at: SocketAddr = "192.0.2.1:5".parse().unwrap();
        let many = NatData { seen: (1..=99).map(|n| (key(n), at)).collect(), ..NatData::default() };
        assert_eq!(NatData::decode(&serde_json::to_string(&many).unwrap()).seen.len(), MOST_SEEN);
    }

    #[test]
    fn the_form_is_fixed() {
        let at = "192.0.2.1:5".parse().unwrap();
        let data = NatData {
            is_behind: true,
            is_relay: true,
            seen: [(key(1), at)].into(),
            relays: [(key(2), 7)].into(),
        };
        let want = format!(
            r#"{{"Behind":true,"Relay":true,"Seen":{{"{}":"192.0.2.1:5"}},"Relays":{{"{}":7}}}}"#,
            key(1),
            key(2)
        );
        assert_eq!(serde_json::to_string(&data).unwrap(), want);
    }
}
