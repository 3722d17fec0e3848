//! Two agents of one process, each with metrics of its own: all that the catalogue promises is there, in names that
//! `promtool` accepts, and says what happened to that agent and to no other.

#[allow(dead_code, unreachable_pub)]
#[path = "../examples/scrape.rs"]
mod scrape;

use std::collections::BTreeSet;
use std::io::Write as _;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use flannel_backend_vxlan::VxlanBackend;
use flannel_core::agent::{Agent, FirewallOptions};
use flannel_core::firewall::gate::GateOptions;
use flannel_core::probe::{ProbeInterval, ProbeOptions};
use flannel_core::subnet::local::{LocalOptions, LocalSubnetManager};
use flannel_core::underlay::UnderlayOptions;
use flannel_lab::netns::Netns;
use flannel_lab::sandbox::in_sandbox;
use flannel_lab::test_name;
use flannel_lab::wait::eventually;
use flannel_metrics::catalogue::{ALL, Metric, process};
use flannel_metrics::prometheus_client::registry::Registry;
use flannel_metrics::{AgentMetrics, Format, Options, ProcessMetrics, render};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

const SOON: Duration = Duration::from_secs(20);

/// Two namespaces on one wire.
fn hosts() -> [Netns; 2] {
    let [one, two] = ["one", "two"].map(|name| Netns::add(name).unwrap());
    one.ip("link add eth0 type veth peer name eth0 netns two").unwrap();
    for (host, addr) in [(&one, "192.0.2.1/24"), (&two, "192.0.2.2/24")] {
        host.ip(&format!("addr add {addr} dev eth0")).unwrap();
        host.ip("link set eth0 up").unwrap();
    }
    [one, two]
}

fn start(host: &Netns) -> Agent {
    let store = LocalSubnetManager::new(LocalOptions::new("/run/store"));
    Agent::builder(Arc::new(store))
        .backend(VxlanBackend::new().strict_underlay(GateOptions::default()))
        .underlay(UnderlayOptions::auto().iface("eth0"))
        .firewall(FirewallOptions::masquerade())
        .probes(ProbeOptions::new(ProbeInterval::Auto))
        .netns(flannel_core::netns::Netns::open(host.path()).unwrap())
        .start()
        .unwrap()
}

/// The value of a series, as it is written.
fn value<'a>(answer: &'a str, series: &str) -> Option<&'a str> {
    answer.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '))
}

/// What `promtool check metrics` finds wrong.
fn lint(answer: &str) -> String {
    let mut tool = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("promtool is there; .ci/install installs it");
    tool.stdin.take().unwrap().write_all(answer.as_bytes()).unwrap();
    let said = tool.wait_with_output().unwrap();
    String::from_utf8([said.stdout, said.stderr].concat()).unwrap()
}

/// The metrics of an answer by the names of their descriptions.
fn described(answer: &str) -> BTreeSet<String> {
    let name = |line: &str| line.strip_prefix("# TYPE ")?.split(' ').next().map(str::to_owned);
    answer.lines().filter_map(name).collect()
}

/// What a client of the example gets.
async fn the_example_serves(metrics: &AgentMetrics) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    client.write_all(b"GET /metrics HTTP/1.0\r\nAccept: application/openmetrics-text\r\n\r\n").await.unwrap();
    scrape::serve(listener.accept().await.unwrap().0, metrics).await.unwrap();
    let mut said = String::new();
    client.read_to_string(&mut said).await.unwrap();
    assert!(said.contains("\r\nContent-Type: application/openmetrics-text; version=1.0.0"), "{said}");
    assert!(said.ends_with("\n# EOF\n") && said.contains("\nflannel_ready 1\n"), "{said}");
}

