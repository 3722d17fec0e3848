//! Nodes and what they say who they are: their leases in the model, and how a node comes, goes and is known.

use std::fs;

use flannel_lab::pod::Pod;
use flannel_lab::store::Store as _;
use flannel_lab::wait::wait_for;

use super::{LIMIT, Lab, NIC, OTHER_NAME, lock};
use crate::Fallible;
use crate::action::Victim;
use crate::foreign;
use crate::model::{Lease, Side};

impl Lab {
    /// Takes the nodes' records into the model. From here on they must stay as they are.
    pub(crate) fn read_nodes(&self) -> Fallible<()> {
        let count = self.store.records()?.len();
        for number in self.numbers() {
            let lease = self.published(number, None)?;
            self.model().nodes.insert(number, lease);
        }
        let nodes = self.numbers().count();
        if count == nodes { Ok(()) } else { Err(format!("{nodes} nodes have {count} records").into()) }
    }

    /// The one lease that a node publishes at its addresses, of this key if it must keep that.
    fn published(&self, number: u8, key: Option<&str>) -> Fallible<Lease> {
        let node = self.node(number);
        let is_at_node = |side: &Side| [node.ipv4(), node.ipv6()].contains(&Some(side.underlay));
        let mut found = Vec::new();
        for (at, value) in self.store.records()? {
            let lease = Lease::parse(&at, &value).ok_or_else(|| format!("{at} is no lease: {value}"))?;
            // With one family of another node it is a record that contradicts itself.
            if lease.0.iter().all(is_at_node) {
                found.push(lease);
            }
        }
        match (found.len(), key) {
            (1, Some(key)) if found[0].key() != key => {
                Err(format!("node{number} had {key} and now has {}", found[0].key()).into())
            }
            (1, _) => Ok(found.remove(0)),
            (count, _) => Err(format!("node{number} has {count} leases at its addresses: {found:?}").into()),
        }
    }

    /// Waits until a node has one lease with values that are its alone, and takes that into the model. With `key`,
    /// it must have kept its subnet.
    pub(crate) fn adopt(&self, number: u8, key: Option<&str>) -> Fallible<()> {
        let what = format!("node{number} to have one lease with nothing in it that is another's");
        let alone = || {
            let lease = self.published(number, key)?;
            let model = self.model().clone();
            let others = model.nodes.iter().filter(|(other, _)| **other != number).map(|(_, lease)| lease);
            match others.chain(model.phantoms.values()).find_map(|other| lease.shared_with(other)) {
                None => Fallible::Ok(lease),
                Some(shared) => Err(shared.into()),
            }
        };
        let lease = wait_for(LIMIT, &what, || alone().map_err(|error| error.to_string()))?;
        self.model().nodes.insert(number, lease);
        Ok(())
    }

    /// A node leaves for good: its record goes, and all that it had.
    pub(crate) fn forget(&self, number: u8) -> Fallible<Lease> {
        let lease = self.model().nodes.remove(&number);
        let lease = lease.ok_or_else(|| format!("node{number} has no lease"))?;
        self.store.forget(self.node(number), &lease)?;
        lock(&self.pods).remove(&number);
        let file = self.subnet_file(number);
        fs::remove_dir_all(file.parent().expect("it is in a folder"))?;
        Ok(lease)
    }

    /// Attaches a pod to a node that has its subnet, and puts what others have there.
    pub(crate) fn furnish(&self, number: u8) -> Fallible<()> {
        self.attach(number)?;
        foreign::put(self.node(number).netns(), self.backend, &self.families())
    }

    /// Attaches a pod to a node that has its subnet.
    pub(crate) fn attach(&self, number: u8) -> Fallible<()> {
        let pod = Pod::attach_plain(self.node(number), &self.env(number)?)?;
        lock(&self.pods).insert(number, pod);
        Ok(())
    }

    /// The rules of a node that has another lease now are those of before, but for the subnets.
    pub(crate) fn expect_rules_of(&self, number: u8, before: &Lease) {
        let Some(after) = self.lease(Victim::Node(number)) else { return };
        let mut rules = lock(&self.rules);
        let Some(rules) = rules.get_mut(&number) else { return };
        for (old, new) in before.0.iter().zip(&after.0) {
            *rules = rules.replace(&old.subnet.to_string(), &new.subnet.to_string());
        }
    }

    /// Gives a node's NIC its other name, or takes that away.
    pub(crate) fn rename_nic(&self, number: u8, is_other: bool) -> Fallible<()> {
        let node = self.node(number);
        if is_other {
            node.rename_nic(NIC, OTHER_NAME)?;
            lock(&self.renamed).insert(number);
        } else {
            node.rename_nic(OTHER_NAME, NIC)?;
            lock(&self.renamed).remove(&number);
        }
        Ok(())
    }
}
