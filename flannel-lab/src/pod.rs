//! A pod: a namespace on a node's bridge, with addresses from the node's subnet.

mod cni;
mod plain;

use std::net::IpAddr;
use std::thread;

use ipnetwork::IpNetwork;

use self::cni::Attachment;
pub use self::cni::CniOptions;
use crate::LabError;
use crate::netns::Netns;
use crate::node::Node;
use crate::subnet_env::SubnetEnv;

/// The bridge that a node's pods are on, of the plugin's default name.
const BRIDGE: &str = "cni0";

/// A pod on a node. Gone when dropped.
#[derive(Debug)]
pub struct Pod {
    netns: Netns,
    addresses: Vec<IpNetwork>,
    cni: Option<Attachment>,
}

impl Pod {
    /// Attaches a new pod by a plain veth pair to the node's bridge, which is made if need be.
    ///
    /// It gets the subnet's next address in each family, the bridge as its default gateway and
    /// the MTU of `env`. Needs nothing but `ip`.
    pub fn attach_plain(node: &Node, env: &SubnetEnv) -> Result<Self, LabError> {
        let number = node.next_pod();
        let netns = new_netns(node, number)?;
        let addresses = plain::attach(node.netns(), &netns, number, env)?;
        Ok(Self { netns, addresses, cni: None })
    }

    /// Attaches a new pod by the `bridge` and `host-local` plugins, as flannel's CNI plugin has
    /// them do it.
    pub fn attach_cni(node: &Node, env: &SubnetEnv, options: &CniOptions) -> Result<Self, LabError> {
        let netns = new_netns(node, node.next_pod())?;
        let attachment = Attachment::new(node.netns(), &netns, env, options);
        let addresses = attachment.add()?;
        Ok(Self { netns, addresses, cni: Some(attachment) })
    }

    /// Its namespace.
    pub fn netns(&self) -> &Netns {
        &self.netns
    }

    /// Its addresses with their subnet's length, IPv4 first.
    pub fn addresses(&self) -> &[IpNetwork] {
        &self.addresses
    }

    /// Its IPv4 address, if it has one.
    pub fn ipv4(&self) -> Option<IpAddr> {
        self.addresses.iter().find(|address| address.is_ipv4()).map(IpNetwork::ip)
    }

    /// Its IPv6 address, if it has one.
    pub fn ipv6(&self) -> Option<IpAddr> {
        self.addresses.iter().find(|address| address.is_ipv6()).map(IpNetwork::ip)
    }

    /// Detaches it and reports if that failed; dropping it does the same and reports nothing.
    pub fn delete(mut self) -> Result<(), LabError> {
        self.detach()
    }

    fn detach(&mut self) -> Result<(), LabError> {
        let detached = self.cni.take().map_or(Ok(()), |attachment| attachment.del());
        detached.and(self.netns.delete())
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        let detached = self.detach();
        if let (Err(error), false) = (detached, thread::panicking()) {
            eprintln!("pod {}: {error}", self.netns.name());
        }
    }
}

fn new_netns(node: &Node, number: u32) -> Result<Netns, LabError> {
    let netns = Netns::add(&format!("{}-pod{number}", node.name()))?;
    netns.sysctl("net.ipv6.conf.all.disable_ipv6", "0")?;
    netns.sysctl("net.ipv6.conf.default.disable_ipv6", "0")?;
    // As on a node, an address can be used at once.
    netns.sysctl("net.ipv6.conf.all.accept_dad", "0")?;
    netns.sysctl("net.ipv6.conf.default.accept_dad", "0")?;
    Ok(netns)
}
