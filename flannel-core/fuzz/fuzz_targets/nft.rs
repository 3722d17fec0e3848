//! `cargo +nightly fuzz run nft fuzz/corpus/nft fuzz/seeds/nft` in `flannel-core`.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| flannel_core::testing::fuzz::nft(data));
