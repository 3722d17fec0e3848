//! What a backend adds to the loop: the trait, and what it says of its devices.

use std::collections::BTreeMap;

use async_trait::async_trait;

use super::{AppliedConfig, Held, PeerWork, Prune};
use crate::addr::{Family, LinkIndex, Mtu};
use crate::backend::{HostProblem, Probing, Proven, Underlay};
use crate::config::{BackendConfig, ConfigError};
use crate::dataplane::Object;
use crate::events::NetworkEvent;
use crate::firewall::gate::{Desk, Gate, Tunnels};
use crate::inspect::{CommandError, Differences, PeerObject};
use crate::kernel::{Kernel, KernelError, KernelEvent, LinkOp, Refusal, Scope};
use crate::lease::{Lease, LeaseAttrs, LeaseChange, LeaseKey};
use crate::peers::{Claim, Peer, PeerError};
use crate::state_file::Device;
use crate::status::{Counters, DeviceProblems, DeviceStatus, Problem, Reason, Sessions};

/// What a backend adds to the loop: its devices, and the objects that a lease needs on them.
#[async_trait]
pub trait Driver: Send {
    /// Creates the backend's devices, or changes them to what they should be. The loop calls it whenever one may have
    /// changed.
    ///
    /// A device that can't be made now is reported in [`Devices::problems`], so that it does not stop the others; the
    /// loop tries again. An error means that a request to the kernel failed.
    async fn ensure_devices(&mut self, kernel: &mut dyn Kernel) -> Result<Devices, KernelError>;

    /// The operations by which [`Self::ensure_devices`] would create the devices or change them, without carrying them out.
    /// A driver whose devices no operator could make, such as those with a datapath of its own, plans none.
    async fn plan_devices(&mut self, kernel: &mut dyn Kernel) -> Result<Vec<LinkOp>, KernelError> {
        let _ = kernel;
        Ok(Vec::new())
    }

    /// What else differs, beside links and objects, and what of the devices can't be compared. It changes nothing.
    async fn further_differences(&mut self, kernel: &mut dyn Kernel) -> Result<Differences, KernelError> {
        let _ = kernel;
        Ok(Differences::default())
    }

    /// Sets the lease of this node. The devices were made without it.
    fn set_lease(&mut self, lease: &Lease);

    /// Sets another underlay: its addresses changed, or its link. Afterwards the loop asks again for the devices, this
    /// node's claims and the objects of peers. An error says why the backend can't use it; then nothing changes.
    fn set_underlay(&mut self, underlay: &Underlay) -> Result<(), HostProblem>;

    /// Applies what it can of a changed config of this backend without a restart; afterwards the loop asks again for
    /// the devices and the objects of peers. `changed` are the keys whose JSON differs from the config that is in
    /// force; some of them may mean the same. An error says what can't be used; then nothing changes.
    fn apply_config(
        &mut self,
        next: &BackendConfig,
        changed: Vec<String>,
    ) -> Result<AppliedConfig, ConfigError> {
        let _ = next;
        Ok(AppliedConfig { live: Vec::new(), restart: changed })
    }

    /// What this node publishes with its lease.
    fn attrs(&self) -> LeaseAttrs;

    /// Chooses other backend data for these families, since another node's lease had the same data first. `others` is
    /// what all other nodes publish. Afterwards the loop asks again for the devices, this node's claims and its
    /// attributes. Returns whether it did: a backend whose data only one node can have should.
    fn resign(&mut self, families: &[Family], others: &mut dyn Iterator<Item = &LeaseAttrs>) -> bool {
        let _ = (families, others);
        false
    }

    /// The objects that this node itself needs, such as the address of its device.
    fn own_objects(&self) -> Vec<Object>;

    /// What this node claims for itself, with precedence over every lease.
    fn own_claims(&self) -> Vec<Claim>;

    /// The objects and claims of another node's lease, on the devices as they are now or, while one is missing, as they
    /// were.
    fn peer(&self, lease: &Lease) -> Result<Peer, PeerError>;

    /// Where objects of ours can be, on links that exist. The loop finds routes that
    /// [`Ownership`](crate::ownership::Ownership) proves to be ours without it.
    fn scopes(&self) -> Vec<Scope>;

