use std::time::Duration;

use super::*;

struct Peer {
    proofs: PathProofs,
    lease: LeaseKey,
    now: Instant,
}

impl Peer {
    fn new(ways: &[&str]) -> Self {
        let ways = ways.iter().map(|way| (*way).to_owned()).collect();
        let now = Instant::now();
        Self {
            proofs: PathProofs::new(ways, Vec::new(), &BTreeMap::new(), now),
            lease: "10.5.1.0-24".parse().unwrap(),
            now,
        }
    }

    fn tell(&self, fact: &PathFact) {
        self.proofs.tell(self.lease, Family::V4, fact, self.now);
    }

    fn blocked(&self, by: Option<&str>) {
        self.tell(&PathFact::Blocked { by: by.map(str::to_owned) });
    }

    /// What a visit each second sees of the tunnel, for so many seconds. Returns after how many the detour ended.
    fn seconds(&mut self, count: u32, is_open: Option<bool>) -> Option<u32> {
        for second in 1..=count {
            self.now += Duration::from_secs(1);
            self.tell(&PathFact::Tunnel { is_open });
            if self.first().is_none() {
                return Some(second);
            }
        }
        None
    }

    /// The way that is taken rather than its own.
    fn first(&self) -> Option<String> {
        self.proofs.detour(&self.lease).first().cloned()
    }
}

#[test]
fn a_blocked_tunnel_is_left_and_taken_again_after_a_minute_of_proof() {
    let mut peer = Peer::new(&["udp"]);
    peer.blocked(None);
    assert_eq!(peer.first().as_deref(), Some("udp"));
    assert_eq!(peer.proofs.take_news(), [peer.lease]);
    // A visit that began before the change says nothing of the detour.
    peer.blocked(None);
    assert_eq!((peer.first().as_deref(), peer.proofs.take_news()), (Some("udp"), vec![]));
    assert_eq!(peer.seconds(300, Some(false)), None);
    assert_eq!(peer.seconds(59, Some(true)), None);
    assert_eq!(peer.seconds(1, Some(false)), None, "one that is lost lets the minute begin anew");
    assert_eq!(peer.seconds(100, Some(true)), Some(61));
    assert_eq!(peer.proofs.take_news(), [peer.lease]);
}

#[test]
fn a_tunnel_that_is_blocked_again_soon_must_prove_itself_for_longer() {
    let mut peer = Peer::new(&["udp"]);
    for proof in [60, 120, 240, 480, 960, 960] {
        peer.blocked(None);
        assert_eq!(peer.seconds(2000, Some(true)), Some(proof + 1));
        peer.now += Duration::from_secs(30);
    }
    peer.now += Duration::from_secs(10 * 60);
    peer.blocked(None);
    assert_eq!(peer.seconds(2000, Some(true)), Some(61), "it was open for long");
}

#[test]
fn each_family_must_be_open() {
    let mut peer = Peer::new(&["udp"]);
    peer.blocked(None);
    for _ in 0..100 {
        peer.proofs.tell(peer.lease, Family::V6, &PathFact::Tunnel { is_open: Some(false) }, peer.now);
        assert_eq!(peer.seconds(1, Some(true)), None);
    }
    // A family that is not probed any more holds nothing up for good.
    assert_eq!(peer.seconds(1000, Some(true)), Some(599));
}

#[test]
fn the_next_way_is_taken_if_one_is_blocked_too() {
    let mut peer = Peer::new(&["wireguard", "udp", "ipip"]);
    peer.blocked(None);
    assert_eq!(peer.proofs.detour(&peer.lease), ["wireguard", "udp", "ipip"]);
    // The peer does not offer the first one, so it was reached by the second one.
    peer.now += Duration::from_secs(9);
    peer.blocked(Some("udp"));
    assert_eq!(peer.first().as_deref(), Some("wireguard"), "the peer may be about to take it, too");
    peer.now += Duration::from_secs(1);
    peer.blocked(Some("udp"));
    assert_eq!(peer.first().as_deref(), Some("ipip"));
    peer.now += Duration::from_secs(59);
    peer.blocked(Some("udp"));
    peer.blocked(Some("ipip"));
    assert_eq!(peer.first().as_deref(), Some("ipip"), "that was seen before, or too soon");
    peer.now += Duration::from_secs(1);
    peer.blocked(Some("ipip"));
    assert_eq!(peer.first(), None, "no way leads to it");
    peer.blocked(None);
    assert_eq!(peer.first(), None, "there is no search without a pause");
    peer.now += Duration::from_secs(60);
    peer.blocked(None);
    assert_eq!(peer.first().as_deref(), Some("wireguard"));
}

