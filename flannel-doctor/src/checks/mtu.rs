//! The largest packet, along its way: pod, bridge, overlay, underlay.

use std::io;
use std::net::IpAddr;
use std::thread;
use std::time::Duration;

use flannel_core::addr::{Family, Mtu};
use flannel_core::kernel::Link;

use crate::facts::Facts;
use crate::finding::{Checked, Finding, Skip, sample};
use crate::host::{Echo, echo};

/// Bytes that a tunnel adds to a packet: outer IP header, UDP 8, and for vxlan VXLAN 8 and inner Ethernet 14 (RFC 7348
/// section 5); for ipip nothing but the outer header (RFC 2003).
fn overhead(kind: &str, underlay: Family) -> Option<u32> {
    let ip = if underlay == Family::V4 { 20 } else { 40 };
    match kind {
        "vxlan" => Some(ip + 8 + 8 + 14),
        "tun" => Some(ip + 8),
        // RFC 2003.
        "ipip" => Some(ip),
        _ => None,
    }
}

pub(super) async fn overlay(facts: &Facts) -> Checked {
    facts.links()?;
    let mut links = facts.overlay_links().peekable();
    if links.peek().is_none() {
        return Err(Skip::new("there is no device of flannel"));
    }
    let mut seen = Vec::new();
    let mut found = Vec::new();
    for link in links {
        let Some((family, lower)) = lower_of(facts, link) else { continue };
        let Some(most) = overhead(link.kind.as_deref().unwrap_or_default(), family)
            .and_then(|bytes| lower.mtu.less(bytes))
        else {
            continue;
        };
        let text = format!(
            "{} has MTU {}, and {} below it {}: {most} fit",
            link.name, link.mtu, lower.name, lower.mtu
        );
        if link.mtu > most {
            found.push(Finding::failure(
                text,
                format!("remove Backend.MTU from the network config, or `ip link set {} mtu {most}`; the agent does it by itself", link.name),
            ));
        } else {
            seen.push(text);
        }
    }
    if seen.is_empty() && found.is_empty() {
        return Err(Skip::new("the underlay of flannel's devices is not known"));
    }
    Ok(Finding::of_all(found, || seen.join("; ")))
}

/// The underlay of a device, and the family of the outer packets.
fn lower_of<'a>(facts: &'a Facts, link: &Link) -> Option<(Family, &'a Link)> {
    let family = |ip: IpAddr| Family::of(ip);
    if let Some(vxlan) = &link.vxlan {
        let of = vxlan.local.map_or(Family::V4, family);
        let lower = vxlan.lower.and_then(|index| facts.link(index));
        return Some((of, lower.or_else(|| facts.link_with(vxlan.local?))?));
    }
    Some((Family::V4, facts.underlay_link(Family::V4)?))
}

pub(super) async fn bridge(facts: &Facts) -> Checked {
    let mtu = facts.pod_mtu().ok_or_else(|| Skip::new("no subnet file with FLANNEL_MTU"))?;
    let gateways = facts.gateway_links();
    let mut bridges: Vec<&Link> = gateways.into_iter().map(|(_, link)| link).collect();
    bridges.dedup_by_key(|link| link.index);
    if bridges.is_empty() {
        return Err(Skip::new("no bridge has an address of this node's subnet: no pod is here yet"));
    }
    let all = facts.links()?;
    let mut found = Vec::new();
    for bridge in &bridges {
        let ports: Vec<&Link> = all.iter().filter(|link| link.master == Some(bridge.index)).collect();
        let large: Vec<&str> =
            ports.iter().filter(|port| port.mtu > mtu).map(|port| port.name.as_str()).collect();
        if !large.is_empty() {
            let named = sample(&large);
            found.push(Finding::warning(
                format!("FLANNEL_MTU is {mtu}, and larger is the MTU of {named}: pods send packets that fit no tunnel"),
                "start those pods again: a pod keeps the MTU with which it was made",
            ));
        }
        let small: Vec<&str> =
            ports.iter().filter(|port| port.mtu < mtu).map(|port| port.name.as_str()).collect();
        if !small.is_empty() {
            found.push(Finding::note(
                format!("FLANNEL_MTU is {mtu}, and smaller is the MTU of {}", sample(&small)),
                "start those pods again if they should send larger packets",
            ));
        }
    }
    Ok(Finding::of_all(found, || format!("no port of the pods' bridge has an MTU over FLANNEL_MTU {mtu}")))
}

