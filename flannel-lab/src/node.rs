//! A node: a network namespace set up as a container host, with NICs on the underlay.

use std::net::IpAddr;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use ipnetwork::IpNetwork;

use crate::LabError;
use crate::agent::AgentBuilder;
use crate::netns::Netns;
use crate::plan::{Attachment, address_line, bridge_name};
use crate::relay::BrokenOffload;

/// The smallest MTU with which the kernel keeps IPv6 on a link (RFC 8200 section 5).
const MIN_IPV6_MTU: u32 = 1280;

/// Sysctls of a container host. Those that a new namespace would take over from the machine are
/// set too, so that a node is the same on every machine.
const SYSCTLS: [(&str, &str); 9] = [
    ("net.ipv4.ip_forward", "1"),
    ("net.ipv6.conf.all.forwarding", "1"),
    ("net.ipv6.conf.default.forwarding", "1"),
    ("net.ipv6.conf.all.disable_ipv6", "0"),
    ("net.ipv6.conf.default.disable_ipv6", "0"),
    // Duplicate address detection would keep new addresses unusable for more than a second.
    ("net.ipv6.conf.all.accept_dad", "0"),
    ("net.ipv6.conf.default.accept_dad", "0"),
    ("net.ipv4.conf.all.rp_filter", "0"),
    ("net.ipv4.conf.default.rp_filter", "0"),
];

/// Makes a namespace forward like a container host, or a router.
pub(crate) fn set_host_sysctls(netns: &Netns) -> Result<(), LabError> {
    SYSCTLS.into_iter().try_for_each(|(key, value)| netns.sysctl(key, value))
}

/// The states of a bridge port that drop everything and pass everything.
const PORT_DISABLED: u8 = 0;
const PORT_FORWARDING: u8 = 3;

/// A node of a [`Cluster`](crate::cluster::Cluster).
///
/// Faults are made by its methods. They take effect at once and last until undone.
#[derive(Debug)]
pub struct Node {
    number: u8,
    netns: Netns,
    fabric: Netns,
    nics: Mutex<Vec<Nic>>,
    pods: AtomicU32,
}

/// A NIC as its host's configuration has it, whatever state the link is in.
#[derive(Debug, Clone)]
struct Nic {
    name: String,
    /// The other end of the cable: a port of the segment's bridge.
    port: String,
    mac: String,
    at: Attachment,
    is_default: bool,
}

impl Node {
    pub(crate) fn add(number: u8, fabric: &Netns, attachments: Vec<Attachment>) -> Result<Self, LabError> {
        let netns = Netns::add(&format!("node{number}"))?;
        set_host_sysctls(&netns)?;
        let nics = attachments.into_iter().enumerate().map(|(i, at)| Nic {
            name: format!("eth{i}"),
            port: format!("n{number}-eth{i}"),
            mac: format!("02:77:00:00:{:02x}:{number:02x}", at.segment),
            is_default: i == 0,
            at,
        });
        let nics = nics.collect::<Vec<_>>();
        let node = Self {
            number,
            netns,
            fabric: fabric.clone(),
            nics: Mutex::new(nics.clone()),
            pods: AtomicU32::new(0),
        };
        nics.iter().try_for_each(|nic| node.plug(nic))?;
        Ok(node)
    }

    /// Its number; they count from 1.
    pub fn number(&self) -> u8 {
        self.number
    }

    /// Its name: `node1` for the first.
    pub fn name(&self) -> &str {
        self.netns.name()
    }

    /// Its namespace.
    pub fn netns(&self) -> &Netns {
        &self.netns
    }

    /// The addresses of a NIC, as configured.
    pub fn addresses(&self, nic: &str) -> Result<Vec<IpNetwork>, LabError> {
        Ok(self.nic(nic)?.at.addresses)
    }

    /// The IPv4 address of eth0, if it has one.
    pub fn ipv4(&self) -> Option<IpAddr> {
        self.first_address(IpNetwork::is_ipv4)
    }

    /// The IPv6 address of eth0, if it has one.
    pub fn ipv6(&self) -> Option<IpAddr> {
        self.first_address(IpNetwork::is_ipv6)
    }

    /// The IPv4 address of eth0, or its IPv6 address if there is no IPv4.
    pub fn address(&self) -> IpAddr {
        self.ipv4().or_else(|| self.ipv6()).expect("a node has an address in some family")
    }

