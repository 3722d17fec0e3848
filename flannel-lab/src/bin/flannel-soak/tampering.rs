//! Records that say of one node what is another's. Pure.

use std::fmt;

use serde_json::{Value, json};

use crate::Fallible;
use crate::action::Victim;
use crate::model::{Backend, Lease};

/// What a record claims that is somebody else's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Claim {
    /// The MAC of the owner's tunnel end.
    Mac,
    /// The owner's underlay address.
    Underlay,
    /// An underlay address that lies among the owner's pods.
    PodAddress,
}

impl Claim {
    /// All that a backend's records can claim.
    pub(crate) fn all(backend: Backend) -> &'static [Self] {
        match backend {
            Backend::Vxlan => &[Self::Mac, Self::Underlay, Self::PodAddress],
            Backend::HostGw | Backend::Udp | Backend::Wireguard | Backend::Ipip => {
                &[Self::Underlay, Self::PodAddress]
            }
        }
    }
}

/// What the agent does whose record it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Meanwhile {
    /// It runs all the while; a lease of no node has none.
    Runs,
    /// It stands still, and starts again once the record is right.
    Away,
    /// It stands still, and starts again on the wrong record, which it is to set right itself.
    Heals,
}

/// One record that is tampered with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Tampering {
    /// Whose record it is.
    pub(crate) record: Victim,
    pub(crate) claim: Claim,
    /// The node whose value it claims.
    pub(crate) owner: u8,
    pub(crate) v6: bool,
    pub(crate) meanwhile: Meanwhile,
    /// A node whose agent starts anew while the record is wrong; it must not forget what was there first.
    pub(crate) starts: Option<u8>,
}

impl Tampering {
    /// Whether nobody but the node itself sets the record right.
    pub(crate) fn heals_by_itself(self) -> bool {
        self.meanwhile == Meanwhile::Heals
    }

    /// The record with the claim in it.
    pub(crate) fn record(self, right: &str, owner: &Lease) -> Fallible<String> {
        let mut record: Value = serde_json::from_str(right)?;
        let side = owner.side(self.v6).ok_or("the owner lacks the family")?;
        let (ip, data) = if self.v6 { ("PublicIPv6", "BackendV6Data") } else { ("PublicIP", "BackendData") };
        match self.claim {
            Claim::Mac => record[data]["VtepMAC"] = json!(side.mac),
            Claim::Underlay => record[ip] = json!(side.underlay),
            // Of some pod; the bridge has the first.
            Claim::PodAddress => {
                let pod = side.subnet.iter().nth(7).ok_or("a subnet without pods")?;
                record[ip] = json!(pod);
            }
        }
        Ok(record.to_string())
    }
}

impl fmt::Display for Tampering {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { record, claim, owner, v6, meanwhile, starts } = self;
        let family = if *v6 { 6 } else { 4 };
        write!(f, "{record:?} claims {claim:?} of node{owner} (IPv{family}), its agent: {meanwhile:?}")?;
        starts.map_or(Ok(()), |node| write!(f, ", node{node}'s starts anew"))
    }
}

#[cfg(test)]
mod tests {
    use flannel_lab::cluster::Families;

    use super::*;
    use crate::phantom::Phantom;

    #[test]
    fn one_value_is_the_owners_and_all_else_stays() {
        let lease =
            |subnet, host| Phantom { subnet, host, mac: subnet.into() }.lease(Backend::Vxlan, Families::Dual);
        let (own, owner) = (lease(1, 101), lease(2, 102));
        for (claim, v6, want) in [
            (Claim::Mac, true, r#""VtepMAC":"02:f1:a0:06:00:02""#),
            (Claim::Mac, false, r#""VtepMAC":"02:f1:a0:04:00:02""#),
            (Claim::Underlay, false, r#""PublicIP":"192.168.77.102""#),
            (Claim::Underlay, true, r#""PublicIPv6":"fd00:77::102""#),
            (Claim::PodAddress, false, r#""PublicIP":"10.42.2.7""#),
            (Claim::PodAddress, true, r#""PublicIPv6":"fd00:42:0:2::7""#),
        ] {
            let tampering = Tampering {
                record: Victim::Phantom(1),
                claim,
                owner: 2,
                v6,
                meanwhile: Meanwhile::Runs,
                starts: None,
            };
            let record = tampering.record(&own.value(Backend::Vxlan), &owner).unwrap();
            assert!(record.contains(want), "{record}");
            let read = Lease::parse(&own.key(), &record).unwrap();
            assert_eq!(read.side(!v6), own.side(!v6), "the other family says what it said");
            assert_ne!(read.side(v6), own.side(v6));
        }
    }
}
