//! A real Prometheus scrapes real agents: the alerts of `dist/` are evaluated, and each query of the dashboard has data.

use std::fs;
use std::path::Path;

use flannel_lab::agent::{Agent, AgentBuilder};
use flannel_lab::cluster::Cluster;
use flannel_lab::netns::Netns;
use flannel_lab::sandbox::in_sandbox;
use flannel_lab::test_name;
use flannel_lab::wait::eventually;
use serde_json::Value;

use crate::backends::VXLAN;
use crate::harness::{Bed, SOON, Store, http_get, new_folder};

/// A file of `dist`.
fn dist(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../dist").join(name);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// A Prometheus that asks these addresses every second.
struct Prometheus<'a> {
    netns: &'a Netns,
    server: Agent,
}

impl<'a> Prometheus<'a> {
    fn start(netns: &'a Netns, targets: &[String]) -> Self {
        let folder = Path::new("/run/prometheus");
        fs::create_dir(folder).unwrap();
        fs::write(folder.join("flannel.rules.yaml"), dist("prometheus/flannel.rules.yaml")).unwrap();
        let config = format!(
            "global: {{scrape_interval: 1s, evaluation_interval: 1s}}\n\
             rule_files: [flannel.rules.yaml]\n\
             scrape_configs:\n- job_name: flannel\n  static_configs: [{{targets: {targets:?}}}]\n"
        );
        fs::write(folder.join("prometheus.yml"), config).unwrap();
        let server = AgentBuilder::new("prometheus", "prometheus")
            .netns(netns)
            .arg(format!("--config.file={}/prometheus.yml", folder.display()))
            .arg(format!("--storage.tsdb.path={}/data", folder.display()))
            .arg("--web.listen-address=127.0.0.1:9090")
            .start()
            .expect("Prometheus is there; .ci/install installs it");
        Self { netns, server }
    }

    /// The data of an answer of its API.
    fn ask(&self, path: &str, parameters: &[&str]) -> Result<Value, String> {
        let url = format!("http://127.0.0.1:9090/api/v1/{path}");
        let mut args = vec!["--silent", "--show-error", "--get", "--max-time", "5"];
        for parameter in parameters {
            args.extend(["--data-urlencode", parameter]);
        }
        args.push(&url);
        let text = self
            .netns
            .run("curl", &args)
            .map_err(|error| format!("{error}; {}", self.server.last_lines()))?;
        let answer: Value = serde_json::from_str(&text).map_err(|error| format!("{error}: {text}"))?;
        if answer["status"] == "success" { Ok(answer["data"].clone()) } else { Err(text) }
    }

    /// The values of a query; an error if it has none.
    fn query(&self, query: &str) -> Result<Vec<Value>, String> {
        let data = self.ask("query", &[&format!("query={query}")])?;
        let values = data["result"].as_array().cloned().unwrap_or_default();
        if values.is_empty() { Err(format!("no data for {query}")) } else { Ok(values) }
    }
}

/// The queries of the dashboard that this backend has data for, with what Grafana puts in place of its variables. Sessions are
/// those of wireguard.
fn queries() -> Vec<String> {
    let dashboard: Value = serde_json::from_str(&dist("grafana/flannel.json")).unwrap();
    let panels = dashboard["panels"].as_array().unwrap().iter();
    let targets = panels.flat_map(|panel| panel["targets"].as_array().into_iter().flatten());
    let of = |target: &Value| target["expr"].as_str().unwrap().to_owned();
    let queries = targets.map(of).filter(|query| !query.contains("flannel_session"));
    queries.map(|it| it.replace("$instance", ".*").replace("$__rate_interval", "20s")).collect()
}

