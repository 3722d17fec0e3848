//! An agent with nothing to do does nothing: it never answers its own writes, nor those of its resync.

use std::thread::sleep;
use std::time::Duration;

use flannel_lab::agent::Agent;
use flannel_lab::bed;
use flannel_lab::cluster::Cluster;
use flannel_lab::sandbox::in_sandbox;
use flannel_lab::test_name;
use flannel_lab::wait::eventually;

use crate::backends::{BackendCase, HOST_GW, UDP, VXLAN, VXLAN_DIRECT, VXLAN_PLAIN};
use crate::harness::{FLANNELD, Folder, Monitor, SOON, Store, http_get, subnet_file};

/// Longer than the time between two resyncs, which is 66 s at most.
const MINUTE: Duration = Duration::from_secs(68);

/// All backends at once, each with two nodes and a store of its own, so that it takes one minute.
#[test]
fn nothing_is_written_in_a_minute_without_change() {
    in_sandbox(test_name!(), || {
        let cases = [&VXLAN, &VXLAN_PLAIN, &VXLAN_DIRECT, &HOST_GW, &UDP];
        let cluster = Cluster::builder().nodes(10).families(VXLAN.widest()).build().unwrap();
        let mut agents = Vec::new();
        for (number, case) in (1..).step_by(2).zip(cases) {
            let store = Folder::new(format!("/run/flannel-store-{number}")).unwrap();
            store.put_config(&case.config(case.widest())).unwrap();
            for n in 200..220 {
                let (key, value) = case.record(n);
                store.put(&key, &value).unwrap();
            }
            for number in [number, number + 1] {
                agents.push((case, number, start(&cluster, number, &store, case)));
            }
        }
        for (_, number, agent) in &agents {
            eventually(SOON, &format!("agent {number} to be ready"), || {
                let answer = http_get(cluster.node(*number).netns(), 8471, "/readyz");
                if answer.starts_with("HTTP/1.1 200") { Ok(()) } else { Err(agent.last_lines()) }
            });
        }
        // Each has to hear of the other yet.
        eventually(SOON, "all to have nothing to do", || {
            let before = agents.iter().map(|(_, _, agent)| operations(agent)).collect::<Vec<_>>();
            sleep(Duration::from_secs(2));
            before == agents.iter().map(|(_, _, agent)| operations(agent)).collect::<Vec<_>>()
        });
        let quiet: Vec<_> = (agents.iter())
            .map(|(case, number, agent)| {
                (case, agent, operations(agent), Monitor::start(cluster.node(*number).netns()))
            })
            .collect();
        sleep(MINUTE);
        for (case, agent, before, monitor) in &quiet {
            let name = format!("{}{} {:?}", case.kind, case.keys, case.flags);
            assert!(operations(agent) == *before, "{name} wrote: {}", agent.last_lines());
            assert_eq!(monitor.seen(), Vec::<String>::new(), "{name}");
            assert!(!agent.log().contains("drift repaired"), "{name}: {}", agent.last_lines());
        }
    });
}

fn start(cluster: &Cluster, number: u8, store: &Folder, case: &BackendCase) -> Agent {
    let agent = bed::flanneld(cluster.node(number), &[FLANNELD], store, &subnet_file(number));
    agent.args(["--iface=eth0", "-v=1"]).args(case.flags).start().unwrap()
}

/// The operations that an agent sent to the kernel, and its changes of links.
fn operations(agent: &Agent) -> usize {
    let log = agent.log();
    log.matches("execute op=").count() + log.matches("device ").count()
}
