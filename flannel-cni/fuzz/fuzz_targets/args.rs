//! `cargo +nightly fuzz run args fuzz/corpus/args fuzz/seeds/args` in `flannel-cni`.
#![no_main]

#[path = "../../tests/input/properties.rs"]
#[allow(dead_code)]
mod properties;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| properties::args(data));
