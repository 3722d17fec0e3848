//! `cargo +nightly fuzz run netlink fuzz/corpus/netlink fuzz/seeds/netlink` in `flannel-core`.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| flannel_core::testing::fuzz::netlink(data));
