//! Answers as values: what a client reads of them. Fields that it does not know are ignored, and those that are missing
//! have their defaults, so agent and client can be of different versions.

mod event;
mod moment;
mod object;
mod probes;
mod session;

use std::net::IpAddr;

use serde::Deserialize;

pub use event::Event;
pub use moment::Moment;
pub use object::Object;
pub use probes::{FamilyProbe, PeerProbe, Probes, WayProbe};
pub use session::{Session, SessionPath};

/// The status of an agent.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct Status {
    /// The phase of its life.
    pub phase: Phase,
    /// Whether pods can be started.
    pub ready: bool,
    /// Why not.
    pub reasons: Vec<Condition>,
    /// Other problems.
    pub notes: Vec<Condition>,
    /// Which store it is.
    pub store_place: Option<String>,
    /// The store's health; `None` before the first request.
    pub store: Option<Store>,
    /// The node's place in the network; `None` until it has a lease.
    pub node: Option<Node>,
    /// Devices and peers; `None` until the network runs.
    pub network: Option<Network>,
    /// The firewall rules.
    pub firewall: Option<Firewall>,
    /// What probes found out; `None` without probes.
    pub probes: Option<Probes>,
}

/// The phase of an agent's life.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct Phase {
    /// `starting`, `running`, `lease-lost`, `stopping` or `ended`.
    pub name: String,
    /// What a start waits for.
    pub waiting_for: Option<String>,
    /// Who has the lease that was lost.
    pub why: Option<String>,
    /// Why it ended.
    pub error: Option<String>,
}

/// A reason or a note.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[non_exhaustive]
pub struct Condition {
    /// What it is about, such as `store-away`.
    pub kind: String,
    /// What is wrong, and what to do.
    pub text: String,
}

/// This node in the network.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct Node {
    /// Its lease.
    pub lease: String,
    /// The networks of all pods.
    pub networks: Families<String>,
    /// The kind of the backend.
    pub backend: String,
    /// The largest pod packet at the start, in bytes.
    pub overlay_mtu: u32,
    /// The link that carries the traffic between nodes.
    pub underlay: Underlay,
}

/// The link that carries the traffic between nodes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct Underlay {
    /// Its name.
    pub name: String,
    /// Its MTU in bytes.
    pub mtu: u32,
    /// The source addresses of packets to other nodes.
    pub local: Families<IpAddr>,
    /// The addresses that peers send to.
    pub published: Families<IpAddr>,
    /// Why it was chosen.
    pub reason: String,
}

/// The health of the store.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct Store {
    /// Whether the last request succeeded.
    pub connected: bool,
    /// Since when that is so.
    pub since: Moment,
    /// When it confirmed last what is known.
    pub confirmed: Option<Moment>,
    /// Why it is not connected.
    pub problem: Option<String>,
    /// The unreadable records.
    pub unreadable: Unreadable,
    /// How many leases are missing since the store was restored.
    pub missing_count: usize,
    /// How long it keeps the lease.
    pub lease_term: Option<Term>,
    /// Why the lease can't be renewed.
    pub lease_unkept: Option<String>,
    /// Who has the lease now.
    pub lease_lost: Option<String>,
    /// What is wrong with the clocks.
    pub clock: Option<String>,
}

/// Records that can't be read.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct Unreadable {
    /// How many there are.
    pub count: usize,
}

/// How long the store keeps the lease.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[non_exhaustive]
pub struct Term {
    /// When it was renewed last.
    pub renewed: Moment,
    /// When it ends without another renewal.
    pub expires: Moment,
}

/// The running network.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct Network {
    /// Whether the first snapshot of leases was programmed.
    pub synced: bool,
    /// How many peers are programmed.
    pub peers: usize,
    /// Each peer.
    pub peer_list: Vec<Peer>,
    /// The devices that carry pods' packets.
    pub devices: Vec<Device>,
    /// The largest pod packet in bytes.
    pub overlay_mtu: Option<u32>,
    /// How packets travel.
    pub datapath: Option<String>,
    /// The kinds of the backends that the node runs, first the one that its lease names; empty where there is one.
    #[serde(default)]
    pub backends: Vec<String>,
    /// How often drift was repaired.
    pub repairs: u64,
    /// How long the last repair took, in microseconds.
    pub last_repair_us: Option<u64>,
    /// What devices and datapath count.
    pub counters: Vec<Counters>,
    /// What the gate of the tunnels counted; `None` without one.
    pub gate: Option<Gate>,
    /// The sessions with peers, of backends whose tunnel has such.
    pub sessions: Vec<Session>,
}

