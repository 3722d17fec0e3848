//! Tunnels with keys: the key of this node, the peers in the devices, and the clock that handshakes need. What is known of keys
//! comes from the backends (`Backend::key_file`, `Backend::strangers`).

use std::os::unix::fs::MetadataExt as _;
use std::time::{Duration, SystemTime};

use flannel_core::backend::Backend;
use flannel_core::error::chain;
use flannel_core::gojson::GoObject;
use flannel_core::lease::Lease;
use serde_json::Value;

use crate::facts::Facts;
use crate::finding::{Checked, Finding, Skip, is_denied};
use crate::host::Files;

/// By how much the clocks of kernel and agent may differ.
const TOLERANCE: Duration = Duration::from_secs(2);

/// The backend of the agent, if it has a key.
fn backend(facts: &Facts) -> Result<&dyn Backend, Skip> {
    let kind = facts.backend().ok_or_else(|| Skip::new("the backend is not known"))?;
    let backend = facts.backends().iter().find(|backend| backend.kind() == kind);
    let backend = backend.filter(|backend| backend.key_file().is_some());
    backend.map(|backend| &**backend).ok_or_else(|| Skip::new(format!("the backend {kind} has no key")))
}

/// The key that a lease publishes in a family in which it does not publish this one. While a node changes its key its data has
/// two.
fn another_key(lease: &Lease, key: &str) -> Option<String> {
    let data = lease.attrs.backend_data.iter().map(|(_, data)| data.as_str());
    let mut without = data.filter(|data| !data.contains(key));
    without.find_map(|data| GoObject::parse(data).ok()?.get::<String>("PublicKey").ok()?)
}

/// What is known of the key file.
struct Seen {
    mode: u32,
    owner: u32,
    /// The owner of the state file, which the agent writes.
    agents: Option<u32>,
    text: std::io::Result<String>,
}

pub(super) async fn key_file(facts: &Facts) -> Checked {
    let file = backend(facts)?.key_file().ok_or_else(|| Skip::new("the backend has no key"))?;
    let (at, state) = (file.path.clone(), facts.places.state());
    let look = move |files: &Files| {
        let found = files.metadata(&at)?;
        let agents = files.metadata(&state).ok().map(|state| state.uid());
        Ok::<_, std::io::Error>(Seen {
            mode: found.mode() & 0o7777,
            owner: found.uid(),
            agents,
            text: files.text(&at),
        })
    };
    let path = file.path.display();
    let renewed = "restart the agent: it publishes the key that it has";
    let Seen { mode, owner, agents, text } = match facts.host.look(look).await? {
        Ok(seen) => seen,
        Err(error) if is_denied(&error) => return Err(Skip::unread(path, &error)),
        Err(error) => {
            return Ok(match facts.own() {
                None => Finding::note(
                    format!("there is no key file {path} yet: {error}"),
                    "start the agent, which draws a key",
                ),
                Some(_) => Finding::warning(
                    format!("the key file {path} is gone, and a lease was published: {error}"),
                    "restore it; else the agent draws another key at its next start, and publishes that",
                ),
            });
        }
    };
    let mut found = Vec::new();
    if mode & 0o077 != 0 {
        found.push(Finding::failure(
            format!("{path} has the mode {mode:04o}: others than its owner can use the key of this node"),
            format!("`chmod 400 {path}`; if others may have read it, remove it and restart the agent, which draws another"),
        ));
    }
    if owner != 0 && agents.is_some_and(|agents| agents != owner) {
        found.push(Finding::warning(
            format!("{path} belongs to the user {owner}, who is neither root nor the agent"),
            format!("`chown {} {path}`", agents.unwrap_or_default()),
        ));
    }
    let text = match text {
        Ok(text) => text,
        Err(error) if is_denied(&error) && found.is_empty() => return Err(Skip::unread(path, &error)),
        Err(error) => {
            found.push(Finding::failure(format!("{path} can't be read: {error}"), "let the agent read it"));
            return Ok(Finding::of_all(found, String::new));
        }
    };
    match (file.public)(&text) {
        Err(why) => found.push(Finding::failure(
            format!("the content of {path} {why}"),
            "restore it, or remove it and restart the agent, which draws another key",
        )),
        Ok(key) => {
            if let Some(other) = facts.own().and_then(|own| another_key(own, &key)) {
                found.push(Finding::failure(
                    format!("{path} has the key of {key}, and the lease publishes {other}: no peer can begin a session"),
                    renewed,
                ));
            }
        }
    }
    Ok(Finding::of_all(found, || format!("{path} has the mode {mode:04o} and the key of the lease")))
}

/// Peers in the devices that no lease has: what they send with their addresses is taken for packets of pods.
pub(super) async fn peers(facts: &Facts) -> Checked {
    let backend = backend(facts)?;
    let links: Vec<_> = facts.overlay_links().cloned().collect();
    if links.iter().all(|link| link.kind.as_deref() != Some("wireguard")) {
        return Err(Skip::new("no device of the kernel has peers"));
    }
    let stored: Vec<Lease> = facts.own().into_iter().chain(facts.peers()).cloned().collect();
    let listed = match facts.answered().await {
        Ok(answers) => answers.leases.as_ref().map(|listing| listing.leases.clone()).unwrap_or_default(),
        Err(_) => Vec::new(),
    };
    // A peer that just joined may be in one of them only.
    let leases: Vec<Lease> = stored.into_iter().chain(listed).collect();
    let strangers = backend.strangers(facts.host.netns(), &links, &leases).await;
    let strangers = strangers.map_err(|error| Skip::new(chain(&error)))?;
    let found = strangers.into_iter().map(|stranger| {
        Finding::warning(
            format!("{stranger}, which no lease has: what it sends from there is taken for packets of pods"),
            "`wg set DEVICE peer KEY remove`, if nobody needs it; the agent removes only what is inside the pods' network",
        )
    });
    Ok(Finding::of_all(found.collect::<Vec<_>>(), || "each peer is that of a lease".to_owned()))
}

/// A peer refuses a handshake that is not newer than the last one (TAI64N), so after the clock was set back there is none until
/// it has caught up.
pub(super) async fn clock(facts: &Facts) -> Checked {
    let status = facts.status.as_ref().ok_or_else(|| {
        Skip::new("there is no status of a running agent: none runs, or this user may not ask it")
    })?;
    let sessions = status["network"]["sessions"].as_array();
    let sessions = sessions.ok_or_else(|| Skip::new("the tunnel has no sessions"))?;
    let last = |session: &Value| session["last_handshake"].as_str()?.parse::<jiff::Timestamp>().ok();
    let latest = sessions.iter().filter_map(|session| Some((last(session)?, session))).max_by_key(|it| it.0);
    let Some((at, session)) = latest else { return Err(Skip::new("there was no handshake yet")) };
    let name = |field: &str| session[field].as_str().unwrap_or_default().to_owned();
    let ahead = SystemTime::from(at).duration_since(SystemTime::now()).unwrap_or_default();
    if ahead <= TOLERANCE {
        return Ok(Finding::ok("no handshake is later than the clock of this host"));
    }
    Ok(Finding::failure(
        format!(
            "the last handshake of {} with {} was {} s later than it is now: the clock of this host was set back, and peers \
             refuse handshakes that are not newer than the last one",
            name("device"),
            name("lease"),
            ahead.as_secs()
        ),
        "set the clock right, and let it be set by small steps alone (chrony, systemd-timesyncd)",
    ))
}
