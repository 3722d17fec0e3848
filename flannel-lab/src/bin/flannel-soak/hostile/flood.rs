//! Somebody who may write to the store fills it with keys, and takes them all away at once.

use std::time::Duration;

use super::Scene;
use crate::Fallible;
use crate::action::Victim;
use crate::store::Store;

/// How many keys are written in one go.
const CHUNK: usize = 1000;
/// How long they stay, and stay away.
const HOLD: Duration = Duration::from_secs(3);

pub(super) fn run(scene: &Scene<'_>) -> Fallible<String> {
    // Every object of the API server costs this machine more than a key does.
    let count = if matches!(scene.lab.store, Store::Kube(_)) { 2_000 } else { 20_000 };
    let (mut written, mut floods) = (0, 0);
    while !scene.is_over() {
        let keys = keys(floods % 2 == 1, count);
        let value = value(scene, floods % 2 == 1)?;
        let mut there = 0;
        for chunk in keys.chunks(CHUNK) {
            if scene.is_over() {
                break;
            }
            scene.lab.store.put_many(chunk, &value)?;
            there += chunk.len();
        }
        scene.sleep(HOLD);
        scene.lab.store.delete_many(&keys[..there])?;
        written += there;
        floods += 1;
        scene.sleep(HOLD);
    }
    Ok(format!("{written} keys in {floods} floods"))
}

/// Garbage, or subnets outside of the network. All of them begin alike, so that they can be deleted as a range.
fn keys(is_lease: bool, count: usize) -> Vec<String> {
    let key = |number: usize| {
        if is_lease {
            format!("10.43.{}.{}-30", number / 64 % 256, number % 64 * 4)
        } else {
            format!("flood-{number:06}")
        }
    };
    // There are no more such subnets.
    (0..if is_lease { count.min(64 * 256) } else { count }).map(key).collect()
}

fn value(scene: &Scene<'_>, is_lease: bool) -> Fallible<String> {
    let lease = scene.lab.lease(Victim::Node(1)).ok_or("node1 has no lease")?;
    Ok(if is_lease { lease.value(scene.lab.backend) } else { "garbage".repeat(8) })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn a_flood_has_one_beginning_and_no_key_twice() {
        for (is_lease, count, beginning) in [(false, 20_000, "flood-"), (true, 16_384, "10.43.")] {
            let keys = keys(is_lease, 20_000);
            assert!(keys.iter().all(|key| key.starts_with(beginning)));
            assert_eq!(keys.iter().collect::<BTreeSet<_>>().len(), count);
        }
        assert_eq!(keys(true, 70)[69], "10.43.1.20-30");
    }
}
