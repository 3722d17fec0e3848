//! `cargo +nightly fuzz run kubeconfig fuzz/corpus/kubeconfig fuzz/seeds/kubeconfig` in `flannel-core`.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| flannel_core::testing::fuzz::kubeconfig(data));
