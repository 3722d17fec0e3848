//! `cargo +nightly fuzz run chains fuzz/corpus/chains fuzz/seeds/chains` in `flannel-core`.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| flannel_core::testing::fuzz::chains(data));
