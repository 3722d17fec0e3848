//! Any bytes as the kernel's answer about a device: `cargo +nightly fuzz run dump fuzz/corpus/dump fuzz/seeds/dump` in `flannel-backend-wireguard`.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| flannel_backend_wireguard::testing::dump(data));
