//! The example of the crate, with a real agent in a namespace: what the agent sends is what `wire` reads.

#[allow(dead_code, unreachable_pub)]
#[path = "../examples/status.rs"]
mod example;

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use flannel_backend_vxlan::VxlanBackend;
use flannel_control::protocol::Request;
use flannel_control::show::{self, Form, Outcome, ShowError, Terminal};
use flannel_control::{Client, ControlServer, socket_of, wire};
use flannel_core::agent::Agent;
use flannel_core::probe::{ProbeInterval, ProbeOptions, Verdict};
use flannel_core::subnet::local::{LocalOptions, LocalSubnetManager};
use flannel_lab::netns::Netns;
use flannel_lab::sandbox::in_sandbox;
use flannel_lab::test_name;
use tokio_util::sync::CancellationToken;

const SOON: Duration = Duration::from_secs(20);
const PEER: &str =
    r#"{"PublicIP":"192.0.2.9","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"0a:00:00:00:00:09"}}"#;

fn host() -> Netns {
    let host = Netns::add("host").unwrap();
    for args in [
        "link add eth0 type veth peer name far",
        "addr add 192.0.2.1/24 dev eth0",
        "link set eth0 up",
        "link set far up",
        "route add default via 192.0.2.254",
    ] {
        host.ip(args).unwrap();
    }
    host
}

/// A question, whose answer goes to a terminal.
type Ask<'a> = &'a dyn Fn(&mut Terminal<&mut Vec<u8>>) -> Result<Outcome, ShowError>;

/// Asks what `flanneld status` and `flanneld events` ask.
fn what_is_shown(client: &Client) {
    let show = |ask: Ask<'_>| {
        let mut text = Vec::new();
        let outcome = ask(&mut Terminal::plain(&mut text));
        (outcome, String::from_utf8(text).unwrap())
    };
    let good = |ask: Ask<'_>| {
        let (outcome, text) = show(ask);
        assert_eq!(outcome.unwrap(), Outcome::Good, "{text}");
        text
    };
    let status = good(&|out| show::status(client, Form::Table, out));
    assert!(status.starts_with("agent     ready\n"), "{status}");
    let peer = good(&|out| show::peer(client, "10.244.9.7", Form::Wide, out));
    assert!(peer.contains("192.0.2.9") && peer.contains("10.244.9.0/24"), "{peer}");
    let peer = good(&|out| show::peer(client, "10.244.9.7", Form::Json, out));
    assert!(peer.contains("\"lease\":\"10.244.9.0-24\"") && peer.contains("\"objects\":["), "{peer}");
    good(&|out| show::diff(client, Form::Table, out));
    let events = good(&|out| show::events(client, false, Form::Json, out));
    assert!(events.lines().count() > 3 && events.starts_with('{'), "{events}");
    let (nobody, _) = show(&|out| show::peer(client, "10.244.7.7", Form::Table, out));
    assert!(matches!(nobody, Err(ShowError::NoPeer(_))), "{nobody:?}");
    let report = client.report(true);
    assert_eq!(report.status.unwrap()["ready"], true);
    assert!(report.events.is_some_and(|events| events.lines().count() > 3));
    assert!(client.report(false).events.is_none(), "nobody asked");
}

