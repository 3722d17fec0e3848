//! The incremental table against the rule over all leases, on random ones.

use super::*;

/// Few subnets of three lengths, few MACs, few nodes and few ages, so that everything collides.
fn any_lease() -> impl Strategy<Value = (LeaseKey, Standing, u8, u8)> {
    let block = (0..16_u32, prop::sample::select(vec![22_u8, 24, 25]));
    let ages = [0..4_u32, 0..4, 0..4];
    (block, 0..4_u64, ages, 1..4_u8, 1..5_u8).prop_map(|((block, prefix), created, [a, b, c], mac, at)| {
        let base = Ipv4Addr::from_bits(0x0a05_0000 + block * 128);
        let subnets = PerFamily { v4: Subnet::containing(base.into(), prefix), v6: None };
        (LeaseKey::new(subnets).unwrap(), Standing { created, ..seen(a, b, c) }, mac, at)
    })
}

/// The parts of a lease, as the model sees them.
#[derive(Clone)]
struct Told {
    standing: Standing,
    peer: Peer,
}

impl Told {
    fn parts(&self) -> Option<(Subnet, MacAddr, IpAddr)> {
        match self.peer.claims[..] {
            [Claim::Subnet(subnet), Claim::Vtep(_, mac, at), _] => Some((subnet, mac, at)),
            _ => None,
        }
    }

    /// The conflicts of two leases by their ages: this one's, the other's, and whether a tie is this one's.
    fn conflicts(&self, other: &Self, tie: bool) -> Vec<(u32, u32, bool)> {
        let (Some((a, mac, at)), Some((b, other_mac, to))) = (self.parts(), other.parts()) else {
            return vec![];
        };
        let ages = |told: &Self| {
            let [subnet, ip, _, data, _] = told.standing.ages.to_array();
            (subnet, ip, data)
        };
        let ((subnet, ip, data), (other_subnet, other_ip, other_data)) = (ages(self), ages(other));
        let mut found = Vec::new();
        if a.contains(b.base()) || b.contains(a.base()) {
            found.push((subnet, other_subnet, tie));
        }
        if mac == other_mac && at != to {
            found.push((data, other_data, tie));
        }
        if a.contains(to) {
            found.push((subnet, other_ip, true));
        }
        if b.contains(at) {
            found.push((ip, other_subnet, false));
        }
        found
    }
}

/// The rule, written down naively over all leases.
fn model(leases: &BTreeMap<LeaseKey, Told>, own: Subnet, own_ip: IpAddr) -> Dataplane {
    let older =
        |a: &LeaseKey, b: &LeaseKey| (leases[a].standing.created, a) < (leases[b].standing.created, b);
    let excludes = |a: &LeaseKey, b: &LeaseKey| a != b && !leases[a].conflicts(&leases[b], false).is_empty();
    let beats = |a: &LeaseKey, b: &LeaseKey| {
        let conflicts = leases[a].conflicts(&leases[b], older(a, b));
        a != b && conflicts.iter().any(|(mine, theirs, tie)| mine < theirs || mine == theirs && *tie)
    };
    let is_ours = |key: &&LeaseKey| {
        leases[*key].parts().is_some_and(|(subnet, _, at)| {
            subnet.overlaps(own) || own.contains(at) || at == own_ip || subnet.contains(own_ip)
        })
    };
    let mut open: BTreeSet<LeaseKey> = leases.keys().filter(|key| !is_ours(key)).copied().collect();
    let mut programmed: Vec<LeaseKey> = Vec::new();
    while !open.is_empty() {
        let first = |key: &LeaseKey| {
            let [subnet, ip, _, data, _] = leases[key].standing.ages.to_array();
            (subnet.min(ip).min(data), leases[key].standing.created, *key)
        };
        let free = open.iter().find(|key| !open.iter().any(|other| beats(other, key)));
        let next = *free.unwrap_or_else(|| open.iter().min_by_key(|key| first(key)).unwrap());
        open.retain(|key| *key != next && !excludes(key, &next));
        programmed.push(next);
    }
    programmed.iter().flat_map(|key| leases[key].peer.objects.clone()).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, ..ProptestConfig::default() })]

    #[test]
    fn incremental_equals_the_rule_over_all(
        steps in prop::collection::vec((any_lease(), prop::bool::weighted(0.7), any::<bool>()), 0..40),
    ) {
        let (own_subnet, own_ip): (Subnet, IpAddr) = ("10.5.7.0/25".parse().unwrap(), [192, 0, 2, 2].into());
        let mut table = PeerTable::new(Vec::new(), vec![Claim::Subnet(own_subnet), Claim::Underlay(own_ip)]);
        let mut leases: BTreeMap<LeaseKey, Told> = BTreeMap::new();
        let (mut before, mut touched) = (table.want().clone(), Vec::new());
        for ((key, standing, mac, at), put, settle) in steps {
            if put {
                // Numbers 3 and 4 are where pods are.
                let at = if at >= 3 { [10, 5, at, 9].into() } else { [192, 0, 2, at].into() };
                let peer = peer_at(key, mac, at);
                let is_usable = !key_subnet(key).contains(at);
                let told = Told { standing, peer: if is_usable { peer.clone() } else { Peer::default() } };
                let last = leases.get(&key).filter(|_| !is_usable).cloned();
                leases.insert(key, last.unwrap_or(told));
                touched.extend(table.stage(key, standing, Ok(peer)));
            } else {
                leases.remove(&key);
                touched.extend(table.stage_removal(&key));
            }
            if !settle {
                continue;
            }
            touched.extend(table.settle());
            prop_assert_eq!(table.want(), &model(&leases, own_subnet, own_ip));
            let changed = before.iter().chain(table.want().iter()).map(|object| object.key())
                .filter(|key| before.get(key) != table.want().get(key));
            for key in changed {
                prop_assert!(touched.contains(&key), "{key:?} changed unsaid");
            }
            let programmed: BTreeSet<LeaseKey> = table.programmed_peers().map(|(key, _)| *key).collect();
            for (key, told) in &leases {
                let is_told = table.problems().any(|(problem, _)| problem == *key);
                prop_assert!(programmed.contains(key) || is_told || told.parts().is_none(), "{key} is kept quiet");
            }
            (before, touched) = (table.want().clone(), Vec::new());
        }
    }
}
