//! Any bytes through both directions: `cargo +nightly fuzz run packet_path fuzz/corpus/packet_path fuzz/seeds/packet_path` in `flannel-backend-udp`.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| flannel_backend_udp::testing::packet_path(data));