    /// Whether an object on a device of this backend is ours to replace and delete. For links that others use, too,
    /// [`Ownership`](crate::ownership::Ownership) decides. The loop leaves everything else alone.
    fn owns(&self, object: &Object) -> bool;

    /// Whether after this notification the loop must look at the devices again, and retry refused objects at once.
    fn concerns(&self, event: &KernelEvent) -> bool;

    /// The name of the way that packets to a programmed peer take in one family, if it is not that of the backend:
    /// `direct`, for example, for a peer that is reached without a tunnel. The status shows it.
    fn path(&self, family: Family, peer: &Peer) -> Option<&'static str> {
        let _ = (family, peer);
        None
    }

    /// Receives all programmed peers, whenever they may have changed, for a backend that carries packets itself.
    fn set_peers(&mut self, peers: &mut dyn Iterator<Item = (&LeaseKey, &Peer)>) {
        let _ = peers;
    }

    /// What the backend itself does for a programmed peer beyond its kernel objects, such as running a command, and how
    /// far that is. The status shows it.
    fn work_for(&self, peer: &LeaseKey) -> PeerWork {
        let _ = peer;
        PeerWork::Done
    }

    /// What else of a programmed peer an operator can look at, beside its kernel objects, such as its entry in a device:
    /// the commands that show it, and whether it is there.
    fn further_objects(&self, peer: &LeaseKey) -> Vec<PeerObject> {
        let _ = peer;
        Vec::new()
    }

    /// The programmed peers for which that failed, so that pods don't reach them.
    fn failed_peers(&self) -> Vec<LeaseKey> {
        Vec::new()
    }

    /// Problems of this node besides those of its devices; never many.
    fn problems(&self) -> Vec<Problem> {
        Vec::new()
    }

    /// The store has listed its leases, and all that came since is processed: what the backend does for peers that are
    /// not programmed any more it may end, except for those whose record is unreadable. The loop calls it after passes that did not
    /// fail, again and again: routes of peers that went over to another backend have moved by then, unless the kernel refused that.
    fn prune_peers(&mut self, is_unreadable: &dyn Fn(&LeaseKey) -> bool) {
        let _ = is_unreadable;
    }

    /// Compares what the devices contain besides objects, such as keys of peers, with what it should be, and repairs the
    /// difference. The loop calls it before it puts objects, whenever the programmed peers may have changed, and with `read`
    /// whenever it reads all objects again. Without `read` the driver may rely on what it read or wrote last. What is there
    /// and not desired is removed only where `prune` allows it.
    async fn hold(&mut self, read: bool, prune: Prune<'_>) -> Held {
        let _ = (read, prune);
        Held::default()
    }

    /// Returns the gate of this backend's tunnels, if it has one. The loop calls it once.
    fn gate(&mut self) -> Option<(Gate, Desk)> {
        None
    }

    /// The tunnels that the gate protects; `None` while a device or the own subnet is missing.
    fn tunnels(&self) -> Option<Tunnels> {
        None
    }

    /// Returns when the loop must look at the devices although the kernel sent no notification about a link, or at the
    /// peers that [`Self::changed_peers`] names. Dropping the future loses nothing.
    async fn attention(&mut self) {
        std::future::pending::<()>().await;
    }

    /// After [`Self::attention`]: the peers whose [`Self::work_for`] is another now, if that is all that changed. With
    /// `None` the loop looks at the devices and all that is on them.
    fn changed_peers(&mut self) -> Option<Vec<LeaseKey>> {
        None
    }

    /// After [`Self::attention`]: whether this node itself changed which devices and objects it needs. Then the loop asks again
    /// for all of them, and what differs is no drift.
    fn desires_anew(&mut self) -> bool {
        false
    }

    /// After [`Self::attention`]: the peers whose objects are others now although their leases are the same. The loop computes
    /// them again, and what differs is no drift.
    fn redirected_peers(&mut self) -> Vec<LeaseKey> {
        Vec::new()
    }

    /// Tells whether this node runs other backends beside this one. With others, a driver has a route for each peer that it
    /// carries and none for the whole network, which would take the packets of peers whose own route is missing. Afterwards
    /// the loop asks again for the objects of all.
    fn set_shared(&mut self, is_shared: bool) {
        let _ = is_shared;
    }

    /// Counts changes of leases of other nodes, and learns whether the store has listed its leases. Returns whether the loop
    /// must look at the devices, since they name another backend that this node runs beside its own.
    fn count_leases(&mut self, changes: &[LeaseChange], is_synced: bool) -> bool {
        let _ = (changes, is_synced);
        false
    }

    /// Whether this node runs several backends, or is about to, so that its own record decides what it does next.
    fn is_mixed(&self) -> bool {
        false
    }

    /// The kinds of the backends that this node runs beside the one that its lease names.
    fn beside(&self) -> Vec<&'static str> {
        Vec::new()
    }

    /// Whether the backend drops packets of nodes that are not among its peers, so that it must be given all nodes that may
    /// be about to send by it.
    fn hears_only_peers(&self) -> bool {
        false
    }

    /// After [`Self::changed_peers`] named peers: whether devices are to contain others than before for the same objects. Then the
    /// loop calls [`Self::set_peers`] and [`Self::hold`], and what they change is no drift.
    fn holds_anew(&mut self) -> bool {
        false
    }

    /// Receives this node's own record, whenever the store has told of it.
    fn own_record(&mut self, attrs: &LeaseAttrs) {
        let _ = attrs;
    }

    /// Does what an operator asks for and only this kind of backend can. Returns what it does, in words. It does not wait for
    /// the end of it.
    fn carry_out(&mut self, command: &str) -> Result<String, CommandError> {
        let _ = command;
        Err(CommandError::Unknown)
    }

    /// How the network is probed; `None` if nothing of it can be.
    fn probing(&self) -> Option<Probing> {
        None
    }

    /// Why the kernel refused an operation, if the backend knows more than the kernel's answer says.
    fn explain(&self, refusal: &Refusal) -> Option<Reason> {
        let _ = refusal;
        None
    }
}

