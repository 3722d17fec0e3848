//! The files of the agent.

use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;

use flannel_core::addr::MacAddr;
use flannel_core::state_file::{StoredOn, age};

use crate::facts::Facts;
use crate::finding::{Checked, Finding, Skip, is_denied};

/// The subnet file against the state file.
pub(super) async fn subnet_file(facts: &Facts) -> Checked {
    let path = facts.places.subnet_file.display();
    match facts.subnet_text() {
        Ok(_) => {}
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let seen = format!("there is no {path}: CNI can start no pod");
            return Ok(if facts.agents.is_empty() {
                Finding::failure(seen, "start the agent; give --subnet-file, if it writes another")
            } else {
                Finding::failure(seen, "see the agent's log and /readyz for what it waits for")
            });
        }
        Err(error) if is_denied(error) => return Err(Skip::unread(path, error)),
        Err(error) => {
            return Ok(Finding::failure(
                format!("{path} can't be read: {error}"),
                "remove it and restart the agent, which writes it anew",
            ));
        }
    }
    let problems =
        facts.previous.problems.iter().map(|problem| {
            Finding::failure(problem.clone(), "restart the agent, which writes the file anew")
        });
    let mut found: Vec<Finding> = problems.collect();
    let Some(key) = facts.previous.key else {
        found.push(Finding::failure(
            format!("{path} names no subnet of this node"),
            "restart the agent, which writes it anew",
        ));
        return Ok(Finding::of_all(found, String::new));
    };
    if let Some(own) = facts.own().filter(|own| own.key != key) {
        found.push(Finding::failure(
            format!("{path} says {key}, and the state file says {}", own.key),
            "restart the agent; if both stay as they are, two agents use one subnet file",
        ));
    }
    Ok(Finding::of_all(found, || format!("{path} says {key}")))
}

pub(super) async fn state_file(facts: &Facts) -> Checked {
    let path = facts.places.state();
    if facts.recalled.is_denied {
        facts.state()?;
    }
    if let Some(problem) = &facts.recalled.problem {
        return Ok(Finding::warning(
            format!("{} can't be used: {problem}", path.display()),
            "the agent goes on without it; delete the file, if it stays so after a restart",
        ));
    }
    let Some(state) = &facts.recalled.state else {
        let seen = format!("there is no {}", path.display());
        return if facts.agents.is_empty() {
            Err(Skip::new(format!("{seen}, and no agent runs")))
        } else {
            Ok(Finding::note(
                seen,
                "a boot without the store needs it: see the agent's log for why it can't be written (an agent in Go has none)",
            ))
        };
    };
    let macs: Vec<MacAddr> = facts.links()?.iter().filter_map(|link| link.mac).collect();
    Ok(match state.stored_on(&macs) {
        StoredOn::AnotherHost => Finding::warning(
            format!("{} was written on another host: its MACs are none of this one's", path.display()),
            "if this host was cloned, delete it on the clone; if its NICs were replaced, restart the agent",
        ),
        _ => Finding::ok(format!(
            "{}: backend {}, {} leases of others, saved {}",
            path.display(),
            state.backend,
            facts.peers().count(),
            age(state.saved)
        )),
    })
}

/// Who may read or write what only the agent should.
pub(super) async fn rights(facts: &Facts) -> Checked {
    let private: Vec<PathBuf> =
        [facts.places.state()].into_iter().chain(facts.places.secrets.iter().cloned()).collect();
    let subnet_file = facts.places.subnet_file.clone();
    let folders: Vec<PathBuf> =
        [facts.places.run_dir().to_owned()].into_iter().chain(facts.places.store_dir.clone()).collect();
    let look = move |files: &crate::host::Files| {
        let mut hidden = None;
        let mut mode = |path: &PathBuf| match files.metadata(path) {
            Ok(found) => Some((path.clone(), found.mode() & 0o7777)),
            Err(error) => {
                hidden = hidden.take().or(is_denied(&error).then(|| Skip::unread(path.display(), &error)));
                None
            }
        };
        let mut of = |paths: &[PathBuf]| paths.iter().filter_map(&mut mode).collect::<Vec<_>>();
        (of(&private), of(&[subnet_file]), of(&folders), hidden)
    };
    let (private, public, folders, hidden) = facts.host.look(look).await?;
    if private.is_empty() && public.is_empty() && folders.is_empty() {
        return Err(Skip::new("there is none of the agent's files"));
    }
    let readable = private.iter().filter(|(_, mode)| mode & 0o077 != 0).map(|(path, mode)| {
        Finding::warning(
            format!("{} has the mode {mode:04o}: others than its owner may use it", path.display()),
            format!("`chmod 600 {}`", path.display()),
        )
    });
    let writable =
        public.iter().chain(&folders).filter(|(_, mode)| mode & 0o022 != 0 && mode & 0o1000 == 0).map(
            |(path, mode)| {
                Finding::warning(
                    format!(
                        "{} has the mode {mode:04o}: others can redirect the traffic of all pods",
                        path.display()
                    ),
                    format!("`chmod go-w {}`", path.display()),
                )
            },
        );
    // CNI plugins run as root, but mk-docker-opts and others read it.
    let closed = public.iter().filter(|(_, mode)| mode & 0o444 != 0o444).map(|(path, mode)| {
        Finding::note(
            format!("{} has the mode {mode:04o}: not everybody can read it", path.display()),
            format!("`chmod 644 {}`", path.display()),
        )
    });
    let found: Vec<Finding> = readable.chain(writable).chain(closed).collect();
    if let (Some(hidden), true) = (hidden, found.is_empty()) {
        return Err(hidden);
    }
    Ok(Finding::of_all(found, || {
        "nobody but root can write them, and what is private nobody else can read".to_owned()
    }))
}
