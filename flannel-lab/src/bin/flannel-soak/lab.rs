//! The cluster that is churned: nodes, a store, an agent and a pod a node, and the model of it all.

mod nodes;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Deref;
use std::path::Path;
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use flannel_lab::bed::Bed;
use flannel_lab::cluster::{Cluster, Families};
use flannel_lab::kernel_state::KernelState;
use flannel_lab::netns::Netns;
use flannel_lab::pod::Pod;
use flannel_lab::store::Store as _;
use flannel_lab::wait::wait_for;
use serde_json::{Value, json};

use crate::Fallible;
use crate::action::Victim;
use crate::model::{Backend, Lease, NETWORKS, difference, next_hop_deviation, observed, wanted};
use crate::options::Options;
use crate::phantom::{Phantom, subnet};
use crate::rules;
use crate::store::{FOLDER, Store};

/// How long anything may take until all is well again, counted from the end of its cause. Far more than it
/// takes, since the machine may be busy: the histogram says how long it took.
pub(crate) const LIMIT: Duration = Duration::from_secs(20);
/// The underlay's link on every node, and the name that it gets now and then.
pub(crate) const NIC: &str = "eth0";
const OTHER_NAME: &str = "ens3";
/// Flags of agents whose pods are honest.
const AT_PEACE: [&str; 2] = ["--healthz-ip=127.0.0.1", "-v=1"];
/// .. and of those under attack: the health port is open to pods, and the log has what operators see.
const UNDER_ATTACK: [&str; 2] = ["--healthz-ip=::", "-v=0"];
/// The flag by which vxlan keeps strangers out.
const CLOSED_DOOR: &str = "--strict-underlay";
/// The subnets of leases that show who has heard what; no planned one has them.
const BEATS: [u8; 2] = [181, 182];
/// Between two looks at a kernel.
const POLL: Duration = Duration::from_millis(15);

/// All of it. Actions on different nodes run on threads of their own.
#[derive(Debug)]
pub(crate) struct Lab {
    // In the order of their end: a pod needs its bridge.
    pods: Mutex<BTreeMap<u8, Pod>>,
    pub(crate) bed: Bed<Store>,
    pub(crate) backend: Backend,
    /// The firewall rules of each node, as they were at first.
    rules: Mutex<BTreeMap<u8, String>>,
    /// Nodes whose NIC has its other name.
    renamed: Mutex<BTreeSet<u8>>,
    model: Mutex<Model>,
}

/// The leases that should be there.
#[derive(Debug, Clone, Default)]
struct Model {
    nodes: BTreeMap<u8, Lease>,
    phantoms: BTreeMap<u8, Lease>,
}

impl Model {
    /// What should be on a node; `None` while it has no lease.
    fn wanted(&self, backend: Backend, node: u8) -> Option<BTreeSet<String>> {
        let others = self.nodes.iter().filter(|(number, _)| **number != node).map(|(_, lease)| lease);
        Some(wanted(backend, self.nodes.get(&node)?, others.chain(self.phantoms.values())))
    }
}

impl Deref for Lab {
    type Target = Bed<Store>;

    fn deref(&self) -> &Self::Target {
        &self.bed
    }
}

impl Lab {
    /// Builds the nodes and the store, starts the agents and attaches the pods.
    pub(crate) fn start(options: &Options, flanneld: &Path) -> Fallible<Self> {
        let (families, backend) = (options.families, options.backend);
        let cluster = Cluster::builder().nodes(options.nodes).families(families).build()?;
        let config = config(&json!({ "Type": backend.name() }), families);
        let store = Store::start(options.store, &cluster, &config)?;
        check(backend, families, cluster.fabric())?;
        let bed = Bed::new(cluster, store, flanneld).folder(FOLDER).flags(["--ip-masq"]);
        let in_agent = (backend == Backend::Wireguard).then_some("--wireguard=userspace");
        let bed = bed.flags(in_agent);
        let lab = Self::of(bed.flags(flags(options, flanneld)?), backend);
        (1..=options.nodes).try_for_each(|number| lab.start_agent(number))?;
        for number in lab.numbers() {
            lab.wait_until_ready(number, LIMIT)?;
            lab.furnish(number)?;
            let rules = rules::read(lab.node(number).netns())?;
            lock(&lab.rules).insert(number, rules);
        }
        lab.read_nodes()?;
        Ok(lab)
    }

    /// These nodes, whose agents are not started yet, without a model.
    pub(crate) fn of(bed: Bed<Store>, backend: Backend) -> Self {
        let (pods, rules, renamed, model) = Default::default();
        Self { pods, bed, backend, rules, renamed, model }
    }