/// What the gate of the tunnels counted.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct Gate {
    /// What it does about packets that don't belong there: `observe` or `enforce`.
    pub mode: String,
    /// How many there were, by reason.
    pub counted: Vec<Dropped>,
}

/// A device.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct Device {
    /// Its name.
    pub name: String,
    /// Its MTU in bytes.
    pub mtu: u32,
    /// Whether it exists and is up.
    pub usable: bool,
    /// Whether it completes checksums; `None` where the agent leaves that alone.
    pub tx_checksum: Option<bool>,
}

/// What a device or datapath counted.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct Counters {
    /// The device, or the backend.
    pub of: String,
    /// Sent to other nodes.
    pub sent: Traffic,
    /// Received from other nodes.
    pub received: Traffic,
    /// Dropped packets by reason.
    pub dropped: Vec<Dropped>,
}

/// Traffic in one direction.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct Traffic {
    /// Packets.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// Dropped packets.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[non_exhaustive]
pub struct Dropped {
    /// Why.
    pub reason: String,
    /// How many.
    pub packets: u64,
}

/// One value for each family.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(bound = "T: Deserialize<'de>")]
#[non_exhaustive]
pub struct Families<T> {
    /// IPv4.
    #[serde(default = "none")]
    pub v4: Option<T>,
    /// IPv6.
    #[serde(default = "none")]
    pub v6: Option<T>,
}

fn none<T>() -> Option<T> {
    None
}

impl<T> Default for Families<T> {
    fn default() -> Self {
        Self { v4: None, v6: None }
    }
}

impl<T> Families<T> {
    /// The values that there are, IPv4 first.
    pub fn iter(&self) -> impl Iterator<Item = &T> {
        self.v4.iter().chain(&self.v6)
    }
}

/// A peer.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[non_exhaustive]
pub struct Peer {
    /// Its lease, which is its subnets.
    pub lease: String,
    /// The addresses of its node.
    #[serde(default)]
    pub underlay: Families<IpAddr>,
    /// By which backends its node receives besides the one that its lease names, the preferred first.
    #[serde(default)]
    pub receives: Vec<String>,
    /// `programmed`, `recalled`, `waiting`, `repairing`, `refused` or `rejected`.
    pub state: String,
    /// The object that the kernel refuses.
    #[serde(default)]
    pub object: Option<Object>,
    /// The kernel's errno.
    #[serde(default)]
    pub errno: Option<i32>,
    /// Why it is refused or rejected.
    #[serde(default)]
    pub reason: Option<String>,
    /// Whether the last good version of a rejected lease is programmed.
    #[serde(default)]
    pub programmed: Option<bool>,
    /// How it is reached.
    #[serde(default)]
    pub path: Families<String>,
    /// Since when it is in this state.
    #[serde(default)]
    pub since: Moment,
    /// When its lease was seen first or changed last.
    #[serde(default)]
    pub changed: Moment,
}

/// The firewall rules.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct Firewall {
    /// Who keeps them; `None` if there are none to keep.
    pub manager: Option<String>,
    /// The same with the reason.
    pub choice: String,
    /// Whether they are in the kernel.
    pub in_place: bool,
    /// Whether pods are masqueraded.
    pub masquerades: bool,
    /// What is wrong with them.
    pub problem: Option<String>,
    /// Notes about rules of others.
    pub notes: Vec<String>,
    /// How often they were repaired.
    pub repairs: u64,
    /// How long the last repair took, in microseconds.
    pub last_repair_us: Option<u64>,
}

/// The kernel objects of a peer.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct PeerObjects {
    /// The objects, in build-up order.
    pub objects: Vec<PeerObject>,
}

/// A kernel object of a peer.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[non_exhaustive]
pub struct PeerObject {
    /// The command that shows it.
    pub command: String,
    /// Whether the kernel has it as it should be, as far as the agent knows.
    pub present: bool,
}

/// What differs between desired and observed state.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct Differences {
    /// The differences, in the order of repair.
    pub differences: Vec<Difference>,
    /// What could not be compared or made right, with the reasons.
    pub problems: Vec<String>,
    /// What stays as it is, and the like.
    pub notes: Vec<String>,
}

impl Differences {
    /// Whether everything was compared, and nothing differs.
    pub fn is_none(&self) -> bool {
        self.differences.is_empty() && self.problems.is_empty()
    }
}

/// One difference.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[non_exhaustive]
pub struct Difference {
    /// `missing`, `different` or `surplus`.
    pub kind: String,
    /// The commands that end it.
    pub commands: Vec<String>,
    /// Why the agent does not do it now.
    #[serde(default)]
    pub held: Option<String>,
}
