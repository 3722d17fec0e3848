//! The process around the agent: runtime, signals, health server, kernel and store.

use std::io;
use std::process::ExitCode;
use std::sync::Arc;

use flannel_core::kernel::KernelError;
use flannel_core::netlink::Netlink;
use flannel_core::netns::Netns;
use flannel_core::state_file::StoredOn;
use flannel_core::subnet::Remembering;
use flannel_core::subnet_file;
use flannel_core::underlay::UnderlayOptions;
use sd_notify::NotifyState;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::cli::{self, Options};
use crate::health::{self, HealthError};
use crate::report::chain;
use crate::run::{Agent, Notice, RunError};
use crate::status::Board;
use crate::store::StoreError;
use crate::{endpoints, lock, logs, memory, privileges, registry, rules, store};

/// The agent can't start, or ended with an error.
#[derive(Debug, thiserror::Error)]
enum DaemonError {
    /// The runtime or the signals.
    #[error("can't set up the process")]
    Process(#[from] io::Error),
    /// The health server.
    #[error(transparent)]
    Health(#[from] HealthError),
    /// The kernel can't be spoken to.
    #[error("can't speak to the kernel")]
    Kernel(#[from] KernelError),
    /// The store's options can't be used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The agent itself.
    #[error(transparent)]
    Run(#[from] RunError),
}

/// Runs the agent to its end.
pub(crate) fn run(options: &Options) -> ExitCode {
    logs::set_up(options);
    // Before there are other threads: each has capabilities of its own.
    if let Err(error) = privileges::take_granted() {
        warn!(%error, "capabilities of the program's file not taken");
    }
    if let Err(error) = privileges::raise_descriptor_limit() {
        warn!(%error, "limit of open files not raised");
    }
    let result = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(DaemonError::Process)
        .and_then(|runtime| {
            let result = runtime.block_on(serve(options));
            // A look-up that blocks a thread must not keep the process.
            runtime.shutdown_background();
            result
        });
    match result {
        Ok(()) => {
            info!("stopped; the state of the kernel stays");
            ExitCode::SUCCESS
        }
        Err(error) => {
            error!(error = %chain(&error), "flanneld ends");
            ExitCode::FAILURE
        }
    }
}

async fn serve(options: &Options) -> Result<(), DaemonError> {
    let shutdown = CancellationToken::new();
    stop_on_signals(shutdown.clone())?;
    info!(version = cli::version(), options = shown(options), "starting");

    lock::wait_for_remains(&options.subnet_file).await;
    let board = Arc::new(Board::new());
    let farewell = CancellationToken::new();
    // First of all: a probe gets an answer from the first moment.
    let health = match &options.health {
        Some((address, port)) => {
            let listener = health::bind(address, *port).await?;
            Some(tokio::spawn(health::serve(listener, Arc::clone(&board), farewell.clone())))
        }
        None => None,
    };
    let result = run_agent(options, &board, &shutdown).await;
    farewell.cancel();
    if let Some(health) = health {
        // It ends by its own deadline; a crash of it is no news now.
        let _ = health.await;
    }
    result
}

async fn run_agent(
    options: &Options,
    board: &Board,
    shutdown: &CancellationToken,
) -> Result<(), DaemonError> {
    let Some(_running) = shutdown.run_until_cancelled(lock::hold(&options.subnet_file)).await else {
        return Ok(());
    };
    let previous = subnet_file::read_previous(&options.subnet_file);
    for problem in &previous.problems {
        warn!(problem, "old subnet file");
    }
    let netns = Netns::current().map_err(KernelError::from)?;
    let mut kernel = Netlink::open_in(&netns)?;
    let mut state = memory::recall(&options.state_file);
    let host = memory::read_host(&mut kernel, state.as_ref(), &previous).await?;
    let stored_on = memory::check_host(state.as_ref(), &host);
    let place = store::place(options)?;
    let stand_in = memory::stand_in(state.as_ref(), &place, stored_on);
    let identity = memory::identity(&previous, state.as_ref(), &place, stored_on, &host);
    let store = Remembering::new(store::open(options, identity)?, stand_in);
    if let Some(state) = state.as_mut().filter(|_| stored_on == StoredOn::AnotherHost) {
        // What it published is another machine's, which may live.
        (state.own, state.former_ips) = (None, Vec::new());
    }
    let unseen_rules = privileges::unseen_rules();
    if let Some(remark) = &unseen_rules {
        warn!(remark, "rules of the host are not seen");
    }
    let agent = Agent {
        netns,
        underlay: UnderlayOptions::auto()
            .ifaces(options.ifaces.iter().cloned())
            .iface_regexes(options.iface_regexes.iter().cloned())
            .can_reach(options.can_reach)
            .public_ips(options.public_ips),
        subnet_file: options.subnet_file.clone(),
        state_file: options.state_file.clone(),
        previous: state,
        blackholes: options.blackholes,
        unseen_rules,
        rules: options.rules,
        written_for: rules::ranges(
            previous.networks,
            previous.key.map(|key| key.subnets()).unwrap_or_default(),
        ),
        managers: &|choice, families, options| Box::pin(rules::open(choice, families, options)),
        store: &store,
        store_hosts: endpoints::hosts(options),
        backends: &|kind| registry::backend(kind, &options.backends),
        board,
        notify: &notify,
        shutdown: shutdown.clone(),
    };
    Ok(agent.run(&mut kernel).await?)
}

/// Tells systemd, if it asked for it (`NOTIFY_SOCKET`).
fn notify(notice: Notice) {
    let state = match notice {
        Notice::Ready => NotifyState::Ready,
        Notice::Stopping => NotifyState::Stopping,
    };
    if let Err(error) = sd_notify::notify(&[state]) {
        warn!(%error, "systemd could not be notified");
    }
}

/// Fires `shutdown` on the first SIGTERM or SIGINT and ends the process at the second.
fn stop_on_signals(shutdown: CancellationToken) -> io::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::spawn(async move {
        let number = first(&mut terminate, &mut interrupt).await;
        info!(signal = number, "stopping");
        shutdown.cancel();
        let number = first(&mut terminate, &mut interrupt).await;
        // What a shell reports for a process that the signal killed.
        std::process::exit(128 + number);
    });
    Ok(())
}

async fn first(terminate: &mut Signal, interrupt: &mut Signal) -> i32 {
    tokio::select! {
        _ = terminate.recv() => SignalKind::terminate().as_raw_value(),
        _ = interrupt.recv() => SignalKind::interrupt().as_raw_value(),
    }
}

fn shown(options: &Options) -> String {
    let shown = options.shown.iter().map(|(name, value)| format!("--{name}={value}"));
    shown.collect::<Vec<_>>().join(" ")
}
