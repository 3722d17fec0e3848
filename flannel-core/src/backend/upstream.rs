//! The backends that upstream has, or had, and that this project does not have.

/// What holds for the route tables of all clouds.
const CLOUD: &str = "take alloc and let the cloud's own controller put a route for each node's subnet, or host-gw where \
                     nodes share a segment, or vxlan anywhere";

/// Further backend kinds that upstream has, or had, each with why it is not here and the way out.
const UPSTREAM: [(&str, &str, &str); 6] = [
    (
        "ipsec",
        "it needs strongSwan's charon beside the agent, and one key for all nodes",
        "take wireguard, which encrypts in the kernel with a key for each node",
    ),
    ("tencent-vpc", "it needs credentials of the cloud on every node", CLOUD),
    ("aws-vpc", "upstream has removed it", CLOUD),
    ("gce", "upstream has removed it", CLOUD),
    ("ali-vpc", "upstream has removed it", CLOUD),
    ("hybridnet", "it was never one of upstream's releases", CLOUD),
];

/// Why this project has no backend of a kind that upstream has, or had, and what to take instead; `None` for another kind.
pub(crate) fn why_not(kind: &str) -> Option<String> {
    let (_, why, way_out) = UPSTREAM.iter().find(|(upstream, ..)| *upstream == kind)?;
    Some(format!("{why}; {way_out}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backends_of_upstream_are_refused_with_the_way_out() {
        for (kind, words) in [
            ("ipsec", "take wireguard"),
            ("tencent-vpc", "take alloc"),
            ("aws-vpc", "removed it; take alloc"),
            ("gce", "host-gw"),
            ("ali-vpc", "vxlan anywhere"),
        ] {
            let why = why_not(kind).unwrap();
            assert!(why.contains(words), "{kind}: {why}");
        }
        assert_eq!((why_not("vxlna"), why_not(""), why_not("ipip")), (None, None, None));
    }
}
