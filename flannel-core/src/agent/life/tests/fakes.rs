//! A store, a backend and a network that do what a test says, and an agent on them.

use super::*;

/// What a step of the start-up does.
pub(super) enum Does<T> {
    Hangs,
    Fails(SubnetError),
    Works(T),
}

/// The next step of a script. The last one is for ever: a failure then becomes an outage.
pub(super) fn next<T: Clone>(script: &Mutex<VecDeque<Does<T>>>) -> Does<T> {
    let mut script = script.lock().unwrap();
    if script.len() > 1 {
        return script.pop_front().unwrap();
    }
    match script.front() {
        Some(Does::Works(value)) => Does::Works(value.clone()),
        Some(Does::Fails(_)) => Does::Fails(away()),
        Some(Does::Hangs) | None => Does::Hangs,
    }
}

pub(super) async fn play<T: Clone>(script: &Mutex<VecDeque<Does<T>>>) -> Result<T, SubnetError> {
    match next(script) {
        Does::Hangs => pending().await,
        Does::Fails(error) => Err(error),
        Does::Works(value) => Ok(value),
    }
}

/// A store, a backend and a network in one, each with a script.
#[derive(Clone)]
pub(super) struct Fake {
    pub(super) configs: Arc<Mutex<VecDeque<Does<NetworkConfig>>>>,
    pub(super) registers: Arc<Mutex<VecDeque<Does<()>>>>,
    /// Fires when the lease is lost.
    pub(super) loses: CancellationToken,
    /// Fires when the network ends by itself.
    pub(super) ends: CancellationToken,
    /// Whether the network was told to stop, and did.
    pub(super) stopped: CancellationToken,
    pub(super) store: watch::Sender<StoreStatus>,
    pub(super) network: watch::Sender<NetworkStatus>,
    /// Whether the store was told that pods have a network.
    pub(super) up: CancellationToken,
    /// What the store lists; nothing if it does not come to that.
    pub(super) listed: Arc<Mutex<Option<Vec<Lease>>>>,
    /// Where the store is.
    pub(super) hosts: Vec<String>,
    /// What happens to the network.
    pub(super) events: NetworkEventSender,
}

impl Fake {
    pub(super) fn new() -> Self {
        let connected = StoreStatus { connected: true, ..StoreStatus::unknown() };
        let synced = NetworkStatus { synced: true, ..NetworkStatus::default() };
        Self {
            configs: Arc::new(Mutex::new([Does::Works(vxlan())].into())),
            registers: Arc::new(Mutex::new([Does::Works(())].into())),
            loses: CancellationToken::new(),
            ends: CancellationToken::new(),
            stopped: CancellationToken::new(),
            store: watch::Sender::new(connected),
            network: watch::Sender::new(synced),
            up: CancellationToken::new(),
            listed: Arc::default(),
            hosts: Vec::new(),
            events: NetworkEventSender::default(),
        }
    }

    pub(super) fn configs(self, script: impl IntoIterator<Item = Does<NetworkConfig>>) -> Self {
        *self.configs.lock().unwrap() = script.into_iter().collect();
        self
    }

    pub(super) fn registers(self, script: impl IntoIterator<Item = Does<()>>) -> Self {
        *self.registers.lock().unwrap() = script.into_iter().collect();
        self
    }
}

#[async_trait]
impl SubnetManager for Fake {
    async fn network_config(&self) -> Result<NetworkConfig, SubnetError> {
        play(&self.configs).await
    }

    async fn published_attrs(&self, _: &PerFamily<IpAddr>) -> Result<Option<LeaseAttrs>, SubnetError> {
        Ok(None)
    }

    async fn acquire_lease(&self, _: &LeaseAttrs) -> Result<Lease, SubnetError> {
        Ok(lease())
    }

    async fn publish(&self, lease: &Lease, _: &LeaseAttrs) -> Result<Lease, SubnetError> {
        Ok(lease.clone())
    }

    async fn release_lease(&self, _: &Lease) -> Result<(), SubnetError> {
        unreachable!("an agent keeps its lease")
    }

    async fn renew_lease(&self, _: &Lease) -> Result<Infallible, SubnetError> {
        self.loses.cancelled().await;
        Err(lost())
    }

    fn hosts(&self) -> Vec<String> {
        self.hosts.clone()
    }

    fn network_is_up(&self) {
        self.up.cancel();
    }

    fn place(&self) -> String {
        "fake".to_owned()
    }

    fn watch_leases(&self) -> LeaseStream {
        let listed = self.listed.lock().unwrap().clone();
        let snapshot = listed
            .map(|leases| Ok(LeaseUpdate::Snapshot { leases, unreadable: UnreadableRecords::default() }));
        futures::stream::iter(snapshot).chain(futures::stream::pending()).boxed()
    }

    fn status(&self) -> watch::Receiver<StoreStatus> {
        self.store.subscribe()
    }
}

#[async_trait]
impl Backend for Fake {
    fn kind(&self) -> &'static str {
        "vxlan"
    }

    async fn register(&self, registration: Registration<'_>) -> Result<Box<dyn Network>, BackendError> {
        let events = registration.events.expect("an agent wants to know what happens");
        events.send(NetworkEvent::LeftoverRemoved { link: "flannel.7".to_owned() });
        play(&self.registers).await?;
        Ok(Box::new(FakeNetwork { fake: self.clone(), lease: lease() }))
    }
}

