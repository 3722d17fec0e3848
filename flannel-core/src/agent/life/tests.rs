//! The agent on fakes, with paused time.

mod fakes;
mod ready;
mod refused;

use std::collections::VecDeque;
use std::convert::Infallible;
use std::error::Error;
use std::future::pending;
use std::path::Path;
use std::sync::Mutex;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use futures::StreamExt;
use tokio::sync::watch;
use tokio::time::Instant;

use self::fakes::{Does, Fake, start, start_at, start_with};
use super::*;
use crate::addr::Mtu;
use crate::agent::{Agent, AgentEvents, AgentStatus, Forward};
use crate::backend::NetworkStatus;
use crate::config::LeaseSource;
use crate::dataplane::{Object, Route};
use crate::error::chain;
use crate::events::{NetworkEvent, NetworkEvents};
use crate::firewall::rules::{Ours, Wanted};
use crate::firewall::{FirewallError, Managers, Plan, RuleManager, Step};
use crate::kernel::LinkAddress;
use crate::lease::{Lease, LeaseAttrs, LeaseUpdate, UnreadableRecords};
use crate::status::{Harm, Problem, Subject};
use crate::subnet::{LeaseStream, LeaseTerm, StoreStatus, SubnetError};
use crate::testing::FakeKernel;

fn config(text: &str) -> NetworkConfig {
    NetworkConfig::parse(text, LeaseSource::Store).unwrap()
}

