//! All measurements of one number of agents.

use std::collections::BTreeMap;
use std::time::Duration;

use flannel_benches::Fallible;
use flannel_benches::leases::mac;
use flannel_benches::stats::Sample;
use flannel_core::lease::{BackendData, Lease, LeaseAttrs};
use flannel_core::subnet::SubnetManager as _;
use flannel_store_etcd::{EtcdOptions, EtcdTimeouts};
use serde_json::json;
use tokio::runtime::Builder;
use tokio::time::sleep;

use crate::bed::{Bed, Cost};
use crate::crowd::{Crowd, Node};

/// Until a start has settled.
const SETTLE: Duration = Duration::from_secs(3);
/// Longer than anything here takes.
const NEVER: Duration = Duration::from_hours(24);
/// Time and margin of leases that are renewed about every ten seconds, up to a second earlier: like by default the moment is any
/// fraction of a second, which decides how often an agent looks before a renewal. The margin is what a busy machine may be late: where
/// leases run out because agents are late, each is put back, which all agents are told, and they never catch up.
const SHORT: (Duration, Duration) = (Duration::from_secs(100), Duration::from_secs(90));

/// What so many agents cost.
pub(crate) struct Point {
    pub(crate) agents: u32,
    pub(crate) storm: Storm,
    /// Nothing happens.
    pub(crate) quiet: Cost,
    /// Nothing happens, and connections are not probed.
    pub(crate) unprobed: Cost,
    pub(crate) changes: Changes,
    /// Leases are renewed.
    pub(crate) renewals: Cost,
}

/// All agents start at once.
pub(crate) struct Storm {
    pub(crate) cost: Cost,
    /// Seconds until each had its lease.
    pub(crate) leased: Sample,
    /// Seconds until all had programmed all others.
    pub(crate) known: f64,
    /// What the agents asked, and what of it was not answered, by kind.
    pub(crate) asked: BTreeMap<&'static str, (u64, u64)>,
}

/// Nodes join, publish other attributes and leave, one after the other.
pub(crate) struct Changes {
    /// So many of each.
    pub(crate) count: u32,
    pub(crate) joins: Cost,
    pub(crate) puts: Cost,
    pub(crate) leaves: Cost,
}

pub(crate) fn point(agents: u32, seconds: u32, changes: u32) -> Fallible<Point> {
    let seconds = Duration::from_secs(seconds.into());
    let (storm, quiet) = on_a_bed(async |bed| {
        eprintln!("{agents} agents: start");
        let before = bed.read()?;
        let crowd = Crowd::start(agents, &EtcdOptions::new([bed.endpoint()])).await?;
        sleep(SETTLE).await;
        let (cost, asked) = (bed.since(before)?, crowd.asked());
        eprintln!("{agents} agents: quiet");
        let quiet = silence(bed, &crowd, seconds).await?;
        let Crowd { leased, known, .. } = crowd;
        Ok((Storm { cost, leased, known, asked }, quiet))
    })?;
    let (unprobed, changes) = on_a_bed(async |bed| {
        let timeouts = EtcdTimeouts { probe: NEVER, ..EtcdTimeouts::default() };
        let options = EtcdOptions { timeouts, ..EtcdOptions::new([bed.endpoint()]) };
        let crowd = Crowd::start(agents, &options).await?;
        sleep(SETTLE).await;
        eprintln!("{agents} agents: quiet, connections not probed");
        let unprobed = silence(bed, &crowd, seconds).await?;
        eprintln!("{agents} agents: changes");
        Ok((unprobed, change(bed, &crowd, &options, changes).await?))
    })?;
    let renewals = on_a_bed(async |bed| {
        let (ttl, renew_margin) = SHORT;
        let options = EtcdOptions { ttl, renew_margin, ..EtcdOptions::new([bed.endpoint()]) };
        let crowd = Crowd::start(agents, &options).await?;
        sleep(SETTLE).await;
        eprintln!("{agents} agents: renewals");
        silence(bed, &crowd, seconds).await
    })?;
    Ok(Point { agents, storm, quiet, unprobed, changes, renewals })
}

/// Runs this with a server, on threads in the namespace of the agents.
fn on_a_bed<T: Send>(work: impl AsyncFnOnce(&Bed) -> Fallible<T> + Send) -> Fallible<T> {
    let bed = Bed::new()?;
    let run = || -> Result<T, String> {
        let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build();
        let runtime = runtime.map_err(|error| error.to_string())?;
        let done = runtime.block_on(work(&bed)).map_err(|error| error.to_string());
        runtime.shutdown_timeout(SETTLE);
        done
    };
    Ok(bed.netns().enter(run)??)
}

/// Some time in which no lease changes, whether leases are renewed in it or not.
async fn silence(bed: &Bed, crowd: &Crowd, time: Duration) -> Fallible<Cost> {
    let (before, heard) = (bed.read()?, crowd.heard());
    sleep(time).await;
    let cost = bed.since(before)?;
    let (changes, snapshots) = crowd.heard();
    if (changes, snapshots) != heard || cost.events + cost.writes > 0.0 {
        let (changes, snapshots) = (changes - heard.0, snapshots - heard.1);
        return Err(format!(
            "no lease changed, but agents were told of {changes} changes and read {snapshots} lists: {cost:?}"
        )
        .into());
    }
    Ok(cost)
}

async fn change(bed: &Bed, crowd: &Crowd, options: &EtcdOptions, count: u32) -> Fallible<Changes> {
    let agents = crowd.nodes.len() as u32;
    let (before, mut nodes) = (bed.read()?, Vec::new());
    for number in agents..agents + count {
        let node = Node::start(number, options.clone())?;
        let lease = node.lease().await?;
        node.sees(number as usize).await?;
        crowd.see(number as usize).await?;
        nodes.push((node, lease));
    }
    let joins = bed.since(before)?;
    for (node, _) in &nodes {
        node.stop().await?;
    }
    sleep(SETTLE).await;

    let (before, mut heard) = (bed.read()?, crowd.heard().0);
    for (number, (node, lease)) in nodes.iter_mut().enumerate() {
        *lease = node.store.publish(lease, &other_mac(lease, number as u32)?).await?;
        heard += u64::from(agents);
        crowd.hear(heard).await?;
    }
    let puts = bed.since(before)?;
    let before = bed.read()?;
    for (node, lease) in &nodes {
        node.store.release_lease(lease).await?;
        heard += u64::from(agents);
        crowd.hear(heard).await?;
    }
    let leaves = bed.since(before)?;
    Ok(Changes { count, joins, puts, leaves })
}

/// What the node of a lease would publish with another MAC.
fn other_mac(lease: &Lease, number: u32) -> Fallible<LeaseAttrs> {
    let mut attrs = lease.attrs.clone();
    attrs.backend_data.v4 = Some(BackendData::encode(&json!({"VNI": 1, "VtepMAC": mac(number)}))?);
    Ok(attrs)
}
