//! Packets between pods.

use std::net::IpAddr;
use std::time::Duration;

use flannel_lab::ping::{PingOptions, Pinger, ping};
use flannel_lab::pod::Pod;

use crate::Fallible;
use crate::world::World;

/// Headers of a ping: IP and ICMP, in bytes.
const HEADERS_V4: u32 = 28;
const HEADERS_V6: u32 = 48;

/// Pings from every pod to every other, in packets of the full MTU that must not be fragmented.
pub(crate) fn all_pairs(world: &World) -> Fallible<String> {
    let mut pairs = 0;
    for (from, sender) in &world.pods {
        for (to, receiver) in world.pods.iter().filter(|(to, _)| *to != from) {
            for address in addresses(receiver) {
                let options = full_size(world.envs[from].mtu, address);
                let report = ping(sender.netns(), address, options)?;
                if report.lost > 0 {
                    return Err(format!("node{from}'s pod to node{to}'s at {address}: {report:?}").into());
                }
                pairs += 1;
            }
        }
    }
    let mtu = world.envs.values().map(|env| env.mtu).min().unwrap_or_default();
    Ok(format!("{pairs} ways between pods, packets of {mtu} bytes, none lost"))
}

/// Pings that run while something happens to the control plane: none of them may get lost.
#[derive(Debug)]
pub(crate) struct Background(Vec<Pinger>);

impl Background {
    /// From every node's pod to that of the next, every 10 ms.
    pub(crate) fn start(world: &World) -> Fallible<Self> {
        let next = world.pods.values().cycle().skip(1);
        let ways = world.pods.values().zip(next);
        let ways = ways.flat_map(|(from, to)| addresses(to).into_iter().map(move |address| (from, address)));
        let pingers =
            ways.map(|(from, address)| Pinger::start(from.netns(), address, PingOptions::default()));
        Ok(Self(pingers.collect::<Result<_, _>>()?))
    }

    /// Ends them; an error tells what was lost.
    pub(crate) fn stop(self) -> Fallible<String> {
        let mut sent = 0;
        for report in self.0.into_iter().map(Pinger::stop) {
            if let Some(outage) = report.longest_outage() {
                return Err(format!("{} pings lost, the longest outage: {outage:?}", report.lost).into());
            }
            sent += report.sent;
        }
        Ok(format!("{sent} pings, none lost"))
    }
}

fn addresses(pod: &Pod) -> Vec<IpAddr> {
    pod.ipv4().into_iter().chain(pod.ipv6()).collect()
}

fn full_size(mtu: u32, address: IpAddr) -> PingOptions {
    let headers = if address.is_ipv6() { HEADERS_V6 } else { HEADERS_V4 };
    let payload_size = usize::try_from(mtu - headers).expect("an MTU is small");
    let timeout = Duration::from_secs(2);
    PingOptions { payload_size, dont_fragment: true, timeout, ..PingOptions::default() }
}
