//! Opens files in folders that others may write to.
//!
//! Somebody who can write to a folder can replace a file there by a link to any file of the host, by a FIFO on which
//! `open` waits for ever, or by an endless file. So this module opens a name relative to the descriptor of its folder,
//! never through a link, without waiting, checks the type by the descriptor, and reads up to a limit. It creates a file
//! under an unused name (`O_EXCL`), and renames it.
//!
//! The library and the CNI plugin both compile this file, through a symlink, since the plugin depends on no crate of
//! the agent.

use std::ffi::{OsStr, OsString};
use std::fs::{File, Metadata, Permissions};
use std::io::{self, Read as _};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, openat, renameat};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat, fstatat, futimens, mkdirat};
use nix::sys::time::TimeSpec;
use nix::unistd::{UnlinkatFlags, geteuid, unlinkat};

/// How many times to try to open or create a file that somebody else creates or deletes at the same time.
const TRIES: u32 = 100;

/// An open folder. Files in it are opened relative to its descriptor, even if its path leads elsewhere later.
#[derive(Debug)]
pub struct Dir(OwnedFd);

impl Dir {
    /// Opens a folder. Links in its path are followed.
    pub fn open(path: &Path) -> io::Result<Self> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        Ok(Self(retry(|| openat(AT_FDCWD, path, flags, Mode::empty()))?))
    }

    /// Opens the folder of a file, and returns the name of the file in it.
    pub fn of(path: &Path) -> io::Result<(Self, &OsStr)> {
        let name = path.file_name().ok_or_else(|| unfit("its path has no file name"))?;
        let folder = path.parent().filter(|folder| *folder != Path::new("")).unwrap_or(Path::new("."));
        Ok((Self::open(folder)?, name))
    }

    /// Opens a folder in this one; a link is refused.
    pub fn dir(&self, name: &OsStr) -> io::Result<Self> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        match retry(|| openat(&self.0, name, flags, Mode::empty())) {
            Err(Errno::ENOTDIR | Errno::ELOOP) => {
                let why = "it is not a folder, and links are not followed";
                Err(io::Error::new(io::ErrorKind::NotADirectory, why))
            }
            opened => Ok(Self(opened?)),
        }
    }

    /// Makes a folder in this one. Returns whether it is new.
    pub fn make_dir(&self, name: &OsStr, mode: u32) -> io::Result<bool> {
        match mkdirat(&self.0, name, Mode::from_bits_truncate(mode)) {
            Err(Errno::EEXIST) => Ok(false),
            done => done.map(|()| true).map_err(io::Error::from),
        }
    }

    /// Opens a regular file for reading.
    pub fn file(&self, name: &OsStr) -> io::Result<File> {
        open_regular(&self.0, name, OFlag::O_RDONLY | OFlag::O_NOFOLLOW)
    }

    /// Opens a regular file for writing without truncating it; creates it if there is none.
    pub fn file_or_new(&self, name: &OsStr, mode: u32) -> io::Result<File> {
        for _ in 0..TRIES {
            match self.file_to_write(name) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                opened => return opened,
            }
            match self.create(name, mode) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                created => return created,
            }
        }
        Err(io::Error::new(io::ErrorKind::TimedOut, "it is made and deleted again and again"))
    }

    /// Opens an existing regular file for writing, without truncating it.
    pub fn file_to_write(&self, name: &OsStr) -> io::Result<File> {
        open_regular(&self.0, name, OFlag::O_RDWR | OFlag::O_NOFOLLOW)
    }

    /// Creates a file under an unused name, with exactly this mode.
    pub fn create(&self, name: &OsStr, mode: u32) -> io::Result<File> {
        let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let file = File::from(retry(|| openat(&self.0, name, flags, Mode::S_IRUSR | Mode::S_IWUSR))?);
        // `fchmod` is not subject to the umask.
        file.set_permissions(Permissions::from_mode(mode))?;
        Ok(file)
    }

    /// Creates a file that gets its final name once it is complete. Until then it has the name `beside`; it is removed
    /// if it is dropped before.
    pub fn draft(&self, beside: OsString, mode: u32) -> io::Result<Draft<'_>> {
        let file = self.create(&beside, mode)?;
        Ok(Draft { dir: self, name: Some(beside), file })
    }

    /// Reads a regular file of at most `limit` bytes.
    pub fn read(&self, name: &OsStr, limit: u64) -> io::Result<Vec<u8>> {
        read_open(&mut self.file(name)?, limit)
    }

    /// The metadata of a name, without following a link; `None` if there is no such name.
    pub fn stat(&self, name: &OsStr) -> io::Result<Option<Stat>> {
        match retry(|| fstatat(&self.0, name, AtFlags::AT_SYMLINK_NOFOLLOW)) {
            Ok(stat) => Ok(Some(Stat::of(&stat))),
            Err(Errno::ENOENT) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Whether the name still refers to this open file.
    pub fn is_at(&self, file: &File, name: &OsStr) -> bool {
        let (Ok(open), Ok(Some(there))) = (file.metadata(), self.stat(name)) else { return false };
        (open.dev(), open.ino()) == (there.device, there.inode)
    }

    /// The names of all entries.
    pub fn names(&self) -> io::Result<Vec<OsString>> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let mut dir = nix::dir::Dir::openat(&self.0, ".", flags, Mode::empty())?;
        let mut names = Vec::new();
        for entry in dir.iter() {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            if name != b"." && name != b".." {
                names.push(OsStr::from_bytes(name).to_owned());
            }
        }
        Ok(names)
    }

    /// Renames an entry of this folder, and replaces the one with the new name.
    pub fn rename(&self, from: &OsStr, to: &OsStr) -> io::Result<()> {
        Ok(renameat(&self.0, from, &self.0, to)?)
    }

    /// Removes a name; of a link the link, not its target. Returns whether it was there.
    pub fn remove(&self, name: &OsStr) -> io::Result<bool> {
        match unlinkat(&self.0, name, UnlinkatFlags::NoRemoveDir) {
            Ok(()) => Ok(true),
            Err(Errno::ENOENT) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Syncs the folder, so that new names survive a crash of the host.
    pub fn sync(&self) -> io::Result<()> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        File::from(openat(&self.0, ".", flags, Mode::empty())?).sync_all()
    }

    /// Who can write to this folder besides root and the user of this process; `None` if nobody can.
    pub fn others_who_write(&self) -> io::Result<Option<String>> {
        let stat = fstat(&self.0)?;
        let mode = stat.st_mode & 0o7777;
        Ok(if stat.st_uid != 0 && stat.st_uid != geteuid().as_raw() {
            Some(format!("it belongs to user {}", stat.st_uid))
        } else if mode & 0o002 != 0 {
            Some(format!("everybody can write there (mode {mode:04o})"))
        } else if mode & 0o020 != 0 {
            Some(format!("its group {} can write there (mode {mode:04o})", stat.st_gid))
        } else {
            None
        })
    }
}

/// A file that is not complete yet.
#[derive(Debug)]
pub struct Draft<'a> {
    dir: &'a Dir,
    /// Its name until it is in place.
    name: Option<OsString>,
    /// The file.
    pub file: File,
}

