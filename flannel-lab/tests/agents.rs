//! Agents on nodes: they run where they should, and a failing test shows what they said.

use std::panic::catch_unwind;
use std::path::Path;
use std::time::Duration;

use flannel_lab::cluster::Cluster;
use flannel_lab::sandbox::{in_sandbox, is_inside};
use flannel_lab::test_name;
use flannel_lab::wait::eventually;

const SOON: Duration = Duration::from_secs(5);

#[test]
fn an_agent_runs_in_its_nodes_namespace() {
    in_sandbox(test_name!(), || {
        let cluster = Cluster::builder().nodes(1).build().unwrap();
        let ready = Path::new("/run/ready");
        let script = "ip -o address; echo $GREETING; touch $0; exec sleep 100";
        let agent = cluster.node(1).agent("sh", "sh");
        let agent = agent
            .args(["-c", script])
            .arg(ready)
            .env("GREETING", "hello");
        let agent = agent.start().unwrap();
        agent.wait_until_ready(ready, SOON).unwrap();
        let log = agent.log();
        assert!(
            log.contains("192.168.77.11/24") && log.contains("hello"),
            "{log}"
        );
        // The pid is the program's own, not that of a helper in between.
        eventually(SOON, "sleep to run", || {
            let line = std::fs::read(format!("/proc/{}/cmdline", agent.pid())).unwrap();
            line.starts_with(b"sleep\0")
        });
        agent.pause().unwrap();
        assert!(agent.is_running());
        agent.resume().unwrap();
        agent.kill().unwrap();
        assert!(!agent.is_running());
    });
}

#[test]
fn a_panic_shows_the_logs_of_the_agents_around() {
    let name = test_name!();
    let body = || {
        let cluster = Cluster::builder().nodes(1).build().unwrap();
        let agent = cluster
            .node(1)
            .agent("sh", "sh")
            .args(["-c", "echo my last words"]);
        let agent = agent.start().unwrap();
        agent.wait(SOON).unwrap();
        panic!("something else");
    };
    if is_inside() {
        return in_sandbox(name, body);
    }
    let panic = catch_unwind(|| in_sandbox(name, body)).unwrap_err();
    let text = panic.downcast_ref::<String>().unwrap();
    assert!(
        text.contains("node1-sh (exit status: 0)") && text.contains("my last words"),
        "{text}"
    );
}
