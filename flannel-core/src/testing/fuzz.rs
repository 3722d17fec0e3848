//! Fuzzing targets: functions of bytes that parse what others write, and panic if a property is violated.
//!
//! `flannel-core/fuzz` drives them with libFuzzer, for as long as you like. The tests here [`replay`] `fuzz/seeds`, and
//! mutate the seeds in a fixed random order, for some seconds and with any compiler.

use std::path::{Path, PathBuf};

use crate::config::{LeaseSource, NetworkConfig};
use crate::lease::{Lease, LeaseAttrs, Reception};
use crate::remembering::Memory;
use crate::state_file::{State, wire};
use crate::subnet_file::{SubnetFile, parse_previous};

/// A network config.
///
/// # Panics
/// If what is read is not read as the same after it was written, or if its ranges lie outside of its networks.
pub fn config(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    for source in [LeaseSource::Store, LeaseSource::Assigned] {
        let config = match NetworkConfig::parse(text, source) {
            Ok(config) => config,
            Err(error) => {
                assert!(!error.key.is_empty() && !error.problem.is_empty());
                continue;
            }
        };
        let json = config.to_json();
        assert_eq!(NetworkConfig::parse(&json, source).as_ref(), Ok(&config), "{json}");
        for (family, network) in config.networks.iter() {
            assert_eq!(network.network.family(), family);
            let Some(range) = network.range else { continue };
            assert!(network.network.covers(range.min) && network.network.covers(range.max));
            assert!(range.count() > 0 && range.nth(range.count()).is_none());
        }
    }
}

/// A record of a store: a key, a line feed, a value.
///
/// # Panics
/// If what is read is not read as the same after it was written, or if a reason does not fit a log line.
pub fn lease(data: &[u8]) {
    let (key, value) = data.split_at(data.iter().position(|byte| *byte == b'\n').unwrap_or(data.len()));
    let (key, value) = (String::from_utf8_lossy(key), value.get(1..).unwrap_or_default());
    match Lease::decode(&key, value, 7) {
        Ok(lease) => {
            assert_eq!(lease.key.to_string(), key);
            let json = lease.attrs.to_json();
            let again = LeaseAttrs::from_json(&json).expect("what is written is read");
            assert_eq!((&again, again.to_json()), (&lease.attrs, json));
            assert!(lease.attrs.receives.len() <= Reception::MOST);
            for reception in &lease.attrs.receives {
                let way = lease.attrs.as_kind(&reception.kind, "x").expect("a kind that is listed");
                assert!(way.receives.is_empty() && way.public_ips == lease.attrs.public_ips);
            }
            for (family, subnet) in lease.key.subnets().iter() {
                assert_eq!(subnet.family(), family);
                _ = lease.attrs.underlay(family);
            }
        }
        Err(bad) => {
            let text = bad.to_string();
            assert!(text.chars().count() < 2000 && !text.contains('\n'), "{text}");
        }
    }
}

/// A state file: once as it is, and once without its first byte in an envelope of either version.
///
/// # Panics
/// If what is read is not read as the same after it was written.
pub fn state(data: &[u8]) {
    check_state(data);
    let Ok(inner) = std::str::from_utf8(data) else { return };
    for version in [1, 2] {
        check_state(wire::sealed(version, inner.trim()).as_bytes());
    }
}

fn check_state(bytes: &[u8]) {
    let Ok(state) = State::decode(bytes) else { return };
    let again = State::decode(state.encode().as_bytes());
    assert_eq!(again.as_ref(), Ok(&state));
    _ = Memory::of(&state, &state.store);
}

/// A subnet file of an earlier run.
///
/// # Panics
/// If a key that is found is not found again in the file that has it.
pub fn subnet_env(data: &[u8]) {
    let Some(key) = parse_previous(&String::from_utf8_lossy(data)).key else { return };
    let file = SubnetFile {
        networks: key.subnets(),
        subnets: key.subnets(),
        mtu: crate::addr::Mtu(1450),
        ip_masq: false,
    };
    let again = parse_previous(&file.render());
    assert_eq!((again.key, again.problems.len()), (Some(key), 0));
}

/// A datagram from the kernel.
pub fn netlink(data: &[u8]) {
    crate::netlink::fuzz::datagram(data);
}

/// What the kernel says of rules of nftables, in a table of ours.
pub fn nft(data: &[u8]) {
    crate::firewall::nft::fuzz::rules(data);
}

/// What `iptables-save` prints.
pub fn iptables(data: &[u8]) {
    crate::firewall::iptables::fuzz::save(data);
}

/// Chains of other firewalls, as the kernel says or as `iptables-save` prints them.
pub fn chains(data: &[u8]) {
    crate::firewall::obstacles::fuzz::chains(data);
}