/// What the state file has of the backends of a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Made {
    /// The kind of the backend that the node's lease names.
    pub(crate) backend: &'static str,
    /// The devices of all backends.
    pub(crate) devices: Vec<Device>,
    /// The configs of the backends besides the configured one.
    pub(crate) beside: Vec<BackendConfig>,
    /// What is proven about the ways to peers.
    pub(crate) proven: BTreeMap<LeaseKey, Proven>,
}

/// The devices of a backend after [`Driver::ensure_devices`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Devices {
    /// The links with our objects, as last known. A missing link stays in the list, since only store and config take
    /// objects off the desired state. When the list changes, the loop computes all peers again.
    pub links: Vec<LinkIndex>,
    /// Links that are gone or down. The loop puts nothing there, and drops nothing from the desired state.
    pub away: Vec<LinkIndex>,
    /// Whether a device was changed, so that the objects on the devices must be read again. The loop counts it as a repair,
    /// unless what is desired changed: the config, the underlay, or [`Self::overlay_mtu`].
    pub changed: bool,
    /// Whether leases need other objects than before, so that the loop computes all peers again.
    pub peers_changed: bool,
    /// Why devices are missing or wrong.
    pub problems: DeviceProblems,
    /// What is wrong with the devices of backends that this node runs beside the one that its lease names. It costs only the
    /// peers that those carry.
    pub partial: Vec<Problem>,
    /// What the state file is to have of the backends; `None` if that does not change.
    pub(crate) made: Option<Made>,
    /// Families that the devices can't carry for now. Their objects that still work are left alone.
    pub unserved: Vec<Problem>,
    /// The largest pod packet in bytes.
    pub overlay_mtu: Option<Mtu>,
    /// How packets travel, if the backend has a choice.
    pub datapath: Option<String>,
    /// What the status shows of [`Self::links`].
    pub shown: Vec<DeviceStatus>,
    /// Reads what a datapath outside of the kernel counts. What the kernel counts of [`Self::shown`] is read by their names.
    pub counters: Counters,
    /// Reads the sessions with peers, of a backend whose tunnel has such. It is the same handle each time.
    pub sessions: Sessions,
    /// What the driver did to the devices, and what else happened: the loop logs these events and sends them to the
    /// readers of [`Reconciler::events`](super::Reconciler::events).
    pub events: Vec<NetworkEvent>,
}
