//! Both backends on a kernel and a store in memory, with commands that are only recorded.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use flannel_core::addr::{LinkIndex, Mtu, PerFamily};
use flannel_core::backend::{
    Backend, BackendError, HostProblem, Network, NetworkStatus, Registration, Underlay,
};
use flannel_core::config::{LeaseSource, NetworkConfig};
use flannel_core::dataplane::{Object, Route};
use flannel_core::kernel::LinkAddress;
use flannel_core::netns::Netns;
use flannel_core::state_file::State;
use flannel_core::status::{PeerState, Subject};
use flannel_core::subnet::SubnetManager;
use flannel_core::testing::{FakeKernel, FakeStore};
use flannel_core::underlay::UnderlayOptions;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::command::{CommandError, Request, Run};
use crate::{AllocBackend, ExtensionBackend};

const EXTENSION: &str = r#"{"Network":"10.5.0.0/16","Backend":{"Type":"extension","PreStartupCommand":"pre",
    "PostStartupCommand":"post $SUBNET","SubnetAddCommand":"add $SUBNET $PUBLIC_IP $HOME","SubnetRemoveCommand":"remove $SUBNET"}}"#;
const ALLOC: &str = r#"{"Network":"10.5.0.0/16","Backend":{"Type":"alloc"}}"#;
const KEY: &str = "10.5.99.0-24";
const OTHER: &str = "10.5.98.0-24";

fn published(n: u8) -> String {
    format!(
        r#"{{"PublicIP":"192.0.2.{n}","PublicIPv6":null,"BackendType":"extension","BackendData":"data {n}"}}"#
    )
}

/// Records commands in words: arguments, and what comes by the standard input.
#[derive(Default)]
struct Recorder {
    done: Mutex<Vec<String>>,
    /// The first words, or arguments, of those that fail.
    failing: Mutex<BTreeSet<String>>,
    /// Those of commands that never end.
    hanging: Mutex<BTreeSet<String>>,
}

impl Recorder {
    fn take(&self) -> Vec<String> {
        let mut done = std::mem::take(&mut *self.done.lock().unwrap());
        done.sort();
        done
    }

    fn fail(&self, words: &[&str]) {
        *self.failing.lock().unwrap() = words.iter().map(|word| (*word).to_owned()).collect();
    }
}

#[async_trait]
impl Run for Recorder {
    async fn run(&self, request: Request) -> Result<String, CommandError> {
        let Request { args, input, .. } = request;
        self.done.lock().unwrap().push(format!("{} <{input}>", args.join(" ")));
        let is_in =
            |words: &Mutex<BTreeSet<String>>| args.iter().any(|arg| words.lock().unwrap().contains(arg));
        if is_in(&self.hanging) {
            std::future::pending::<()>().await;
        }
        if is_in(&self.failing) {
            let status = std::os::unix::process::ExitStatusExt::from_raw(256);
            return Err(CommandError::Failed { program: args[0].clone(), status, said: ": no".to_owned() });
        }
        Ok("said".to_owned())
    }
}

struct Host {
    kernel: FakeKernel,
    store: FakeStore,
    underlay: Underlay,
    config: NetworkConfig,
    commands: Arc<Recorder>,
}

fn parse(config: &str) -> NetworkConfig {
    NetworkConfig::parse(config, LeaseSource::Store).unwrap()
}

fn give(kernel: &FakeKernel, link: LinkIndex, addr: &str) {
    let addr = addr.parse().unwrap();
    let (global, deprecated, permanent, temporary, tentative) = (true, false, false, false, false);
    kernel.add_address(LinkAddress { link, addr, global, deprecated, permanent, temporary, tentative });
}

impl Host {
    fn new(config: &str) -> Self {
        let kernel = FakeKernel::default();
        let link = kernel.add_link("eth0", 1500);
        give(&kernel, link, "192.0.2.1/24");
        let addrs = PerFamily { v4: "192.0.2.1".parse().ok(), v6: None };
        let underlay = Underlay::new("eth0", link, Mtu(1500), addrs);
        let config = parse(config);
        Self { kernel, store: FakeStore::new(config.clone()), underlay, config, commands: Arc::default() }
    }

