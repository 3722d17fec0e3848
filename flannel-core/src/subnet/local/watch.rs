//! Follows the folder: inotify says which files to read, and a periodic rescan finds changes that inotify misses (NFS,
//! lost events, expired leases).

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::time::Duration;

use futures::{StreamExt, stream};
use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, InotifyEvent, WatchDescriptor};
use tokio::io::unix::AsyncFd;
use tracing::debug;

use super::clock::RECHECK;
use super::files::{Entry, Folder, Found, Scan};
use super::{LocalSubnetManager, Store};
use crate::clock::{BootInstant, Jumps};
use crate::lease::{Lease, LeaseUpdate, UnreadableRecord, UnreadableRecords};
use crate::subnet::kit::Backoff;
use crate::subnet::kit::inotify::{Fd, listen};
use crate::subnet::{LeaseStream, SubnetError};

/// The interval of the rescan.
pub(super) const RESCAN: Duration = Duration::from_secs(10);

/// How long a lease that expired in a jump of the clock is kept: its node renews it at once, or at its next rescan.
const GRACE: Duration = Duration::from_secs(30);

/// How many single files are read before all of them are.
const MOST_NAMES: usize = 1024;

/// The lease watch. All changes that one read finds come together.
pub(super) fn stream(store: LocalSubnetManager) -> LeaseStream {
    let watcher = Watcher {
        changes: Changes::new(store.0.folder.clone()),
        jumps: store.0.options.clock.jumps(),
        grace: None,
        store,
        known: None,
        bad: UnreadableRecords::default(),
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
    /// The leases in force.
    known: Option<BTreeMap<String, Entry>>,
    /// All that can't be read, whatever its name.
    bad: UnreadableRecords,
    /// Whether the store could not be read since the last update.
    gap: bool,
    backoff: Backoff,
    pause: Option<Duration>,
    jumps: Jumps,
    /// Until when leases that expired in a jump of the clock are kept.
    grace: Option<BootInstant>,
}

impl Watcher {
    /// Waits for the next updates.
    async fn next(&mut self) -> Vec<LeaseUpdate> {
        loop {
            let mut news = News::All;
            if let Some(pause) = self.pause {
                tokio::select! {
                    told = self.changes.wait(pause) => news = told,
                    _ = self.jumps.next() => self.begin_grace(),
                }
            }
            self.changes.arm();
            let looked = match news {
                News::Names(names) if !self.gap && self.known.is_some() => self.look_at(names).await,
                _ => self.look_at_all().await,
            };
            let Ok(updates) = looked else {
                // The status has the reason. Known leases stay.
                self.gap = true;
                self.pause = Some(self.backoff.pause());
                continue;
            };
            self.backoff.reset();
            self.pause = Some(RESCAN);
            if !updates.is_empty() {
                return updates;
            }
        }
    }

    async fn look_at_all(&mut self) -> Result<Vec<LeaseUpdate>, SubnetError> {
        let mut scan = self.store.blocking(Store::scan).await?;
        self.keep_known(&mut scan);
        let Scan { live, bad, .. } = scan;
        let updates = match &self.known {
            Some(known) if !self.gap => {
                let updates = difference(known, &live);
                for update in &updates {
                    note_bad(&mut self.bad, update);
                }
                // Entries without the name of a lease are not compared one by one.
                if self.bad == bad { updates } else { vec![snapshot(&live, &bad)] }
            }
            _ => vec![snapshot(&live, &bad)],
        };
        (self.known, self.bad, self.gap) = (Some(live), bad, false);
        Ok(updates)
    }

    /// Reads only these names. Expired leases are left to the rescan.
    async fn look_at(&mut self, names: BTreeSet<OsString>) -> Result<Vec<LeaseUpdate>, SubnetError> {
        let found = self.store.blocking(move |store| store.look(&names)).await?;
        let mut updates = Vec::new();
        for (name, found) in found {
            let Some(known) = &mut self.known else { break };
            let update = match found {
                Found::Lease(entry, true) if known.get(&name) == Some(&entry) => continue,
                Found::Lease(entry, true) => {
                    let update = said(&entry);
                    known.insert(name, entry);
                    update
                }
                Found::Lease(_, false) => continue,
                Found::Junk(record) => LeaseUpdate::Unreadable(record),
                Found::Nothing | Found::Leftover => {
                    let was_bad = self.bad.remove(&name);
                    if known.remove(&name).is_none() && !was_bad {
                        continue;
                    }
                    LeaseUpdate::Removed(name)
                }
            };
            let is_news = note_bad(&mut self.bad, &update);
            if let LeaseUpdate::Unreadable(record) = &update {
                if !is_news {
                    continue;
                }
                self.store.0.health.name_skipped(record);
            }
            updates.push(update);
        }
        if !updates.is_empty() {
            self.store.0.health.set_unreadable(&self.bad);
        }
        Ok(updates)
    }

    fn begin_grace(&mut self) {
        self.grace = Some(self.store.0.options.clock.now() + GRACE);
    }

    /// Keeps leases for a while that expired in a jump of the clock: their nodes may have had no chance to renew them,
    /// because all agents of a host wake at the same time.
    fn keep_known(&mut self, scan: &mut Scan) {
        if self.jumps.take().is_some() {
            self.begin_grace();
        }
        // Other nodes may read the folder's clock later than this one.
        self.grace = self.grace.max(scan.clock_set.map(|at| at + RECHECK + GRACE));
        self.grace = self.grace.filter(|until| self.store.0.options.clock.now() < *until);
        if let (Some(_), Some(known)) = (self.grace, &self.known) {
            let expired = std::mem::take(&mut scan.expired).into_iter();
            scan.live.extend(expired.filter(|(name, _)| known.contains_key(name)));
        }
    }
}

fn snapshot(live: &BTreeMap<String, Entry>, bad: &UnreadableRecords) -> LeaseUpdate {
    let leases: Vec<Lease> = live.values().filter_map(Entry::lease).cloned().collect();
    LeaseUpdate::Snapshot { leases, unreadable: bad.clone() }
}

fn difference(before: &BTreeMap<String, Entry>, after: &BTreeMap<String, Entry>) -> Vec<LeaseUpdate> {
    let gone = before.keys().filter(|name| !after.contains_key(*name));
    let gone = gone.map(|name| LeaseUpdate::Removed(name.clone()));
    let put = after.iter().filter(|(name, entry)| before.get(*name) != Some(entry));
    gone.chain(put.map(|(_, entry)| said(entry))).collect()
}

/// The update for a lease's file.
fn said(entry: &Entry) -> LeaseUpdate {
    match entry {
        Entry::Record(record) => LeaseUpdate::Put(record.lease.clone()),
        Entry::Bad { record, .. } => LeaseUpdate::Unreadable(record.clone()),
    }
}

/// Applies an update to the list of unreadable entries. Returns whether the list changed.
fn note_bad(bad: &mut UnreadableRecords, update: &LeaseUpdate) -> bool {
    match update {
        LeaseUpdate::Unreadable(record) => bad.insert(UnreadableRecord::clone(record)),
        LeaseUpdate::Put(lease) => bad.contains(&lease.key) && bad.remove(&lease.key.to_string()),
        LeaseUpdate::Removed(name) => bad.remove(name),
        LeaseUpdate::Snapshot { .. } | LeaseUpdate::Recalled { .. } => false,
    }
}

/// What to read.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum News {
    /// Everything.
    All,
    /// These files below `subnets`.
    Names(BTreeSet<OsString>),
}

