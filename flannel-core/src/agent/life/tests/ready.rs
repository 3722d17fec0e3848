//! When a node is ready, and what its files have to do with it.

use super::*;

#[tokio::test(start_paused = true)]
async fn readiness_follows_store_and_device() {
    let test = start(Fake::new());
    test.wait(1).await;
    assert_eq!(test.state(), "ready");
    test.fake.store.send_modify(|status| {
        status.fail("connection refused".into());
    });
    test.wait(9).await;
    assert_eq!(test.state(), "ready", "one reconnect is no news");
    test.wait(1).await;
    // The agent's timer is due at the same time as this one.
    tokio::task::yield_now().await;
    assert_eq!(test.state(), "store away for 10 s: connection refused");
    // Both timers have fired; the agent tells what its own means before the store is back.
    tokio::task::yield_now().await;
    test.fake.store.send_modify(|status| {
        status.succeed();
    });
    tokio::task::yield_now().await;
    assert_eq!(test.state(), "ready");
    let gone = Problem::new(Subject::Device, Harm::All, "flannel.1 is gone".to_owned());
    test.fake.network.send_modify(|status| status.problems.node.push(gone));
    tokio::task::yield_now().await;
    assert_eq!(test.state(), "flannel.1 is gone");
    let flips = test.events(|event| match event {
        AgentEvent::StoreLost { problem } => Some(problem.clone()),
        AgentEvent::StoreBack { away } => Some(format!("back after {} s", away.as_secs())),
        AgentEvent::Ready => Some("ready".to_owned()),
        AgentEvent::NotReady { reasons } => Some(reasons.join("; ")),
        _ => None,
    });
    let away = "store away for 10 s: connection refused";
    let want = ["ready", "connection refused", away, "back after 10 s", "ready", "flannel.1 is gone"];
    assert_eq!(flips.await, want);
}

#[tokio::test(start_paused = true)]
async fn without_its_file_the_agent_runs_but_is_not_ready() {
    // A file where the folder should be.
    let test = start_at(Fake::new(), "eth0", "file/subnet.env");
    let in_the_way: &Path = &test.folder.path().join("file");
    std::fs::write(in_the_way, "").unwrap();
    test.wait(60).await;
    assert!(test.state().starts_with("can't write the subnet file"), "{}", test.state());
    assert!(!test.has_ended() && !test.is_up());
    std::fs::remove_file(in_the_way).unwrap();
    test.wait(11).await;
    assert_eq!(test.state(), "ready");
    assert_eq!(test.stop().await, Ok(()));
    let refused = test.events(|event| match event {
        AgentEvent::LockUnusable { path, .. } => Some(path.ends_with("file/subnet.env.lock")),
        AgentEvent::SubnetFileRefused { .. } => Some(true),
        _ => None,
    });
    assert_eq!(refused.await, [true, true]);
}

/// Keeps rules, from the second try on.
struct Late(u32);

#[async_trait]
impl RuleManager for Late {
    fn name(&self) -> &'static str {
        "late"
    }

    async fn plan(&mut self, want: &Wanted, _: &Ours) -> Result<Plan, FirewallError> {
        assert!(want.masquerade && want.ranges.v4.is_some());
        self.0 += 1;
        if self.0 > 1 { Ok(Plan::default()) } else { Err(FirewallError::TimedOut { command: "nft".into() }) }
    }

    async fn apply(&mut self, _: &Step) -> Result<(), FirewallError> {
        unreachable!("no plan has a step")
    }

    async fn changed(&mut self) {
        std::future::pending::<()>().await;
    }
}

/// A pod that starts earlier would speak to the world with an address that has no way back.
#[tokio::test(start_paused = true)]
async fn the_subnet_file_waits_for_masquerading() {
    let rules = FirewallOptions::masquerade().with_forward(Forward::Off);
    let late = || Managers::new(Some(Box::new(Late(0))), Vec::new(), "late");
    let test = start_with(Fake::new(), "eth0", "run/subnet.env", rules, late);
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(test.file(), "");
    let state = test.state();
    assert!(state.contains("writing firewall rules") && state.contains("nft did not end"), "{state}");
    test.wait(1).await;
    assert!(test.file().ends_with("FLANNEL_IPMASQ=true\n"), "{}", test.file());
    assert_eq!(test.state(), "ready");
    test.stop().await.unwrap();
    let told = test.events(|event| match event {
        AgentEvent::Firewall(event) => Some(serde_json::to_value(event).unwrap()["event"].clone()),
        _ => None,
    });
    assert_eq!(told.await, ["rules-not-ready", "rules-in-place", "rules-ready"]);
}