pub(super) async fn subnet_file(facts: &Facts) -> Checked {
    let mtu = facts.pod_mtu().ok_or_else(|| Skip::new("no subnet file with FLANNEL_MTU"))?;
    let devices = facts
        .overlay_links()
        .filter(|link| overhead(link.kind.as_deref().unwrap_or_default(), Family::V4).is_some());
    let least =
        devices.min_by_key(|link| link.mtu).ok_or_else(|| Skip::new("there is no device of flannel"))?;
    Ok(if mtu > least.mtu {
        Finding::failure(
            format!(
                "FLANNEL_MTU is {mtu}, and {} has MTU {}: new pods send packets that don't fit",
                least.name, least.mtu
            ),
            "restart the agent, which writes the file anew; then start the pods again that were made meanwhile",
        )
    } else {
        Finding::ok(format!("FLANNEL_MTU {mtu} fits into {} (MTU {})", least.name, least.mtu))
    })
}

/// The most peers that are asked.
const PEERS: usize = 3;
/// How long a peer has for an answer.
const PATIENCE: Duration = Duration::from_millis(400);

/// Packets of full size to the underlay addresses of a few peers.
pub(super) async fn path(facts: &Facts) -> Checked {
    let mut found = Vec::new();
    let mut seen = Vec::new();
    let peers: Vec<IpAddr> = facts
        .peers()
        .flat_map(|lease| lease.attrs.public_ips.iter().map(|(_, ip)| *ip))
        .take(PEERS)
        .collect();
    if peers.is_empty() {
        return Err(facts.no_peer());
    }
    for peer in peers {
        let Some(mtu) = facts.underlay_link(Family::of(peer)).map(|link| link.mtu) else { continue };
        match facts.host.blocking(move || largest(peer, mtu)).await?.map_err(|error| Skip::new(format!("can't send ICMP echoes, which takes CAP_NET_RAW: {error}")))? {
            Largest::Silent => {}
            Largest::All => seen.push(format!("{mtu} bytes reach {peer}")),
            Largest::UpTo(bytes) => found.push(Finding::failure(
                format!("the underlay has MTU {mtu} here, but at most {bytes} bytes reach {peer}: larger packets vanish"),
                format!("let the path carry {mtu} bytes (or let it send ICMP \"too big\"), or set Backend.MTU {bytes} in the network config"),
            )),
        }
    }
    if found.is_empty() && seen.is_empty() {
        return Err(Skip::new("no peer answers ICMP on the underlay"));
    }
    Ok(Finding::of_all(found, || seen.join("; ")))
}

enum Largest {
    Silent,
    All,
    UpTo(u32),
}

/// How many sizes are tried at once.
const AT_ONCE: u32 = 12;

/// The largest packet that a peer answers. Each round tries some sizes at once, and goes on between the largest that was
/// answered and the next.
fn largest(peer: IpAddr, mtu: Mtu) -> io::Result<Largest> {
    let answers = |bytes: u32| {
        // One lost packet is no hole.
        for _ in 0..2 {
            match echo(peer, Some(bytes), PATIENCE)? {
                Echo::Answered(_) => return Ok(true),
                Echo::Silent => {}
                Echo::Refused(_) => return Ok(false),
            }
        }
        Ok::<_, io::Error>(false)
    };
    let (mut fits, mut hole) = (if Family::of(peer) == Family::V4 { 576 } else { 1280 }, mtu.0);
    if !echo(peer, None, PATIENCE)?.is_answer() || hole <= fits || !answers(fits)? {
        return Ok(Largest::Silent);
    }
    if answers(hole)? {
        return Ok(Largest::All);
    }
    // The threads are in the namespace of this one.
    while hole - fits > 1 {
        let step = (hole - fits).div_ceil(AT_ONCE);
        let sizes: Vec<u32> = (fits + step..hole).step_by(step as usize).collect();
        let asked: Vec<(u32, io::Result<bool>)> = thread::scope(|scope| {
            let threads: Vec<_> = sizes.iter().map(|size| scope.spawn(|| (*size, answers(*size)))).collect();
            threads.into_iter().filter_map(|thread| thread.join().ok()).collect()
        });
        let mut vanished = Vec::new();
        for (size, answered) in asked {
            if answered? { fits = fits.max(size) } else { vanished.push(size) }
        }
        // A smaller one that vanished was lost by chance.
        hole = vanished.into_iter().filter(|size| *size > fits).min().unwrap_or(hole);
    }
    Ok(Largest::UpTo(fits))
}