impl Draft<'_> {
    /// Whether the draft still has its name, which another process could remove.
    pub fn is_there(&self) -> bool {
        self.name.as_ref().is_some_and(|name| self.dir.is_at(&self.file, name))
    }

    /// Leaves it behind, as a killed process does.
    #[cfg(test)]
    pub fn abandon(mut self) {
        self.name = None;
    }

    /// Puts the file in place in one step. A crash at any point leaves the old file or the new one, never a part.
    pub fn place(mut self, name: &OsStr) -> io::Result<File> {
        self.file.sync_all()?;
        let file = self.file.try_clone()?;
        if let Some(beside) = &self.name {
            self.dir.rename(beside, name)?;
        }
        self.name = None;
        self.dir.sync()?;
        Ok(file)
    }
}

impl Drop for Draft<'_> {
    fn drop(&mut self) {
        if let Some(name) = &self.name {
            // A draft that can't be removed is never read, and the next one has another name.
            let _ = self.dir.remove(name);
        }
    }
}

/// The metadata of a name. The file need not be open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stat {
    /// The device of the file system.
    pub device: u64,
    /// The inode number.
    pub inode: u64,
    /// The permissions.
    pub mode: u32,
    /// The size in bytes.
    pub size: u64,
    /// The time of the last change, of content or attributes.
    pub changed: SystemTime,
    /// The time of the last change of the content, which a program can set.
    pub modified: SystemTime,
    /// Whether it is a regular file.
    pub is_file: bool,
}

