//! Other programs of this host that manage every link they find.

mod ini;

use flannel_core::kernel::Link;

use crate::facts::Facts;
use crate::finding::{Checked, Finding, Skip};
use crate::host::Files;

use ini::Section;

/// A device whose name stands for flannel's where there is none yet.
const EXAMPLE: &str = "flannel.1";

/// The names that a program must leave alone: those of the devices that are there.
fn patterns(facts: &Facts) -> Vec<String> {
    let names: Vec<String> = facts.overlay_links().map(|link| link.name.clone()).collect();
    if names.is_empty() { vec![EXAMPLE.to_owned()] } else { names }
}

/// Name and index of flannel's devices; those of an agent that never ran are made up, since the question is the same.
fn devices(facts: &Facts) -> Vec<(String, u32)> {
    let is_pods = |link: &&Link| link.name.starts_with("cni");
    let links = facts.links().unwrap_or_default().iter().filter(is_pods);
    facts.overlay_links().chain(links).map(|link| (link.name.clone(), link.index.0)).collect()
}

pub(super) async fn network_manager(facts: &Facts) -> Checked {
    let (devices, names) = (devices(facts), patterns(facts));
    let look = move |files: &Files| {
        if !files.has("/run/NetworkManager") {
            return None;
        }
        // What it says of each device that it has seen (`nm-config.c`).
        let is_managed = |(_, index): &&(String, u32)| {
            let state = files.text(format!("/run/NetworkManager/devices/{index}")).unwrap_or_default();
            let managed = ini::value(&ini::parse(&state), "device", "managed").map(str::to_owned);
            matches!(managed.as_deref(), Some("managed" | "true" | "full"))
        };
        let managed: Vec<String> = devices.iter().filter(is_managed).map(|(name, _)| name.clone()).collect();
        Some((managed, names.iter().all(|name| is_excluded(files, name))))
    };
    let Some((managed, is_excluded)) = facts.host.look(look).await? else {
        return Ok(Finding::ok("NetworkManager does not run"));
    };
    let fix = "/etc/NetworkManager/conf.d/flannel.conf with `[keyfile]` and `unmanaged-devices+=interface-name:flannel*;interface-name:cni*;interface-name:veth*`, then `systemctl reload NetworkManager` (docs/hosts.md)";
    Ok(if !managed.is_empty() {
        Finding::failure(
            format!(
                "NetworkManager manages {}: it removes addresses and runs DHCP there",
                managed.join(", ")
            ),
            fix,
        )
    } else if is_excluded {
        Finding::ok("NetworkManager leaves flannel's devices alone")
    } else {
        Finding::warning("NetworkManager runs, and no config of it excludes flannel's devices", fix)
    })
}

/// Whether a config of `NetworkManager` excludes a device.
fn is_excluded(files: &Files, device: &str) -> bool {
    let folders =
        ["/usr/lib/NetworkManager/conf.d", "/run/NetworkManager/conf.d", "/etc/NetworkManager/conf.d"];
    let of_folder = |folder: &&str| {
        files
            .names(folder)
            .into_iter()
            .map(|name| format!("{folder}/{}", name.to_string_lossy()))
            .collect::<Vec<_>>()
    };
    let paths =
        folders.iter().flat_map(of_folder).chain(["/etc/NetworkManager/NetworkManager.conf".to_owned()]);
    let texts = paths.filter_map(|path| files.text(path).ok());
    texts.map(|text| ini::parse(&text)).any(|sections| {
        let lists = sections
            .iter()
            .flat_map(|section| section.entries.iter())
            .filter(|(key, _)| key.trim_end_matches('+') == "unmanaged-devices");
        let patterns = lists.flat_map(|(_, value)| value.split([';', ',']));
        let names = patterns.filter_map(|pattern| pattern.trim().strip_prefix("interface-name:"));
        names.map(|name| name.trim_start_matches(['=', '~'])).any(|pattern| ini::glob(pattern, device))
    })
}

