//! What the start reads before it changes anything: the config, and what this node has for it.

use std::net::IpAddr;
use std::sync::Arc;

use super::retry::Retry;
use super::{AgentEvent, Failure, Life, addresses, rules, texts};
use crate::addr::{Family, PerFamily};
use crate::backend::{Backend, DriverMaker, Underlay};
use crate::config::NetworkConfig;
use crate::kernel::Kernel;
use crate::lease::LeaseAttrs;
use crate::subnet::SubnetError;
use crate::underlay::{self, Overlay, UnderlayError, UnderlayOptions};

/// What the start reads before it changes anything.
pub(super) struct Prepared {
    pub(super) config: NetworkConfig,
    /// What the store has instead, if that would leave encryption without the operator's word.
    pub(super) told: Option<NetworkConfig>,
    pub(super) backend: Arc<dyn Backend>,
    pub(super) managers: rules::Opening,
    pub(super) underlay: Underlay,
    pub(super) options: UnderlayOptions,
}

impl Life {
    /// Reads the config and checks what this node has for it. Changes nothing.
    pub(super) async fn prepare(&self, kernel: &mut dyn Kernel) -> Result<Prepared, Failure> {
        let (config, told) = self.without_leaving_encryption(self.wait_for_config().await?);
        let kind = config.backend.kind.clone();
        let networks = config.networks.iter().map(|(_, it)| it.network).collect();
        self.board.emit(AgentEvent::ConfigRead { networks, backend: kind.clone() });
        // A wrong backend kind is an error before anything is changed.
        let backend = self.backends.find(&kind)?;
        let managers = self.open_managers(&config).await?;

        self.board.starting("choosing the underlay interface");
        let wanted = self.wait_for_wanted_ips().await?;
        let public_ips =
            PerFamily::from_fn(|family| wanted.get(family).or(self.underlay.public_ips.get(family)).copied());
        let overlay = self.overlay(&config);
        let options = self.underlay.clone().for_config(&config).public_ips(public_ips).overlay(overlay);
        let chosen = self.choose_underlay(kernel, options).await;
        let (underlay, mut options) =
            chosen.map_err(|error| match (error, self.store.wanted_by().filter(|_| !wanted.is_empty())) {
                (Failure::Underlay(source), Some(by)) => Failure::WantedUnderlay { by, source },
                (error, _) => error,
            })?;
        self.board.emit(chosen_event(&underlay));
        options.needed = addresses::needed(kernel, &config, &underlay, &self.store.hosts())
            .await
            .map_err(UnderlayError::from)?;
        Ok(Prepared { config, told, backend, managers, underlay, options })
    }

    /// The config to begin with, and what the store has if that is another one: a node that encrypts goes on with its backend, as
    /// it does while it runs, until the operator says that packets may travel unencrypted.
    fn without_leaving_encryption(&self, told: NetworkConfig) -> (NetworkConfig, Option<NetworkConfig>) {
        let is_encrypted = |kind: &str| {
            self.backends
                .find(kind)
                .is_ok_and(|backend| backend.drivers().is_some_and(DriverMaker::is_encrypted))
        };
        let leaves = |kind: &str| is_encrypted(kind) && !is_encrypted(&told.backend.kind);
        let previous =
            self.previous.as_ref().filter(|it| leaves(&it.backend) && !told.backend.mixing.leave_encryption);
        let configs = previous
            .into_iter()
            .flat_map(|it| it.config.iter().map(|config| &config.backend).chain(&it.beside));
        let former = configs.into_iter().find(|former| previous.is_some_and(|it| it.backend == former.kind));
        match former {
            Some(former) => (NetworkConfig { backend: former.clone(), ..told.clone() }, Some(told)),
            None => (told, None),
        }
    }

