//! Somebody who may write to the store writes what nobody can use, without a pause.

use std::collections::BTreeSet;
use std::time::Duration;

use super::Scene;
use super::shapes::{Record, Shapes};
use flannel_lab::store::Store as _;

use crate::Fallible;
use crate::action::Victim;
use crate::store::Store;

/// From one write to the next. The API server, which this machine plays too, has to tell all nodes of each.
const PACE: Duration = Duration::from_millis(5);
const PACE_OF_KUBE: Duration = Duration::from_millis(25);
/// How many giants stay for as long as it lasts: 56 MB in all. They come one by one, between other records.
const GIANTS: usize = 40;
const GIANTS_OF_KUBE: usize = 8;
const BETWEEN_GIANTS: u32 = 10;

pub(super) fn run(scene: &Scene<'_>) -> Fallible<String> {
    let lab = scene.lab;
    let nodes = lab.numbers().filter_map(|number| lab.lease(Victim::Node(number))).collect::<Vec<_>>();
    let shapes = Shapes { backend: lab.backend, families: lab.cluster.families(), nodes: &nodes };
    let is_kube = matches!(lab.store, Store::Kube(_));
    let all = shapes.all().into_iter().filter(|record| record.in_kube || !is_kube).collect::<Vec<_>>();
    let (count, pace) = if is_kube { (GIANTS_OF_KUBE, PACE_OF_KUBE) } else { (GIANTS, PACE) };
    let mut giants = (0..count).map(|number| shapes.giant(number)).collect::<Vec<_>>();
    let mut turns = 0_u32;
    let mut rng = fastrand::Rng::with_seed(scene.seed);
    let (mut puts, mut deletions) = (0_u32, 0_u32);
    let mut there = BTreeSet::new();
    let mut put = |record: &Record, there: &mut BTreeSet<String>| {
        puts += 1;
        there.insert(record.key.clone());
        lab.store.put_bytes(&record.key, &record.value)
    };
    while !scene.is_over() {
        turns += 1;
        if turns.is_multiple_of(BETWEEN_GIANTS)
            && let Some(giant) = giants.pop()
        {
            put(&giant, &mut there)?;
        } else if rng.u8(..3) > 0 {
            put(&all[rng.usize(..all.len())], &mut there)?;
        } else if let Some(key) = there.iter().find(|key| !key.starts_with("giant")).cloned() {
            lab.store.delete_bytes(&key)?;
            there.remove(&key);
            deletions += 1;
        }
        scene.sleep(pace);
    }
    for key in &there {
        lab.store.delete_bytes(key)?;
    }
    let giants = count - giants.len();
    Ok(format!("{} shapes and {giants} giants written {puts} times and deleted {deletions} times", all.len()))
}