    async fn register(&self, previous: Option<&State>) -> Result<Box<dyn Network>, BackendError> {
        let kernel = self.kernel.clone();
        let open = move |_: &Netns| Ok(Box::new(kernel.clone()) as Box<dyn flannel_core::kernel::Kernel>);
        let backend: Box<dyn Backend> = if self.config.backend.kind == "alloc" {
            Box::new(AllocBackend::with_kernel(open))
        } else {
            let environment = [("HOME".into(), "/root dir".into()), ("SUBNET".into(), "not this".into())];
            let runner = Arc::clone(&self.commands) as Arc<dyn Run>;
            Box::new(ExtensionBackend::new(environment).with_kernel(open).with_runner(runner))
        };
        let (netns, options) =
            (Netns::current().unwrap(), UnderlayOptions::of_config(&self.config).iface("eth0"));
        let registration = Registration::new(&netns, &self.config, &self.underlay, &self.store)
            .previous(previous)
            .chosen_by(&options);
        backend.register(registration).await
    }

    async fn start(&self, previous: Option<&State>) -> Running {
        let network = self.register(previous).await.unwrap();
        let (status, state) = (network.status(), network.state());
        let attrs = network.attrs();
        let own = network.lease().key.subnet(flannel_core::addr::Family::V4).unwrap().to_string();
        let cancel = CancellationToken::new();
        let task = tokio::spawn(network.run(self.store.watch_leases(), cancel.clone()));
        told().await;
        Running { status, state, attrs, own, cancel, task }
    }
}

struct Running {
    status: watch::Receiver<NetworkStatus>,
    state: watch::Receiver<State>,
    attrs: watch::Receiver<flannel_core::lease::LeaseAttrs>,
    own: String,
    cancel: CancellationToken,
    task: JoinHandle<Result<(), BackendError>>,
}

impl Running {
    fn state_of(&self, key: &str) -> Option<PeerState> {
        self.status.borrow().peer_list.get(&key.parse().unwrap()).map(|peer| peer.state.clone())
    }

    fn why(&self, key: &str) -> String {
        match self.state_of(key) {
            Some(PeerState::Rejected(rejected)) => rejected.reason.clone(),
            other => panic!("{other:?}"),
        }
    }

    async fn stop(self) -> State {
        self.cancel.cancel();
        self.task.await.unwrap().unwrap();
        self.state.borrow().clone()
    }
}

/// Waits until the status says all that there is to say.
async fn told() {
    tokio::time::sleep(Duration::from_millis(300)).await;
}

#[tokio::test(start_paused = true)]
async fn commands_get_the_values_of_their_node_and_what_it_publishes() {
    let host = Host::new(EXTENSION);
    host.store.put(KEY, &published(9));
    let running = host.start(None).await;
    let own = &running.own;
    assert_eq!(
        host.commands.take(),
        [
            "add 10.5.99.0/24 192.0.2.9 /root dir <data 9>".to_owned(),
            format!("post {own} <>"),
            "pre <>".to_owned()
        ]
    );
    let json = r#"{"PublicIP":"192.0.2.1","PublicIPv6":null,"BackendType":"extension","BackendData":"said"}"#;
    assert_eq!(running.attrs.borrow().to_json(), json);
    assert_eq!(running.state_of(KEY), Some(PeerState::Programmed));
    assert_eq!(running.status.borrow().overlay_mtu, Some(Mtu(1500)));
    // A heartbeat, say, changes nothing; another address does.
    host.store.put(KEY, &published(9));
    told().await;
    assert_eq!(host.commands.take(), [""; 0]);
    host.store.put(KEY, &published(8));
    told().await;
    assert_eq!(host.commands.take(), ["add 10.5.99.0/24 192.0.2.8 /root dir <data 8>"]);
    host.store.remove(KEY);
    told().await;
    assert_eq!(host.commands.take(), ["remove 10.5.99.0/24 <data 8>"]);
    assert_eq!(running.state_of(KEY), None);
    running.stop().await;
    assert_eq!(host.commands.take(), [""; 0], "an end removes nothing");
}

