//! Any bytes as a datagram: `cargo +nightly fuzz run messages fuzz/corpus/messages fuzz/seeds/messages` in `flannel-backend-wireguard`.
#![no_main]

use flannel_backend_wireguard::userspace::testing::Target;
use libfuzzer_sys::fuzz_target;

thread_local!(static TARGET: Target = Target::default());

fuzz_target!(|data: &[u8]| TARGET.with(|target| target.receive(data)));
