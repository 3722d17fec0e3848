//! The files of the store: reading all of them, writing one atomically, and the lock. Somebody who can write to the
//! folder may have replaced any of them, so all are opened by [`crate::guarded`].

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ffi::{OsStr, OsString};
use std::fs::{File, TryLockError};
use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::atomic_file;
use crate::backoff::jitter;
use crate::clock::BootInstant;
use crate::guarded::{self, Dir, Stat};
use crate::lease::{Lease, LeaseAttrs, LeaseKey, LeaseKeyError, UnreadableRecord, UnreadableRecords};
use crate::subnet::allocate::{Listing, Occupied, Record, occupied};

/// How far clocks may differ before it is reported, and the smallest step of a clock that counts.
pub(super) const TOLERANCE: Duration = Duration::from_secs(60);
/// How long to wait for the lock. A process has it for milliseconds; one that has it longer hangs.
const LOCK_WAIT: Duration = Duration::from_secs(10);
/// The largest value that is read, in bytes.
const MAX_VALUE: u64 = LeaseAttrs::MAX_BYTES as u64;
/// The largest config that is read, in bytes. Real ones have a few hundred.
const MAX_CONFIG: u64 = 64 << 10;
const CONFIG: &str = "config";
const SUBNETS: &str = "subnets";
const LOCK: &str = ".lock";
/// The modes of a lease's file and of a reservation, which nobody may write.
const MODE: u32 = 0o600;
const RESERVED_MODE: u32 = 0o400;

/// A file that changed less than this time ago may change again without a new time stamp: the kernel's clock for files
/// moves in steps of some milliseconds.
const SETTLED: Duration = Duration::from_secs(1);

/// The content of a file below `subnets`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Entry {
    /// A lease.
    Record(Arc<Record>),
    /// An unreadable file of a lease; `occupied` has the subnets in its name.
    Bad { record: UnreadableRecord, occupied: Option<LeaseKey>, created: u64, reserved: bool },
}

/// The values that were read before, so that an unchanged file is not read again.
#[derive(Debug, Default)]
pub(super) struct Cache(HashMap<String, (Stat, Entry)>);

/// The kind of one entry below `subnets`.
#[derive(Debug)]
pub(super) enum Found {
    /// Nothing that matters.
    Nothing,
    /// A temporary file that a crash left behind.
    Leftover,
    /// Its name is not that of a lease, so it belongs to somebody else: it is reported as long as it is there, and
    /// never opened.
    Junk(UnreadableRecord),
    /// The record of a lease, and whether it is in force.
    Lease(Entry, bool),
}

/// Everything below `subnets`, by file name.
#[derive(Debug, Default)]
pub(super) struct Scan {
    /// Leases in force, readable or not.
    pub(super) live: BTreeMap<String, Entry>,
    /// All unreadable entries, whatever their names.
    pub(super) bad: UnreadableRecords,
    /// Expired leases.
    pub(super) expired: BTreeMap<String, Entry>,
    /// Temporary files that a crash left behind.
    pub(super) leftovers: Vec<String>,
    /// Leases in force that are dated in the future by the folder's clock.
    pub(super) ahead: Ahead,
    /// When the folder's clock was last found to have been set.
    pub(super) clock_set: Option<BootInstant>,
}

/// Leases that are dated in the future by the folder's clock, by more than [`TOLERANCE`].
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Ahead {
    /// How many.
    pub(super) count: usize,
    /// The one that is farthest ahead, and how far.
    pub(super) farthest: Option<(Lease, Duration)>,
}

impl Ahead {
    fn add(&mut self, lease: &Lease, by: Duration) {
        self.count += 1;
        if self.farthest.as_ref().is_none_or(|(_, farthest)| by > *farthest) {
            self.farthest = Some((lease.clone(), by));
        }
    }
}

impl Scan {
    /// Records what is wrong with an entry in force.
    fn note(&mut self, entry: &Entry, modified: SystemTime, now: SystemTime) {
        match entry {
            Entry::Bad { record, .. } => _ = self.bad.insert(record.clone()),
            Entry::Record(record) => {
                let by = modified.duration_since(now).unwrap_or_default();
                if by > TOLERANCE && !record.reserved {
                    self.ahead.add(&record.lease, by);
                }
            }
        }
    }

