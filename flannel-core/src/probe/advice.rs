//! A verdict in words, and what to do about it. Both depend on how packets travel to the peer: a way without a tunnel has
//! other causes, and the size that passes is not the one that an operator sets. Pure.

use std::time::SystemTime;

use serde::{Serialize, Serializer};

use super::status::{Carriage, FamilyProbe, Verdict, WayProbe};
use crate::addr::Family;
use crate::times::instant;

impl Carriage {
    /// A way by a tunnel with this port, if it has one, that adds this many bytes to each packet, if the backend says so.
    pub fn new(port: Option<u16>, overhead: Option<u32>) -> Self {
        Self { port, overhead, has_sessions: false }
    }

    /// Packets travel as they are, by routes alone.
    pub fn direct() -> Self {
        Self { port: None, overhead: Some(0), has_sessions: false }
    }

    /// Sets whether the tunnel has sessions.
    #[must_use]
    pub fn sessions(self, has_sessions: bool) -> Self {
        Self { has_sessions, ..self }
    }

    fn is_direct(self) -> bool {
        self.overhead == Some(0)
    }

    /// The size on the underlay, in bytes, of the largest packet of pods that passes: the unit of `Backend.MTU`.
    pub(super) fn at_most_underlay(self, verdict: Verdict) -> Option<u32> {
        match (verdict, self.overhead) {
            (Verdict::MtuHole { at_most }, Some(overhead)) => Some(at_most + overhead),
            _ => None,
        }
    }
}

impl FamilyProbe {
    /// Of an MTU hole: the size on the underlay, in bytes with the headers of the tunnel, of the largest packet that
    /// passes. `Backend.MTU` of the network config is in this unit. `None` if the backend does not say what it adds.
    pub fn at_most_underlay(&self) -> Option<u32> {
        self.carriage.at_most_underlay(self.verdict)
    }

    /// The verdict in words.
    pub fn text(&self) -> String {
        text(self.verdict, self.carriage)
    }

    /// What to do about it; `None` if there is nothing to do.
    pub fn remedy(&self) -> Option<String> {
        remedy(self.verdict, self.carriage, Family::of(self.overlay.target))
    }
}

impl Serialize for FamilyProbe {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Form<'a> {
            #[serde(flatten)]
            verdict: Verdict,
            #[serde(skip_serializing_if = "Option::is_none")]
            at_most_underlay: Option<u32>,
            text: String,
            evidence: &'a [String],
            remedy: Option<String>,
            #[serde(serialize_with = "instant")]
            since: SystemTime,
            overlay: &'a WayProbe,
            underlay: &'a WayProbe,
        }
        let Self { verdict, evidence, since, overlay, underlay, carriage: _ } = self;
        Form {
            verdict: *verdict,
            at_most_underlay: self.at_most_underlay(),
            text: self.text(),
            evidence,
            remedy: self.remedy(),
            since: *since,
            overlay,
            underlay,
        }
        .serialize(serializer)
    }
}

/// The verdict in words.
pub(super) fn text(verdict: Verdict, carriage: Carriage) -> String {
    match verdict {
        Verdict::TunnelBlocked if carriage.is_direct() => "the way to its pods is blocked".to_owned(),
        Verdict::MtuHole { at_most } => match carriage.at_most_underlay(verdict) {
            Some(size) if size > at_most => {
                format!("{verdict} of pods, which are {size} on the underlay")
            }
            _ => verdict.to_string(),
        },
        verdict => verdict.to_string(),
    }
}

