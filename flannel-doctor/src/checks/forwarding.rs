//! Whether the host forwards what pods send.

use std::collections::BTreeSet;

use flannel_core::addr::Family;
use flannel_core::kernel::{ConfOf, Link};

use crate::facts::{Facts, carries};
use crate::finding::{Checked, Finding, Skip};

pub(super) async fn ipv4(facts: &Facts) -> Checked {
    forwarding(facts, Family::V4).await
}

pub(super) async fn ipv6(facts: &Facts) -> Checked {
    forwarding(facts, Family::V6).await
}

/// For IPv4 the setting of the link counts by which a packet arrives, for IPv6 that of `all`.
async fn forwarding(facts: &Facts, family: Family) -> Checked {
    let networks = facts.all_networks().await;
    if !networks.is_empty() && networks.get(family).is_none() {
        return Err(Skip::new(format!("the network has no {family}")));
    }
    let settings = facts.host.open_kernel()?.forwarding(family).await?;
    let of = |of: ConfOf| settings.iter().find(|setting| setting.of == of).map(|setting| setting.on);
    let sysctl = match family {
        Family::V4 => "net.ipv4.ip_forward",
        Family::V6 => "net.ipv6.conf.all.forwarding",
    };
    let all = of(ConfOf::All)
        .ok_or_else(|| Skip::new(format!("the kernel does not say whether it forwards {family}")))?;
    let gateways = facts.gateway_links();
    let has_pods = gateways.iter().any(|(of, _)| *of == family);
    if !all {
        let seen = format!("{sysctl} is 0: this host forwards no {family}");
        let fix = format!("`sysctl -w {sysctl}=1`, and in /etc/sysctl.d for the next boot");
        let is_idle = facts.agents.is_empty() && !has_pods;
        // CNI's bridge plugin turns it on with the first pod.
        return Ok(if is_idle { Finding::warning(seen, fix) } else { Finding::failure(seen, fix) });
    }
    let pods = gateways.iter().filter(|(of, _)| *of == family).map(|(_, link)| *link);
    let links: Vec<&Link> = pods
        .chain(facts.overlay_links().filter(|link| carries(link, family)))
        .chain(facts.underlay_link(family))
        .collect();
    let is_off = |link: &&&Link| family == Family::V4 && of(ConfOf::Link(link.index)) == Some(false);
    let off = links.iter().filter(is_off).map(|link| {
        let sysctl = format!("net/ipv4/conf/{}/forwarding", link.name);
        Finding::failure(
            format!("{sysctl} is 0: packets that arrive by {} are dropped", link.name),
            format!("`sysctl -w {sysctl}=1`"),
        )
    });
    Ok(Finding::of_all(off, || format!("{sysctl} is 1, and no link of pods or nodes is excepted")))
}

pub(super) async fn rp_filter(facts: &Facts) -> Checked {
    // There is no rp_filter for IPv6.
    let overlay = facts.overlay_links().filter(|link| carries(link, Family::V4));
    let overlay = overlay.map(|link| (link.name.clone(), true));
    let underlay = facts.underlay_link(Family::V4).map(|link| (link.name.clone(), false));
    let links: Vec<_> = overlay.chain(underlay).collect();
    if links.is_empty() {
        return Err(Skip::new("there is no device of flannel, and no known underlay"));
    }
    let read = facts.host.look(move |files| {
        let all = files.number("net/ipv4/conf/all/rp_filter")?;
        // The larger of the two counts (Documentation/networking/ip-sysctl.rst).
        let one = |(name, is_overlay): (String, bool)| {
            let own = files.number(&format!("net/ipv4/conf/{name}/rp_filter"))?;
            Ok((name, is_overlay, own.max(all)))
        };
        let read = links.into_iter().map(one).collect::<Result<Vec<_>, Skip>>()?;
        Ok::<_, Skip>((all, read))
    });
    let (all, read) = read.await??;
    let is_direct = facts.backend() == Some("host-gw") || has_direct_routes(facts);
    let strict = read.iter().filter(|(_, is_overlay, value)| *value == 1 && (*is_overlay || is_direct));
    let found = strict.map(|(name, ..)| {
        Finding::warning(
            format!("rp_filter of {name} is 1 (strict; that of all is {all}, and the larger counts): packets are dropped whose answer would leave by another link"),
            format!("`sysctl -w net/ipv4/conf/{name}/rp_filter=2`, and in /etc/sysctl.d for the next boot"),
        )
    });
    Ok(Finding::of_all(found, || {
        let values = read.iter().map(|(name, _, value)| format!("{name} {value}")).collect::<Vec<_>>();
        format!("rp_filter: {}", values.join(", "))
    }))
}

fn has_direct_routes(facts: &Facts) -> bool {
    let direct = facts.config().and_then(|config| config.backend.get::<bool>("DirectRouting").ok()?);
    direct.unwrap_or(false)
}

pub(super) async fn bridge_netfilter(facts: &Facts) -> Checked {
    let families = facts.all_networks().await;
    let families: Vec<Family> = Family::ALL
        .into_iter()
        .filter(|of| families.is_empty() && *of == Family::V4 || families.get(*of).is_some())
        .collect();
    let read = facts.host.look(move |files| {
        let name = |family| match family {
            Family::V4 => "net/bridge/bridge-nf-call-iptables",
            Family::V6 => "net/bridge/bridge-nf-call-ip6tables",
        };
        families.into_iter().map(|family| (name(family), files.sysctl(name(family)))).collect::<Vec<_>>()
    });
    let found = read.await?.into_iter().filter_map(|(name, value)| match value.as_deref() {
        Ok("1") => None,
        Ok(value) => Some(Finding::warning(
            format!("{name} is {value}: pods of one node that reach each other by a Service get no answers"),
            format!("`sysctl -w {name}=1`, and in /etc/sysctl.d for the next boot"),
        )),
        Err(_) => Some(Finding::warning(
            format!("there is no {name}: pods of one node that reach each other by a Service get no answers"),
            "`modprobe br_netfilter`, and in /etc/modules-load.d for the next boot; needed with kube-proxy alone",
        )),
    });
    Ok(Finding::of_all(found.collect::<Vec<_>>(), || {
        "packets between ports of a bridge pass the firewall".to_owned()
    }))
}

pub(super) async fn ipv6_disabled(facts: &Facts) -> Checked {
    if facts.all_networks().await.get(Family::V6).is_none() {
        return Err(Skip::new("the network has no IPv6"));
    }
    let links: BTreeSet<String> = facts.links_with_ipv6().into_iter().map(|link| link.name.clone()).collect();
    let read = facts.host.look(move |files| {
        let names = ["all".to_owned()].into_iter().chain(links);
        let one = |name: String| {
            let value = files.number(&format!("net/ipv6/conf/{name}/disable_ipv6"))?;
            Ok((name, value))
        };
        names.map(one).collect::<Result<Vec<_>, Skip>>()
    });
    let found = read.await??.into_iter().filter(|(_, value)| *value != 0).map(|(name, _)| {
        let sysctl = format!("net/ipv6/conf/{name}/disable_ipv6");
        Finding::failure(
            format!("{sysctl} is 1, and the network has IPv6"),
            format!("`sysctl -w {sysctl}=0`"),
        )
    });
    Ok(Finding::of_all(found.collect::<Vec<_>>(), || "IPv6 is on where the network needs it".to_owned()))
}
