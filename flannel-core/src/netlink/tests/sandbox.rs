//! Namespaces for tests against the kernel.

use std::process::Command;

use flannel_lab::sandbox::in_sandbox;

/// Runs `body` on a runtime in new namespaces with a link `eth0` that is up and has the addresses
/// 192.0.2.1/24 and `2001:db8::1/64`.
pub(super) fn with_underlay<F: Future<Output = ()>>(test: &str, body: impl FnOnce() -> F) {
    in_sandbox(test, || {
        // No link-local addresses, which come and become usable when they like.
        std::fs::write("/proc/sys/net/ipv6/conf/default/addr_gen_mode", "1").unwrap();
        ip("link add eth0 type veth peer name peer0");
        ip("link set eth0 up");
        ip("link set peer0 up");
        ip("address add 192.0.2.1/24 dev eth0");
        ip("address add 2001:db8::1/64 dev eth0 nodad");
        runtime().block_on(body());
    });
}

/// A runtime on this thread.
pub(super) fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

/// Runs `ip` and returns what it prints.
pub(super) fn ip(arguments: &str) -> String {
    run("ip", arguments)
}

/// Runs a tool and returns what it prints.
pub(super) fn run(tool: &str, arguments: &str) -> String {
    let output = Command::new(tool).args(arguments.split_whitespace()).output().unwrap();
    let err = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{tool} {arguments}: {err}");
    String::from_utf8(output.stdout).unwrap()
}
