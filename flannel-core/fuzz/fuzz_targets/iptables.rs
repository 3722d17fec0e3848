//! `cargo +nightly fuzz run iptables fuzz/corpus/iptables fuzz/seeds/iptables` in `flannel-core`.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| flannel_core::testing::fuzz::iptables(data));
