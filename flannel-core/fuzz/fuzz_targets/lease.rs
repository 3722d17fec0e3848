//! `cargo +nightly fuzz run lease fuzz/corpus/lease fuzz/seeds/lease` in `flannel-core`.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| flannel_core::testing::fuzz::lease(data));
