//! Somebody who may write to the store writes what nobody can use, without a pause.

use std::collections::BTreeSet;
use std::time::Duration;

use super::Scene;
use super::shapes::{Record, Shapes};
use crate::Fallible;
use crate::action::Victim;
use crate::store::Store;

/// From one write to the next.
const PACE: Duration = Duration::from_millis(5);
/// How many giants stay for as long as it lasts: 84 MB in all.
const GIANTS: usize = 60;

pub(super) fn run(scene: &Scene<'_>) -> Fallible<String> {
    let lab = scene.lab;
    let nodes = lab.numbers().filter_map(|number| lab.lease(Victim::Node(number))).collect::<Vec<_>>();
    let shapes = Shapes { backend: lab.backend, families: lab.cluster.families(), nodes: &nodes };
    let is_kube = matches!(lab.store, Store::Kube(_));
    let all = shapes.all().into_iter().filter(|record| record.in_kube || !is_kube).collect::<Vec<_>>();
    let giants = (0..GIANTS).map(|number| shapes.giant(number)).collect::<Vec<_>>();
    let mut rng = fastrand::Rng::with_seed(scene.seed);
    let (mut puts, mut deletions) = (0_u32, 0_u32);
    let mut there = BTreeSet::new();
    let mut put = |record: &Record, there: &mut BTreeSet<String>| {
        puts += 1;
        there.insert(record.key.clone());
        lab.store.put_bytes(&record.key, &record.value)
    };
    for giant in &giants {
        put(giant, &mut there)?;
    }
    while !scene.is_over() {
        if rng.u8(..3) > 0 {
            put(&all[rng.usize(..all.len())], &mut there)?;
        } else if let Some(key) = there.iter().find(|key| !key.starts_with("giant")).cloned() {
            lab.store.delete_bytes(&key)?;
            there.remove(&key);
            deletions += 1;
        }
        scene.sleep(PACE);
    }
    for key in &there {
        lab.store.delete_bytes(key)?;
    }
    Ok(format!("{} shapes and {GIANTS} giants written {puts} times and deleted {deletions} times", all.len()))
}