    /// The pods by their node's number.
    pub(crate) fn pods(&self) -> MutexGuard<'_, BTreeMap<u8, Pod>> {
        lock(&self.pods)
    }

    /// Starts a node's agent, in place of the one that ended. It finds its underlay by name, by pattern, or by the
    /// default route.
    pub(crate) fn start_agent(&self, number: u8) -> Fallible<()> {
        self.start_agent_with(number, &[])
    }

    /// The same with further flags.
    pub(crate) fn start_agent_with(&self, number: u8, flags: &[&str]) -> Fallible<()> {
        let underlay: &[&str] =
            [&["--iface=eth0"][..], &["--iface-regex=^eth[0-9]$"], &[]][usize::from(number % 3)];
        Ok(self.bed.keep(number, &self.bed.flanneld(number).args(underlay).args(flags))?)
    }

    /// Waits until a node's agent says that it is ready.
    pub(crate) fn wait_until_ready(&self, number: u8, limit: Duration) -> Fallible<()> {
        Ok(self.bed.wait_ready(number, limit)?)
    }

    /// The nodes' numbers.
    pub(crate) fn numbers(&self) -> impl Iterator<Item = u8> + use<> {
        self.bed.numbers().into_iter()
    }

    /// The families in use: false for IPv4, true for IPv6.
    pub(crate) fn families(&self) -> Vec<bool> {
        self.cluster.families().list()
    }

    /// A lease of the model.
    pub(crate) fn lease(&self, victim: Victim) -> Option<Lease> {
        let model = self.model();
        match victim {
            Victim::Node(number) => model.nodes.get(&number).cloned(),
            Victim::Phantom(number) => model.phantoms.get(&number).cloned(),
        }
    }

    /// Writes and deletes phantoms' records.
    pub(crate) fn write(&self, put: &[Phantom], del: &[u8]) -> Fallible<()> {
        let families = self.cluster.families();
        for number in del {
            let lease = self.model().phantoms.get(number).cloned();
            self.store.delete(&lease.ok_or_else(|| format!("no phantom {number}"))?.key())?;
            self.model().phantoms.remove(number);
        }
        for phantom in put {
            let lease = phantom.lease(self.backend, families);
            self.store.put(&lease.key(), &lease.value(self.backend))?;
            self.model().phantoms.insert(phantom.subnet, lease);
        }
        Ok(())
    }

    /// Writes all phantoms' records once more, as their nodes do in a store that has lost them.
    pub(crate) fn write_again(&self) -> Fallible<()> {
        let phantoms = self.model().phantoms.values().cloned().collect::<Vec<_>>();
        let put = |lease: &Lease| self.store.put(&lease.key(), &lease.value(self.backend));
        Ok(phantoms.iter().try_for_each(put)?)
    }

    /// Lets a lease join that nobody planned, and the one before leave. A node whose kernel shows that has taken
    /// all that the store said before.
    pub(crate) fn beat(&self) -> Fallible<()> {
        let last = BEATS.into_iter().find(|beat| self.model().phantoms.contains_key(beat));
        let next = BEATS.into_iter().find(|beat| Some(*beat) != last).expect("there are two");
        // Hosts and MACs that no other phantom has.
        let beat = Phantom { subnet: next, host: next + 60, mac: u16::from(next) << 8 | 0xff };
        self.write(&[beat], last.as_slice())
    }

    /// Changes the underlay addresses of a node's lease in the model, as its agent is to do in the store.
    pub(crate) fn renumber(&self, number: u8) {
        let node = self.node(number);
        let (v4, v6) = (node.ipv4(), node.ipv6());
        let mut model = self.model();
        for side in model.nodes.get_mut(&number).into_iter().flat_map(|lease| &mut lease.0) {
            let address = if side.subnet.is_ipv6() { v6 } else { v4 };
            side.underlay = address.unwrap_or(side.underlay);
        }
    }

    /// What a node's kernel has and should not have, or lacks; or that its agent is gone.
    pub(crate) fn deviation(&self, number: u8) -> Fallible<Option<String>> {
        if let Some(status) = self.agent(number).exit_status() {
            return Ok(Some(format!(
                "node{number}'s agent ended with {status}, and nobody here asked it to"
            )));
        }
        // The model first: what changes it comes before what the kernel makes of it.
        let Some(want) = self.model().wanted(self.backend, number) else {
            return Ok(Some(format!("node{number} has no lease")));
        };
        let is_renamed = lock(&self.renamed).contains(&number);
        let state = KernelState::of(self.node(number).netns())?;
        let mut have = observed(self.backend, &state);
        if is_renamed {
            let [other, usual] = [OTHER_NAME, NIC].map(|name| format!("dev {name}"));
            have = have.into_iter().map(|fact| fact.replace(&other, &usual)).collect();
        }
        let differences = [difference(&want, &have), next_hop_deviation(self.backend, &state)];
        let rules = rules::read(self.node(number).netns())?;
        let rules = (Some(&rules) != lock(&self.rules).get(&number))
            .then(|| format!("its firewall rules are\n{rules}"));
        let text = differences.into_iter().flatten().chain(rules).collect::<Vec<_>>().join("\n");
        Ok((!text.is_empty()).then(|| format!("node{number} is not as it should be:\n{text}")))
    }

    /// Waits until these nodes' kernels equal the model, and returns when each was seen to.
    pub(crate) fn wait_for_model(&self, numbers: &[u8], until: Instant) -> Fallible<Instant> {
        let mut left = numbers.to_vec();
        loop {
            let mut deviations = Vec::new();
            for number in std::mem::take(&mut left) {
                // A tool that reads while links come and go may fail, which is as good as a deviation.
                let deviation = self.deviation(number).unwrap_or_else(|error| Some(error.to_string()));
                if let Some(deviation) = deviation {
                    left.push(number);
                    deviations.push(deviation);
                }
            }
            let now = Instant::now();
            if left.is_empty() {
                return Ok(now);
            }
            if now > until {
                return Err(deviations.join("\n").into());
            }
            std::thread::sleep(POLL);
        }
    }

    /// Waits until the store holds what it should.
    pub(crate) fn wait_for_store(&self, limit: Duration) -> Fallible<()> {
        let well = || match self.store_deviation() {
            Ok(None) => Ok(()),
            Ok(Some(deviation)) => Err(deviation),
            Err(error) => Err(error.to_string()),
        };
        Ok(wait_for(limit, "the records to be put back", well)?)
    }

    /// What the store has and should not have, or lacks.
    pub(crate) fn store_deviation(&self) -> Fallible<Option<String>> {
        let parse = |(key, value): (String, String)| match Lease::parse(&key, &value) {
            Some(lease) => format!("{key} {:?}", lease.0),
            None => format!("{key} unreadable: {value}"),
        };
        let have = self.store.records()?.into_iter().map(parse).collect();
        let model = self.model().clone();
        let leases = model.nodes.values().chain(model.phantoms.values());
        let want = leases.map(|lease| format!("{} {:?}", lease.key(), lease.0)).collect();
        Ok(difference(&want, &have).map(|text| format!("the store is not as it should be:\n{text}")))
    }

    /// The end of an agent's log.
    pub(crate) fn last_lines(&self, number: u8) -> String {
        self.agent(number).last_lines()
    }

    fn model(&self) -> MutexGuard<'_, Model> {
        lock(&self.model)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether this kernel can carry the pods' packets by this backend.
