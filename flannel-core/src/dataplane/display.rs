//! Objects and operations as text for messages. Links are named by their index.

use std::fmt;

use super::{Address, FdbEntry, Neighbour, NextHop, Object, ObjectKey, Op, Route, Through};

impl fmt::Display for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(Address { link, addr }) => write!(f, "address {addr} on link {link}"),
            Self::Neighbour(Neighbour { link, addr, mac }) => {
                write!(f, "neighbour {addr} with MAC {mac} on link {link}")
            }
            Self::Fdb(FdbEntry { link, mac, dst, .. }) => {
                write!(f, "FDB entry {mac} to {dst} on link {link}")
            }
            Self::NextHop(NextHop { link, gateway, .. }) => {
                write!(f, "next-hop object {gateway} on link {link}")
            }
            Self::Route(Route { dst, through: Through::Nowhere, .. }) => write!(f, "blackhole route {dst}"),
            Self::Route(Route { dst, via, link, mtu, .. }) => {
                write!(f, "route {dst}")?;
                via.map_or(Ok(()), |via| write!(f, " via {via}"))?;
                link.map_or(Ok(()), |link| write!(f, " on link {link}"))?;
                mtu.map_or(Ok(()), |mtu| write!(f, " with MTU {mtu}"))
            }
        }
    }
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(link, _)
            | Self::Neighbour(link, _)
            | Self::Fdb(FdbEntry { link, .. })
            | Self::NextHop(link, ..) => self.write(f, link),
            Self::Route(dst, _) => write!(f, "route {dst}"),
        }
    }
}

impl ObjectKey {
    /// Writes it with this name or number of its link.
    pub(super) fn write(&self, f: &mut fmt::Formatter<'_>, link: impl fmt::Display) -> fmt::Result {
        match self {
            Self::Address(_, addr) => write!(f, "address {addr} on link {link}"),
            Self::Neighbour(_, addr) => write!(f, "neighbour {addr} on link {link}"),
            Self::Fdb(FdbEntry { mac, dst, .. }) => write!(f, "FDB entry {mac} to {dst} on link {link}"),
            Self::NextHop(_, gateway, _) => write!(f, "next-hop object {gateway} on link {link}"),
            Self::Route(dst, _) => write!(f, "route {dst} on link {link}"),
        }
    }
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Create(object) | Self::Replace(object) => write!(f, "put {object}"),
            Self::Delete(object) => write!(f, "delete {object}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addr::{LinkIndex, MacAddr, Mtu};
    use crate::kernel::Refusal;

    #[test]
    fn a_refusal_is_told_in_words() {
        let link = LinkIndex(3);
        let mac = MacAddr([2, 0, 0, 0, 0, 9]);
        let route = Route::by_node("10.5.2.0/24".parse().unwrap(), [192, 0, 2, 2].into(), link);
        let fdb = FdbEntry { link, mac, dst: [192, 0, 2, 2].into(), port: None, vni: None, via: None };
        for (object, want) in [
            (
                Object::Address(Address { link, addr: "fd00::1/128".parse().unwrap() }),
                "address fd00::1/128 on link 3",
            ),
            (
                Object::Neighbour(Neighbour { link, addr: [10, 5, 2, 0].into(), mac }),
                "neighbour 10.5.2.0 with MAC 02:00:00:00:00:09 on link 3",
            ),
            (Object::Fdb(fdb), "FDB entry 02:00:00:00:00:09 to 192.0.2.2 on link 3"),
            (
                Object::NextHop(NextHop { link, gateway: [10, 5, 2, 0].into(), spare: None }),
                "next-hop object 10.5.2.0 on link 3",
            ),
            (Object::Route(route), "route 10.5.2.0/24 via 192.0.2.2 on link 3"),
            (
                Object::Route(Route { mtu: Some(Mtu(1350)), ..route }),
                "route 10.5.2.0/24 via 192.0.2.2 on link 3 with MTU 1350",
            ),
            (Object::Route(Route::blackhole(route.dst)), "blackhole route 10.5.2.0/24"),
        ] {
            let refusal = |op| Refusal { op, errno: libc::EPERM, reason: "no".to_owned() }.to_string();
            let why = "Operation not permitted (os error 1) (no)";
            assert_eq!(refusal(Op::Create(object)), format!("kernel refused to put {want}: {why}"));
            assert_eq!(refusal(Op::Delete(object)), format!("kernel refused to delete {want}: {why}"));
        }
    }
}
