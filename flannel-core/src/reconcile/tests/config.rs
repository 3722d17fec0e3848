//! A config that changes, for a backend that takes nothing of it without a restart.

use crate::addr::{Family, Mtu, PerFamily};
use crate::backend::Underlay;
use crate::config::{ConfigError, LeaseSource, NetworkConfig};
use crate::kernel::LinkAddress;
use crate::subnet::SubnetManager;
use crate::testing::FakeStore;
use crate::underlay::{Follower, Needed, UnderlayOptions};

use super::*;

const PLAIN: &str = r#"{"Network":"10.5.0.0/16","Backend":{"Type":"x"}}"#;

fn config(text: &str) -> NetworkConfig {
    NetworkConfig::parse(text, LeaseSource::Store).unwrap()
}

/// A loop that follows the config of a store.
fn following() -> (Bench, FakeStore, watch::Receiver<State>) {
    let store = FakeStore::new(config(PLAIN));
    let changes = store.config_changes().unwrap();
    let (bench, state) = following_these(changes);
    (bench, store, state)
}

fn following_these(changes: crate::subnet::ConfigStream) -> (Bench, watch::Receiver<State>) {
    let kernel = FakeKernel::default();
    let link = kernel.add_link("tun0", 1450);
    let mut state = None;
    let bench = bench_with(kernel, link, |reconciler| {
        reconciler.follow_config(config(PLAIN), changes);
        state = Some(reconciler.state());
    });
    bench.snapshot(&[lease("10.5.2.0-24", 2), lease(OWN, 1)]);
    (bench, state.unwrap())
}

impl Bench {
    fn config_status(&self) -> (String, String) {
        let status = self.status.borrow();
        let text = Option::unwrap_or_default;
        (text(status.restart_needed()), text(status.config_problem()))
    }
}

