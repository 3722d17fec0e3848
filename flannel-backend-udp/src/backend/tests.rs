//! The backend under the contract of all backends.

use flannel_core::addr::LinkIndex;
use flannel_core::testing::{BackendSubject, FakeKernel, backend_contract};
use flannel_lab::sandbox::in_sandbox;
use flannel_lab::test_name;
use nix::net::if_::if_nameindex;

use super::*;

const CONFIG: &str =
    r#"{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:5::/48","Backend":{"Type":"udp"}}"#;

/// The TUNs of the real kernel in this namespace.
fn tuns() -> Vec<(LinkIndex, String)> {
    let all = if_nameindex().expect("netlink answers");
    let links = all.iter().map(|link| (LinkIndex(link.index()), link.name().to_string_lossy().into_owned()));
    links.filter(|(_, name)| name.starts_with("flannel")).collect()
}

fn ip(args: &str) {
    let status = std::process::Command::new("ip").args(args.split(' ')).status();
    assert!(status.is_ok_and(|status| status.success()), "ip {args}");
}

/// TUN, sockets and threads are real, the rest of the kernel is in memory.
#[test]
fn keeps_the_contract_of_backends() {
    in_sandbox(test_name!(), || {
        for addr in ["192.0.2.1/32", "2001:db8::1/128 nodad"] {
            ip(&format!("addr add {addr} dev lo"));
        }
        let make = |kernel: FakeKernel| -> Box<dyn Backend> {
            kernel.has_links_of(tuns);
            let open = Box::new(move |_: &_| Ok(Box::new(kernel.clone()) as _));
            Box::new(UdpBackend { options: UdpOptions::default(), open })
        };
        let peer = |last| {
            format!(r#"{{"PublicIP":"192.0.2.{last}","PublicIPv6":"2001:db8::{last}","BackendType":"udp"}}"#)
        };
        let (one, other) = (peer(9), peer(8));
        let subject = BackendSubject {
            make: &make,
            config: CONFIG,
            peers: [("10.5.99.0-24&fd00:5:0:99::-64", &one), ("10.5.98.0-24&fd00:5:0:98::-64", &other)],
            unusable: r#"{"BackendType":"udp"}"#,
            ends_with_process: true,
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build();
        runtime.expect("it has all it needs").block_on(backend_contract(subject));
    });
}
