//! How fast the tunnel is, next to kernel VXLAN and to a forwarder of single packets.
//!
//! ```text
//! pod1 ── node1 ── eth0 ─ veth ─ eth0 ── node2 ── pod2
//! ```
//!
//! All methods have their own device and pod addresses in the same four namespaces, so that rounds can
//! interleave them. `cargo run --release -p flannel-backend-udp --example udp_bench -- LAB ROUNDS [METHOD..]`
//! with LAB `a` (veth as it is), `b` (no TSO and USO on the underlay, GRO on) or `c` (no offloads), and the
//! methods `auto`, `one`, `two`, `naive` and `vxlan`. `foreign` is what the rest of the machine took of its CPUs.

#![allow(unreachable_pub, clippy::cast_precision_loss)]

#[path = "../../tests/common/mod.rs"]
mod common;
mod cpu;
mod flood;
mod method;
mod sys;

use std::error::Error;
use std::process::ExitCode;
use std::time::Duration;

use common::Lab;
use flannel_lab::ping::{PingOptions, ping};
use flannel_lab::sandbox::{Entered, enter_sandbox};
use serde_json::Value;

use self::cpu::Cpu;
use self::method::{Kind, Method};

/// One figure of one method in one round.
struct Sample {
    method: Kind,
    what: &'static str,
    value: f64,
    /// CPU seconds a gigabyte, or a million packets; zero where it says nothing.
    cost: f64,
    foreign: f64,
    retransmits: f64,
}

fn main() -> Result<ExitCode, Box<dyn Error>> {
    if let Entered::Outside(code) = enter_sandbox()? {
        return Ok(code);
    }
    let mut args = std::env::args().skip(1);
    let lab_name = args.next().unwrap_or_else(|| "a".to_owned());
    let rounds: usize = args.next().map_or(Ok(3), |text| text.parse())?;
    let mut kinds: Vec<Kind> = args.filter_map(|name| Kind::parse(&name)).collect();
    if kinds.is_empty() {
        kinds = Kind::ALL.to_vec();
    }
    let lab = Lab::new();
    for number in 1..=2 {
        let off = ["tx-tcp-segmentation", "tx-tcp6-segmentation", "tx-tcp-ecn-segmentation"]
            .into_iter()
            .chain(["tx-tcp-mangleid-segmentation", "tx-udp-segmentation", "tx-udp_tnl-segmentation"])
            .chain(["tx-udp_tnl-csum-segmentation"])
            .map(|name| (name, false));
        let features: Vec<_> = match lab_name.as_str() {
            "b" => off.chain([("rx-gro", true)]).collect(),
            "c" => off.chain([("tx-generic-segmentation", false), ("rx-gro", false)]).collect(),
            _ => vec![],
        };
        lab.node(number).enter(|| sys::set_features("eth0", &features))??;
    }
    let methods: Vec<Method> = kinds.iter().map(|kind| Method::start(&lab, *kind)).collect();
    for method in &methods {
        method.describe();
    }
    let mut samples = Vec::new();
    for round in 1..=rounds {
        let mut order: Vec<_> = methods.iter().collect();
        fastrand::shuffle(&mut order);
        for method in order {
            run(&lab, method, &mut samples);
        }
        eprintln!("round {round} of {rounds} done");
    }
    print(&kinds, &samples);
    methods.iter().for_each(Method::summary);
    Ok(ExitCode::SUCCESS)
}

/// How long each TCP run takes.
const SECONDS: u32 = 2;

fn run(lab: &Lab, method: &Method, samples: &mut Vec<Sample>) {
    for (what, streams) in [("1 stream Gbit/s", 1), ("4 streams Gbit/s", 4)] {
        let cpu = Cpu::now();
        let Some((gbps, bytes, retransmits)) = iperf(lab, method, streams, SECONDS) else {
            eprintln!("{:?}: iperf3 failed", method.kind);
            continue;
        };
        let (own, foreign) = cpu.since();
        let cost = own / (bytes / 1e9);
        samples.push(Sample { method: method.kind, what, value: gbps, cost, foreign, retransmits });
    }
    let cpu = Cpu::now();
    let (sent, received, time) = flood::run(lab, method.pod(2), Duration::from_millis(1500));
    let (own, foreign) = cpu.since();
    let kpps = received as f64 / time.as_secs_f64() / 1000.0;
    let (cost, lost) = (own / (received.max(1) as f64 / 1e6), (sent - received.min(sent)) as f64);
    let what = "64 B UDP kpps";
    samples.push(Sample { method: method.kind, what, value: kpps, cost, foreign, retransmits: lost });
    let options = PingOptions { count: 300, interval: Duration::from_millis(2), ..PingOptions::default() };
    let cpu = Cpu::now();
    let report = ping(lab.pod(1), method.pod(2), options).expect("ping runs");
    let (_, foreign) = cpu.since();
    let median = report.rtt.map_or(f64::NAN, |rtt| rtt.median.as_secs_f64() * 1e6);
    samples.push(Sample {
        method: method.kind,
        what: "ping p50 us",
        value: median,
        cost: 0.0,
        foreign,
        retransmits: 0.0,
    });
}

/// Gbit/s, bytes received and retransmitted segments.
fn iperf(lab: &Lab, method: &Method, streams: u32, seconds: u32) -> Option<(f64, f64, f64)> {
    let address = method.pod(2).to_string();
    let mut server = lab.pod(2).command("iperf3");
    server.args(["-s", "-1", "-B", &address]).stdout(std::process::Stdio::null());
    let mut server = server.spawn().ok()?;
    std::thread::sleep(Duration::from_millis(150));
    let mut client = lab.pod(1).command("iperf3");
    client.args(["-c", &address, "-J", "-t", &seconds.to_string(), "-P", &streams.to_string()]);
    let output = client.output().ok()?;
    if !output.status.success() {
        let _ = server.kill();
    }
    let _ = server.wait();
    let report: Value = serde_json::from_slice(&output.stdout).ok()?;
    let received = &report["end"]["sum_received"];
    let retransmits = report["end"]["sum_sent"]["retransmits"].as_f64().unwrap_or(0.0);
    Some((received["bits_per_second"].as_f64()? / 1e9, received["bytes"].as_f64()?, retransmits))
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

fn print(kinds: &[Kind], samples: &[Sample]) {
    for what in ["1 stream Gbit/s", "4 streams Gbit/s", "64 B UDP kpps", "ping p50 us"] {
        println!(
            "\n{what:18} {:>8} {:>8} {:>8} {:>10} {:>8} {:>4}",
            "median", "quiet", "cost", "lost/retr", "foreign", "n"
        );
        for kind in kinds {
            let of: Vec<_> =
                samples.iter().filter(|sample| sample.method == *kind && sample.what == what).collect();
            let quiet: Vec<f64> = of.iter().filter(|s| s.foreign < 0.2).map(|s| s.value).collect();
            let pick = |value: fn(&Sample) -> f64| median(of.iter().map(|sample| value(sample)).collect());
            println!(
                "{:18} {:8.2} {:8.2} {:8.2} {:10.0} {:7.0}% {:2}/{}",
                format!("{kind:?}"),
                pick(|sample| sample.value),
                median(quiet.clone()),
                pick(|sample| sample.cost),
                pick(|sample| sample.retransmits),
                pick(|sample| sample.foreign) * 100.0,
                quiet.len(),
                of.len(),
            );
        }
    }
}