    /// The records in force, for the allocation.
    pub(super) fn listing(&self) -> Listing {
        let mut listing = Listing::default();
        for entry in self.live.values() {
            match entry {
                Entry::Record(record) => listing.records.push(Record::clone(record)),
                Entry::Bad { occupied: Some(key), created, .. } => {
                    listing.taken.push(Occupied { key: *key, created: *created });
                }
                Entry::Bad { occupied: None, .. } => {}
            }
        }
        listing
    }
}

/// The folder that holds `config` and `subnets`.
#[derive(Debug, Clone)]
pub(super) struct Folder {
    pub(super) root: PathBuf,
    pub(super) ttl: Duration,
    /// Whether others may have write permission.
    pub(super) allow_shared: bool,
}

impl Folder {
    pub(super) fn config_file(&self) -> PathBuf {
        self.root.join(CONFIG)
    }

    pub(super) fn subnets(&self) -> PathBuf {
        self.root.join(SUBNETS)
    }

    pub(super) fn lock_file(&self) -> PathBuf {
        self.root.join(LOCK)
    }

    fn open(&self) -> io::Result<Dir> {
        let root = Dir::open(&self.root)?;
        self.check(&root)?;
        Ok(root)
    }

    /// Opens the folder of a store. A folder without `config` is an error, never an empty store: the file system may
    /// not be mounted yet.
    fn open_store(&self) -> io::Result<Dir> {
        let root = self.open()?;
        match root.stat(OsStr::new(CONFIG))? {
            Some(_) => Ok(root),
            None => Err(io::ErrorKind::NotFound.into()),
        }
    }

    /// Opens the folder of the records.
    fn open_subnets(&self, root: &Dir) -> io::Result<Dir> {
        let subnets = root.dir(OsStr::new(SUBNETS))?;
        self.check(&subnets)?;
        Ok(subnets)
    }

    /// Refuses a folder that others can write to, since they could redirect the traffic of this host's pods.
    fn check(&self, dir: &Dir) -> io::Result<()> {
        if self.allow_shared {
            return Ok(());
        }
        let Some(who) = dir.others_who_write()? else { return Ok(()) };
        let root = self.root.display();
        Err(io::Error::new(
            io::ErrorKind::PermissionDenied,
            format!(
                "others can write to the store's folder, and so redirect the traffic of all pods: {who}; run `chown root \
                 {root} {root}/subnets; chmod go-w {root} {root}/subnets`, or start flanneld with \
                 --local-store-allow-shared if all who can write there may do that (a share that maps root to \
                 another user, say)"
            ),
        ))
    }

    /// Reads the config.
    pub(super) fn config(&self) -> io::Result<String> {
        guarded::text(self.open()?.read(OsStr::new(CONFIG), MAX_CONFIG)?)
    }

    /// Whether there is a folder of records.
    pub(super) fn has_subnets(&self) -> io::Result<bool> {
        Ok(self.open()?.stat(OsStr::new(SUBNETS))?.is_some())
    }

    /// Reads all records, with their state at a time of the folder's clock.
    pub(super) fn scan(&self, cache: &mut Cache, now: SystemTime) -> io::Result<Scan> {
        let subnets = self.open_subnets(&self.open_store()?)?;
        let mut scan = Scan::default();
        let mut known = Cache::default();
        for file in subnets.names()? {
            let Some(stat) = subnets.stat(&file)? else { continue };
            let name = file.to_string_lossy().into_owned();
            let seen = cache.0.remove(&name);
            match self.look_at(&subnets, &file, &stat, seen, &mut known, now)? {
                Found::Nothing => {}
                Found::Leftover => scan.leftovers.push(name),
                Found::Junk(record) => _ = scan.bad.insert(record),
                Found::Lease(entry, false) => _ = scan.expired.insert(name, entry),
                Found::Lease(entry, true) => {
                    scan.note(&entry, stat.modified, now);
                    scan.live.insert(name, entry);
                }
            }
        }
        *cache = known;
        Ok(scan)
    }

