//! The operator's options for the underlay, and other input of the choice.

use std::net::IpAddr;

use super::{Needed, Overlay, UnderlayError, check_regex};
use crate::addr::{Family, PerFamily};
use crate::config::NetworkConfig;

/// How an underlay is chosen. Start with [`auto`](Self::auto) or [`of_config`](Self::of_config), and add options with
/// the other methods; an agent adds what it knows of the network itself.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct UnderlayOptions {
    /// The enabled families, at least one. The underlay needs an address of each.
    pub(crate) families: Vec<Family>,
    /// Interface names or addresses, tried in order. An empty one stands for the default route.
    pub ifaces: Vec<String>,
    /// Regular expressions for addresses, then names; tried after `ifaces`. An empty one stands for the
    /// default route.
    pub iface_regexes: Vec<String>,
    /// The interface that leads to this address; tried last.
    pub can_reach: Option<IpAddr>,
    /// The addresses to publish instead of the interface's.
    pub public_ips: PerFamily<IpAddr>,
    /// The overlay. Its devices are never chosen.
    pub overlay: Overlay,
    /// The addresses that this node published last. If the chosen link still has one of them, it is kept.
    pub kept: PerFamily<IpAddr>,
    /// Other addresses that this node must reach without the overlay: gateways, the store. No pod network may hide
    /// them.
    pub needed: Vec<Needed>,
}

impl Default for UnderlayOptions {
    fn default() -> Self {
        Self::auto()
    }
}

impl UnderlayOptions {
    /// Chooses the interface of the default route, and its first address, for IPv4 only unless
    /// [`for_config`](Self::for_config) changes that.
    pub fn auto() -> Self {
        Self {
            families: vec![Family::V4],
            ifaces: Vec::new(),
            iface_regexes: Vec::new(),
            can_reach: None,
            public_ips: PerFamily::default(),
            overlay: Overlay::default(),
            kept: PerFamily::default(),
            needed: Vec::new(),
        }
    }

    /// The default options for a network config.
    pub fn of_config(config: &NetworkConfig) -> Self {
        Self::auto().for_config(config)
    }

    /// Chooses addresses of the families of a network config, and never the overlay that it describes.
    #[must_use]
    pub fn for_config(self, config: &NetworkConfig) -> Self {
        let overlay = Overlay::new(config.networks.map(|_, network| network.network));
        Self { families: config.families().collect(), overlay, ..self }
    }

    /// Tries an interface, by its name or by one of its addresses, after those that were named before.
    #[must_use]
    pub fn iface(self, iface: impl Into<String>) -> Self {
        self.ifaces([iface])
    }

    /// Tries several interfaces, in this order.
    #[must_use]
    pub fn ifaces(mut self, ifaces: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.ifaces.extend(ifaces.into_iter().map(Into::into));
        self
    }

    /// Tries the first interface with an address, or else a name, that one of these regular expressions matches.
    /// They are tried in this order, after the interfaces that are named.
    #[must_use]
    pub fn iface_regexes(mut self, regexes: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.iface_regexes.extend(regexes.into_iter().map(Into::into));
        self
    }

    /// Tries, last of all, the interface through which the kernel reaches an address.
    #[must_use]
    pub fn can_reach(self, can_reach: impl Into<Option<IpAddr>>) -> Self {
        Self { can_reach: can_reach.into(), ..self }
    }

    /// Publishes these addresses instead of the interface's, for a node behind NAT.
    #[must_use]
    pub fn public_ips(self, public_ips: PerFamily<IpAddr>) -> Self {
        Self { public_ips, ..self }
    }

    /// Sets what is known of the overlay, including what earlier runs and other agents left, instead of what the config
    /// alone says.
    #[must_use]
    pub fn overlay(self, overlay: Overlay) -> Self {
        Self { overlay, ..self }
    }

    /// Keeps addresses that this node published last, if the chosen link still has them.
    #[must_use]
    pub fn kept(self, kept: PerFamily<IpAddr>) -> Self {
        Self { kept, ..self }
    }

    /// Sets the addresses that this node must reach without the overlay.
    #[must_use]
    pub fn needed(self, needed: Vec<Needed>) -> Self {
        Self { needed, ..self }
    }

    /// Checks what needs no look at the host.
    pub(crate) fn check(&self) -> Result<(), UnderlayError> {
        self.iface_regexes.iter().try_for_each(|pattern| {
            let wrong = |source| UnderlayError::Regex { pattern: pattern.clone(), source };
            check_regex(pattern).map_err(wrong)
        })
    }

    /// The families for which an address is chosen.
    pub fn families(&self) -> &[Family] {
        &self.families
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::LeaseSource;

    #[test]
    fn there_is_always_a_family_to_choose_for() {
        for (enabled, families) in [
            (r#""Network":"10.3.0.0/16""#, &[Family::V4][..]),
            (r#""EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd03::/48""#, &[Family::V6]),
        ] {
            let text = format!(r#"{{{enabled},"Backend":{{"Type":"vxlan"}}}}"#);
            let config = NetworkConfig::parse(&text, LeaseSource::Assigned).unwrap();
            let options = UnderlayOptions::auto().iface("eth0").for_config(&config).iface("eth1");
            assert_eq!(
                (options.families(), &options.ifaces[..]),
                (families, &["eth0".into(), "eth1".into()][..])
            );
        }
        assert_eq!(UnderlayOptions::auto().families(), [Family::V4]);
        assert_eq!(UnderlayOptions::default(), UnderlayOptions::auto());
    }
}