    /// Waits as long as necessary: the store may be unavailable, and an operator may still write or correct the config.
    async fn wait_for_config(&self) -> Result<NetworkConfig, Failure> {
        self.board.starting("waiting for the network config");
        let mut retry = Retry::new(&self.board);
        loop {
            match self.store.network_config().await {
                Ok(config) => return Ok(config),
                Err(error) if can_be_mended(&error) => {
                    let why = retry.failed(&error, "waiting for the network config");
                    self.board.starting(format!("waiting for the network config: {why}"));
                }
                Err(error) => return Err(error.into()),
            }
            retry.pause().await;
        }
    }

    /// Asks the store which addresses this node should publish; the answer overrides the flags, as upstream.
    async fn wait_for_wanted_ips(&self) -> Result<PerFamily<IpAddr>, Failure> {
        let mut retry = Retry::new(&self.board);
        loop {
            match self.store.wanted_ips().await {
                Ok(wanted) => return Ok(wanted),
                Err(error) if error.is_transient() => {
                    let why = retry.failed(&error, "waiting for the store");
                    self.board.starting(format!("waiting for the store: {why}"));
                }
                Err(error) => return Err(error.into()),
            }
            retry.pause().await;
        }
    }

    /// What is known of the overlay before it exists, from the config and from the files of earlier runs.
    fn overlay(&self, config: &NetworkConfig) -> Overlay {
        let mut overlay = Overlay::new(config.networks.map(|_, network| network.network));
        for ranges in self.written_before() {
            for (_, range) in ranges.iter() {
                overlay.networks.push(range.network);
                overlay.own.push(range.subnet);
            }
        }
        let devices = self.previous.iter().flat_map(|state| &state.devices);
        overlay.devices.extend(devices.map(|device| device.name.clone()));
        overlay
    }

    /// Chooses the underlay. If its link has several addresses, it keeps the one that this node published last: by the
    /// state file, else by the store's record with one of these addresses.
    async fn choose_underlay(
        &self,
        kernel: &mut dyn Kernel,
        mut options: UnderlayOptions,
    ) -> Result<(Underlay, UnderlayOptions), Failure> {
        let stored = self.previous.as_ref().and_then(|state| state.own.as_ref());
        options.kept = stored.map(|own| own.attrs.public_ips).unwrap_or_default();
        let underlay = underlay::choose(kernel, &options).await?;
        let rivals = if stored.is_some() {
            Vec::new()
        } else {
            underlay::rivals(kernel, &underlay).await.map_err(UnderlayError::from)?
        };
        if rivals.is_empty() {
            return Ok((underlay, options));
        }
        let first = underlay.published.iter().map(|(_, addr)| *addr);
        for addr in first.chain(rivals).collect::<Vec<_>>() {
            let asked = PerFamily::from_fn(|family| (Family::of(addr) == family).then_some(addr));
            if let Some(own) = self.wait_for_published(&asked).await? {
                options.kept = own.public_ips;
                return Ok((underlay::choose(kernel, &options).await?, options));
            }
        }
        Ok((underlay, options))
    }

    async fn wait_for_published(&self, ips: &PerFamily<IpAddr>) -> Result<Option<LeaseAttrs>, Failure> {
        let mut retry = Retry::new(&self.board);
        loop {
            match self.store.published_attrs(ips).await {
                Ok(published) => return Ok(published),
                Err(error) if error.is_transient() => {
                    let why = retry.failed(&error, "waiting for the store");
                    self.board.starting(format!("waiting for the store: {why}"));
                }
                Err(error) => return Err(error.into()),
            }
            retry.pause().await;
        }
    }
}

fn chosen_event(underlay: &Underlay) -> AgentEvent {
    AgentEvent::UnderlayChosen {
        link: underlay.name.clone(),
        mtu: underlay.mtu,
        local: texts(&underlay.local),
        published: texts(&underlay.published),
        reason: underlay.reason.clone(),
    }
}

/// Whether the config may be corrected, so that waiting helps.
fn can_be_mended(error: &SubnetError) -> bool {
    error.is_transient() || matches!(error, SubnetError::NoConfig { .. } | SubnetError::Config { .. })
}
