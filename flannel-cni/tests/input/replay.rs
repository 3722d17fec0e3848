//! The seeds of the fuzz targets, as they are and with changes in a fixed random order.

use std::path::Path;

use crate::properties;

/// Changed seeds for each target; a few seconds without optimization.
const ROUNDS: usize = 20_000;

fn run(target: &str, check: fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds").join(target);
    let mut files: Vec<_> = std::fs::read_dir(folder).unwrap().map(|file| file.unwrap().path()).collect();
    files.sort();
    let seeds: Vec<_> = files.iter().map(|file| std::fs::read(file).unwrap()).collect();
    assert!(seeds.len() >= 3);
    for seed in &seeds {
        check(seed);
    }
    let mut rng = fastrand::Rng::with_seed(7);
    let mut below = |limit: usize| rng.usize(0..limit.max(1));
    for _ in 0..ROUNDS {
        let mut data = seeds[below(seeds.len())].clone();
        for _ in 0..=below(3) {
            let at = below(data.len() + 1);
            let end = (at + below(30)).min(data.len());
            let other = &seeds[below(seeds.len())];
            let from = below(other.len() + 1);
            let to = (from + below(60)).min(other.len());
            let tokens = ["null", "{}", "[]", "\"", "-1", "1e999", "/0", ",", "\u{0}"];
            match below(4) {
                0 => data.truncate(at),
                1 => drop(data.splice(at..end, other[from..to].iter().copied())),
                2 => drop(data.splice(at..end, tokens[below(tokens.len())].bytes())),
                _ => {
                    if let Some(byte) = data.get_mut(at) {
                        *byte ^= 1 << below(8);
                    }
                }
            }
        }
        check(&data);
    }
}

#[test]
fn netconfs() {
    run("netconf", properties::netconf);
}

#[test]
fn records() {
    run("record", properties::record);
}

#[test]
fn environments() {
    run("args", properties::args);
}
