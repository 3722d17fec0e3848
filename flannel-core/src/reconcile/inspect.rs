//! Answers questions about the loop's state. Nothing in the kernel is changed.

use std::collections::{BTreeMap, BTreeSet};

use super::guard::Guard;
use super::{Driver, Reconciler};
use crate::addr::LinkIndex;
use crate::dataplane::{Dataplane, Object, ObjectKey, Op, command, plan};
use crate::firewall::gate::table_name;
use crate::inspect::{Difference, DifferenceKind, Differences, Inspector, PeerObject, Question};
use crate::kernel::{KernelError, LinkOp};
use crate::lease::LeaseKey;

impl<D: Driver> Reconciler<D> {
    /// Asks this loop, once it runs.
    pub fn inspector(&self) -> Inspector {
        self.questions.0.clone()
    }

    /// Answers a question. Whoever asked may be gone.
    pub(super) async fn answer(&mut self, question: Question) {
        match question {
            Question::Differences(answer) => {
                let differences = self.differences().await;
                let _ = answer.send(differences);
            }
            Question::Peer(lease, answer) => {
                let objects = self.peer_objects(lease).await;
                let _ = answer.send(objects);
            }
            Question::Command(name, answer) => {
                let _ = answer.send(self.driver.carry_out(&name));
            }
        }
    }

    /// Compares the desired state with a new observation, as a resync does.
    async fn differences(&mut self) -> Result<Differences, KernelError> {
        let links: BTreeSet<LinkIndex> = self.kernel.links().await?.iter().map(|link| link.index).collect();
        let names = self.link_names().await?;
        let device_ops = self.driver.plan_devices(&mut *self.kernel).await?;
        let further = self.driver.further_differences(&mut *self.kernel).await?;
        let mut have = self.look_at_ours(Some(&links)).await?;
        // What is on a device that is about to be deleted goes with it.
        let deleted = device_ops.iter().filter_map(|op| match op {
            LinkOp::Delete(link) => Some(*link),
            _ => None,
        });
        let deleted: BTreeSet<LinkIndex> = deleted.collect();
        let is_deleted = |object: &Object| object.link().is_some_and(|link| deleted.contains(&link));
        let gone: Vec<ObjectKey> = have.iter().filter(is_deleted).map(|object| object.key()).collect();
        for key in &gone {
            have.remove(key);
        }
        let ops = plan(self.peers.want(), &have);
        if !ops.is_empty() || !device_ops.is_empty() || !further.differences.is_empty() {
            self.work.check_devices();
            self.work.read_objects();
        }
        let mut found: Vec<Difference> =
            device_ops.iter().map(|op| of_device(op, |link| name(&names, link))).collect();
        found.extend(further.differences);
        found.extend(self.of_objects(&ops, &have, &names));
        let problems = self.devices.problems.causes().map(str::to_owned).chain(further.problems).collect();
        let notes = self.withheld_note().into_iter().chain(further.notes).chain(self.guard_note()).collect();
        Ok(Differences { differences: found, problems, notes })
    }

    /// The differences of objects, with the reasons why the loop leaves some alone.
    fn of_objects(&self, ops: &[Op], have: &Dataplane, names: &Names) -> Vec<Difference> {
        let withheld = self.withheld_among(ops, have);
        let mut ids = self.next_hop_ids(ops);
        // The kernel has one FDB entry for a unicast MAC, so the entry that is put replaces the one to be deleted.
        let fdb = |object: &Object| match object {
            Object::Fdb(entry) => Some((entry.link, entry.mac)),
            _ => None,
        };
        let puts = ops.iter().filter(|op| !matches!(op, Op::Delete(_)));
        let replaced: BTreeSet<_> = puts.filter_map(|op| fdb(op.object())).collect();
        let mut found = Vec::new();
        for op in ops {
            let key = op.key();
            let mut id = |next_hop: &crate::dataplane::NextHop| ids(next_hop);
            let (kind, command) = match op {
                Op::Create(object) => {
                    (DifferenceKind::Missing, command::put(object, false, |link| name(names, link), &mut id))
                }
                Op::Replace(object) => {
                    (DifferenceKind::Different, command::put(object, true, |link| name(names, link), &mut id))
                }
                Op::Delete(object) if fdb(object).is_some_and(|fdb| replaced.contains(&fdb)) => continue,
                Op::Delete(object) => {
                    let spare = command::deletion(object, |link| name(names, link));
                    let command = spare.or_else(|| match object {
                        Object::NextHop(next_hop) => id(next_hop).map(|id| format!("ip nexthop del id {id}")),
                        _ => None,
                    });
                    (DifferenceKind::Surplus, command)
                }
            };
            let held = match op {
                Op::Delete(_) if !self.leases.is_synced() => {
                    Some("nothing is deleted before the store has listed its leases".to_owned())
                }
                Op::Delete(_) if withheld.contains(&key) => {
                    Some("a lease record is unreadable, and this may belong to it".to_owned())
                }
                _ => self.blocked.refused(&key).map(|refused| refused.reason),
            };
            found.push(Difference { held, ..Difference::new(kind, command.into_iter().collect()) });
        }
        found
    }

