//! One method's runs.

use std::time::Duration;

use clap::ValueEnum;
use flannel_benches::Fallible;
use flannel_benches::flood::flood;
use flannel_benches::machine::{Usage, Watch};
use flannel_lab::agent::Agent;
use flannel_lab::ping::{PingOptions, ping};

use crate::bed::{Bed, Ends, Method};
use crate::report::{Figure, Report};

/// What a round measures of a method.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Part {
    /// TCP with one stream and with four.
    Tcp,
    /// Small packets.
    Small,
    /// Round trips.
    Rtt,
}

/// Each part once.
pub(crate) fn parts(
    bed: &Bed,
    method: Method,
    parts: &[Part],
    seconds: u32,
    report: &mut Report,
) -> Fallible<()> {
    let ends = &bed.ends[&method];
    for part in parts {
        match part {
            Part::Tcp => both_tcp(ends, method, seconds, report)?,
            Part::Small => small(ends, method, report)?,
            Part::Rtt => round_trips(ends, method, report)?,
        }
    }
    Ok(())
}

fn both_tcp(ends: &Ends, method: Method, seconds: u32, report: &mut Report) -> Fallible<()> {
    for (streams, rate, cost, lost) in [
        (1, Figure::Tcp1, Figure::CpuPerGb1, Figure::Retransmits1),
        (4, Figure::Tcp4, Figure::CpuPerGb4, Figure::Retransmits4),
    ] {
        let tcp = tcp(ends, streams, seconds)?;
        report.note(method, rate, tcp.gbps, tcp.foreign);
        report.note(method, cost, tcp.cpu_per_gb, tcp.foreign);
        report.note(method, lost, tcp.retransmits, tcp.foreign);
    }
    Ok(())
}

struct Tcp {
    gbps: f64,
    cpu_per_gb: f64,
    retransmits: f64,
    foreign: f64,
}

fn tcp(ends: &Ends, streams: u32, seconds: u32) -> Fallible<Tcp> {
    let before = carriers(ends)?;
    let watch = Watch::start();
    let (dst, time, streams) = (ends.dst.to_string(), seconds.to_string(), streams.to_string());
    let text = ends.from.run("iperf3", &["-c", &dst, "-t", &time, "-P", &streams, "-J"])?;
    let usage = watch.stop();
    let json: serde_json::Value = serde_json::from_str(&text)?;
    let end = &json["end"];
    let number =
        |value: &serde_json::Value| value.as_f64().ok_or_else(|| format!("iperf3 says {}", json["error"]));
    let bytes = number(&end["sum_received"]["bytes"])?;
    let percent = number(&end["cpu_utilization_percent"]["host_total"])?
        + number(&end["cpu_utilization_percent"]["remote_total"])?;
    let iperf = Duration::from_secs_f64(number(&end["sum_sent"]["seconds"])? * percent / 100.0);
    let ours = iperf + carriers(ends)?.saturating_sub(before);
    Ok(Tcp {
        gbps: number(&end["sum_received"]["bits_per_second"])? / 1e9,
        cpu_per_gb: cost(ours, &usage) / (bytes / 1e9),
        retransmits: number(&end["sum_sent"]["retransmits"])?,
        foreign: usage.foreign(ours),
    })
}

fn small(ends: &Ends, method: Method, report: &mut Report) -> Fallible<()> {
    let time = Duration::from_millis(1500);
    let before = carriers(ends)?;
    let watch = Watch::start();
    let flood = flood(&ends.from, &ends.to, ends.dst, time)??;
    let usage = watch.stop();
    let ours = carriers(ends)?.saturating_sub(before);
    let foreign = usage.foreign(ours);
    report.note(method, Figure::SmallOffered, flood.offered / 1e3, foreign);
    report.note(method, Figure::Small, flood.received / 1e3, foreign);
    let millions = flood.received * time.as_secs_f64() / 1e6;
    report.note(method, Figure::CpuPerMillion, cost(ours, &usage) / millions, foreign);
    Ok(())
}

fn round_trips(ends: &Ends, method: Method, report: &mut Report) -> Fallible<()> {
    let options = PingOptions { count: 300, interval: Duration::from_millis(2), ..PingOptions::default() };
    let before = carriers(ends)?;
    let watch = Watch::start();
    let pings = ping(&ends.from, ends.dst, options)?;
    let usage = watch.stop();
    let ours = carriers(ends)?.saturating_sub(before);
    let rtt = pings.rtt.ok_or_else(|| format!("{method}: no ping was answered: {pings:?}"))?;
    report.note(method, Figure::Rtt, rtt.median.as_secs_f64() * 1e6, usage.foreign(ours));
    Ok(())
}

/// Processor seconds of ours and of soft interrupts, which on a quiet machine are ours, too.
fn cost(ours: Duration, usage: &Usage) -> f64 {
    (ours + usage.softirq).as_secs_f64()
}

/// What the processes on the way used so far, and this one, which floods and pings.
fn carriers(ends: &Ends) -> Fallible<Duration> {
    let times: Result<Vec<Duration>, _> = ends.carriers.iter().map(Agent::cpu_time).collect();
    let own = process_time(&std::fs::read_to_string("/proc/self/stat")?);
    Ok(times?.into_iter().sum::<Duration>() + own)
}

/// utime and stime of a process (proc(5)), in ticks of 10 ms.
fn process_time(stat: &str) -> Duration {
    let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields);
    let ticks = fields.split_whitespace().skip(11).take(2).filter_map(|field| field.parse::<u64>().ok());
    Duration::from_millis(ticks.sum::<u64>() * 10)
}