#[test]
fn a_real_prometheus_has_data_for_each_query_of_the_dashboard_and_no_alert_on_a_healthy_cluster() {
    in_sandbox(test_name!(), || {
        let cluster = Cluster::builder().nodes(2).families(VXLAN.widest()).build().unwrap();
        let config = VXLAN.config(VXLAN.widest()).replacen('{', "{\"EnableNFTables\":true,", 1);
        let mut bed = Bed::with_config(cluster, new_folder(), &VXLAN, &config);
        bed.spawn(1, &["--ip-masq", "--metrics-per-peer"]);
        bed.spawn(2, &["--ip-masq"]);
        for number in [1, 2] {
            bed.wait_ready(number);
        }
        let addresses = [1, 2].map(|number| bed.cluster.node(number).ipv4().unwrap());
        let targets = addresses.map(|address| format!("{address}:8471"));
        let prometheus = Prometheus::start(bed.netns(1), &targets);

        eventually(SOON, "both agents to be scraped", || {
            let values = prometheus.query("up")?;
            let up = values.iter().filter(|it| it["value"][1] == "1").count();
            if up == 2 { Ok(()) } else { Err(format!("{:?}", prometheus.ask("targets", &[]))) }
        });
        let queries = queries();
        assert!(queries.len() > 40, "{}", queries.len());
        for query in &queries {
            eventually(SOON, query, || {
                let values = prometheus.query(query)?;
                // A quantile of no observations is no number, which is what a healthy node has for repairs.
                let is_number =
                    |it: &Value| it["value"][1].as_str().is_some_and(|text| text.parse::<f64>().is_ok());
                if values.iter().all(is_number) { Ok(()) } else { Err(format!("{values:?}")) }
            });
        }
        // By node, and by peer where that was asked for.
        let peers = prometheus.query("flannel_peer_info").unwrap();
        let [peer] = &peers[..] else { panic!("{peers:?}") };
        assert_eq!(peer["metric"]["instance"], targets[0].as_str(), "only node 1 was asked for it");
        assert!(peer["metric"]["underlay"].as_str().unwrap().contains(&addresses[1].to_string()), "{peer}");
        let kinds = prometheus.ask("metadata", &["metric=flannel_lease_remaining_seconds"]).unwrap();
        let of_lease = &kinds["flannel_lease_remaining_seconds"][0];
        assert_eq!(
            (&of_lease["type"], &of_lease["unit"]),
            (&"gauge".into(), &"seconds".into()),
            "OpenMetrics"
        );

        // The alerts are all evaluated, and quiet; what goes wrong makes its alert pending at once.
        let state = |alert: &str| {
            let groups = prometheus.ask("rules", &["type=alert"])?;
            let groups = groups["groups"].as_array().cloned().unwrap_or_default();
            let rules: Vec<Value> = groups
                .iter()
                .flat_map(|group| group["rules"].as_array().cloned().unwrap_or_default())
                .collect();
            let bad: Vec<&Value> =
                rules.iter().filter(|rule| rule["health"] != "ok" && rule["health"] != "unknown").collect();
            assert!(bad.is_empty() && rules.len() >= 18, "{bad:?} of {}", rules.len());
            let rule = rules.iter().find(|rule| rule["name"] == alert && rule["health"] == "ok");
            rule.map(|rule| rule["state"].as_str().unwrap().to_owned())
                .ok_or(format!("{alert} is not evaluated yet"))
        };
        for alert in ["FlannelDown", "FlannelNotReady", "FlannelPeersCut", "FlannelLeasesRejected"] {
            assert_eq!(eventually(SOON, alert, || state(alert)), "inactive", "{alert}");
        }
        bed.store.put("10.244.177.0-24", "{\"PublicIP\": \"nowhere\"}").unwrap();
        eventually(SOON, "the alert", || match state("FlannelLeasesRejected")?.as_str() {
            "pending" => Ok(()),
            other => Err(other.to_owned()),
        });
        // Whoever reads the metrics of node 2 learns no name.
        let answer = eventually(SOON, "node 2 to count it", || {
            let answer = http_get(bed.netns(2), 8471, "/metrics");
            if answer.contains("\nflannel_rejected_leases 1\n") { Ok(answer) } else { Err(answer) }
        });
        assert!(!answer.contains("10.244."), "{answer}");
    });
}
