//! `dist/prometheus` and `dist/grafana`: alerts as `promtool` reads and tests them, and no metric that the agent does not have.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::process::Command;

use flannel_metrics::catalogue::{ALL, Kind, Metric, process};
use regex::Regex;
use serde_json::Value;

use super::{documents, file, path, success};

const RULES: &str = "dist/prometheus/flannel.rules.yaml";
const TESTS: &str = "dist/prometheus/flannel.rules.test.yaml";

fn promtool(args: &[&str]) -> String {
    let run = Command::new("promtool").args(args).current_dir(path("")).output();
    success(&run.expect("promtool is there; .ci/install installs it"))
}

/// The rules, in all groups.
fn rules() -> Vec<Value> {
    let rules: Value = serde_saphyr::from_str(&file(RULES)).unwrap();
    let groups = rules["groups"].as_array().unwrap().iter();
    groups.flat_map(|group| group["rules"].as_array().unwrap().clone()).collect()
}

#[test]
fn each_alert_fires_and_does_not_fire_when_it_should() {
    promtool(&["check", "rules", RULES]);
    promtool(&["test", "rules", TESTS]);
    let tests: Value = serde_saphyr::from_str(&file(TESTS)).unwrap();
    for rule in rules() {
        let alert = rule["alert"].as_str().unwrap();
        let cases = tests["tests"].as_array().unwrap().iter().map(|test| &test["alert_rule_test"][0]);
        let fires: Vec<bool> = cases
            .filter(|case| case["alertname"] == alert)
            .map(|case| !case["exp_alerts"].as_array().unwrap().is_empty())
            .collect();
        assert_eq!(fires, [true, false], "{alert}");
    }
}

#[test]
fn each_alert_leads_to_a_place_in_the_documents() {
    let text = file("docs/troubleshooting.md");
    let anchors = documents::anchors("docs/troubleshooting.md");
    for rule in rules() {
        let (alert, notes) = (&rule["alert"], &rule["annotations"]);
        let runbook = notes["runbook"].as_str().unwrap();
        let anchor =
            runbook.strip_prefix("docs/troubleshooting.md#").unwrap_or_else(|| panic!("{alert}: {runbook}"));
        assert!(anchors.contains(anchor), "{alert}: {runbook} is none of {anchors:?}");
        assert!(text.contains(&format!("`{}`", alert.as_str().unwrap())), "{alert} is not named there");
        assert!(notes["summary"].is_string() && notes["description"].is_string(), "{alert}");
        assert!(matches!(rule["labels"]["severity"].as_str(), Some("critical" | "warning")), "{alert}");
    }
}

#[test]
fn rules_and_dashboard_know_no_metric_that_the_agent_does_not_have() {
    let series = |metric: &Metric| match metric.kind {
        Kind::Histogram => ["_bucket", "_sum", "_count"].map(|it| metric.full_name() + it).to_vec(),
        _ => vec![metric.full_name()],
    };
    let known: BTreeSet<String> = ALL.iter().chain(process::ALL).flat_map(series).collect();
    let name = Regex::new(r"\b(?:flannel|process)_\w+").unwrap();
    let named = |text: &str| name.find_iter(text).map(|it| it.as_str().to_owned()).collect::<BTreeSet<_>>();
    for file_name in [RULES, TESTS, "dist/grafana/flannel.json"] {
        let named = named(&file(file_name));
        assert!(named.len() > 10 && named.is_subset(&known), "{file_name}: {:?}", named.difference(&known));
    }
    // What is measured and not for each peer is on the dashboard.
    let shown = named(&file("dist/grafana/flannel.json"));
    let is_shown = |metric: &&Metric| series(metric).iter().any(|name| shown.contains(name));
    let missing: Vec<&str> = ALL
        .iter()
        .filter(|metric| !metric.is_per_peer && !is_shown(metric))
        .map(|metric| metric.name)
        .collect();
    let left_out = [
        "flannel_node",
        "flannel_phase",
        "flannel_peers_expected",
        "flannel_synced",
        "flannel_device_usable",
        "flannel_repairs",
        "flannel_events_missed",
    ];
    assert_eq!(missing, left_out, "shown in another form, or in alerts alone");
}

/// The table of `docs/metrics.md` for some metrics.
fn table(metrics: impl Iterator<Item = &'static Metric>) -> String {
    let mut table = "| metric | type | labels | what it says |\n| --- | --- | --- | --- |\n".to_owned();
    for metric in metrics {
        let kind = match metric.kind {
            Kind::Gauge => "gauge",
            Kind::Counter => "counter",
            Kind::Histogram => "histogram",
            Kind::Info => "info",
            _ => panic!("the document has no word for {:?}", metric.kind),
        };
        let labels = metric.labels.iter().map(|label| format!("`{label}`")).collect::<Vec<_>>().join(", ");
        writeln!(table, "| `{}` | {kind} | {labels} | {} |", metric.full_name(), metric.help).unwrap();
    }
    table
}

#[test]
fn the_reference_lists_each_metric() {
    let document = file("docs/metrics.md");
    let of_agent = |is_per_peer: bool| ALL.iter().filter(move |metric| metric.is_per_peer == is_per_peer);
    for table in [table(of_agent(false)), table(of_agent(true)), table(process::ALL.iter())] {
        assert!(document.contains(&table), "docs/metrics.md must have this table:\n{table}");
    }
}