fn check(backend: Backend, families: Families, somewhere: &Netns) -> Fallible<()> {
    if backend != Backend::Ipip {
        return Ok(());
    }
    if families.v6() {
        return Err("ipip carries IPv4 alone: --families v4".into());
    }
    let made = somewhere.ip("link add soak-trial type ipip remote 192.0.2.1 local 192.0.2.2");
    made.map_err(|error| {
        format!("this kernel makes no IPIP devices; in a VM it does (cargo vm 6.1 ..): {error}")
    })?;
    somewhere.ip("link del soak-trial")?;
    Ok(())
}

/// What agents are started with besides.
fn flags(options: &Options, flanneld: &Path) -> Fallible<Vec<String>> {
    if options.hostile.is_none() {
        return Ok(AT_PEACE.map(str::to_owned).into());
    }
    let mut flags = UNDER_ATTACK.map(str::to_owned).to_vec();
    // An older agent has no such door. It is attacked all the same, and then the packets are a violation.
    let help = Command::new(flanneld).arg("--help").output()?;
    if [help.stdout, help.stderr].iter().any(|text| String::from_utf8_lossy(text).contains(CLOSED_DOOR)) {
        flags.push(format!("{CLOSED_DOOR}=enforce"));
    }
    Ok(flags)
}

/// A config that gives nodes subnets from 200 on, so that those below are for phantoms.
pub(crate) fn config(backend: &Value, families: Families) -> String {
    let mut config = json!({ "EnableIPv4": families.v4(), "EnableNFTables": true, "Backend": backend });
    let bounds = |v6| [200, 250].map(|number| subnet(number, v6).network().to_string());
    if families.v4() {
        let [min, max] = bounds(false);
        config["Network"] = NETWORKS[0].into();
        config["SubnetMin"] = min.into();
        config["SubnetMax"] = max.into();
    }
    if families.v6() {
        let [min, max] = bounds(true);
        config["EnableIPv6"] = true.into();
        config["IPv6Network"] = NETWORKS[1].into();
        config["IPv6SubnetMin"] = min.into();
        config["IPv6SubnetMax"] = max.into();
    }
    config.to_string()
}
