//! `cargo +nightly fuzz run node fuzz/corpus/node fuzz/seeds/node` in `flannel-core`.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| flannel_core::testing::fuzz::node(data));