    /// An agent to be started on this node.
    pub fn agent(&self, name: &str, program: impl AsRef<Path>) -> AgentBuilder {
        AgentBuilder::new(&format!("{}-{name}", self.name()), program).netns(&self.netns)
    }

    /// Sets a NIC down, as an administrator would.
    pub fn link_down(&self, nic: &str) -> Result<(), LabError> {
        self.netns.ip(&format!("link set {nic} down")).map(drop)
    }

    /// Sets a NIC up again, with its addresses and routes as the host's network manager would.
    pub fn link_up(&self, nic: &str) -> Result<(), LabError> {
        self.configure(&self.nic(nic)?)
    }

    /// Pulls a NIC's cable: the link stays up and loses its carrier.
    pub fn carrier_off(&self, nic: &str) -> Result<(), LabError> {
        self.fabric.ip(&format!("link set {} down", self.nic(nic)?.port)).map(drop)
    }

    /// Puts the cable back.
    pub fn carrier_on(&self, nic: &str) -> Result<(), LabError> {
        self.fabric.ip(&format!("link set {} up", self.nic(nic)?.port)).map(drop)
    }

    /// Changes the MTU of a NIC and of its port, in bytes. Below 1280 the kernel drops IPv6.
    pub fn set_mtu(&self, nic: &str, mtu: u32) -> Result<(), LabError> {
        let nic = self.change(nic, |nic| nic.at.mtu = mtu)?;
        self.fabric.ip(&format!("link set {} mtu {mtu}", nic.port))?;
        self.netns.ip(&format!("link set {} mtu {mtu}", nic.name))?;
        self.configure(&nic)
    }

    /// Removes a NIC, as if pulled out of the machine. The kernel removes its addresses and routes with it.
    pub fn delete_nic(&self, nic: &str) -> Result<(), LabError> {
        self.fabric.ip(&format!("link del {}", self.nic(nic)?.port)).map(drop)
    }

    /// Puts a deleted NIC back: the same name, MAC and addresses, another index.
    pub fn restore_nic(&self, nic: &str) -> Result<(), LabError> {
        self.plug(&self.nic(nic)?)
    }

    /// Gives a NIC another address in place of the one it has in that family.
    pub fn change_address(&self, nic: &str, address: IpAddr) -> Result<(), LabError> {
        let old = self.nic(nic)?.at.addresses;
        let old = old.into_iter().find(|old| old.is_ipv4() == address.is_ipv4());
        let old = old.ok_or_else(|| {
            LabError::Invalid(format!("{nic} of {} has no such family: {address}", self.name()))
        })?;
        let new = IpNetwork::new(address, old.prefix()).expect("the length was good before");
        let nic = self.change(nic, |nic| {
            nic.at.addresses.iter_mut().filter(|at| **at == old).for_each(|at| *at = new);
        })?;
        self.netns.ip(&address_line("del", old, &nic.name))?;
        self.configure(&nic)
    }

    /// Puts a deleted NIC back with other addresses in place of those it had in their families.
    pub fn restore_nic_at(&self, nic: &str, addresses: &[IpAddr]) -> Result<(), LabError> {
        let nic = self.change(nic, |nic| {
            for at in &mut nic.at.addresses {
                if let Some(new) = addresses.iter().find(|new| new.is_ipv4() == at.is_ipv4()) {
                    *at = IpNetwork::new(*new, at.prefix()).expect("the length was good before");
                }
            }
        })?;
        self.plug(&nic)
    }

    /// Gives a NIC another name while it is up, by which it goes from then on. Its index, addresses and routes stay.
    /// The kernel does that from Linux 6.2 on; before, it refuses as long as the NIC is up.
    pub fn rename_nic(&self, nic: &str, name: &str) -> Result<(), LabError> {
        self.nic(nic)?;
        self.netns.ip(&format!("link set {nic} name {name}"))?;
        self.change(nic, |nic| name.clone_into(&mut nic.name)).map(drop)
    }

    /// Cuts the node off without a sign: its ports drop every frame, all carriers stay.
    pub fn partition(&self) -> Result<(), LabError> {
        self.set_ports(PORT_DISABLED)
    }

