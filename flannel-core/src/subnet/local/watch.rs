//! Follows the folder: inotify says when to look, and a slow rescan finds what it is blind to (NFS, a lost
//! event, a lease that expired).

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::time::Duration;

use futures::{StreamExt, stream};
use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, InotifyEvent, WatchDescriptor};
use tokio::io::unix::AsyncFd;
use tracing::debug;

use super::clock::RECHECK;
use super::files::{Entry, Folder, Scan};
use super::{LocalSubnetManager, Store};
use crate::clock::{BootInstant, Jumps};
use crate::lease::LeaseUpdate;
use crate::subnet::LeaseStream;
use crate::subnet::inotify::{Fd, listen};
use crate::subnet::timing::Backoff;

/// How often the folder is looked at without being asked to.
pub(super) const RESCAN: Duration = Duration::from_secs(10);

/// How long a lease that ran out in a jump of the clock is kept: its node looks at once, or at its next rescan.
const GRACE: Duration = Duration::from_secs(30);

/// The lease watch. All changes that one look finds come together.
pub(super) fn stream(store: LocalSubnetManager) -> LeaseStream {
    let watcher = Watcher {
        changes: Changes::new(store.0.folder.clone()),
        jumps: store.0.options.clock.jumps(),
        grace: None,
        store,
        known: None,
        gap: true,
        backoff: Backoff::new(),
        pause: None,
    };
    stream::unfold(watcher, |mut watcher| async move {
        let updates = watcher.next().await;
        Some((stream::iter(updates.into_iter().map(Ok)), watcher))
    })
    .flatten()
    .boxed()
}

struct Watcher {
    store: LocalSubnetManager,
    changes: Changes,
    known: Option<BTreeMap<String, Entry>>,
    /// Whether the store could not be read since the last update.
    gap: bool,
    backoff: Backoff,
    pause: Option<Duration>,
    jumps: Jumps,
    /// Until when a lease that ran out in a jump of the clock is kept.
    grace: Option<BootInstant>,
}

impl Watcher {
    /// Waits for news.
    async fn next(&mut self) -> Vec<LeaseUpdate> {
        loop {
            if let Some(pause) = self.pause {
                tokio::select! {
                    () = self.changes.wait(pause) => {}
                    _ = self.jumps.next() => self.begin_grace(),
                }
            }
            self.changes.arm();
            let Ok(mut scan) = self.store.blocking(Store::scan).await else {
                // The status says why. What is known stays.
                self.gap = true;
                self.pause = Some(self.backoff.pause());
                continue;
            };
            self.backoff.reset();
            self.pause = Some(RESCAN);
            self.keep_known(&mut scan);
            let updates = match &self.known {
                Some(known) if !self.gap => difference(known, &scan.live),
                _ => vec![snapshot(&scan.live)],
            };
            (self.known, self.gap) = (Some(scan.live), false);
            if !updates.is_empty() {
                return updates;
            }
        }
    }

    fn begin_grace(&mut self) {
        self.grace = Some(self.store.0.options.clock.now() + GRACE);
    }

    /// After a jump of the clock, the time of a lease may be over only because its node had no time to renew it: one
    /// host that slept for a day has agents that all wake at once. Such a lease is kept for a while.
    fn keep_known(&mut self, scan: &mut Scan) {
        if self.jumps.take().is_some() {
            self.begin_grace();
        }
        // Other nodes may look at the folder's clock later than this one.
        self.grace = self.grace.max(scan.clock_set.map(|at| at + RECHECK + GRACE));
        self.grace = self.grace.filter(|until| self.store.0.options.clock.now() < *until);
        if let (Some(_), Some(known)) = (self.grace, &self.known) {
            let expired = std::mem::take(&mut scan.expired).into_iter();
            scan.live.extend(expired.filter(|(name, _)| known.contains_key(name)));
        }
    }
}

fn snapshot(entries: &BTreeMap<String, Entry>) -> LeaseUpdate {
    let (mut leases, mut undecodable) = (Vec::new(), Vec::new());
    for entry in entries.values() {
        match entry {
            Entry::Record(record) => leases.push(record.lease.clone()),
            Entry::Bad { record, .. } => undecodable.push(record.clone()),
        }
    }
    LeaseUpdate::Snapshot { leases, undecodable }
}

