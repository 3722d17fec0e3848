//! Values as large as etcd takes them, of which no agent needs one: they cost it neither its start nor memory.

use flannel_lab::cluster::Cluster;
use flannel_lab::sandbox::in_sandbox;
use flannel_lab::test_name;
use flannel_lab::wait::eventually;

use crate::backends::VXLAN;
use crate::harness::{Bed, SOON, Store, http_get};

/// Together they have five times what an agent may need for them.
const VALUES: usize = 45;
/// What an agent may need for them beside what it needs without, in bytes.
const MORE: u64 = 12 << 20;

#[test]
fn large_values_in_etcd_cost_no_start_and_no_memory() {
    in_sandbox(test_name!(), || {
        let cluster = Cluster::builder().nodes(3).families(VXLAN.widest()).build().unwrap();
        let store = crate::etcd::start(&cluster);
        let mut bed = Bed::new(cluster, store, &VXLAN, VXLAN.widest());
        bed.start(1);
        bed.start(2);
        (1..=2).for_each(|number| bed.wait_for_peers(number, 1));
        let usual = bed.agent(1).peak_rss().unwrap();
        let value = "x".repeat(1_400_000);
        for number in 0..VALUES {
            bed.store.put(&format!("garbage-{number}"), &value).unwrap();
        }
        // Who runs on is told of them by its watch; who starts lists them; so does who comes back.
        bed.start(3);
        bed.kill(2);
        bed.start(2);
        for number in 1..=3 {
            bed.wait_for_peers(number, 2);
            let peak = bed.agent(number).peak_rss().unwrap();
            assert!(peak <= usual + MORE, "agent {number} had {peak} bytes; without large values {usual}");
            eventually(SOON, "the values to be named", || {
                let answer = http_get(bed.netns(number), 8471, "/readyz");
                let is_named = answer.starts_with("HTTP/1.1 200") && answer.contains("garbage-");
                if is_named { Ok(()) } else { Err(answer) }
            });
        }
    });
}
