//! Incremental equals full, on the real kernel: after a random course of leases and damage the agent has what
//! one that starts anew would have.

use std::collections::BTreeMap;

use flannel_lab::cluster::Cluster;

use crate::backends::{BackendCase, on_every_backend};
use crate::harness::{Bed, Store, env_of, new_folder};

on_every_backend!(a_random_course_ends_where_a_restart_would);

/// Courses of random steps, each from a fixed seed.
const SEEDS: [u64; 3] = [1, 2, 3];
const STEPS: usize = 40;

/// A generator that is the same everywhere (Marsaglia's xorshift).
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 32) as usize % end
    }
}

fn a_random_course_ends_where_a_restart_would(case: &'static BackendCase) {
    let cluster = Cluster::builder().nodes(3).families(case.widest()).build().unwrap();
    let mut bed = Bed::new(cluster, new_folder(), case, case.widest());
    bed.start_all();
    (1..=3).for_each(|number| bed.wait_for_peers(number, 2));
    let own: Vec<String> =
        env_of(1).families().iter().map(|family| family.gateway.network().to_string()).collect();
    let mut damages = Vec::new();
    for ((two, three), own) in bed.remotes(2).iter().zip(&bed.remotes(3)).zip(&own) {
        let v6 = two.base.contains(':');
        damages.extend(
            (case.damages)(two, three, own)
                .into_iter()
                .map(|(_, command)| if v6 { command.replace("ip route", "ip -6 route") } else { command }),
        );
    }
    let mut leases: BTreeMap<String, String> = BTreeMap::new();
    for seed in SEEDS {
        let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        for _ in 0..STEPS {
            match random.below(4) {
                0 => {
                    let (key, _) = case.record(200 + random.below(4) as u8);
                    // What another node of these few would publish: they contradict each other at times.
                    let (_, value) = case.record(200 + random.below(4) as u8);
                    bed.store.put(&key, &value).unwrap();
                    leases.insert(key, value);
                }
                1 => {
                    let key = leases.keys().nth(random.below(4)).cloned();
                    if let Some(key) = key.filter(|key| leases.remove(key).is_some()) {
                        bed.store.delete(&key).unwrap();
                    }
                }
                _ => {
                    let command = &damages[random.below(damages.len())];
                    // It may have nothing to damage any more.
                    let _ = bed.netns(1).run("sh", &["-c", command]);
                }
            }
        }
        // What the agent makes of it is known when one that knows nothing of the course has been there.
        bed.wait_until_still(1);
        let have = bed.state(1);
        let log = bed.agent(1).log();
        bed.kill(1);
        bed.start(1);
        bed.wait_until_still(1);
        let want = bed.state(1);
        assert_eq!(have, want, "seed {seed}: left is what the agent had, right what a restart makes\n{log}");
    }
}