fn difference(before: &BTreeMap<String, Entry>, after: &BTreeMap<String, Entry>) -> Vec<LeaseUpdate> {
    let gone = before.keys().filter(|name| !after.contains_key(*name));
    let gone = gone.map(|name| LeaseUpdate::Removed(name.clone()));
    let put = after.iter().filter(|(name, entry)| before.get(*name) != Some(entry));
    let put = put.map(|(_, entry)| match entry {
        Entry::Record(record) => LeaseUpdate::Put(record.lease.clone()),
        Entry::Bad { record, .. } => LeaseUpdate::Undecodable(record.clone()),
    });
    gone.chain(put).collect()
}

/// Waits until it is worth looking at the folder again.
pub(super) struct Changes {
    folder: Folder,
    inotify: Option<Watched>,
}

impl Changes {
    pub(super) fn new(folder: Folder) -> Self {
        Self { folder, inotify: None }
    }

    /// Starts to watch, before a look, so that nothing falls between the two. Where that can't be, the
    /// rescan has to do.
    pub(super) fn arm(&mut self) {
        if self.inotify.is_none() {
            match Watched::new(&self.folder) {
                Ok(watched) => self.inotify = Some(watched),
                Err(error) => debug!(%error, "no inotify watch; the rescan has to do"),
            }
        }
    }

    /// Waits for a change, but no longer than `limit`.
    pub(super) async fn wait(&mut self, limit: Duration) {
        if self.inotify.is_none() {
            self.arm();
            if self.inotify.is_some() {
                // The folder appeared after the look began; what happened until now was not watched.
                return;
            }
        }
        let Some(watched) = &self.inotify else { return tokio::time::sleep(limit).await };
        if let Ok(Err(_)) = tokio::time::timeout(limit, watched.changed()).await {
            // What is watched is no longer what the path names.
            self.inotify = None;
        }
    }
}

struct Watched {
    fd: AsyncFd<Fd>,
    root: WatchDescriptor,
}

/// The folder itself went, or was replaced.
struct Replaced;

impl Watched {
    fn new(folder: &Folder) -> io::Result<Self> {
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
        let entries = AddWatchFlags::IN_MOVED_TO | AddWatchFlags::IN_MOVED_FROM | AddWatchFlags::IN_DELETE;
        let itself = AddWatchFlags::IN_DELETE_SELF | AddWatchFlags::IN_MOVE_SELF | AddWatchFlags::IN_ONLYDIR;
        let written = AddWatchFlags::IN_CLOSE_WRITE;
        let root = inotify.add_watch(&folder.root, entries | itself | written | AddWatchFlags::IN_CREATE)?;
        inotify.add_watch(&folder.subnets(), entries | itself | written | AddWatchFlags::IN_DONT_FOLLOW)?;
        let fd = listen(inotify)?;
        Ok(Self { fd, root })
    }

    /// Waits for a change that matters. Several at once count as one.
    async fn changed(&self) -> Result<(), Replaced> {
        loop {
            let Ok(mut ready) = self.fd.readable().await else { return Err(Replaced) };
            let mut matters = false;
            loop {
                match self.fd.get_ref().0.read_events() {
                    Ok(events) => {
                        for event in events {
                            matters |= self.matters(&event)?;
                        }
                    }
                    Err(Errno::EINTR) => {}
                    Err(Errno::EAGAIN) => break,
                    Err(_) => return Err(Replaced),
                }
            }
            ready.clear_ready();
            if matters {
                return Ok(());
            }
        }
    }

    fn matters(&self, event: &InotifyEvent) -> Result<bool, Replaced> {
        let ended = AddWatchFlags::IN_DELETE_SELF
            | AddWatchFlags::IN_MOVE_SELF
            | AddWatchFlags::IN_IGNORED
            | AddWatchFlags::IN_UNMOUNT;
        let name = event.name.as_deref().unwrap_or(OsStr::new("")).as_bytes();
        if event.mask.intersects(ended) || event.wd == self.root && name == b"subnets" {
            return Err(Replaced);
        }
        let overflow = event.mask.contains(AddWatchFlags::IN_Q_OVERFLOW);
        let named = if event.wd == self.root { name == b"config" } else { !name.starts_with(b".") };
        Ok(overflow || named)
    }
}