#[test]
fn each_agent_has_metrics_of_its_own_and_all_that_the_catalogue_lists() {
    in_sandbox(test_name!(), || {
        let hosts = hosts();
        std::fs::create_dir("/run/store").unwrap();
        let config = r#"{"Network":"10.244.0.0/16","EnableNFTables":true,"Backend":{"Type":"vxlan"}}"#;
        std::fs::write("/run/store/config", config).unwrap();
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let _inside = runtime.enter();
        let agents = hosts.each_ref().map(start);
        let [one, two] = agents.each_ref().map(|agent| {
            let metrics = AgentMetrics::new(agent.status(), Options::default().version("1.2.3"));
            runtime.spawn(metrics.count_events(agent.events()));
            metrics
        });
        for agent in &agents {
            let mut status = agent.status();
            let seen = status.wait_for(|status| {
                status.readiness().is_ready()
                    && status.network.as_ref().is_some_and(|network| network.peers == 1)
            });
            runtime.block_on(tokio::time::timeout(SOON, seen)).expect("it has a peer").unwrap();
        }
        let classic = one.render(Format::Prometheus);
        assert_eq!(lint(&classic), "", "{classic}");
        for (series, want) in [
            ("flannel_build_info{version=\"1.2.3\"}", "1"),
            (
                "flannel_node_info{backend=\"vxlan\",link=\"eth0\",datapath=\"routes through next-hop objects\"}",
                "1",
            ),
            ("flannel_ready", "1"),
            ("flannel_phase{phase=\"running\"}", "1"),
            ("flannel_phase{phase=\"ended\"}", "0"),
            ("flannel_peers{state=\"programmed\"}", "1"),
            ("flannel_peers_cut{family=\"ipv4\"}", "0"),
            ("flannel_overlay_mtu_bytes", "1450"),
            ("flannel_repairs_total", "0"),
            ("flannel_repaired_objects_total{kind=\"route\",cause=\"announced\"}", "0"),
            ("flannel_datapath_dropped_packets_total{device=\"flannel.1\",reason=\"receive_errors\"}", "0"),
            ("flannel_gate_let_in_packets_total{reason=\"no_lease\"}", "0"),
            ("flannel_gate_dropped_packets_total{reason=\"not_own_subnet\"}", "0"),
            ("flannel_probe_verdicts{verdict=\"reachable\"}", "1"),
            ("flannel_probe_verdicts{verdict=\"mtu-hole\"}", "0"),
            ("flannel_firewall_in_place", "1"),
            ("flannel_store_connected", "1"),
            ("flannel_store_request_failures_total{request=\"read the folder\"}", "0"),
            ("flannel_events_total{event=\"lease-acquired\"}", "1"),
        ] {
            eventually(SOON, series, || {
                let answer = one.render(Format::Prometheus);
                if value(&answer, series) == Some(want) { Ok(()) } else { Err(answer) }
            });
        }
        // A peer that starts may not have answered the first one.
        let lost = value(&classic, "flannel_probes_lost_total{way=\"overlay\"}").unwrap();
        assert!(lost.parse::<u64>().is_ok(), "{lost}");
        let left: f64 = value(&classic, "flannel_lease_remaining_seconds").unwrap().parse().unwrap();
        assert!(left > 86_000.0 && left <= 86_400.0, "a day: {left}");
        // Whoever reaches the port may read it.
        for secret in ["192.0.2.", "10.244.", "/run/store"] {
            assert!(!classic.contains(secret), "{secret} in {classic}");
        }

        // What happens to one is not said of the other.
        let other = runtime.block_on(agents[1].ready()).unwrap().lease.key.subnets().v4.unwrap();
        let drift = || hosts[0].ip(&format!("route del {other}")).unwrap();
        drift();
        let repaired = "flannel_repaired_objects_total{kind=\"route\",cause=\"announced\"}";
        eventually(SOON, "the repair to be counted", || {
            let answer = one.render(Format::OpenMetrics);
            let is_counted = value(&answer, repaired) == Some("1")
                && value(&answer, "flannel_repair_duration_seconds_count") == Some("1")
                && value(&answer, "flannel_events_total{event=\"repaired\"}") == Some("1");
            if is_counted { Ok(()) } else { Err(answer) }
        });
        assert_eq!(value(&two.render(Format::OpenMetrics), repaired), Some("0"));

        // The catalogue is complete, and nothing in it is a promise alone.
        let each = AgentMetrics::new(agents[0].status(), Options::default().per_peer(true));
        let events = each.count_events(agents[0].events());
        drift();
        let counting = runtime.spawn(events);
        eventually(SOON, "an event", || each.render(Format::OpenMetrics).contains("flannel_events_total{"));
        counting.abort();
        // But for those of a tunnel with sessions, which this backend has not.
        let has_it =
            |metric: &&Metric| !metric.name.contains("session") && !metric.name.contains("handshake");
        let want: BTreeSet<String> = ALL.iter().filter(has_it).map(Metric::full_name).collect();
        let answer = eventually(SOON, "all metrics", || {
            let answer = each.render(Format::Prometheus);
            let missing: Vec<_> = want.symmetric_difference(&described(&answer)).cloned().collect();
            if missing.is_empty() { Ok(answer) } else { Err(missing) }
        });
        assert_eq!(lint(&answer), "");
        assert!(answer.contains("underlay=\"192.0.2.2\",path=\"vxlan\"} 1"), "{answer}");

        runtime.block_on(the_example_serves(&two));
        for agent in &agents {
            runtime.block_on(agent.stop()).unwrap();
        }
        let ended = one.render(Format::OpenMetrics);
        assert_eq!(value(&ended, "flannel_phase{phase=\"ended\"}"), Some("1"));
        assert_eq!(value(&ended, "flannel_ready"), Some("0"));
        assert_eq!(value(&ended, "flannel_peers{state=\"programmed\"}"), None, "nobody knows any more");
    });
}

#[test]
fn a_process_says_what_it_uses() {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(ProcessMetrics::default()));
    let answer = render(&registry, Format::Prometheus);
    assert_eq!(lint(&answer), "", "{answer}");
    assert_eq!(described(&answer), process::ALL.iter().map(Metric::full_name).collect());
    let value = |series: &str| value(&answer, series).unwrap().parse::<f64>().unwrap();
    assert!(value("process_resident_memory_bytes") > 100e3 && value("process_open_fds") > 2.0, "{answer}");
    assert!(value("process_open_fds") <= value("process_max_fds"));
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs_f64();
    let age = now - value("process_start_time_seconds");
    assert!((-2.0..3600.0).contains(&age), "this test has run for {age} s");
}
