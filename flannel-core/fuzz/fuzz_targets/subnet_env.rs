//! `cargo +nightly fuzz run subnet_env fuzz/corpus/subnet_env fuzz/seeds/subnet_env` in `flannel-core`.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| flannel_core::testing::fuzz::subnet_env(data));
