//! The process around the agent: runtime, signals, health server, kernel and store.

use std::error::Error;
use std::io;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use flannel_control::http::{HttpServer, Page};
use flannel_control::log::{self, LogLevels};
use flannel_control::{ControlServer, socket_of};
use flannel_core::agent::{Agent, AgentError, AgentEvent, AgentEvents, Failure, wait_for_remains};
use flannel_core::error::chain;
use flannel_metrics::{AgentMetrics, Options as MetricsOptions, Scrapes};
use tokio::runtime::Builder;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::cli::{self, Options};
use crate::{logs, privileges, registry, runtime, store, supervisor};

/// An agent's error, with the flag that asks for what it can't do.
fn in_our_words(error: AgentError) -> Box<dyn Error> {
    match error.failure() {
        Failure::Firewall { masquerade, .. } => {
            let flag = if *masquerade { "--ip-masq" } else { "--iptables-forward-rules" };
            format!("{flag} can't be done: {}", chain(&error)).into()
        }
        _ => error.into(),
    }
}

/// Runs the agent to its end.
pub(crate) fn run(options: &Options) -> ExitCode {
    let levels = logs::set_up(&options.common);
    logs::name_unread_variables();
    // This must be before other threads start, since each thread has capabilities of its own.
    if let Err(error) = privileges::raise_granted() {
        warn!(%error, "capabilities of the program's file can't be raised");
    }
    if let Err(error) = privileges::raise_descriptor_limit() {
        warn!(%error, "limit of open files not raised");
    }
    let mut threads = Builder::new_multi_thread();
    threads.worker_threads(2);
    match runtime::block_on(threads, serve(options, levels)) {
        Ok(()) => {
            info!("stopped; the state of the kernel stays");
            ExitCode::SUCCESS
        }
        Err(error) => {
            error!(error = %chain(&*error), "flanneld ends with an error");
            ExitCode::FAILURE
        }
    }
}

async fn serve(options: &Options, levels: LogLevels) -> Result<(), Box<dyn Error>> {
    let shutdown = CancellationToken::new();
    stop_on_signals(shutdown.clone()).map_err(|error| format!("can't set up the process: {error}"))?;
    info!(version = cli::version(), options = options.shown, "starting");

    wait_for_remains(&options.common.subnet_file).await;
    // The listener comes first, so that probes get an answer from now on.
    let health = match options.healthz_port {
        0 => None,
        port => Some(
            HttpServer::bind(&options.healthz_ip, port)
                .await
                .map_err(|error| format!("{}; see --healthz-ip and --healthz-port", chain(&error)))?,
        ),
    };
    let mut builder = registry::agent(options, store::open(options)?);
    if let Some(remark) = privileges::unseen_rules() {
        warn!(remark, "some firewall rules of the host can't be seen");
        builder = builder.remark(remark);
    }
    let agent = Arc::new(builder.start().map_err(in_our_words)?);
    let farewell = CancellationToken::new();
    let socket = socket_of(&options.common.subnet_file);
    let control = tokio::spawn(control(socket, Arc::clone(&agent), levels, farewell.clone()));
    let health = health.map(|server| {
        let scrapes = scrapes(&agent, options);
        let server = server.page("/metrics", move |accept| {
            let (content_type, body) = scrapes.answer(accept);
            Page::new(content_type, body)
        });
        tokio::spawn(server.serve(agent.status(), farewell.clone()))
    });
    let run = async {
        tokio::select! {
            ended = agent.ended() => ended,
            () = shutdown.cancelled() => agent.stop().await,
        }
    };
    let (result, (), ()) =
        tokio::join!(run, supervisor::tell(&agent), name_idle_options(agent.events(), options));
    farewell.cancel();
    // It removes the socket; at this point a panic in it does not matter.
    let _ = control.await;
    if let Some(health) = health {
        // The health server ends by its own deadline; at this point a panic in it does not matter.
        let _ = health.await;
    }
    result.map_err(in_our_words)
}

/// Serves the control socket, for `flanneld status`, `flanneld events` and `flanneld log-level`, until `stop` fires.
async fn control(socket: PathBuf, agent: Arc<Agent>, levels: LogLevels, stop: CancellationToken) {
    if let Some(server) = ControlServer::bind_patiently(&socket, &stop).await {
        server.request(log::REQUEST, move |fields| levels.answer(&fields)).serve(&agent, stop).await;
    }
}

/// What `/metrics` says.
fn scrapes(agent: &Agent, options: &Options) -> Scrapes {
    let shown =
        MetricsOptions::default().per_peer(options.metrics_per_peer).version(env!("CARGO_PKG_VERSION"));
    let metrics = AgentMetrics::new(agent.status(), shown);
    tokio::spawn(metrics.count_events(agent.events()));
    Scrapes::of(metrics)
}

/// Logs options without effect once the backend is known.
async fn name_idle_options(mut events: AgentEvents, options: &Options) {
    while let Some(event) = events.recv().await {
        match event.event {
            AgentEvent::ConfigRead { backend, .. } => {
                return registry::name_idle_options(&backend, options);
            }
            AgentEvent::Stopping => return,
            _ => {}
        }
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
        // The exit status that a shell reports for a process killed by the signal.
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
