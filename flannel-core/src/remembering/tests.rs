use super::*;
use crate::config::LeaseSource;
use crate::subnet::Identity;
use crate::testing::FakeStore;

const CONFIG: &str = r#"{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan"}}"#;

fn config(text: &str) -> NetworkConfig {
    NetworkConfig::parse(text, LeaseSource::Store).unwrap()
}

fn attrs(ip: &str) -> LeaseAttrs {
    LeaseAttrs::from_json(&format!(r#"{{"PublicIP":"{ip}","BackendType":"vxlan"}}"#)).unwrap()
}

fn lease(key: &str, ip: &str) -> Lease {
    Lease { key: key.parse().unwrap(), attrs: attrs(ip), created: 1 }
}

fn state() -> State {
    let peer = lease("10.5.9.0-24", "192.0.2.9");
    State {
        backend: "vxlan".into(),
        leases: [(peer.key, Arc::new(peer.into()))].into(),
        config: Some(config(CONFIG)),
        own: Some(lease("10.5.1.0-24", "192.0.2.1")),
        saved: 1_750_000_000,
        ..State::default()
    }
}

/// A store that has our lease and is away, with a memory in front of it.
async fn away() -> (FakeStore, Remembering) {
    let store = FakeStore::new(config(CONFIG));
    store.acquire_lease(&attrs("192.0.2.1")).await.unwrap();
    store.set_away(true);
    let memory = Memory::of(&state(), "").unwrap();
    (store.clone(), Remembering::new(Arc::new(store), Some(memory)))
}

#[tokio::test(start_paused = true)]
async fn a_store_that_answers_is_used_and_without_a_memory_waited_for() {
    let store = FakeStore::new(config(r#"{"Network":"10.6.0.0/16","Backend":{"Type":"vxlan"}}"#));
    let both = Remembering::new(Arc::new(store.clone()), Some(Memory::of(&state(), "").unwrap()));
    assert_eq!(both.network_config().await.unwrap(), store.network_config().await.unwrap());
    assert_eq!(both.acquire_lease(&attrs("192.0.2.1")).await.unwrap().key.to_string(), "10.6.1.0-24");
    assert!(matches!(both.watch_leases().next().await, Some(Ok(LeaseUpdate::Snapshot { .. }))));
    let mut changes = both.config_changes().unwrap();
    store.set_config(config(CONFIG));
    assert_eq!(changes.next().await.unwrap().unwrap(), config(CONFIG));
    store.set_away(true);
    let without = Remembering::new(Arc::new(store), None);
    assert!(without.network_config().await.unwrap_err().is_transient());
}

#[tokio::test(start_paused = true)]
async fn it_stands_in_until_the_store_confirms_and_lists() {
    let (store, remembering) = away().await;
    assert_eq!(remembering.network_config().await.unwrap(), config(CONFIG));
    let ips = attrs("192.0.2.1").public_ips;
    assert_eq!(remembering.published_attrs(&ips).await.unwrap(), Some(attrs("192.0.2.1")));
    let own = remembering.acquire_lease(&attrs("192.0.2.1")).await.unwrap();
    assert_eq!(own, state().own.unwrap());
    let mut watch = remembering.watch_leases();
    let first = watch.next().await.unwrap().unwrap();
    let peers = vec![lease("10.5.9.0-24", "192.0.2.9")];
    assert_eq!(first, LeaseUpdate::Recalled { leases: peers, saved: 1_750_000_000 });
    let renewal = async { remembering.renew_lease(&own).await.unwrap_err() };
    let watch = async {
        let hour = Duration::from_secs(3600);
        assert!(tokio::time::timeout(hour, watch.next()).await.is_err(), "no snapshot while it is away");
        store.set_away(false);
        let second = tokio::time::timeout(Duration::from_secs(6), watch.next()).await;
        let Some(Ok(LeaseUpdate::Snapshot { leases, .. })) = second.unwrap() else { panic!("no snapshot") };
        assert_eq!(leases.len(), 1, "our own, as the store has it");
    };
    tokio::select! {
        error = renewal => panic!("{error}"),
        () = watch => {}
    }
}

/// What a start without the store means is told once each.
#[tokio::test(start_paused = true)]
async fn a_start_from_memory_is_told_up_to_the_stores_answer() {
    let (store, remembering) = away().await;
    let events = MemoryEventSender::default();
    let (remembering, mut told) = (remembering.telling(events.clone()), events.subscribe());
    remembering.network_config().await.unwrap();
    let own = remembering.acquire_lease(&attrs("192.0.2.1")).await.unwrap();
    let MemoryEvent::StartedFromMemory { lease, peers, stored, reason } = told.recv().await.unwrap() else {
        panic!("another event")
    };
    assert_eq!((lease, peers, stored), (own.key, state().leases.len(), 1_750_000_000));
    assert!(reason.contains("store unavailable"), "{reason}");
    store.set_away(false);
    let confirmed = async {
        tokio::select! {
            held = remembering.renew_lease(&own) => panic!("{held:?}"),
            event = told.recv() => event,
        }
    };
    assert_eq!(confirmed.await, Some(MemoryEvent::LeaseConfirmed { lease: own.key }));
}

#[tokio::test(start_paused = true)]
async fn another_config_in_the_store_ends_it_and_lets_no_snapshot_through() {
    let (store, remembering) = away().await;
    remembering.network_config().await.unwrap();
    let own = remembering.acquire_lease(&attrs("192.0.2.1")).await.unwrap();
    let mut watch = remembering.watch_leases();
    watch.next().await.unwrap().unwrap();
    store.set_config(config(r#"{"Network":"10.5.0.0/16","Backend":{"Type":"host-gw"}}"#));
    store.set_away(false);
    assert!(matches!(remembering.renew_lease(&own).await, Err(SubnetError::ConfigChanged)));
    assert!(tokio::time::timeout(Duration::from_secs(60), watch.next()).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn what_the_store_wants_published_is_remembered_and_checked() {
    let wanted = PerFamily { v4: Some([203, 0, 113, 1].into()), v6: None };
    for (now, is_same) in [(wanted, true), (PerFamily::default(), false)] {
        let store = FakeStore::new(config(CONFIG));
        store.acquire_lease(&attrs("192.0.2.1")).await.unwrap();
        store.set_away(true);
        let memory = Memory::of(&State { wanted_ips: wanted, ..state() }, "").unwrap();
        let remembering = Remembering::new(Arc::new(store.clone()), Some(memory));
        remembering.network_config().await.unwrap();
        assert_eq!(remembering.wanted_ips().await.unwrap(), wanted);
        let own = remembering.acquire_lease(&attrs("192.0.2.1")).await.unwrap();
        store.set_wanted_ips(now);
        store.set_away(false);
        let held = tokio::time::timeout(Duration::from_secs(60), remembering.renew_lease(&own)).await;
        match held {
            Err(_) => assert!(is_same),
            Ok(error) => assert!(!is_same && matches!(error, Err(SubnetError::ConfigChanged))),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_config_that_only_looks_different_is_the_same() {
    let (store, remembering) = away().await;
    remembering.network_config().await.unwrap();
    let own = remembering.acquire_lease(&attrs("192.0.2.1")).await.unwrap();
    store.set_config(config(
        r#"{ "network" : "10.5.0.0/16", "SubnetLen": 24, "Backend": { "Type" : "vxlan" } }"#,
    ));
    store.set_away(false);
    let held = tokio::time::timeout(Duration::from_secs(60), remembering.renew_lease(&own)).await;
    assert!(held.is_err(), "it is held: {held:?}");
}

#[tokio::test(start_paused = true)]
async fn a_subnet_that_another_node_took_meanwhile_is_lost() {
    let (store, remembering) = away().await;
    remembering.network_config().await.unwrap();
    let own = remembering.acquire_lease(&attrs("192.0.2.1")).await.unwrap();
    store.remove("10.5.1.0-24");
    store.put("10.5.1.0-24", r#"{"PublicIP":"192.0.2.77","BackendType":"vxlan"}"#);
    store.set_away(false);
    let error = remembering.renew_lease(&own).await.unwrap_err().to_string();
    assert!(error.contains("lease 10.5.1.0-24 is now held by another node"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn what_another_node_stored_is_not_used() {
    let (store, remembering) = away().await;
    remembering.network_config().await.unwrap();
    let other = LeaseAttrs { ..attrs("192.0.2.2") };
    assert_eq!(remembering.published_attrs(&other.public_ips).await.unwrap(), None);
    for _ in 0..2 {
        assert!(
            remembering.acquire_lease(&other).await.unwrap_err().is_transient(),
            "the store is waited for"
        );
    }
    store.set_away(false);
    let own = remembering.acquire_lease(&other).await.unwrap();
    assert_eq!(own.key.to_string(), "10.5.2.0-24");
    assert!(matches!(remembering.watch_leases().next().await, Some(Ok(LeaseUpdate::Snapshot { .. }))));

    let (store, remembering) = away().await;
    remembering.network_config().await.unwrap();
    store.set_config(config(r#"{"Network":"10.6.0.0/16","Backend":{"Type":"vxlan"}}"#));
    assert!(remembering.acquire_lease(&other).await.unwrap_err().is_transient());
    store.set_away(false);
    assert!(matches!(remembering.acquire_lease(&other).await, Err(SubnetError::ConfigChanged)));
}

/// The address changed between two runs, and the store is away at the second.
#[tokio::test(start_paused = true)]
async fn what_this_host_stored_is_used_at_another_address_and_confirmed_later() {
    let (store, _) = away().await;
    let memory = Memory::of(&state(), "").unwrap().stored_on(StoredOn::ThisHost);
    let remembering = Remembering::new(Arc::new(store.clone()), Some(memory));
    remembering.network_config().await.unwrap();
    let moved = attrs("192.0.2.51");
    let said = remembering.published_attrs(&moved.public_ips).await.unwrap();
    assert_eq!(said, Some(attrs("192.0.2.1")), "the MAC is that of the own record");
    let own = remembering.acquire_lease(&moved).await.unwrap();
    assert_eq!((own.key, &own.attrs), (state().own.unwrap().key, &moved));
    let mut watch = remembering.watch_leases();
    assert!(matches!(watch.next().await, Some(Ok(LeaseUpdate::Recalled { .. }))));
    let identity = Identity { published: state().own, ..Identity::default() };
    store.set_identity(identity);
    store.set_away(false);
    tokio::select! {
        held = remembering.renew_lease(&own) => panic!("{held:?}"),
        update = watch.next() => assert!(matches!(update, Some(Ok(LeaseUpdate::Snapshot { .. })))),
    }
    let leases = store.leases();
    assert_eq!((leases.len(), leases[0].key, &leases[0].attrs), (1, own.key, &moved));
}

#[test]
fn a_memory_that_does_not_fit_is_refused_with_a_word() {
    let old = State { config: None, ..state() };
    let alone = State { own: None, ..state() };
    let elsewhere = State { store: "etcd:/other/config".into(), ..state() };
    let switched = State { backend: "host-gw".into(), ..state() };
    let outside = State { own: Some(lease("10.9.1.0-24", "192.0.2.1")), ..state() };
    let whole = State { own: Some(lease("10.5.0.0-16", "192.0.2.1")), ..state() };
    let dual = State { own: Some(lease("10.5.1.0-24&fd00::-64", "192.0.2.1")), ..state() };
    for (state, word) in [
        (old, "an older agent wrote it"),
        (alone, "an older agent wrote it"),
        (elsewhere, "it is of the store \"etcd:/other/config\", but this agent uses \"\""),
        (switched, "it is of backend \"host-gw\", but its config says \"vxlan\""),
        (outside, "its lease 10.9.1.0-24 does not fit its config"),
        (whole, "does not fit"),
        (dual, "does not fit"),
    ] {
        let error = Memory::of(&state, "").unwrap_err().to_string();
        assert!(error.contains(word), "{error}");
    }
}
