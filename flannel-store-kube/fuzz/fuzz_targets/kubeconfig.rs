//! `cargo +nightly fuzz run kubeconfig fuzz/corpus/kubeconfig fuzz/seeds/kubeconfig` in `flannel-store-kube`.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| flannel_store_kube::fuzz::kubeconfig(data));