#[test]
fn an_embedded_agent_is_asked_by_the_example() {
    in_sandbox(test_name!(), || {
        let (host, store, file) = (host(), Path::new("/run/store"), Path::new("/run/agent/subnet.env"));
        fs::create_dir_all(store.join("subnets")).unwrap();
        fs::write(store.join("config"), r#"{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan"}}"#).unwrap();
        fs::write(store.join("subnets/10.244.9.0-24"), PEER).unwrap();
        let work = async {
            let manager = LocalSubnetManager::new(LocalOptions::new(store));
            let agent = Agent::builder(Arc::new(manager))
                .backend(VxlanBackend::new())
                .probes(ProbeOptions::new(ProbeInterval::Auto))
                .subnet_file(file)
                .start()
                .unwrap();
            let (agent, stop) = (Arc::new(agent), CancellationToken::new());
            let server = ControlServer::bind(&socket_of(file)).unwrap();
            let (its_agent, until) = (Arc::clone(&agent), stop.clone());
            let server = tokio::spawn(async move { server.serve(&its_agent, until).await });
            let mut status = agent.status();
            let is_done = |it: &Arc<flannel_core::agent::AgentStatus>| {
                let is_probed =
                    it.probes.as_ref().is_some_and(|probes| probes.counts.of(Verdict::PeerDead) == 1);
                it.readiness().is_ready()
                    && it.network.as_ref().is_some_and(|network| network.peers == 1)
                    && is_probed
            };
            tokio::time::timeout(SOON, status.wait_for(is_done)).await.unwrap().unwrap();

            let text = tokio::task::spawn_blocking(|| example::show(file).unwrap()).await.unwrap();
            assert!(
                text.starts_with("agent     ready\n")
                    && text.contains("\n10.244.9.0/24  192.0.2.9  vxlan  programmed  peer-dead  "),
                "{text}"
            );
            let asked = tokio::task::spawn_blocking(|| {
                let client = Client::new(socket_of(file));
                let ask = |request: Request| client.ask(&request).unwrap();
                let peer = Request::new("peer").with("lease", "10.244.9.0-24");
                (ask(Request::new("status")), ask(peer), ask(Request::new("diff")))
            });
            let (status, peer, diff) = asked.await.unwrap();
            let status: wire::Status = serde_json::from_str(status.get()).unwrap();
            let node = status.node.unwrap();
            assert_eq!(
                (node.backend.as_str(), node.underlay.name.as_str(), node.underlay.mtu),
                ("vxlan", "eth0", 1500)
            );
            assert!(!node.underlay.reason.is_empty(), "why this underlay");
            let (network, store) = (status.network.unwrap(), status.store.unwrap());
            assert_eq!((network.overlay_mtu, network.devices[0].name.as_str()), (Some(1450), "flannel.1"));
            assert_eq!(network.counters[0].of, "flannel.1");
            let term = store.lease_term.expect("leases of this store end");
            let (now, day) = (std::time::SystemTime::now(), Duration::from_secs(86_400));
            assert!(term.renewed.age(now) < SOON && term.expires.0 < now + day, "{term:?}");
            assert!(network.peer_list[0].since.age(now) < SOON, "{:?}", network.peer_list[0]);
            let probes = status.probes.expect("what probes found out");
            let probe = probes.peers[0].v4.as_ref().unwrap();
            assert_eq!(
                (probes.counts["peer-dead"], probe.verdict.as_str()),
                (1, "peer-dead"),
                "there is no such node"
            );
            assert!(!probe.evidence.is_empty() && probe.since.age(now) < SOON, "{probe:?}");
            assert_eq!(probe.underlay.target.to_string(), "192.0.2.9");
            let objects: wire::PeerObjects = serde_json::from_str(peer.get()).unwrap();
            assert!(
                objects.objects.len() >= 3 && objects.objects.iter().all(|object| object.present),
                "{objects:?}"
            );
            tokio::task::spawn_blocking(|| what_is_shown(&Client::new(socket_of(file)))).await.unwrap();
            let differences: wire::Differences = serde_json::from_str(diff.get()).unwrap();
            assert_eq!(differences.differences, []);

            agent.stop().await.unwrap();
            let events = tokio::task::spawn_blocking(|| {
                let answers = Client::new(socket_of(file))
                    .follow(&Request::new("events").with("follow", true))
                    .unwrap();
                answers
                    .map(|it| serde_json::from_str::<wire::Event>(it.unwrap().get()).unwrap())
                    .collect::<Vec<_>>()
            });
            let events = events.await.unwrap();
            assert!(events.iter().map(|event| event.seq).eq(1..=events.len() as u64), "all, once each");
            assert_eq!(events.last().unwrap().event, "ended", "who follows is told the end");
            assert!(events.iter().all(|event| event.time.age(now) < Duration::from_secs(600)));
            stop.cancel();
            server.await.unwrap();
        };
        let run =
            || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work);
        host.enter(run).unwrap();
    });
}