    /// Reads only these names.
    pub(super) fn look(
        &self,
        cache: &mut Cache,
        names: &BTreeSet<OsString>,
        now: SystemTime,
    ) -> io::Result<Vec<(String, Found)>> {
        let subnets = self.open_subnets(&self.open_store()?)?;
        let found = names.iter().map(|file| {
            let name = file.to_string_lossy().into_owned();
            let seen = cache.0.remove(&name);
            let found = match subnets.stat(file)? {
                Some(stat) => self.look_at(&subnets, file, &stat, seen, cache, now)?,
                None => Found::Nothing,
            };
            Ok((name, found))
        });
        found.collect()
    }

    /// Reads one name; `seen` is its earlier metadata and content. The result is cached if a later change is sure to
    /// change the metadata.
    fn look_at(
        &self,
        subnets: &Dir,
        file: &OsStr,
        stat: &Stat,
        seen: Option<(Stat, Entry)>,
        cache: &mut Cache,
        now: SystemTime,
    ) -> io::Result<Found> {
        let name = &*file.to_string_lossy();
        // An entry that is not a regular file was not written by an agent: it is reported as long as it is there.
        let stale = stat.is_file && self.left(stat, now).is_zero();
        if name.starts_with('.') {
            return Ok(if stale && is_temporary(name) { Found::Leftover } else { Found::Nothing });
        }
        if let Err(error @ LeaseKeyError::Form(_)) = name.parse::<LeaseKey>() {
            return Ok(Found::Junk(UnreadableRecord { key: name.to_owned(), reason: error.to_string() }));
        }
        let entry = match seen {
            Some((seen, entry)) if seen == *stat => entry,
            _ => match gone_is_none(read_entry(subnets, file, name, stat))? {
                Some(entry) => entry,
                None => return Ok(Found::Nothing),
            },
        };
        if is_settled(stat, now) {
            cache.0.insert(name.to_owned(), (*stat, entry.clone()));
        }
        Ok(Found::Lease(entry, !stale || is_reserved(stat)))
    }

    /// Reads one record with the time until it expires; `None` if there is no such file.
    pub(super) fn read(&self, key: LeaseKey, now: SystemTime) -> io::Result<Option<(Entry, Duration)>> {
        let (root, name) = (self.open_store()?, key.to_string());
        let Some(subnets) = gone_is_none(self.open_subnets(&root))? else { return Ok(None) };
        let Some(stat) = subnets.stat(OsStr::new(&name))? else { return Ok(None) };
        let entry = gone_is_none(read_entry(&subnets, OsStr::new(&name), &name, &stat))?;
        Ok(entry.map(|entry| (entry, self.left(&stat, now))))
    }

    /// How long a file stays in force. One that is dated in the future stays until that time plus the `ttl`.
    fn left(&self, stat: &Stat, now: SystemTime) -> Duration {
        match now.duration_since(stat.modified) {
            Ok(age) => self.ttl.saturating_sub(age),
            Err(ahead) => self.ttl + ahead.duration(),
        }
    }

    /// Writes a record to a draft, syncs it, renames it to its key and syncs the folder. The file is dated now by the
    /// folder's clock, or at this time. Returns when it was created.
    pub(super) fn write(
        &self,
        key: LeaseKey,
        attrs: &LeaseAttrs,
        reserved: bool,
        at: Option<SystemTime>,
    ) -> io::Result<u64> {
        let subnets = self.open_subnets(&self.open()?)?;
        let name = key.to_string();
        let mode = if reserved { RESERVED_MODE } else { MODE };
        // The leading dot distinguishes it from a key.
        let mut draft = atomic_file::beside(&subnets, &name, mode)?;
        draft.file.write_all(attrs.to_json().as_bytes())?;
        guarded::touch(&draft.file, at)?;
        created(&draft.place(OsStr::new(&name))?)
    }

    /// Renews a record by setting its file time: to now by the folder's clock, or to this time.
    pub(super) fn touch(&self, key: LeaseKey, at: Option<SystemTime>) -> io::Result<()> {
        let subnets = self.open_subnets(&self.open()?)?;
        guarded::touch(&subnets.file(OsStr::new(&key.to_string()))?, at)
    }

    /// Reads the folder's clock, by dating an existing file. It creates none.
    pub(super) fn time(&self, at: Option<SystemTime>) -> io::Result<SystemTime> {
        let file = self.open()?.file_to_write(OsStr::new(LOCK))?;
        guarded::touch(&file, at)?;
        file.metadata()?.modified()
    }

