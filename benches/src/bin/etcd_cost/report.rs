//! What was found, as text.

use crate::bed::Cost;
use crate::formula::{Constants, Hourly, Joined, Rates, period};
use crate::measure::Point;

const KIB: f64 = 1024.0;
const MIB: f64 = 1024.0 * KIB;

/// What it took to let all agents start at once.
pub(crate) fn storm(point: &Point) {
    let (storm, agents) = (&point.storm, f64::from(point.agents));
    let (cost, leased) = (&storm.cost, &storm.leased);
    println!("\n{} agents start at once", point.agents);
    println!(
        "  lease                  {:.2} s median, {:.2} 99 %, {:.2} last",
        leased.median(),
        leased.percentile(99),
        leased.max()
    );
    println!("  all have all others    {:.2} s", storm.known);
    println!("  requests, an agent     {:.2}: {}", cost.others() / agents, by_method(cost, agents));
    let asked = storm.asked.iter().map(|(what, (sent, _))| format!("{what} {:.2}", *sent as f64 / agents));
    println!("    as agents count them {}", asked.collect::<Vec<_>>().join(", "));
    let creates = storm.asked.get("create the lease").map_or(0, |(sent, _)| *sent);
    let failed: u64 = storm.asked.values().map(|(_, failed)| failed).sum();
    println!(
        "  created again          {}; not answered {failed}",
        creates.saturating_sub(point.agents.into())
    );
    println!("  watch events           {:.0}", cost.events);
    let [wire, messages] = [cost.wire, cost.messages].map(|ways| ways.map(|bytes| bytes / MIB));
    println!(
        "  MiB to etcd, from it   {:.2}, {:.2}; of it messages {:.2}, {:.2}",
        wire[0], wire[1], messages[0], messages[1]
    );
    println!(
        "  processor              {:.2} s etcd, {:.2} s agents; {:.0} % used by others",
        cost.server,
        cost.agents,
        cost.foreign * 100.0
    );
}

/// What time, renewals and changes cost.
pub(crate) fn rates(point: &Point) {
    let (rates, agents) = (Rates::measured(point), f64::from(point.agents));
    let (quiet, changes, renewals) = (&point.quiet, &point.changes, &point.renewals);
    let node_hours = agents * quiet.seconds / 3600.0;
    println!(
        "  quiet, a node and hour {:.1} questions, {:.1} other requests",
        rates.asks,
        quiet.others() / node_hours
    );
    let [wire, messages] =
        [quiet.wire, quiet.messages].map(|ways| ways.map(|bytes| bytes / node_hours / KIB));
    println!(
        "    KiB to etcd, from it {:.1}, {:.1}; of it messages {:.1}, {:.1}",
        wire[0], wire[1], messages[0], messages[1]
    );
    println!(
        "    bytes                {:.0} a question, {:.0} the probes of an hour",
        rates.ask_bytes, rates.probe_bytes
    );
    println!("    etcd's processor     {:.1} s an hour, all agents", quiet.server / quiet.seconds * 3600.0);
    let kept = renewals.of("LeaseKeepAlive");
    println!("  a renewal              {:.2} requests: {}", rates.renewal, by_method(renewals, kept));
    println!(
        "    of {kept:<18}  {:.0} bytes, {:.0} us of etcd's processor each; events {}, writes {}",
        rates.renewal_bytes,
        renewals.server / kept * 1e6,
        renewals.events,
        renewals.writes
    );
    let each =
        |cost: &Cost| (cost.events / f64::from(changes.count), cost.bytes() / f64::from(changes.count));
    println!(
        "  a node that joins      {:.2} requests: {}",
        rates.join,
        by_method(&changes.joins, changes.count.into())
    );
    for (what, cost) in
        [("joins", &changes.joins), ("publishes anew", &changes.puts), ("leaves", &changes.leaves)]
    {
        let (events, bytes) = each(cost);
        println!("    one that {what:<14} {events:.1} events, {:.1} KiB in all", bytes / KIB);
    }
    println!(
        "  used by others         {:.0} % when quiet, {:.0} % with renewals",
        quiet.foreign * 100.0,
        renewals.foreign * 100.0
    );
}

/// The formula, how far it is from what was measured, and what it says of a large cluster.
pub(crate) fn formula(points: &[Point], nodes: u32, churn: f64) {
    let constants = Constants::fit(points);
    let Constants { ask, probes, renewal: (_, renewal), change, start } = constants;
    let (rates, hours) = (constants.rates(Joined::new(0.0)), period() / 3600.0);
    println!("\nn nodes, of which c join an hour; a join reads L leases in p requests");
    println!(
        "  requests/h  n * ({:.0} + {:.1} / {hours:.2}) + c * ({:.0} + p)",
        rates.asks,
        rates.renewal,
        rates.join - Joined::new(0.0).pages
    );
    println!("  events/h    c * n");
    println!(
        "  bytes/h     n * ({:.0} * {ask:.0} + {probes:.0} + {renewal:.0} / {hours:.2}) + c * (n * {:.0} + {:.0} + L * {:.1})",
        rates.asks, change.1, start.0, start.1
    );
    println!("  p = 2 * (n / 1,000, rounded up), L = 2 n");
    println!("  a change without a join: c * (n * {:.0} + {:.0}) bytes", change.1, change.0);
    let percent = churn * 100.0;
    println!("\nmeasured / formula, nothing changes | {percent:.1} % of the nodes join an hour");
    for point in points {
        let met = Joined::of(point);
        let (measured, derived) = (Rates::measured(point), constants.rates(met));
        let compare = |churn: f64| {
            let joins = met.nodes * churn;
            ratio(measured.hourly(met.nodes, joins), derived.hourly(met.nodes, joins))
        };
        println!("  {:<8} {} | {}", point.agents, compare(0.0), compare(churn));
    }
    println!("\n{nodes} nodes");
    let n = f64::from(nodes);
    for joins in [0.0, n * churn] {
        let Hourly { requests, events, bytes } = constants.rates(Joined::new(n)).hourly(n, joins);
        println!(
            "  {joins:.0} join an hour: {requests:.0} requests, {events:.0} events, {:.2} GB; a second {:.0} requests, {:.0} events, \
             {:.1} Mbit",
            bytes / 1e9,
            requests / 3600.0,
            events / 3600.0,
            bytes * 8.0 / 3600.0 / 1e6
        );
    }
}

fn ratio(measured: Hourly, derived: Hourly) -> String {
    let (requests, bytes) = (measured.requests / derived.requests, measured.bytes / derived.bytes);
    let events = if derived.events > 0.0 { measured.events / derived.events } else { 1.0 };
    format!("requests {requests:.3}, events {events:.3}, bytes {bytes:.3}")
}

fn by_method(cost: &Cost, per: f64) -> String {
    let methods = cost.requests.iter().map(|(method, count)| {
        let count = if method == "Watch" { cost.watches } else { *count };
        format!("{method} {:.2}", count / per)
    });
    methods.collect::<Vec<_>>().join(", ")
}
