//! What systemd is told (`sd_notify(3)`): that the agent is ready or stops, what it does in one line, and that its loops
//! turn.

#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use flannel_core::agent::{Agent, AgentStatus};
use sd_notify::NotifyState;
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};
use tracing::{error, warn};

/// The least time between two status lines. The status can change several times a second.
const PACE: Duration = Duration::from_secs(1);

/// Tells a supervisor that asks for it, by `NOTIFY_SOCKET`, about the agent until that has ended.
pub(crate) async fn tell(agent: &Agent) {
    if std::env::var_os("NOTIFY_SOCKET").is_some() {
        tokio::join!(phases(agent), lines(agent.status()), watchdog(agent));
    }
}

async fn phases(agent: &Agent) {
    if agent.ready().await.is_ok() {
        notify("READY=1".to_owned()).await;
    }
    if agent.status().wait_for(|status| status.phase.is_over()).await.is_ok() {
        notify("STOPPING=1".to_owned()).await;
    }
}

/// Shows the status in one line, whenever that changes, and at most once a second.
async fn lines(mut status: watch::Receiver<Arc<AgentStatus>>) {
    let (mut shown, mut end) = (String::new(), status.clone());
    loop {
        let (line, is_over) = {
            let status = status.borrow_and_update();
            (status.summary(), status.phase.is_over())
        };
        if line != shown {
            notify(format!("STATUS={line}")).await;
            shown = line;
        }
        if is_over || status.changed().await.is_err() {
            return;
        }
        // What it becomes meanwhile is what is shown then.
        tokio::select! {
            () = sleep(PACE) => {}
            _ = end.wait_for(|status| status.phase.is_over()) => {}
        }
    }
}

/// Shows at half of the time that systemd gives (`WatchdogSec=`) that the agent's loops turn. Where one hangs, systemd
/// kills the process and starts it anew, which costs no packet.
async fn watchdog(agent: &Agent) {
    let Some(limit) = sd_notify::watchdog_enabled().filter(|limit| !limit.is_zero()) else { return };
    let mut ticks = interval(limit / 2);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let beats = async {
        loop {
            ticks.tick().await;
            if timeout(limit / 2, agent.heartbeat()).await.is_err() {
                error!(seconds = (limit / 2).as_secs_f32(), "the agent hangs; its supervisor restarts it");
                agent.heartbeat().await;
                warn!("the agent goes on");
            }
            notify("WATCHDOG=1".to_owned()).await;
        }
    };
    tokio::select! {
        _ = agent.ended() => {}
        () = beats => {}
    }
}

/// Sends a message. The socket may be full, which must not hold up the agent.
async fn notify(message: String) {
    let send = move || sd_notify::notify(&[NotifyState::Custom(&message)]);
    // Without an answer the runtime ends.
    if let Ok(Err(error)) = tokio::task::spawn_blocking(send).await {
        warn!(%error, "the supervisor could not be notified");
    }
}