#[test]
fn where_nothing_can_be_tried_by_hand_a_detour_ends_by_itself() {
    let mut peer = Peer::new(&["udp"]);
    peer.blocked(None);
    assert_eq!(peer.seconds(1000, None), Some(600));
}

#[test]
fn what_is_proven_outlives_the_agent_and_not_the_lease() {
    let mut peer = Peer::new(&["udp", "ipip"]);
    peer.blocked(None);
    peer.now += Duration::from_secs(10);
    peer.blocked(Some("udp"));
    peer.tell(&PathFact::Largest(Some(Mtu(1350))));
    let all = peer.proofs.all();
    let text = serde_json::to_string(&all[&peer.lease]).unwrap();
    assert_eq!(text, r#"{"detour":"ipip","mtu4":1350}"#);
    peer.proofs = PathProofs::new(vec!["ipip".to_owned()], Vec::new(), &all, peer.now);
    assert_eq!((peer.proofs.all(), peer.first().as_deref()), (all.clone(), Some("ipip")));
    peer.proofs.set_ways(vec!["udp".to_owned(), "ipip".to_owned()]);
    assert_eq!(peer.first().as_deref(), Some("ipip"));
    peer.proofs.set_ways(vec!["udp".to_owned()]);
    assert_eq!((peer.first(), peer.proofs.take_news()), (None, vec![peer.lease]));
    let again = |former| PathProofs::new(Vec::new(), former, &all, peer.now).detour(&peer.lease);
    assert_eq!(again(Vec::new()), [""; 0], "no way is known");
    assert_eq!(again(vec!["udp".to_owned(), "ipip".to_owned()]), ["ipip"], "round the former tunnel");

    peer.proofs.forget(&peer.lease);
    assert_eq!((peer.proofs.all(), peer.proofs.take_news()), (BTreeMap::new(), vec![]));
}

#[test]
fn a_detour_round_the_former_tunnel_outlives_the_change_of_the_own_one() {
    let mut peer = Peer::new(&["udp", "ipip"]);
    peer.blocked(None);
    peer.proofs.change_tunnel(vec!["vxlan".to_owned()]);
    assert_eq!(peer.proofs.detour(&peer.lease), ["udp", "ipip"]);
    assert_eq!(peer.proofs.all()[&peer.lease].detour.as_deref(), Some("udp"));
    peer.now += Duration::from_secs(10);
    peer.blocked(Some("udp"));
    assert_eq!(peer.first().as_deref(), Some("ipip"));
    // Its lease names the other backend, too, whose tunnel is blocked as well.
    peer.proofs.forget(&peer.lease);
    peer.blocked(None);
    assert_eq!(peer.first().as_deref(), Some("vxlan"));
}

#[test]
fn the_largest_packet_is_that_of_the_way_that_is_taken() {
    let peer = Peer::new(&["udp"]);
    peer.tell(&PathFact::Largest(None));
    assert_eq!(peer.proofs.take_news(), []);
    peer.tell(&PathFact::Largest(Some(Mtu(1350))));
    assert_eq!(
        (peer.proofs.mtus(&peer.lease).v4, peer.proofs.take_news()),
        (Some(Mtu(1350)), vec![peer.lease])
    );
    peer.tell(&PathFact::Largest(Some(Mtu(1350))));
    assert_eq!(peer.proofs.take_news(), []);
    peer.blocked(None);
    assert_eq!(peer.proofs.mtus(&peer.lease), PerFamily::default());
    peer.tell(&PathFact::Largest(None));
    assert_eq!(peer.proofs.take_news(), [peer.lease]);
}

#[tokio::test]
async fn the_loop_is_told_once() {
    let peer = Peer::new(&["udp"]);
    peer.blocked(None);
    peer.proofs.told().await;
    assert!(tokio::time::timeout(Duration::ZERO, peer.proofs.told()).await.is_err());
}