pub(super) async fn networkd(facts: &Facts) -> Checked {
    let devices = devices(facts);
    let look = move |files: &Files| {
        // The folder of links may be there without it; this file it writes itself.
        if !files.has("/run/systemd/netif/state") {
            return None;
        }
        let state = |(name, index): &(String, u32)| {
            let text = files.text(format!("/run/systemd/netif/links/{index}")).ok()?;
            let entry = |key: &str| {
                text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('=')).map(str::to_owned)
            };
            let admin = entry("ADMIN_STATE")?;
            (!matches!(admin.as_str(), "unmanaged" | "pending" | "initialized" | "linger"))
                .then(|| (name.clone(), admin, entry("NETWORK_FILE").unwrap_or_default()))
        };
        let managed: Vec<_> = devices.iter().filter_map(state).collect();
        Some((managed, keeps_foreign(files)))
    };
    let Some((managed, keeps_foreign)) = facts.host.look(look).await? else {
        return Ok(Finding::ok("systemd-networkd does not run"));
    };
    let mut found: Vec<Finding> = managed
        .iter()
        .map(|(name, state, file)| {
            Finding::failure(
                format!("systemd-networkd manages {name} ({state}, by {file}): it changes addresses and MAC there"),
                "/etc/systemd/network/10-flannel.network with `[Match] Name=flannel* cni* veth*` and `[Link] Unmanaged=yes`, then `networkctl reload` (docs/hosts.md)",
            )
        })
        .collect();
    if !keeps_foreign {
        found.push(Finding::warning(
            "systemd-networkd deletes routes of others when it restarts (ManageForeignRoutes is not no)",
            "/etc/systemd/networkd.conf.d/flannel.conf with `[Network]`, `ManageForeignRoutes=no` and `ManageForeignNextHops=no` (docs/hosts.md)",
        ));
    }
    Ok(Finding::of_all(found, || "systemd-networkd leaves flannel's devices and routes alone".to_owned()))
}

/// Whether the last word about foreign routes is that they stay. A file in `/etc` replaces one of its name elsewhere.
fn keeps_foreign(files: &Files) -> bool {
    let mut last = None;
    let main = ["/usr/lib/systemd/networkd.conf", "/etc/systemd/networkd.conf"].map(str::to_owned);
    let drop_ins = merged(files, "networkd.conf.d", ".conf");
    for path in main.into_iter().chain(drop_ins) {
        let Ok(text) = files.text(path) else { continue };
        if let Some(value) = ini::value(&ini::parse(&text), "Network", "ManageForeignRoutes") {
            last = Some(value.to_owned());
        }
    }
    matches!(last.as_deref(), Some("no" | "false" | "0" | "off"))
}

/// The files of a folder of systemd's, by name; of those with one name the one that counts.
fn merged(files: &Files, folder: &str, ending: &str) -> Vec<String> {
    let mut by_name = std::collections::BTreeMap::new();
    for base in ["/usr/lib/systemd", "/lib/systemd", "/usr/local/lib/systemd", "/run/systemd", "/etc/systemd"]
    {
        for name in files.names(format!("{base}/{folder}")) {
            let name = name.to_string_lossy().into_owned();
            if name.ends_with(ending) {
                by_name.insert(name.clone(), format!("{base}/{folder}/{name}"));
            }
        }
    }
    by_name.into_values().collect()
}

pub(super) async fn dhcpcd(facts: &Facts) -> Checked {
    let look = |files: &Files| {
        let runs =
            files.has("/run/dhcpcd.pid") || files.has("/run/dhcpcd/pid") || files.has("/var/run/dhcpcd.pid");
        runs.then(|| files.text("/etc/dhcpcd.conf").unwrap_or_default())
    };
    let Some(config) = facts.host.look(look).await? else {
        return Ok(Finding::ok("dhcpcd does not run"));
    };
    let names = patterns(facts);
    // Options behind the first `interface` are for that one alone.
    let general = config.lines().map(str::trim).take_while(|line| !line.starts_with("interface "));
    let rule = |line: &str, name: &str, expected: bool| {
        let patterns = line.strip_prefix(name)?.split_whitespace();
        let patterns: Vec<&str> = patterns.collect();
        let is_named = |device: &String| patterns.iter().any(|pattern| ini::glob(pattern, device));
        Some(names.iter().all(|device| is_named(device) == expected))
    };
    let mut lines = general;
    let leaves = lines.any(|line| {
        rule(line, "denyinterfaces ", true).or_else(|| rule(line, "allowinterfaces ", false)) == Some(true)
    });
    Ok(if leaves {
        Finding::ok("dhcpcd leaves flannel's devices alone")
    } else {
        Finding::failure(
            "dhcpcd runs on every link, flannel's too: it gives them addresses and a default route",
            "`denyinterfaces flannel* cni* veth*` in /etc/dhcpcd.conf before the first interface, then `systemctl restart dhcpcd` (docs/hosts.md)",
        )
    })
}