impl Stat {
    fn of(stat: &FileStat) -> Self {
        Self {
            device: stat.st_dev,
            inode: stat.st_ino,
            mode: stat.st_mode & 0o7777,
            size: u64::try_from(stat.st_size).unwrap_or(0),
            changed: time(stat.st_ctime, stat.st_ctime_nsec),
            modified: time(stat.st_mtime, stat.st_mtime_nsec),
            is_file: stat.st_mode & SFlag::S_IFMT.bits() == SFlag::S_IFREG.bits(),
        }
    }
}

/// Times before 1970, and those that this machine can't represent, become 1970.
fn time(seconds: i64, nanos: i64) -> SystemTime {
    let (Ok(seconds), Ok(nanos)) = (u64::try_from(seconds), u32::try_from(nanos)) else { return UNIX_EPOCH };
    UNIX_EPOCH.checked_add(Duration::new(seconds, nanos)).unwrap_or(UNIX_EPOCH)
}

/// Reads a regular file of at most `limit` bytes; a link is refused.
pub fn read(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    read_open(&mut open_regular(AT_FDCWD, path, OFlag::O_RDONLY | OFlag::O_NOFOLLOW)?, limit)
}

/// Reads a regular file of at most `limit` bytes, through links. For files that only an operator names and that
/// tools keep as links: Kubernetes projects each key of a secret or a `ConfigMap` as one.
pub fn read_linked(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    Ok(read_linked_with(path, limit)?.0)
}

/// As [`read_linked`], with the file's metadata.
pub fn read_linked_with(path: &Path, limit: u64) -> io::Result<(Vec<u8>, Metadata)> {
    let mut file = open_regular(AT_FDCWD, path, OFlag::O_RDONLY)?;
    Ok((read_open(&mut file, limit)?, file.metadata()?))
}

/// Reads an open file from its present position, up to `limit` bytes.
pub fn read_open(file: &mut File, limit: u64) -> io::Result<Vec<u8>> {
    // A sparse file is refused by its size, before it is read.
    if file.metadata()?.len() > limit {
        return Err(too_large(limit));
    }
    let mut bytes = Vec::new();
    file.take(limit.saturating_add(1)).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit { Err(too_large(limit)) } else { Ok(bytes) }
}

/// The bytes of a file as text; an error if they are not UTF-8.
pub fn text(bytes: Vec<u8>) -> io::Result<String> {
    String::from_utf8(bytes).map_err(|_| unfit("it is no UTF-8 text"))
}

/// Sets the modification time of a file: to `at`, or to the present time of its file system's clock (on NFS the
/// server's).
pub fn touch(file: &File, at: Option<SystemTime>) -> io::Result<()> {
    match at {
        Some(at) => file.set_modified(at),
        None => Ok(futimens(file, &TimeSpec::UTIME_OMIT, &TimeSpec::UTIME_NOW)?),
    }
}

fn open_regular<P: AsRef<Path>>(at: impl AsFd, name: P, flags: OFlag) -> io::Result<File> {
    // Opening a FIFO waits for its other end, and a terminal may become ours.
    let all = flags | OFlag::O_NONBLOCK | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
    let opened = retry(|| openat(at.as_fd(), name.as_ref(), all, Mode::empty()));
    let file = File::from(opened.map_err(|error| match error {
        Errno::ELOOP if flags.contains(OFlag::O_NOFOLLOW) => {
            unfit("it is a symbolic link, which is not followed")
        }
        // A socket, or a FIFO to write to that nobody reads; a folder to write to.
        Errno::ENXIO | Errno::EISDIR => unfit(NOT_REGULAR),
        error => error.into(),
    })?);
    if file.metadata()?.is_file() { Ok(file) } else { Err(unfit(NOT_REGULAR)) }
}

const NOT_REGULAR: &str = "it is not a regular file";

fn too_large(limit: u64) -> io::Error {
    unfit(format!("it is larger than {limit} bytes"))
}

fn unfit(why: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why.into())
}

fn retry<T>(call: impl Fn() -> nix::Result<T>) -> nix::Result<T> {
    loop {
        match call() {
            Err(Errno::EINTR) => {}
            done => return done,
        }
    }
}
