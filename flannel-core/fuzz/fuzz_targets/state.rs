//! `cargo +nightly fuzz run state fuzz/corpus/state fuzz/seeds/state` in `flannel-core`.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| flannel_core::testing::fuzz::state(data));