/// What to do about it; `None` if there is nothing to do.
pub(super) fn remedy(verdict: Verdict, carriage: Carriage, family: Family) -> Option<String> {
    let usual = verdict.remedy()?;
    Some(match verdict {
        Verdict::MtuHole { at_most } if carriage.is_direct() => format!(
            "raise the MTU on the path between the nodes; without a tunnel, pods' packets may have {at_most} bytes there"
        ),
        Verdict::MtuHole { .. } => match carriage.at_most_underlay(verdict) {
            Some(size) => format!(
                "raise the MTU on the path between the nodes, or set Backend.MTU in the network config (vxlan, wireguard), else the \
                 MTU of the nodes' links, to {size}"
            ),
            None => usual.to_owned(),
        },
        Verdict::TunnelBlocked | Verdict::Bridged => match (carriage.port, carriage.is_direct()) {
            (Some(port), _) if carriage.has_sessions => format!(
                "let UDP port {port} pass between the nodes (firewalls, security groups); if it does, look whether the peer's \
                 device has the key of its record: a restart of the agent there publishes it"
            ),
            (Some(port), _) => {
                format!("let UDP port {port} pass between the nodes (firewalls, security groups)")
            }
            (None, true) => {
                let sysctl = match family {
                    Family::V4 => "net.ipv4.ip_forward",
                    Family::V6 => "net.ipv6.conf.all.forwarding",
                };
                format!(
                    "on the peer: is {sysctl} 1, do its FORWARD chains let pods' packets pass, and does its agent run? Between \
                     the nodes: may packets with pods' addresses pass (security groups, source/destination check)?"
                )
            }
            (None, false) => {
                "let the tunnel's packets pass between the nodes (firewalls, security groups)".to_owned()
            }
        },
        Verdict::ReturnPath if carriage.has_sessions => {
            "on the peer: does its agent run and know this node, and do its filters let in what comes from the tunnel?"
                .to_owned()
        }
        _ => usual.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOLE: Verdict = Verdict::MtuHole { at_most: 1350 };

    fn vxlan() -> Carriage {
        Carriage::new(Some(8472), Some(50))
    }

    #[test]
    fn a_hole_has_the_size_that_an_operator_sets() {
        for (carriage, words, advice) in [
            (
                vxlan(),
                "MTU hole, at most 1350 bytes of pods, which are 1400 on the underlay",
                "Backend.MTU in the network config (vxlan, wireguard), else the MTU of the nodes' links, to 1400",
            ),
            (Carriage::direct(), "MTU hole, at most 1350 bytes", "pods' packets may have 1350 bytes"),
            (Carriage::default(), "MTU hole, at most 1350 bytes", "a smaller Backend.MTU"),
        ] {
            assert_eq!(text(HOLE, carriage), words);
            let remedy = remedy(HOLE, carriage, Family::V4).unwrap();
            assert!(remedy.contains(advice), "{remedy}");
        }
        assert_eq!(vxlan().at_most_underlay(Verdict::PeerDead), None);
    }

    #[test]
    fn where_there_is_no_tunnel_none_is_blamed() {
        for verdict in Verdict::ALL {
            for family in Family::ALL {
                let remedy = remedy(verdict, vxlan(), family);
                assert_eq!(remedy.is_some(), verdict.remedy().is_some(), "{verdict}");
            }
        }
        let blocked = |carriage, family| {
            let remedy = remedy(Verdict::TunnelBlocked, carriage, family).unwrap();
            format!("{}; {remedy}", text(Verdict::TunnelBlocked, carriage))
        };
        assert!(
            blocked(vxlan(), Family::V4).starts_with("the tunnel to it is blocked; let UDP port 8472 pass")
        );
        for (family, sysctl) in
            [(Family::V4, "net.ipv4.ip_forward"), (Family::V6, "net.ipv6.conf.all.forwarding")]
        {
            let said = blocked(Carriage::direct(), family);
            assert!(said.contains(sysctl) && !said.contains("tunnel") && !said.contains("port"), "{said}");
        }
        assert!(!blocked(Carriage::new(None, Some(20)), Family::V4).contains("port"));
        let wireguard = Carriage::new(Some(51820), Some(60)).sessions(true);
        let said = blocked(wireguard, Family::V4);
        assert!(said.contains("UDP port 51820 pass") && said.contains("the key of its record"), "{said}");
        let said = remedy(Verdict::ReturnPath, wireguard, Family::V4).unwrap();
        assert!(said.contains("know this node") && !said.contains("FDB"), "{said}");
    }
}