/// Runs `check` on each file of a folder as it is, and on `rounds` mutations of them in a fixed random order.
///
/// # Panics
/// If `check` does, or if there is no file.
pub fn replay(folder: &Path, rounds: usize, check: impl Fn(&[u8])) {
    let entries = std::fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut files: Vec<_> = entries.flatten().map(|file| file.path()).collect();
    files.sort();
    assert!(!files.is_empty(), "{}", folder.display());
    let read =
        |file: &PathBuf| std::fs::read(file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    let seeds: Vec<Vec<u8>> = files.iter().map(read).collect();
    for seed in &seeds {
        check(seed);
    }
    let mut rng = fastrand::Rng::with_seed(7);
    for _ in 0..rounds {
        check(&mutate(&mut rng, &seeds));
    }
}

/// Holds that each fuzz target of a crate has a corpus in `fuzz/seeds`, is named in `fuzz/Cargo.toml`, and is replayed by
/// a test that `tests`, their source, has as `run("<target>", ROUNDS`. A target without one of these is one that nobody runs.
///
/// # Panics
/// If one lacks something.
pub fn every_target_is_run(crate_folder: &Path, tests: &str) {
    let fuzz = crate_folder.join("fuzz");
    let names = |folder: &str| {
        let entries = std::fs::read_dir(fuzz.join(folder)).expect("a folder");
        let stem =
            |file: PathBuf| file.file_stem().and_then(|name| name.to_str()).expect("a name").to_owned();
        let mut names: Vec<String> = entries.flatten().map(|file| stem(file.path())).collect();
        names.sort();
        names
    };
    let targets = names("fuzz_targets");
    assert_eq!(targets, names("seeds"));
    let manifest = std::fs::read_to_string(fuzz.join("Cargo.toml")).expect("a manifest");
    for target in targets {
        assert!(manifest.contains(&format!("name = \"{target}\"")), "{target} in fuzz/Cargo.toml");
        assert!(tests.contains(&format!("run(\"{target}\", ROUNDS")), "{target} in the tests");
    }
}

/// One to four changes: a byte, a cut, a piece doubled, a piece of another seed, a number at its limit.
fn mutate(rng: &mut fastrand::Rng, seeds: &[Vec<u8>]) -> Vec<u8> {
    let mut data = rng.choice(seeds).expect("there are some").clone();
    for _ in 0..rng.usize(1..=4) {
        let at = rng.usize(0..=data.len());
        let end = rng.usize(at..=data.len().min(at + 40));
        match rng.u8(0..7) {
            0 => data.truncate(at),
            1 => drop(data.drain(at..end)),
            2 => {
                let piece = data[at..end].to_vec();
                data.splice(at..at, piece);
            }
            3 => {
                let other = rng.choice(seeds).expect("there are some");
                let from = rng.usize(0..=other.len());
                let to = rng.usize(from..=other.len().min(from + 60));
                data.splice(at..end, other[from..to].iter().copied());
            }
            4 => {
                let token: &[u8] = rng
                    .choice([&b"0"[..], b"-1", b"4294967296", b"null", b"\"", b"{}", b"::", b"/0"])
                    .expect("there are some");
                data.splice(at..end.min(at + 3), token.iter().copied());
            }
            _ => {
                if let Some(byte) = data.get_mut(at) {
                    *byte = *rng
                        .choice(&[0, 1, 0x7f, 0x80, 0xff, rng.clone().u8(..), *byte ^ (1 << (at % 8))])
                        .expect("there are some");
                }
            }
        }
    }
    data
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Mutations of each seed folder; a second or two without optimization.
    const ROUNDS: usize = 20_000;

    fn run(target: &str, rounds: usize, check: fn(&[u8])) {
        replay(&Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds").join(target), rounds, check);
    }

    #[test]
    fn every_target_has_its_corpus_and_its_test() {
        every_target_is_run(Path::new(env!("CARGO_MANIFEST_DIR")), include_str!("fuzz.rs"));
    }

    #[test]
    fn configs() {
        run("config", ROUNDS, config);
    }

    #[test]
    fn leases() {
        run("lease", ROUNDS, lease);
    }

    #[test]
    fn states() {
        run("state", ROUNDS, state);
    }

    #[test]
    fn subnet_files() {
        run("subnet_env", ROUNDS, subnet_env);
    }

    #[test]
    fn datagrams() {
        run("netlink", ROUNDS, netlink);
    }

    #[test]
    fn tables_of_ours() {
        run("nft", ROUNDS / 4, nft);
        run("iptables", ROUNDS / 4, iptables);
    }

    #[test]
    fn chains_of_others() {
        run("chains", ROUNDS / 4, chains);
    }
}