    /// Finds the ids of next-hop objects: those that they have, and free ones for new objects.
    fn next_hop_ids(&self, ops: &[Op]) -> impl FnMut(&crate::dataplane::NextHop) -> Option<u32> {
        let wanted = ops.iter().filter_map(|op| match op.object() {
            Object::NextHop(next_hop) => Some(*next_hop),
            Object::Route(route) => match route.next_hop()? {
                ObjectKey::NextHop(link, gateway, spare) => {
                    Some(crate::dataplane::NextHop { link, gateway, spare })
                }
                _ => None,
            },
            _ => None,
        });
        let wanted: BTreeSet<_> = wanted.collect();
        let ids = self.kernel.next_hop_ids(&wanted);
        move |next_hop| next_hop.spare.or_else(|| ids.get(next_hop).copied())
    }

    /// The gate's tables are compared by a task of their own, which shares nothing with the loop but what is published.
    fn guard_note(&self) -> Option<String> {
        let vni = self.driver.tunnels().filter(|_| self.guard.as_ref().is_some_and(Guard::keeps_tables))?.vni;
        let table = table_name(vni);
        Some(format!(
            "the gate of the tunnels is not compared here: the agent repairs it when the kernel announces a change, and \
             `nft list table inet {table}` and `nft list table netdev {table}` show it"
        ))
    }

    fn withheld_note(&self) -> Option<String> {
        let waits = self.incoming.is_pending();
        waits.then(|| "leases that just arrived are not processed yet".to_owned())
    }

    async fn peer_objects(&mut self, lease: LeaseKey) -> Vec<PeerObject> {
        let names = self.link_names().await.unwrap_or_default();
        let Some(peer) = self.peers.programmed_peer(&lease) else { return Vec::new() };
        let wanted = peer.objects.iter().filter_map(|object| match object {
            Object::NextHop(next_hop) => Some(*next_hop),
            _ => None,
        });
        let ids = self.kernel.next_hop_ids(&wanted.collect());
        let mut objects = peer.objects.clone();
        objects.sort_unstable_by_key(Object::key);
        let is_present = |object: &Object| {
            let have = self.have.get(&object.key());
            have.is_some_and(|have| self.peers.want().is_satisfied_by(&have))
        };
        let show = |object: &Object| PeerObject {
            command: command::look(object, |link| name(&names, link), |next_hop| ids.get(next_hop).copied()),
            present: is_present(object),
        };
        objects.iter().map(show).chain(self.driver.further_objects(&lease)).collect()
    }

    /// The names of all links, and those that missing devices had.
    async fn link_names(&mut self) -> Result<Names, KernelError> {
        let had = self.devices.shown.iter().map(|device| (device.link, device.name.clone()));
        let mut names: Names = had.collect();
        names.extend(self.kernel.links().await?.into_iter().map(|link| (link.index, link.name)));
        Ok(names)
    }
}

type Names = BTreeMap<LinkIndex, String>;

fn name(names: &Names, link: LinkIndex) -> String {
    names.get(&link).cloned().unwrap_or_else(|| format!("if{link}"))
}

fn of_device(op: &LinkOp, name: impl Fn(LinkIndex) -> String) -> Difference {
    let kind = match op {
        LinkOp::Create { .. } => DifferenceKind::Missing,
        LinkOp::Delete(_) => DifferenceKind::Surplus,
        _ => DifferenceKind::Different,
    };
    let mut commands = op.commands(name);
    if let LinkOp::Create { name, .. } = op {
        commands.push(format!("ip link set {} up", command::word(name)));
    }
    Difference::new(kind, commands)
}
