//! `cargo +nightly fuzz run config fuzz/corpus/config fuzz/seeds/config` in `flannel-core`.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| flannel_core::testing::fuzz::config(data));
