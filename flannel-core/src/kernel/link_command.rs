//! Changes of links as commands of iproute2. Pure.

use super::{LinkOp, VxlanLink, vxlan};
use crate::addr::LinkIndex;
use crate::dataplane::command::word;

impl LinkOp {
    /// The shell commands that do the same; `name` returns the names of links. A link of a kind whose attributes only its
    /// backend knows is a comment.
    pub fn commands(&self, name: impl Fn(LinkIndex) -> String) -> Vec<String> {
        let link = |index| word(&name(index));
        let command = match self {
            Self::Create { name: new, mac, mtu, kind } => {
                let new = word(new);
                let mut text = format!("ip link add {new}");
                text.extend(mac.map(|mac| format!(" address {mac}")));
                text.extend(mtu.map(|mtu| format!(" mtu {mtu}")));
                if kind.name == VxlanLink::KIND
                    && let Some(words) = vxlan::words(kind, link)
                {
                    text + " type vxlan" + &words
                } else if kind.attrs.is_empty() {
                    text + " type " + &word(&kind.name)
                } else {
                    format!("# only the agent can create {new}, of kind {}", word(&kind.name))
                }
            }
            Self::Change(index, kind) => {
                match Some(kind).filter(|it| it.name == VxlanLink::KIND).and_then(|it| vxlan::words(it, link))
                {
                    Some(words) => format!("ip link set {} type vxlan{words}", link(*index)),
                    None => format!("# only the agent can change {}", link(*index)),
                }
            }
            Self::SetMtu(index, mtu) => format!("ip link set {} mtu {mtu}", link(*index)),
            Self::SetMac(index, mac) => format!("ip link set {} address {mac}", link(*index)),
            Self::SetUp(index) => format!("ip link set {} up", link(*index)),
            Self::Delete(index) => format!("ip link del {}", link(*index)),
        };
        vec![command]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addr::{MacAddr, Mtu, Vni};
    use crate::kernel::{LinkAttr, LinkKind};

    #[test]
    fn changes_are_told_as_commands() {
        let mac = MacAddr([2, 0, 0, 0, 0, 7]);
        let vxlan = VxlanLink {
            vni: Vni::new(1).unwrap(),
            port: 8472,
            local: Some([192, 0, 2, 1].into()),
            lower: Some(LinkIndex(2)),
            learning: false,
            gbp: true,
            foreign: false,
        };
        let v6 = VxlanLink { local: "2001:db8::1".parse().ok(), gbp: false, ..vxlan.clone() };
        let own = LinkIndex(3);
        let odd = LinkKind::new("odd", [LinkAttr::new(1, [1])]);
        for (op, want) in [
            (
                LinkOp::create_vxlan("flannel.1", mac, Mtu(1450), &vxlan),
                "ip link add flannel.1 address 02:00:00:00:00:07 mtu 1450 type vxlan id 1 dev eth0 local 192.0.2.1 dstport 8472 nolearning gbp",
            ),
            (
                LinkOp::Change(own, v6.to_change()),
                "ip link set flannel.1 type vxlan id 1 nolearning local 2001:db8::1",
            ),
            (LinkOp::SetMtu(own, Mtu(1400)), "ip link set flannel.1 mtu 1400"),
            (LinkOp::SetMac(own, mac), "ip link set flannel.1 address 02:00:00:00:00:07"),
            (LinkOp::SetUp(own), "ip link set flannel.1 up"),
            (LinkOp::Delete(own), "ip link del flannel.1"),
            (LinkOp::Change(own, odd.clone()), "# only the agent can change flannel.1"),
            (
                LinkOp::Create { name: "x0".into(), mac: None, mtu: None, kind: odd },
                "# only the agent can create x0, of kind odd",
            ),
            (
                LinkOp::Create { name: "x0".into(), mac: None, mtu: None, kind: LinkKind::new("dummy", []) },
                "ip link add x0 type dummy",
            ),
        ] {
            let name = |link: LinkIndex| if link == own { "flannel.1" } else { "eth0" }.to_owned();
            assert_eq!(op.commands(name), [want]);
        }
    }
}
