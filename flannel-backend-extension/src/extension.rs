//! The extension backend: from a network config to a running network. Upstream: `pkg/backend/extension/extension.go`.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::sync::Arc;

use async_trait::async_trait;
use flannel_core::backend::{Backend, BackendError, Driven, HostProblem, Network, Registration};
use flannel_core::config::{ConfigError, NetworkConfig};
use flannel_core::kernel::{Kernel, KernelError, OpenKernel};
use flannel_core::lease::{AgedLease, BackendData, LeaseKey};
use flannel_core::netlink::Netlink;
use flannel_core::netns::Netns;
use flannel_core::reconcile;
use flannel_core::state_file::State;
use tracing::warn;

use crate::command::{Processes, Run};
use crate::config::{ExtensionConfig, KEYS, KIND, PRE_STARTUP, SHUTDOWN};
use crate::driver::{ExtensionDriver, request};
use crate::node::Node;
use crate::table::{Input, Table};
use crate::values::Values;

type MakeRunner = dyn Fn(&Netns) -> Arc<dyn Run> + Send + Sync;

/// The extension backend.
pub struct ExtensionBackend {
    open: Box<OpenKernel>,
    /// The environment, as far as it is text, for variables in commands.
    environment: Arc<BTreeMap<String, String>>,
    make_runner: Box<MakeRunner>,
}

impl ExtensionBackend {
    /// A backend whose commands get this environment, besides the variables of a node. `PATH` of it is where programs are
    /// searched. A program that embeds the backend passes its own environment, or a smaller one.
    pub fn new(environment: impl IntoIterator<Item = (OsString, OsString)>) -> Self {
        let environment: Vec<(OsString, OsString)> = environment.into_iter().collect();
        let is_text = |(name, value): &(OsString, OsString)| {
            Some((name.to_str()?.to_owned(), value.to_str()?.to_owned()))
        };
        let text = environment.iter().filter_map(is_text).collect();
        Self {
            open: Box::new(|netns| Ok(Box::new(Netlink::open_in(netns)?))),
            environment: Arc::new(text),
            make_runner: Box::new(move |netns| {
                Arc::new(Processes { netns: netns.clone(), environment: environment.clone() })
            }),
        }
    }

    /// The same on another kernel, such as a fake.
    #[must_use]
    pub fn with_kernel(
        self,
        open: impl Fn(&Netns) -> Result<Box<dyn Kernel>, KernelError> + Send + Sync + 'static,
    ) -> Self {
        Self { open: Box::new(open), ..self }
    }

    /// The same with commands that are run in another way.
    #[cfg(test)]
    pub(crate) fn with_runner(self, runner: Arc<dyn Run>) -> Self {
        Self { make_runner: Box::new(move |_| Arc::clone(&runner)), ..self }
    }
}

#[async_trait]
impl Backend for ExtensionBackend {
    fn kind(&self) -> &'static str {
        KIND
    }

    fn check(&self, config: &NetworkConfig) -> Result<(), ConfigError> {
        ExtensionConfig::parse(&config.backend).map(drop)
    }

    async fn register(&self, registration: Registration<'_>) -> Result<Box<dyn Network>, BackendError> {
        let Registration { netns, config, underlay, .. } = registration;
        let extension = ExtensionConfig::parse(&config.backend)?;
        for key in config.backend.names_besides(&KEYS) {
            if key.eq_ignore_ascii_case(SHUTDOWN) {
                warn!(
                    key,
                    "Backend key has no effect, in Go flannel neither: kernel state stays when an agent ends"
                );
            } else {
                warn!(key, "Backend key has no effect on extension");
            }
        }
        let kernel = (self.open)(netns).map_err(BackendError::no_kernel)?;
        let runner = (self.make_runner)(netns);
        let node = Node::new(config, underlay)?;
        let data = self.prepare(&extension, &*runner).await?;
        let table = Table::remembering(known(registration, &node));
        let driver =
            ExtensionDriver::new(node, extension, data, runner, Arc::clone(&self.environment), table);
        let state = State::of_backend(KIND, config).with_routes_of_others();
        reconcile::register(Driven::new(KIND, driver, state), kernel, registration).await
    }
}

impl ExtensionBackend {
    /// Runs the command before the start. What it prints is what this node publishes.
    async fn prepare(
        &self,
        config: &ExtensionConfig,
        runner: &dyn Run,
    ) -> Result<Option<BackendData>, HostProblem> {
        let Some(command) = &config.pre_startup else { return Ok(None) };
        let request = request(command, config, &self.environment, None);
        let said = runner.run(request).await;
        let said = said.map_err(|error| HostProblem::Command(format!("{PRE_STARTUP}: {error}")))?;
        Ok(Some(BackendData::encode(&said).expect("a string always encodes")))
    }
}

/// The nodes that an earlier run with this backend and store knew: what its commands did for them may still be there.
fn known(registration: Registration<'_>, node: &Node) -> Vec<(LeaseKey, Input)> {
    let place = registration.subnets.place();
    let previous = registration.previous.filter(|previous| previous.backend == KIND);
    let previous = previous.filter(|previous| previous.store.is_empty() || previous.store == place);
    let leases = previous.iter().flat_map(|previous| previous.leases.values());
    let input = |lease: &Arc<AgedLease>| {
        let data = lease.attrs.backend_data.v4.as_ref();
        let data = data.and_then(|data| data.decode().ok()).unwrap_or_default();
        (lease.key, Input { values: Values::of(lease, node.networks), data })
    };
    leases.filter(|lease| lease.attrs.backend_type == KIND).map(input).collect()
}