    /// Ends a partition.
    pub fn heal(&self) -> Result<(), LabError> {
        self.set_ports(PORT_FORWARDING)
    }

    /// Breaks the checksum offload of a NIC for as long as the result lives: frames of a tunnel that
    /// leave the node with an inner checksum that the NIC should complete are lost. Everything else passes.
    pub fn break_checksum_offload(&self, nic: &str) -> Result<BrokenOffload, LabError> {
        let nic = self.nic(nic)?;
        BrokenOffload::between(&self.fabric, &nic.port, &bridge_name(nic.at.segment))
    }

    /// Changes the MTU of a NIC's port alone, in bytes, so that the path has a hole that the node doesn't see. From then on the
    /// fabric drops what is too large, as switches do: a bridge with netfilter would send IPv4 packets on in fragments, so that only
    /// what comes from the node would be lost, and would tell senders of IPv6 packets.
    pub fn set_port_mtu(&self, nic: &str, mtu: u32) -> Result<(), LabError> {
        let script = "for file in /proc/sys/net/bridge/bridge-nf-call-ip*tables; do [ ! -e $file ] || echo 0 >$file; done";
        self.fabric.run("sh", &["-ec", script])?;
        self.fabric.ip(&format!("link set {} mtu {mtu}", self.nic(nic)?.port)).map(drop)
    }

    /// The number of the next pod on this node, from 1; never the same twice.
    pub(crate) fn next_pod(&self) -> u32 {
        self.pods.fetch_add(1, Ordering::Relaxed) + 1
    }

    pub(crate) fn remove(&self) -> Result<(), LabError> {
        for nic in self.nics().iter() {
            // It may have been deleted already.
            let _ = self.fabric.ip(&format!("link del {}", nic.port));
        }
        self.netns.delete()
    }

    fn set_ports(&self, state: u8) -> Result<(), LabError> {
        let nics = self.nics().clone();
        nics.iter().try_for_each(|nic| {
            self.fabric.bridge(&format!("link set dev {} state {state}", nic.port)).map(drop)
        })
    }

    fn plug(&self, nic: &Nic) -> Result<(), LabError> {
        let Nic { name, port, mac, at, .. } = nic;
        let (mtu, node, bridge) = (at.mtu, self.name(), bridge_name(at.segment));
        self.fabric.ip_batch(&[
            format!(
                "link add {port} mtu {mtu} type veth \
                 peer name {name} mtu {mtu} address {mac} netns {node}"
            ),
            format!("link set {port} master {bridge} up"),
        ])?;
        self.configure(nic)?;
        self.fabric.wait_for_port(&bridge, port)
    }

    /// Brings a NIC up with its addresses and default routes; changes nothing that is right.
    fn configure(&self, nic: &Nic) -> Result<(), LabError> {
        let has_room = |v6: bool| !v6 || nic.at.mtu >= MIN_IPV6_MTU;
        let mut lines = vec![format!("link set {} up", nic.name)];
        for address in nic.at.addresses.iter().filter(|address| has_room(address.is_ipv6())) {
            lines.push(address_line("replace", *address, &nic.name));
        }
        for gateway in nic.at.gateways.iter().filter(|gateway| has_room(gateway.is_ipv6())) {
            if nic.is_default {
                lines.push(format!("route replace default via {gateway} dev {}", nic.name));
            }
        }
        self.netns.ip_batch(&lines)
    }

    fn first_address(&self, is_wanted: impl Fn(&IpNetwork) -> bool) -> Option<IpAddr> {
        let nics = self.nics();
        nics.first()?.at.addresses.iter().find(|address| is_wanted(address)).map(IpNetwork::ip)
    }

    fn nic(&self, name: &str) -> Result<Nic, LabError> {
        self.change(name, |_| ())
    }

    fn change(&self, name: &str, change: impl FnOnce(&mut Nic)) -> Result<Nic, LabError> {
        let mut nics = self.nics();
        let nic = nics.iter_mut().find(|nic| nic.name == name);
        let nic =
            nic.ok_or_else(|| LabError::Invalid(format!("{} was built without {name}", self.name())))?;
        change(nic);
        Ok(nic.clone())
    }

    fn nics(&self) -> MutexGuard<'_, Vec<Nic>> {
        self.nics.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