/// Which `.link` file of udev applies to our devices, and whether it changes their MAC.
pub(super) async fn udev(facts: &Facts) -> Checked {
    let files = facts.host.look(|files| {
        let paths = merged(files, "network", ".link");
        paths
            .into_iter()
            .filter_map(|path| Some((ini::parse(&files.text(&path).ok()?), path)))
            .collect::<Vec<_>>()
    });
    let files = files.await?;
    let names = patterns(facts);
    let is_ours = |sections: &Vec<Section>| names.iter().any(|name| matches(sections, name));
    let Some((sections, path)) = files.iter().find(|(sections, _)| is_ours(sections)) else {
        return Ok(Finding::ok("no .link file of udev matches flannel's devices"));
    };
    let entry = |key: &str| ini::value(sections, "Link", key);
    if let Some(mac) = entry("MACAddress") {
        return Ok(Finding::failure(
            format!(
                "{path} gives flannel's devices the MAC {mac}: two nodes with it get each other's packets"
            ),
            "restrict its [Match] to hardware (`Type=ether` and `Kind=!*`)",
        ));
    }
    Ok(match entry("MACAddressPolicy") {
        Some(policy @ ("persistent" | "random")) if !path.ends_with("/99-default.link") => Finding::warning(
            format!(
                "{path} sets MACAddressPolicy={policy} for flannel's devices; the agent sets its own MAC back"
            ),
            "restrict its [Match] to hardware (`Type=ether` and `Kind=!*`)",
        ),
        policy => Finding::ok(format!(
            "{path} applies (MACAddressPolicy={}); it leaves a MAC that was set alone",
            policy.unwrap_or("none")
        )),
    })
}

/// Whether a `.link` file matches a vxlan device (systemd.link(5)). Conditions about hardware don't.
fn matches(sections: &[Section], device: &str) -> bool {
    let entries =
        sections.iter().filter(|section| section.name == "Match").flat_map(|section| section.entries.iter());
    let mut entries = entries.peekable();
    if entries.peek().is_none() {
        return false;
    }
    entries.all(|(key, value)| {
        let any = |text: &str| {
            value.split_whitespace().any(|pattern| match pattern.strip_prefix('!') {
                Some(not) => !ini::glob(not, text),
                None => ini::glob(pattern, text),
            })
        };
        match key.as_str() {
            "OriginalName" => any(device),
            "Type" | "Kind" => any("vxlan"),
            _ => false,
        }
    })
}

/// Addresses on our devices that nobody but somebody else's program put there.
pub(super) async fn addresses(facts: &Facts) -> Checked {
    let mut overlay = facts.overlay_links().peekable();
    if overlay.peek().is_none() {
        return Err(Skip::new("there is no device of flannel"));
    }
    let networks = facts.networks();
    let all = facts.addresses()?;
    let mut found = Vec::new();
    for link in overlay {
        let foreign = all.iter().filter(|address| {
            let is_inside = networks.iter().any(|(_, network)| network.contains(address.addr.ip()));
            let is_local =
                matches!(address.addr.ip(), std::net::IpAddr::V6(ip) if ip.is_unicast_link_local());
            address.link == link.index && !is_inside && !is_local
        });
        for address in foreign {
            found.push(Finding::warning(
                format!("{} has the address {}, which is none of the overlay's: somebody manages this device", link.name, address.addr),
                format!("exclude the device from that program (docs/hosts.md), then `ip address delete {} dev {}`", address.addr, link.name),
            ));
        }
    }
    Ok(Finding::of_all(found, || "flannel's devices have addresses of the overlay alone".to_owned()))
}