fn vxlan() -> NetworkConfig {
    config(r#"{"Network": "10.42.0.0/16", "Backend": {"Type": "vxlan"}}"#)
}

fn lease() -> Lease {
    Lease { key: "10.42.3.0-24".parse().unwrap(), attrs: LeaseAttrs::default(), created: 1 }
}

fn cause(text: &str) -> Box<dyn Error + Send + Sync> {
    text.into()
}

fn away() -> SubnetError {
    SubnetError::Unavailable { what: "get /config".into(), source: cause("connection refused") }
}

fn lost() -> SubnetError {
    SubnetError::LeaseLost { key: lease().key, holder: "10.0.0.2".into() }
}

#[tokio::test(start_paused = true)]
async fn comes_up_and_stops() {
    let test = start(Fake::new());
    test.wait(1).await;
    assert_eq!(test.state(), "ready");
    let want =
        "FLANNEL_NETWORK=10.42.0.0/16\nFLANNEL_SUBNET=10.42.3.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=false\n";
    assert_eq!(test.file(), want);
    let node = test.agent.ready().await.unwrap();
    assert_eq!((node.lease, node.overlay_mtu, &*node.underlay.name), (lease(), Mtu(1450), "eth0"));
    assert_eq!(test.stop().await, Ok(()));
    assert!(test.fake.stopped.is_cancelled(), "the network finished its last step");
    assert_eq!(test.state(), "ended");
    assert_eq!(test.agent.ready().await.unwrap_err().to_string(), Failure::Stopped.to_string());
    let names = test.events(|event| Some(serde_json::to_value(event).unwrap()["event"].as_str()?.to_owned()));
    let want = [
        "config-read",
        "underlay-chosen",
        "lease-acquired",
        "subnet-file-written",
        "ready",
        "not-ready",
        "stopping",
        "ended",
    ];
    assert_eq!(names.await, want);
}

/// A supervisor is answered at every step, and does not wait for an agent that has ended.
#[tokio::test(start_paused = true)]
async fn an_agent_that_works_has_a_heartbeat() {
    for fake in [Fake::new().configs([Does::Hangs]), Fake::new().registers([Does::Hangs]), Fake::new()] {
        let test = start(fake);
        test.agent.heartbeat().await;
        test.wait(1).await;
        test.agent.heartbeat().await;
        test.agent.stop().await.unwrap();
        test.agent.heartbeat().await;
    }
}

/// What a registration that failed did, and what the network tells up to its end. Who is too slow for that is told how
/// much he missed.
#[tokio::test(start_paused = true)]
async fn what_happens_to_the_network_happens_to_the_agent() {
    let mut test = start(Fake::new().registers([Does::Fails(away()), Does::Works(())]));
    test.agent.ready().await.unwrap();
    let event = |leases| NetworkEvent::LeasesAccepted { leases };
    test.fake.events.send(event(1));
    // The last thing that it does is told before the agent stops.
    test.fake.events.send(event(2));
    test.agent.stop().await.unwrap();
    let mut names = Vec::new();
    while let Some(told) = test.events.recv().await {
        let told = serde_json::to_value(&told).unwrap();
        names.push(format!("{}{}", told["event"].as_str().unwrap(), told["leases"]).replace("null", ""));
    }
    let want = [
        "leftover-removed",
        "lease-acquired",
        "subnet-file-written",
        "ready",
        "leases-accepted1",
        "leases-accepted2",
        "not-ready",
        "stopping",
        "ended",
    ];
    let told: Vec<_> =
        names.iter().filter(|name| !["config-read", "underlay-chosen"].contains(&&***name)).collect();
    assert_eq!(told, want);

    let test = start(Fake::new());
    test.agent.ready().await.unwrap();
    (0..crate::events::KEPT + 3).for_each(|number| test.fake.events.send(event(number)));
    let left_out = test.events(|event| match event {
        AgentEvent::LeftOut { events } => Some(*events),
        _ => None,
    });
    assert_eq!(left_out.await, [3], "those of the network that the agent could not read in time");
}

/// The first term comes with the lease; from then on each later one was a renewal.
#[tokio::test(start_paused = true)]
async fn a_renewal_of_the_lease_is_an_event_and_its_end_is_in_the_status() {
    let test = start(Fake::new());
    test.agent.ready().await.unwrap();
    let (hour, begin) = (Duration::from_hours(1), SystemTime::UNIX_EPOCH + Duration::from_hours(500_000));
    let term = |hours: u32| LeaseTerm::new(begin + hours * hour, 24 * hour, 24 * hour);
    for hours in [0, 0, 23, 46] {
        test.fake.store.send_modify(|status| status.lease_term = Some(term(hours)));
        test.wait(1).await;
    }
    let status = test.status();
    assert_eq!(status.store.as_ref().unwrap().lease_term, Some(term(46)));
    let json = serde_json::to_value(&*status).unwrap();
    let told = &json["store"]["lease_term"];
    let at = |hours: u32| Some(crate::times::rfc3339(begin + hours * hour));
    let shown = |name: &str| told[name].as_str().map(str::to_owned);
    assert_eq!((shown("renewed"), shown("expires")), (at(46), at(70)));
    // A lease that was lost and taken again is no renewal.
    test.fake.store.send_modify(|status| status.lease_term = None);
    test.wait(1).await;
    test.fake.store.send_modify(|status| status.lease_term = Some(term(60)));
    test.wait(1).await;
    let renewals = test.events(|event| match event {
        AgentEvent::LeaseRenewed { lease, expires } => Some((lease.clone(), *expires)),
        _ => None,
    });
    let renewal = |hours| (lease().key.to_string(), term(hours).expires);
    assert_eq!(renewals.await, [renewal(23), renewal(46)]);
}

#[tokio::test(start_paused = true)]
async fn the_store_hears_of_the_network_once_peers_know_this_node() {
    let unsynced = NetworkStatus::default();
    let recalled = NetworkStatus { recalled: Some(7), ..unsynced.clone() };
    let mut beaten = NetworkStatus { synced: true, ..unsynced.clone() };
    let lost = Problem::new(Subject::OwnLease, Harm::All, "this node's VtepMAC is taken".to_owned());
    beaten.problems.node.push(lost);
    for status in [unsynced, recalled, beaten] {
        let test = start(Fake::new());
        test.fake.network.send_replace(status.clone());
        test.wait(60).await;
        assert!(!test.file().is_empty() && test.is_up());
        assert!(!test.fake.up.is_cancelled() && test.state() != "ready", "{status:?}");
        test.fake.network.send_replace(NetworkStatus { synced: true, ..NetworkStatus::default() });
        test.wait(1).await;
        assert!(test.fake.up.is_cancelled() && test.state() == "ready", "{status:?}");
        assert_eq!(test.stop().await, Ok(()));
    }
}

#[tokio::test(start_paused = true)]
async fn stays_alive_while_the_store_is_away() {
    let fake = Fake::new().configs([Does::Fails(away())]);
    let test = start(fake);
    test.wait(3600).await;
    let why = "waiting for the network config: store unavailable: get /config: connection refused";
    assert_eq!(test.state(), why);
    assert!(!test.has_ended() && test.file().is_empty());
    *test.fake.configs.lock().unwrap() = [Does::Works(vxlan())].into();
    test.wait(7).await;
    assert_eq!(test.state(), "ready");
    assert_eq!(test.stop().await, Ok(()));
}

#[tokio::test(start_paused = true)]
async fn outages_while_taking_a_lease_are_waited_out() {
    let contended = Does::Fails(SubnetError::Contended { attempts: 10 });
    let fake = Fake::new().registers([contended, Does::Fails(away()), Does::Works(())]);
    let test = start(fake);
    tokio::time::sleep(Duration::from_millis(1)).await;
    assert!(test.state().starts_with("waiting for a lease: lost the race"), "{}", test.state());
    test.wait(5).await;
    assert_eq!(test.state(), "ready");
}

#[tokio::test(start_paused = true)]
async fn stops_at_once_at_every_step() {
    let steps = [
        ("no answer to the config", Fake::new().configs([Does::Hangs])),
        ("a pause before the next try", Fake::new().configs([Does::Fails(away())])),
        ("no answer to the lease", Fake::new().registers([Does::Hangs])),
        ("a pause before the next lease", Fake::new().registers([Does::Fails(away())])),
        ("running", Fake::new()),
    ];
    for (step, fake) in steps {
        for delay in [0, 1, 700, 30_000] {
            let test = start(fake.clone());
            tokio::time::sleep(Duration::from_millis(delay)).await;
            assert_eq!(test.stop().await, Ok(()), "{step} after {delay} ms");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_lost_lease_keeps_the_datapath_for_a_minute() {
    let test = start(Fake::new());
    test.wait(100).await;
    let begin = Instant::now();
    test.fake.loses.cancel();
    test.wait(59).await;
    let why = "lease 10.42.3.0-24 is now held by 10.0.0.2; this node's pods would share its addresses";
    assert_eq!(test.state(), why);
    assert!(!test.fake.stopped.is_cancelled() && !test.has_ended(), "the datapath runs on");
    assert_eq!(test.end().await, format!("the lease was lost 60 s ago: {why}"));
    assert_eq!(begin.elapsed().as_secs(), 60);
    assert!(test.fake.stopped.is_cancelled());
}

#[tokio::test(start_paused = true)]
async fn a_stop_while_the_lease_is_lost_is_clean() {
    let test = start(Fake::new());
    test.fake.loses.cancel();
    test.wait(30).await;
    assert_eq!(test.stop().await, Ok(()));
}

#[tokio::test(start_paused = true)]
async fn ends_if_the_network_ends() {
    let test = start(Fake::new());
    test.wait(1).await;
    test.fake.ends.cancel();
    assert!(test.is_up());
    assert_eq!(test.end().await, "backend vxlan failed: the lease watch ended");
    assert_eq!(test.state(), "ended: backend vxlan failed: the lease watch ended");
}