#[tokio::test(start_paused = true)]
async fn a_command_that_fails_is_shown_and_tried_again_and_delays_no_other() {
    let host = Host::new(EXTENSION);
    host.commands.fail(&["10.5.99.0/24"]);
    host.commands.hanging.lock().unwrap().insert("10.5.97.0/24".to_owned());
    for (key, n) in [(KEY, 9), (OTHER, 8), ("10.5.97.0-24", 7)] {
        host.store.put(key, &published(n));
    }
    let running = host.start(None).await;
    assert_eq!(running.why(KEY), "SubnetAddCommand: add failed (exit status: 1): no; it is tried again");
    assert_eq!(running.state_of(OTHER), Some(PeerState::Programmed));
    assert_eq!(running.state_of("10.5.97.0-24"), Some(PeerState::Waiting));
    let status = running.status.borrow().clone();
    assert_eq!(status.problems.reach.v4.map(|reach| (reach.expected, reach.cut)), Some((3, 1)));
    assert!(status.rejected()[0].contains("lease 10.5.99.0-24: SubnetAddCommand"), "{:?}", status.rejected());
    host.commands.take();
    tokio::time::sleep(Duration::from_mins(2)).await;
    let tries = host.commands.take();
    assert!((4..9).contains(&tries.len()), "{tries:?}");
    host.commands.fail(&[]);
    tokio::time::sleep(Duration::from_mins(7)).await;
    assert_eq!(running.state_of(KEY), Some(PeerState::Programmed));
    let status = running.status.borrow().clone();
    assert_eq!((status.rejected().len(), status.problems.reach.v4.map(|reach| reach.cut)), (0, Some(0)));
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_removal_that_fails_is_a_problem_of_the_node() {
    let host = Host::new(EXTENSION);
    host.commands.fail(&["remove"]);
    host.store.put(KEY, &published(9));
    let running = host.start(None).await;
    host.store.remove(KEY);
    told().await;
    let subject = Subject::Command("SubnetRemoveCommand".to_owned());
    let text = running.status.borrow().problems.text(&subject).unwrap();
    assert!(
        text.starts_with("lease 10.5.99.0-24, which is gone: SubnetRemoveCommand: remove failed"),
        "{text}"
    );
    host.commands.fail(&[]);
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(running.status.borrow().problems.text(&subject), None);
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn after_a_restart_nodes_are_added_again_and_those_that_left_are_removed() {
    let host = Host::new(EXTENSION);
    for (key, n) in [(KEY, 9), (OTHER, 8), ("10.5.97.0-24", 7)] {
        host.store.put(key, &published(n));
    }
    let stored = host.start(None).await.stop().await;
    assert_eq!((stored.leases.len(), stored.routes_of_others), (3, true));
    let stored = State::decode(stored.encode().as_bytes()).unwrap();
    host.store.remove(OTHER);
    host.store.put("10.5.97.0-24", r#"{"BackendType":"extension"}"#);
    host.commands.take();
    let network = host.register(Some(&stored)).await.unwrap();
    assert_eq!(
        host.commands.take().len(),
        2,
        "pre and post: nobody is removed before the store has listed all"
    );
    drop(network);
    let running = host.start(Some(&stored)).await;
    let mut done = host.commands.take();
    done.retain(|command| command.starts_with("add") || command.starts_with("remove"));
    let want = ["add 10.5.99.0/24 192.0.2.9 /root dir <data 9>", "remove 10.5.98.0/24 <data 8>"];
    assert_eq!(done, want, "one that is unreadable is not gone");
    host.store.remove("10.5.97.0-24");
    told().await;
    assert_eq!(host.commands.take(), ["remove 10.5.97.0/24 <data 7>"]);
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_start_whose_commands_fail_is_tried_again_by_the_agent() {
    let host = Host::new(EXTENSION);
    host.commands.fail(&["pre"]);
    let error = host.register(None).await.err().unwrap();
    let BackendError::Host(HostProblem::Command(why)) = error else { panic!("{error:?}") };
    assert_eq!(why, "PreStartupCommand: pre failed (exit status: 1): no");
    assert!(host.store.leases().is_empty(), "nothing is published");
    host.commands.fail(&["post"]);
    let why = host.register(None).await.err().unwrap().to_string();
    assert_eq!(why, "PostStartupCommand: post failed (exit status: 1): no");
    host.commands.fail(&[]);
    assert!(host.register(None).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn another_command_is_live_and_another_address_runs_the_start_again() {
    let host = Host::new(EXTENSION);
    host.store.put(KEY, &published(9));
    let running = host.start(None).await;
    host.commands.take();
    host.store.set_config(parse(&EXTENSION.replace("\"add ", "\"add2 ").replace("\"pre\"", "\"pre2\"")));
    told().await;
    assert_eq!(host.commands.take(), ["add2 10.5.99.0/24 192.0.2.9 /root dir <data 9>"]);
    let restart = running.status.borrow().restart_needed().unwrap();
    assert!(restart.contains("Backend.PreStartupCommand changed"), "{restart}");
    host.store.set_config(parse(&EXTENSION.replace("\"add ", "\"add | ")));
    told().await;
    let unusable = running.status.borrow().config_problem().unwrap();
    assert!(unusable.contains("Backend.SubnetAddCommand: has |"), "{unusable}");
    host.kernel.remove_address("192.0.2.1".parse().unwrap());
    give(&host.kernel, host.underlay.link, "192.0.2.2/24");
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(running.attrs.borrow().public_ips.v4, "192.0.2.2".parse().ok());
    let done = host.commands.take();
    assert!(done.contains(&format!("post {} <>", running.own)), "{done:?}");
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn routes_that_others_put_stay() {
    for (config, kind) in [(EXTENSION, "extension"), (ALLOC, "")] {
        let host = Host::new(config);
        let value =
            published(9).replace(r#""BackendType":"extension""#, &format!(r#""BackendType":"{kind}""#));
        host.store.put(KEY, &value);
        let running = host.start(None).await;
        let route =
            Route::by_node("10.5.99.0/24".parse().unwrap(), [192, 0, 2, 9].into(), host.underlay.link);
        // As a command of an operator's leaves it, which is as Go leaves its own.
        let theirs = Object::Route(Route { protocol: 3, ..route });
        host.kernel.put(theirs, true);
        let before = running.stop().await;
        assert_eq!(before.leases.len(), 1, "it knows which node had the subnet");
        host.store.remove(KEY);
        let running = host.start(Some(&before)).await;
        assert_eq!(host.kernel.objects().iter().collect::<Vec<_>>(), [theirs], "{config}");
        running.stop().await;
    }
}

#[tokio::test(start_paused = true)]
async fn alloc_publishes_upstreams_bytes_and_shows_its_peers() {
    let host = Host::new(ALLOC);
    host.store.put(KEY, r#"{"PublicIP":"192.0.2.9","PublicIPv6":null}"#);
    host.store.put(OTHER, &published(8));
    let running = host.start(None).await;
    assert_eq!(running.attrs.borrow().to_json(), r#"{"PublicIP":"192.0.2.1","PublicIPv6":null}"#);
    assert_eq!(running.state_of(KEY), Some(PeerState::Programmed));
    assert!(running.why(OTHER).contains("its backend is \"extension\", ours is \"alloc\""));
    assert!(running.status.borrow().synced && host.kernel.objects().is_empty());
    assert_eq!((host.kernel.take_ops(), host.kernel.take_link_ops()), (vec![], vec![]));
    host.kernel.edit_link("eth0", true, |link| link.up = false);
    told().await;
    assert_eq!(running.status.borrow().device_problem().as_deref(), Some("underlay link eth0 is down"));
    running.stop().await;
}