pub(super) struct FakeNetwork {
    pub(super) fake: Fake,
    pub(super) lease: Lease,
}

#[async_trait]
impl Network for FakeNetwork {
    fn lease(&self) -> &Lease {
        &self.lease
    }

    fn overlay_mtu(&self) -> Mtu {
        Mtu(1450)
    }

    fn status(&self) -> watch::Receiver<NetworkStatus> {
        self.fake.network.subscribe()
    }

    fn events(&self) -> NetworkEvents {
        self.fake.events.subscribe()
    }

    fn state(&self) -> watch::Receiver<State> {
        watch::Sender::new(State::default()).subscribe()
    }

    fn attrs(&self) -> watch::Receiver<LeaseAttrs> {
        watch::Sender::new(self.lease.attrs.clone()).subscribe()
    }

    async fn run(self: Box<Self>, _: LeaseStream, cancel: CancellationToken) -> Result<(), BackendError> {
        tokio::select! {
            () = cancel.cancelled() => {
                self.fake.stopped.cancel();
                Ok(())
            }
            () = self.fake.ends.cancelled() => Err(BackendError::WatchEnded),
        }
    }
}

/// An agent that runs in the background of a test.
pub(super) struct Test {
    pub(super) fake: Fake,
    pub(super) agent: Agent,
    pub(super) events: AgentEvents,
    pub(super) folder: tempfile::TempDir,
}

pub(super) fn kernel() -> FakeKernel {
    let kernel = FakeKernel::default();
    let link = kernel.add_link("eth0", 1500);
    kernel.add_address(LinkAddress {
        link,
        addr: "10.0.0.1/24".parse().unwrap(),
        global: true,
        deprecated: false,
        permanent: true,
        temporary: false,
        tentative: false,
    });
    for (dst, via) in [("10.0.0.0/24", None), ("0.0.0.0/0", Some("10.0.0.254"))] {
        let via = via.map(|via| via.parse().unwrap());
        let dst = dst.parse().unwrap();
        let route = Route {
            dst,
            via,
            link: Some(link),
            protocol: 2,
            ..Route::blackhole("192.0.2.0/24".parse().unwrap())
        };
        kernel.put(Object::Route(Route { metric: 0, ..route }), false);
    }
    kernel
}

pub(super) fn start(fake: Fake) -> Test {
    start_at(fake, "eth0", "run/subnet.env")
}

pub(super) fn start_at(fake: Fake, iface: &'static str, file: &str) -> Test {
    start_with(fake, iface, file, FirewallOptions::default(), || Managers::new(None, Vec::new(), ""))
}

pub(super) fn start_with(
    fake: Fake,
    iface: &'static str,
    file: &str,
    firewall: FirewallOptions,
    managers: impl Fn() -> Managers + Send + Sync + 'static,
) -> Test {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join(file);
    let agent = Agent::builder(Arc::new(fake.clone()))
        .backend(fake.clone())
        .underlay(UnderlayOptions::auto().iface(iface))
        .state_file(crate::agent::state_file_of(&file))
        .subnet_file(file)
        .firewall(firewall)
        .fakes(|| Ok(Box::new(kernel())), managers);
    let agent = agent.start().unwrap();
    let events = agent.events();
    Test { fake, agent, events, folder }
}

impl Test {
    pub(super) async fn wait(&self, seconds: u64) {
        tokio::time::sleep(Duration::from_secs(seconds)).await;
    }

    pub(super) fn status(&self) -> Arc<AgentStatus> {
        Arc::clone(&self.agent.status().borrow())
    }

    /// Whether pods can be started, else why not.
    pub(super) fn state(&self) -> String {
        let readiness = self.status().readiness();
        if readiness.is_ready() {
            return "ready".into();
        }
        let reasons: Vec<String> = readiness.reasons.into_iter().map(|reason| reason.text).collect();
        reasons.join("; ")
    }

    pub(super) fn notes(&self) -> Vec<String> {
        self.status().readiness().notes.into_iter().map(|note| note.text).collect()
    }

    /// Whether it is up, at this moment.
    pub(super) fn is_up(&self) -> bool {
        self.status().was_up
    }

    pub(super) fn has_ended(&self) -> bool {
        futures::FutureExt::now_or_never(self.agent.ended()).is_some()
    }

    pub(super) fn file(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("run/subnet.env")).unwrap_or_default()
    }

    /// Stops it and returns how it ended; it must do so at once.
    pub(super) async fn stop(&self) -> Result<(), String> {
        let begin = Instant::now();
        let result = self.agent.stop().await;
        assert!(begin.elapsed() < Duration::from_secs(1), "took {:?}", begin.elapsed());
        let result = result.map_err(|error| chain(&error));
        assert_eq!(self.status().phase, Phase::Ended { error: result.clone().err() });
        let ended = self.status();
        assert!(ended.store.is_none() && ended.network.is_none() && ended.firewall.is_none(), "{ended:?}");
        result
    }

    /// Waits until it ends by itself, with an error.
    pub(super) async fn end(&self) -> String {
        chain(&self.agent.ended().await.unwrap_err())
    }

    /// What happened, of what this function picks.
    pub(super) async fn events<T>(mut self, pick: impl Fn(&AgentEvent) -> Option<T>) -> Vec<T> {
        let _ = self.agent.stop().await;
        let mut picked = Vec::new();
        while let Some(event) = self.events.recv().await {
            picked.extend(pick(&event.event));
        }
        picked
    }
}