#[tokio::test(start_paused = true)]
async fn a_changed_config_is_named_until_it_is_changed_back_and_touches_nothing() {
    let (bench, store, state) = following();
    bench.told().await;
    let (objects, operations) = (bench.kernel.objects(), bench.status.borrow().operations);
    for (text, keys) in [
        (r#"{"Network":"10.4.0.0/15","Backend":{"Type":"x","PSK":"hush"}}"#, "Network, Backend.PSK"),
        (r#"{"Network":"10.5.0.0/16","EnableNFTables":true}"#, "EnableNFTables, Backend.Type"),
        (
            r#"{"Network":"10.5.0.0/16","Backend":{"Type":"x","Accept":["y"],"Y":1}}"#,
            "Backend.Accept, Backend.Y",
        ),
    ] {
        store.set_config(config(text));
        bench.told().await;
        let want = format!(
            "network config: {keys} changed, which takes a restart; the running config stays in force until \
             flanneld is restarted"
        );
        assert_eq!(bench.config_status(), (want, String::new()));
        assert_eq!(state.borrow().config, None, "what is stored is what runs");
    }
    store.spoil_config(ConfigError::new("Network", Some("x".into()), "must be a CIDR"));
    bench.told().await;
    let (restart, problem) = bench.config_status();
    assert_eq!(restart, "");
    assert_eq!(
        problem,
        "config at the store in memory can't be used: network config: Network = x: must be a CIDR; the running \
         config stays in force, but flanneld could not be started with this one"
    );
    let same = r#"{"network":"10.5.0.0/16","Colour":1,"Backend":{"TYPE":"X"}}"#;
    store.set_config(config(same));
    bench.told().await;
    assert_eq!(bench.config_status(), (String::new(), String::new()));
    assert_eq!(state.borrow().config, Some(config(same)));
    let status = bench.status.borrow().clone();
    assert_eq!((bench.kernel.objects(), status.operations, status.repairs), (objects, operations, 0));
}

#[tokio::test(start_paused = true)]
async fn nothing_gets_lost_among_configs_leases_and_announcements() {
    let (bench, store, state) = following();
    bench.told().await;
    for round in 3..103_u8 {
        let text =
            format!(r#"{{"Network":"10.5.0.0/16","SubnetLen":{},"Backend":{{"Type":"x"}}}}"#, 18 + round % 7);
        store.set_config(config(&text));
        bench.send(LeaseUpdate::Put(lease(&format!("10.5.{round}.0-24"), round.into())));
        bench.kernel.delete(&route_of(bench.link, &"10.5.2.0-24".parse().unwrap()).key(), true);
        tokio::task::yield_now().await;
    }
    bench.told().await;
    assert!((2..103_u8).all(|n| bench.has_route(&format!("10.5.{n}.0-24"))));
    assert!(bench.config_status().0.contains("SubnetLen"), "{:?}", bench.config_status());
    store.set_config(config(PLAIN));
    bench.told().await;
    assert_eq!(bench.config_status().0, "");
    assert_eq!(state.borrow().leases.len(), 101);
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_ends_ends_nothing_else() {
    let told = vec![Ok(config(r#"{"Network":"10.6.0.0/16","Backend":{"Type":"x"}}"#))];
    let (bench, _) = following_these(futures::stream::iter(told).boxed());
    bench.told().await;
    assert!(bench.config_status().0.contains("Network"));
    bench.send(LeaseUpdate::Put(lease("10.5.3.0-24", 3)));
    bench.told().await;
    assert!(bench.has_route("10.5.3.0-24"));
    bench.cancel.cancel();
    bench.task.await.unwrap().unwrap();
}

/// A network that is new and covers what the node reaches without it: nothing is taken, and the reason is told. The
/// network that runs is none of these, whatever it covers.
#[tokio::test(start_paused = true)]
async fn a_new_network_that_would_hide_the_underlay_is_refused_by_name() {
    let store = FakeStore::new(config(PLAIN));
    let kernel = FakeKernel::default();
    let (link, eth0) = (kernel.add_link("tun0", 1450), kernel.add_link("eth0", 1500));
    kernel.add_address(LinkAddress {
        link: eth0,
        addr: "10.5.200.1/24".parse().unwrap(),
        global: true,
        deprecated: false,
        permanent: true,
        temporary: false,
        tentative: false,
    });
    let local = PerFamily { v4: "10.5.200.1".parse().ok(), v6: None };
    let underlay = Underlay {
        name: "eth0".into(),
        link: eth0,
        mtu: Mtu(1500),
        local,
        published: local,
        reason: String::new(),
    };
    let what = "the store's endpoint".to_owned();
    let options = UnderlayOptions {
        families: vec![Family::V4],
        ifaces: vec!["eth0".into()],
        needed: vec![Needed { addr: "10.9.0.1".parse().unwrap(), what, way: None }],
        ..UnderlayOptions::default()
    };
    let bench = bench_with(kernel, link, |reconciler| {
        reconciler.follow_config(config(PLAIN), store.config_changes().unwrap());
        reconciler.follow(Follower::new(options, underlay));
    });
    bench.snapshot(&[lease("10.5.2.0-24", 2), lease(OWN, 1)]);
    bench.told().await;
    assert_eq!(bench.config_status(), (String::new(), String::new()), "the one that runs");
    for (network, covered) in [
        ("10.4.0.0/15", "the underlay address of eth0 10.5.200.1"),
        ("10.9.0.0/16", "the store's endpoint 10.9.0.1"),
    ] {
        store.set_config(config(&format!(r#"{{"Network":"{network}","Backend":{{"Type":"x"}}}}"#)));
        bench.told().await;
        let (restart, problem) = bench.config_status();
        assert_eq!(restart, "", "it is no matter of a restart");
        assert!(
            problem.starts_with(&format!("network config: Network = {network}: covers {covered}: ")),
            "{problem}"
        );
        assert!(problem.contains("the running config stays in force"), "{problem}");
    }
    store.set_config(config(r#"{"Network":"10.8.0.0/16","Backend":{"Type":"x"}}"#));
    bench.told().await;
    assert!(bench.config_status().0.contains("Network changed"), "{:?}", bench.config_status());
    store.set_config(config(PLAIN));
    bench.told().await;
    assert_eq!(bench.config_status(), (String::new(), String::new()));
    assert!(bench.has_route("10.5.2.0-24"));
}
