//! `cargo +nightly fuzz run node fuzz/corpus/node fuzz/seeds/node` in `flannel-store-kube`.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| flannel_store_kube::fuzz::nodes(data));
