//! The files of the store: reading them all, writing one in one step, and the lock.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::lease::{BadRecord, BadRecords, Lease, LeaseAttrs, LeaseKey, LeaseKeyError};
use crate::subnet::allocate::{Listing, Record, Taken, occupied};

/// How long to wait for the lock. A holder works for milliseconds; who takes longer hangs.
const LOCK_WAIT: Duration = Duration::from_secs(10);
/// The largest value that is read, in bytes.
const MAX_VALUE: u64 = LeaseAttrs::MAX_BYTES as u64;
/// The mode of a lease's file, and that of a reservation, which nobody may write.
const MODE: u32 = 0o600;
const RESERVED_MODE: u32 = 0o400;

/// A file that changed so short a time ago may change again without another time stamp: the kernel's clock for
/// files moves in steps of some milliseconds.
const SETTLED: Duration = Duration::from_secs(1);

/// What tells that a file may have changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    inode: u64,
    size: u64,
    changed: (i64, i64),
    modified: (i64, i64),
}

impl Stamp {
    fn of(meta: &fs::Metadata) -> Self {
        Self {
            inode: meta.ino(),
            size: meta.size(),
            changed: (meta.ctime(), meta.ctime_nsec()),
            modified: (meta.mtime(), meta.mtime_nsec()),
        }
    }

    fn is_settled(&self, now: SystemTime) -> bool {
        let (seconds, nanos) = self.changed;
        let since = Duration::new(u64::try_from(seconds).unwrap_or(0), u32::try_from(nanos).unwrap_or(0));
        now.duration_since(UNIX_EPOCH + since).is_ok_and(|age| age > SETTLED)
    }
}

/// What a file below `subnets` says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Entry {
    /// A lease.
    Record(Arc<Record>),
    /// A lease's file that can't be read; `occupied` is what its name takes.
    Bad { record: BadRecord, occupied: Option<LeaseKey>, created: u64, reserved: bool },
}

/// The values read before, so that an unchanged file is not read again.
#[derive(Debug, Default)]
pub(super) struct Cache(HashMap<String, (Stamp, Entry)>);

/// What one name below `subnets` is.
#[derive(Debug)]
pub(super) enum Found {
    /// Nothing that matters.
    Nothing,
    /// A temporary file that a crash left behind.
    Leftover,
    /// It has not the name of a lease. That is the operator's: it is reported for as long as it is there, and never
    /// opened.
    Junk(BadRecord),
    /// The record of a lease, and whether it is in force.
    Lease(Entry, bool),
}

/// All that is below `subnets`, by file name.
#[derive(Debug, Default)]
pub(super) struct Scan {
    /// Leases in force, whether they can be read or not.
    pub(super) live: BTreeMap<String, Entry>,
    /// All that can't be read, whatever its name.
    pub(super) bad: BadRecords,
    /// Leases that nobody renewed in time.
    pub(super) expired: BTreeMap<String, Entry>,
    /// Temporary files that a crash left behind.
    pub(super) leftovers: Vec<String>,
}