/// Waits until the folder should be read again.
pub(super) struct Changes {
    folder: Folder,
    inotify: Option<Watched>,
}

impl Changes {
    pub(super) fn new(folder: Folder) -> Self {
        Self { folder, inotify: None }
    }

    /// Starts to watch before a read, so that no change is missed between the two. If that fails, the rescan finds
    /// changes.
    pub(super) fn arm(&mut self) {
        if self.inotify.is_none() {
            match Watched::new(&self.folder) {
                Ok(watched) => self.inotify = Some(watched),
                Err(error) => debug!(%error, "no inotify watch; changes are found by the rescan"),
            }
        }
    }

    /// Waits for a change, but no longer than `limit`.
    pub(super) async fn wait(&mut self, limit: Duration) -> News {
        if self.inotify.is_none() {
            self.arm();
            if self.inotify.is_some() {
                // The folder appeared after the read began, and earlier changes were not watched.
                return News::All;
            }
        }
        let Some(watched) = &self.inotify else {
            tokio::time::sleep(limit).await;
            return News::All;
        };
        match tokio::time::timeout(limit, watched.changed()).await {
            Ok(Ok(news)) => news,
            Ok(Err(_)) => {
                // The path names another folder now.
                self.inotify = None;
                News::All
            }
            Err(_) => News::All,
        }
    }
}

struct Watched {
    fd: AsyncFd<Fd>,
    root: WatchDescriptor,
}

/// The folder itself was removed or replaced.
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

    /// Waits for a change that matters, and takes all that have arrived. Dropping the future loses none.
    async fn changed(&self) -> Result<News, Replaced> {
        loop {
            let Ok(mut ready) = self.fd.readable().await else { return Err(Replaced) };
            let mut names = BTreeSet::new();
            let mut all = false;
            loop {
                match self.fd.get_ref().0.read_events() {
                    Ok(events) => {
                        for event in events {
                            match self.told(event)? {
                                Some(News::Names(more)) => names.extend(more),
                                Some(News::All) => all = true,
                                None => {}
                            }
                        }
                    }
                    Err(Errno::EINTR) => {}
                    Err(Errno::EAGAIN) => break,
                    Err(_) => return Err(Replaced),
                }
                if names.len() > MOST_NAMES {
                    // More events may be waiting, which are read together with this one.
                    (all, names) = (true, BTreeSet::new());
                }
            }
            ready.clear_ready();
            if all {
                return Ok(News::All);
            }
            if !names.is_empty() {
                return Ok(News::Names(names));
            }
        }
    }

    /// What to read because of an event, if anything.
    fn told(&self, event: InotifyEvent) -> Result<Option<News>, Replaced> {
        let ended = AddWatchFlags::IN_DELETE_SELF
            | AddWatchFlags::IN_MOVE_SELF
            | AddWatchFlags::IN_IGNORED
            | AddWatchFlags::IN_UNMOUNT;
        let name = event.name.unwrap_or_default();
        let bytes = name.as_bytes();
        if event.mask.intersects(ended) || event.wd == self.root && bytes == b"subnets" {
            return Err(Replaced);
        }
        if event.mask.contains(AddWatchFlags::IN_Q_OVERFLOW) {
            return Ok(Some(News::All));
        }
        if event.wd == self.root {
            return Ok((bytes == b"config").then_some(News::All));
        }
        Ok((!bytes.starts_with(b".")).then(|| News::Names(BTreeSet::from([name]))))
    }
}
