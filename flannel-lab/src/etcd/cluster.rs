//! A store of several members, of which some can fail.

use serde_json::Value;

use super::{Etcd, EtcdOptions, Membership, loopback, port};
use crate::LabError;

/// Members of one cluster, all on loopback. Killed when dropped.
#[derive(Debug)]
pub struct EtcdCluster {
    members: Vec<Etcd>,
}

impl EtcdCluster {
    /// Starts so many members, each with these arguments beside its own, and waits until all answer.
    pub fn start(size: usize, args: &[String]) -> Result<Self, LabError> {
        let peers = (0..size).map(|_| port(None, false, 0)).collect::<Result<Vec<_>, _>>()?;
        let name = |index: usize| format!("member{}", index + 1);
        let all: Vec<String> = peers
            .iter()
            .enumerate()
            .map(|(at, peer)| format!("{}=http://{}", name(at), loopback(*peer)))
            .collect();
        let spawn = |(index, peer): (usize, &u16)| {
            let options = EtcdOptions { args: args.to_vec(), ..EtcdOptions::default() };
            Etcd::spawn(options, Membership { name: name(index), peer: loopback(*peer), all: all.join(",") })
        };
        let members = peers.iter().enumerate().map(spawn).collect::<Result<Vec<_>, _>>()?;
        members.iter().try_for_each(Etcd::wait_until_healthy)?;
        Ok(Self { members })
    }

    /// The URLs that clients use.
    pub fn endpoints(&self) -> Vec<String> {
        self.members.iter().map(|member| member.endpoint().to_owned()).collect()
    }

    /// One member, from 0 on.
    pub fn member(&self, index: usize) -> &Etcd {
        &self.members[index]
    }

    /// The member that leads now, as it says itself.
    pub fn leader(&self) -> Result<Option<usize>, LabError> {
        for (index, member) in self.members.iter().enumerate() {
            if !member.agent().is_running() {
                continue;
            }
            let text = member.ctl(&["endpoint", "status", "-w", "json"])?;
            let bad = || LabError::unexpected("etcdctl endpoint status", &text);
            let answer: Value = serde_json::from_str(&text).map_err(|_| bad())?;
            let status = &answer[0]["Status"];
            let (own, leader) = (&status["header"]["member_id"], &status["leader"]);
            if own.as_u64().ok_or_else(bad)? == leader.as_u64().unwrap_or_default() {
                return Ok(Some(index));
            }
        }
        Ok(None)
    }

    /// Ends all members at once. Their data stays.
    pub fn kill_all(&self) -> Result<(), LabError> {
        self.members.iter().try_for_each(|member| member.kill().map(drop))
    }

    /// Starts these members again on their data, and waits until they answer.
    pub fn restart(&mut self, members: &[usize]) -> Result<(), LabError> {
        // None answers before most are there.
        members.iter().try_for_each(|index| self.members[*index].restart_now())?;
        members.iter().try_for_each(|index| self.members[*index].wait_until_healthy())
    }
}