impl Scan {
    /// The records in force, as the allocation wants them.
    pub(super) fn listing(&self) -> Listing {
        let mut listing = Listing::default();
        for entry in self.live.values() {
            match entry {
                Entry::Record(record) => listing.records.push(Record::clone(record)),
                Entry::Bad { occupied: Some(key), created, .. } => {
                    listing.taken.push(Taken { key: *key, created: *created });
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
}

impl Folder {
    pub(super) fn config_file(&self) -> PathBuf {
        self.root.join("config")
    }

    pub(super) fn subnets(&self) -> PathBuf {
        self.root.join("subnets")
    }

    fn file(&self, key: LeaseKey) -> PathBuf {
        self.subnets().join(key.to_string())
    }

    /// Reads all records. A folder without `config` is no store but, say, the place where one will be
    /// mounted: an error, never an empty listing.
    pub(super) fn scan(&self, cache: &mut Cache, now: SystemTime) -> io::Result<Scan> {
        fs::metadata(self.config_file())?;
        let mut scan = Scan::default();
        let mut known = Cache::default();
        for file in fs::read_dir(self.subnets())? {
            let file = file?.file_name();
            let name = file.to_string_lossy().into_owned();
            let seen = cache.0.remove(&name);
            match self.look_at(&file, &name, seen, &mut known, now)? {
                Found::Nothing => {}
                Found::Leftover => scan.leftovers.push(name),
                Found::Junk(record) => _ = scan.bad.insert(record),
                Found::Lease(entry, false) => _ = scan.expired.insert(name, entry),
                Found::Lease(entry, true) => {
                    if let Entry::Bad { record, .. } = &entry {
                        scan.bad.insert(record.clone());
                    }
                    scan.live.insert(name, entry);
                }
            }
        }
        *cache = known;
        Ok(scan)
    }

    /// Looks at one name alone.
    pub(super) fn look(&self, cache: &mut Cache, file: &OsStr, now: SystemTime) -> io::Result<Found> {
        fs::metadata(self.config_file())?;
        let name = file.to_string_lossy();
        let seen = cache.0.remove(&*name);
        self.look_at(file, &name, seen, cache, now)
    }

    /// Looks at a name; `seen` is what it was before. What is sure to be seen if it changes is kept in the cache.
    fn look_at(
        &self,
        file: &OsStr,
        name: &str,
        seen: Option<(Stamp, Entry)>,
        cache: &mut Cache,
        now: SystemTime,
    ) -> io::Result<Found> {
        let path = self.subnets().join(file);
        let Some(meta) = gone_is_none(fs::symlink_metadata(&path))? else { return Ok(Found::Nothing) };
        let stale = self.left(&meta, now).is_zero();
        if name.starts_with('.') {
            return Ok(if stale && is_temporary(name) { Found::Leftover } else { Found::Nothing });
        }
        if let Err(error @ LeaseKeyError::Form(_)) = name.parse::<LeaseKey>() {
            return Ok(Found::Junk(BadRecord { key: name.to_owned(), reason: error.to_string() }));
        }
        let stamp = Stamp::of(&meta);
        let entry = match seen {
            Some((seen, entry)) if seen == stamp => entry,
            _ => match gone_is_none(read_entry(&path, name, &meta))? {
                Some(entry) => entry,
                None => return Ok(Found::Nothing),
            },
        };
        if stamp.is_settled(now) {
            cache.0.insert(name.to_owned(), (stamp, entry.clone()));
        }
        Ok(Found::Lease(entry, !stale || is_reserved(&meta)))
    }

    /// Reads one record with the time it has left; `None` if there is no such file.
    pub(super) fn read(&self, key: LeaseKey, now: SystemTime) -> io::Result<Option<(Entry, Duration)>> {
        fs::metadata(self.config_file())?;
        let path = self.file(key);
        let Some(meta) = gone_is_none(fs::symlink_metadata(&path))? else { return Ok(None) };
        let entry = gone_is_none(read_entry(&path, &key.to_string(), &meta))?;
        Ok(entry.map(|entry| (entry, self.left(&meta, now))))
    }

    /// How long a file is in force. One dated in the future is so until that time and a `ttl` more.
    fn left(&self, meta: &fs::Metadata, now: SystemTime) -> Duration {
        let modified = meta.modified().unwrap_or(UNIX_EPOCH);
        match now.duration_since(modified) {
            Ok(age) => self.ttl.saturating_sub(age),
            Err(ahead) => self.ttl + ahead.duration(),
        }
    }

    /// Writes a record beside, syncs it, renames it to its key and syncs the folder. Returns when it was
    /// created.
    pub(super) fn write(&self, key: LeaseKey, attrs: &LeaseAttrs, reserved: bool) -> io::Result<u64> {
        let subnets = self.subnets();
        // The leading dot keeps it from being taken for a key.
        let prefix = format!(".{key}.");
        let mut file = tempfile::Builder::new().prefix(&prefix).tempfile_in(&subnets)?;
        file.write_all(attrs.to_json().as_bytes())?;
        let mode = if reserved { RESERVED_MODE } else { MODE };
        file.as_file().set_permissions(Permissions::from_mode(mode))?;
        file.as_file().sync_all()?;
        let created = created(&file.as_file().metadata()?);
        file.persist(self.file(key)).map_err(|error| error.error)?;
        sync(&subnets)?;
        Ok(created)
    }

    /// Renews a record by its file time.
    pub(super) fn touch(&self, key: LeaseKey, now: SystemTime) -> io::Result<()> {
        File::open(self.file(key))?.set_modified(now)
    }

    /// Deletes records. One that is gone already is no failure.
    pub(super) fn remove<'a>(&self, names: impl IntoIterator<Item = &'a String>) -> io::Result<()> {
        let subnets = self.subnets();
        let mut any = false;
        for name in names {
            any |= gone_is_none(fs::remove_file(subnets.join(name)))?.is_some();
        }
        if any { sync(&subnets) } else { Ok(()) }
    }

    /// Makes the folder of the records if it is not there.
    pub(super) fn create_subnets(&self) -> io::Result<()> {
        match DirBuilder::new().mode(0o700).create(self.subnets()) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
            Err(_) => Ok(()),
            Ok(()) => sync(&self.root),
        }
    }

    /// Takes the lock that all writers take, and holds it until the file is dropped.
    pub(super) fn lock(&self) -> io::Result<File> {
        let path = self.root.join(".lock");
        let until = Instant::now() + LOCK_WAIT;
        let mut options = OpenOptions::new();
        options.create(true).write(true).truncate(false).mode(MODE);
        loop {
            let file = options.open(&path)?;
            match file.try_lock() {
                // Somebody may have deleted the file meanwhile, and others hold the lock on a new one.
                Ok(()) if is_at(&file, &path) => return Ok(file),
                Ok(()) | Err(fs::TryLockError::WouldBlock) => {}
                Err(fs::TryLockError::Error(error)) => return Err(error),
            }
            if Instant::now() >= until {
                let text = format!("another process holds it for more than {} s", LOCK_WAIT.as_secs());
                return Err(io::Error::new(io::ErrorKind::TimedOut, text));
            }
            thread::sleep(Duration::from_millis(fastrand::u64(1..10)));
        }
    }
}

/// Whether a name is one that `write` makes. Others with a dot belong to somebody else (`.nfs...`, say).
fn is_temporary(name: &str) -> bool {
    let key = name.strip_prefix('.').and_then(|name| name.rsplit_once('.'));
    key.is_some_and(|(key, _)| occupied(key).is_some())
}

/// A file without owner-write permission is a reservation.
fn is_reserved(meta: &fs::Metadata) -> bool {
    meta.mode() & 0o200 == 0
}

/// The order of creation: the birth time of the file in nanoseconds since 1970, else its change time.
fn created(meta: &fs::Metadata) -> u64 {
    let time = meta.created().or_else(|_| meta.modified()).unwrap_or(UNIX_EPOCH);
    time.duration_since(UNIX_EPOCH).map_or(0, |since| u64::try_from(since.as_nanos()).unwrap_or(u64::MAX))
}

fn read_entry(path: &Path, name: &str, meta: &fs::Metadata) -> io::Result<Entry> {
    let created = created(meta);
    let bad = |reason: String| Entry::Bad {
        record: BadRecord { key: name.to_owned(), reason },
        occupied: occupied(name),
        created,
        reserved: is_reserved(meta),
    };
    if let Err(error) = name.parse::<LeaseKey>() {
        return Ok(bad(error.to_string()));
    }
    if !meta.is_file() {
        return Ok(bad("it is not a regular file".to_owned()));
    }
    let mut text = Vec::new();
    let read = File::open(path).and_then(|file| file.take(MAX_VALUE + 1).read_to_end(&mut text));
    match read {
        Ok(size) if size as u64 > MAX_VALUE => {
            return Ok(bad(format!("it is larger than {MAX_VALUE} bytes")));
        }
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(error),
        Err(error) => return Ok(bad(format!("it can't be read: {error}"))),
    }
    Ok(match Lease::decode(name, &text, created) {
        Ok(lease) => Entry::Record(Arc::new(Record { lease, reserved: is_reserved(meta) })),
        Err(record) => bad(record.reason),
    })
}

fn gone_is_none<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        other => other.map(Some),
    }
}

fn is_at(file: &File, path: &Path) -> bool {
    let (Ok(open), Ok(there)) = (file.metadata(), fs::metadata(path)) else { return false };
    (open.dev(), open.ino()) == (there.dev(), there.ino())
}

fn sync(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}
