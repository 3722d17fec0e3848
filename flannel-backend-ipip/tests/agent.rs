//! The example, run for real: an agent comes up in a namespace, holds its device, and leaves.

#[allow(dead_code, unreachable_pub)]
#[path = "../examples/ipip_agent.rs"]
mod example;

mod vm {
    use std::fs;
    use std::path::Path;
    use std::time::Duration;

    use flannel_lab::netns::Netns;
    use flannel_lab::sandbox::in_sandbox;
    use flannel_lab::test_name;
    use flannel_lab::wait::eventually;

    const SOON: Duration = Duration::from_secs(20);

    /// A namespace with an underlay.
    fn host() -> Netns {
        let host = Netns::add("host").unwrap();
        for args in [
            "link add eth0 type veth peer name far",
            "addr add 192.0.2.1/24 dev eth0",
            "link set eth0 up",
            "link set far up",
        ] {
            host.ip(args).unwrap();
        }
        host
    }

    #[test]
    #[ignore = "needs a kernel with ipip; .ci/vm runs it in a VM"]
    fn the_agent_of_the_example_comes_up_repairs_and_leaves() {
        in_sandbox(test_name!(), || {
            let (host, store) = (host(), Path::new("/run/store"));
            fs::create_dir_all(store).unwrap();
            fs::write(store.join("config"), r#"{"Network":"10.244.0.0/16","Backend":{"Type":"ipip"}}"#)
                .unwrap();
            let work = async {
                let agent = super::example::start(store, ["eth0".to_owned()].into_iter()).unwrap();
                let node = agent.ready().await.unwrap();
                assert_eq!(node.overlay_mtu.0, 1480);
                let shown = host.ip("-d link show flannel.ipip").unwrap();
                assert!(shown.contains("mtu 1480") && shown.contains("local 192.0.2.1"), "{shown}");
                let tunl0 = host.ip("-o -d link show tunl0");
                host.ip("link del flannel.ipip").unwrap();
                eventually(SOON, "the device", || host.ip("link show flannel.ipip").is_ok());
                agent.leave().await.unwrap();
                assert!(host.ip("link show flannel.ipip").is_err(), "it is removed");
                let now = host.ip("-o -d link show tunl0");
                assert_eq!(now.ok(), tunl0.ok(), "the module's own device is left alone");
            };
            let run = || {
                let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
                runtime.block_on(work);
            };
            host.enter(run).unwrap();
        });
    }
}