    /// Deletes records. One that is gone already is a success.
    pub(super) fn remove<'a>(&self, names: impl IntoIterator<Item = &'a String>) -> io::Result<()> {
        let subnets = self.open_subnets(&self.open()?)?;
        let mut any = false;
        for name in names {
            any |= subnets.remove(OsStr::new(name))?;
        }
        if any { subnets.sync() } else { Ok(()) }
    }

    /// Makes the folder of the records if it is not there.
    pub(super) fn create_subnets(&self) -> io::Result<()> {
        let root = self.open()?;
        if root.make_dir(OsStr::new(SUBNETS), 0o700)? { root.sync() } else { Ok(()) }
    }

    /// Takes the lock of all writers, which is released when the file is dropped.
    pub(super) fn lock(&self, gives_up: impl Fn() -> bool) -> io::Result<File> {
        let until = Instant::now() + LOCK_WAIT;
        loop {
            let root = self.open()?;
            let file = root.file_or_new(OsStr::new(LOCK), MODE)?;
            match file.try_lock() {
                // Somebody may have deleted the file meanwhile, and others may have locked a new one.
                Ok(()) if root.is_at(&file, OsStr::new(LOCK)) && !gives_up() => return Ok(file),
                Ok(()) | Err(TryLockError::WouldBlock) => {}
                Err(TryLockError::Error(error)) => return Err(error),
            }
            if gives_up() {
                return Err(io::Error::new(io::ErrorKind::Interrupted, "nobody waits for it any more"));
            }
            if Instant::now() >= until {
                let text = format!("another process holds it for more than {} s", LOCK_WAIT.as_secs());
                return Err(io::Error::new(io::ErrorKind::TimedOut, text));
            }
            thread::sleep(jitter(Duration::from_millis(5), 0.8));
        }
    }
}

/// Whether a name is that of a draft of `write`. Other names with a dot belong to somebody else (such as `.nfs...`).
fn is_temporary(name: &str) -> bool {
    let key = name.strip_prefix('.').and_then(|name| name.rsplit_once('.'));
    key.is_some_and(|(key, _)| occupied(key).is_some())
}

/// A file without owner-write permission is a reservation.
fn is_reserved(stat: &Stat) -> bool {
    stat.mode & 0o200 == 0
}

fn is_settled(stat: &Stat, now: SystemTime) -> bool {
    now.duration_since(stat.changed).is_ok_and(|age| age > SETTLED)
}

/// The order of creation: the birth time of the file in nanoseconds since 1970, else its change time.
fn created(file: &File) -> io::Result<u64> {
    let meta = file.metadata()?;
    Ok(nanos(meta.created().or_else(|_| meta.modified()).unwrap_or(UNIX_EPOCH)))
}

fn nanos(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| u64::try_from(since.as_nanos()).unwrap_or(u64::MAX))
}

fn read_entry(subnets: &Dir, file: &OsStr, name: &str, stat: &Stat) -> io::Result<Entry> {
    let bad = |reason: String, created| Entry::Bad {
        record: UnreadableRecord { key: name.to_owned(), reason },
        occupied: occupied(name),
        created,
        reserved: is_reserved(stat),
    };
    let not_opened = nanos(stat.modified);
    if !stat.is_file {
        let named = name.parse::<LeaseKey>().map(|_| "it is not a regular file".to_owned());
        return Ok(bad(named.unwrap_or_else(|error| error.to_string()), not_opened));
    }
    let opened = subnets.file(file).and_then(|file| Ok((created(&file)?, file)));
    let (created, mut opened) = match opened {
        Ok(opened) => opened,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(error),
        Err(error) => return Ok(bad(format!("it can't be read: {error}"), not_opened)),
    };
    if let Err(error) = name.parse::<LeaseKey>() {
        return Ok(bad(error.to_string(), created));
    }
    let text = match guarded::read_open(&mut opened, MAX_VALUE) {
        Ok(text) => text,
        Err(error) => return Ok(bad(format!("it can't be read: {error}"), created)),
    };
    Ok(match Lease::decode(name, &text, created) {
        Ok(lease) => Entry::Record(Arc::new(Record { lease, reserved: is_reserved(stat) })),
        Err(record) => bad(record.reason, created),
    })
}

fn gone_is_none<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        other => other.map(Some),
    }
}
