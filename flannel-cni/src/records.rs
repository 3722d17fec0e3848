//! Records, which ADD writes for DEL: the delegate's config, one file for each attachment.
//!
//! The file of `eth0` has the name of the container, as with upstream's plugin, and others have
//! `<container>:<interface>`, so that after an upgrade or a downgrade each plugin finds the other's attachments.
//!
//! A record is locked while a delegate runs with it, since the locked file is the delegate's stdin. If a runtime kills
//! ADD, the delegate goes on. DEL then waits for the delegate's end; otherwise it could free addresses that the
//! delegate is about to take.

use std::ffi::{OsStr, OsString};
use std::fs::{DirBuilder, File, TryLockError};
use std::io::{self, Seek as _, Write as _};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::args::Attachment;
use crate::error::{CniError, code};
use crate::guarded::{self, Dir};
use crate::netconf::Object;

/// The interface of upstream's file names.
const FIRST: &str = "eth0";

/// The largest record that is read, in bytes. One is as large as a network config.
const MAX_BYTES: u64 = 1 << 20;

/// The folder of records.
#[derive(Debug)]
pub struct Records {
    folder: PathBuf,
}

/// An open, locked record. The lock is released when the last process closes the file, which may be a delegate.
#[derive(Debug)]
pub struct Record {
    path: PathBuf,
    dir: Dir,
    file: File,
}

impl Records {
    /// The records in a folder, which [`save`](Self::save) creates if necessary.
    pub fn new(folder: &Path) -> Self {
        Self { folder: folder.to_owned() }
    }

    /// The path of an attachment's record.
    pub fn path(&self, attachment: &Attachment) -> PathBuf {
        self.folder.join(file_name(attachment))
    }

    /// The draft's name. It is always the same, so that DEL finds the draft of a killed ADD; no container's name begins
    /// with a dot.
    fn draft(attachment: &Attachment) -> OsString {
        format!(".{}.tmp", file_name(attachment)).into()
    }

    /// Opens the folder; `None` if there is none yet.
    fn open_dir(&self) -> Result<Option<Dir>, CniError> {
        found(Dir::open(&self.folder), &self.folder)
    }

    /// Writes a record in one step: a crash leaves the old one or the new one, never a part.
    pub fn save(&self, attachment: &Attachment, config: &Object) -> Result<Record, CniError> {
        let (path, name) = (self.path(attachment), file_name(attachment));
        let bytes = serde_json::to_vec(config).expect("a JSON object can be written");
        let write = || -> io::Result<(Dir, File)> {
            DirBuilder::new().recursive(true).mode(0o700).create(&self.folder)?;
            let dir = Dir::open(&self.folder)?;
            // An existing entry with the name is removed, even a link, so that nothing is written through it.
            dir.remove(&Self::draft(attachment))?;
            let mut draft = dir.draft(Self::draft(attachment), 0o600)?;
            // Without locks on the file system the plugin works, but DEL does not wait for a delegate.
            let _ = draft.file.try_lock();
            draft.file.write_all(&bytes)?;
            let file = draft.place(OsStr::new(&name))?;
            Ok((dir, file))
        };
        match write() {
            Ok((dir, file)) => Ok(Record { path, dir, file }),
            Err(error) => Err(CniError::io(
                format!("failed to save the delegate's config as {}", path.display()),
                &error,
            )
            .with_details("nothing was attached; the disk may be full or read-only: see `df` and `mount`")),
        }
    }

    /// Opens an attachment's own record; `None` if it has none. It waits up to `patience` for a delegate that still
    /// runs.
    pub fn open(&self, attachment: &Attachment, patience: Duration) -> Result<Option<Record>, CniError> {
        let (path, name) = (self.path(attachment), OsString::from(file_name(attachment)));
        let deadline = Instant::now() + patience;
        let Some(dir) = self.open_dir()? else { return Ok(None) };
        loop {
            let Some(file) = open(&dir, &name, &path)? else { return Ok(None) };
            match file.try_lock() {
                Err(TryLockError::WouldBlock) if Instant::now() >= deadline => return Err(busy(&path)),
                Err(TryLockError::WouldBlock) => sleep(Duration::from_millis(5)),
                // The file may have been removed or replaced during the wait.
                Ok(()) if !dir.is_at(&file, &name) => {}
                Ok(()) | Err(TryLockError::Error(_)) => return Ok(Some(Record { path, dir, file })),
            }
        }
    }

    /// Opens the record that upstream's plugin may have written for an interface other than `eth0`: the container's
    /// file. It may belong to `eth0`, so it must not be removed. `None` if there is none.
    pub fn upstreams(&self, attachment: &Attachment, patience: Duration) -> Result<Option<Record>, CniError> {
        let first = Attachment::new(attachment.container_id(), FIRST)?;
        if first == *attachment { Ok(None) } else { self.open(&first, patience) }
    }

    /// Reads an attachment's record without waiting for anybody.
    pub fn peek(&self, attachment: &Attachment) -> Result<Option<Record>, CniError> {
        let path = self.path(attachment);
        let Some(dir) = self.open_dir()? else { return Ok(None) };
        let file = open(&dir, OsStr::new(&file_name(attachment)), &path)?;
        Ok(file.map(|file| Record { path, dir, file }))
    }

    /// Removes the draft of an ADD that was killed while it wrote, but not that of a running ADD.
    pub fn remove_draft(&self, attachment: &Attachment) {
        let (draft, Ok(dir)) = (Self::draft(attachment), Dir::open(&self.folder)) else { return };
        // An entry that is not a file does not belong to a running ADD.
        let is_locked = |file: File| matches!(file.try_lock(), Err(TryLockError::WouldBlock));
        if !dir.file(&draft).is_ok_and(is_locked) {
            // If it can't be removed, the next ADD replaces it.
            let _ = dir.remove(&draft);
        }
    }

    /// All attachments that have a record, or the draft of one, in order.
    pub fn list(&self) -> Result<Vec<Attachment>, CniError> {
        let Some(dir) = self.open_dir()? else { return Ok(Vec::new()) };
        let names = dir.names().map_err(|error| CniError::io(self.folder.display(), &error))?;
        let names = names.into_iter().filter_map(|name| name.into_string().ok());
        let mut attachments: Vec<_> = names.filter_map(|name| attachment_of(&name)).collect();
        attachments.sort();
        attachments.dedup();
        Ok(attachments)
    }
}

impl Record {
    /// The delegate's config.
    pub fn config(&mut self) -> Result<Object, CniError> {
        let read = self.file.rewind().and_then(|()| guarded::read_open(&mut self.file, MAX_BYTES));
        let bytes = read.map_err(|error| match error.kind() {
            io::ErrorKind::InvalidData => damaged(&self.path, &error.to_string()),
            _ => CniError::io(format!("failed to read {}", self.path.display()), &error),
        })?;
        parse(&bytes).map_err(|problem| damaged(&self.path, &problem))
    }

    /// The file as a delegate's stdin. The delegate then has the lock, too.
    pub fn stdin(&mut self) -> Result<File, CniError> {
        let file = self.file.rewind().and_then(|()| self.file.try_clone());
        file.map_err(|error| CniError::io(format!("failed to read {}", self.path.display()), &error))
    }

    /// Removes the record, once the delegate has detached.
    pub fn remove(self) -> Result<(), CniError> {
        let name = self.path.file_name().unwrap_or_default();
        if !self.dir.is_at(&self.file, name) {
            return Ok(()); // it is gone, or another took its place
        }
        found(self.dir.remove(name), &self.path).map(drop)
    }
}

/// Reads a record; an error says what is wrong with it.
pub fn parse(bytes: &[u8]) -> Result<Object, String> {
    let config: Object = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    for key in ["name", "type"] {
        if !config.get(key).is_some_and(serde_json::Value::is_string) {
            return Err(format!("it has no {key}"));
        }
    }
    Ok(config)
}

fn file_name(attachment: &Attachment) -> String {
    match (attachment.container_id(), attachment.ifname()) {
        (container, FIRST) => container.to_owned(),
        // Neither name can have a colon in it.
        (container, ifname) => format!("{container}:{ifname}"),
    }
}

/// The attachment of a file in the folder.
fn attachment_of(name: &str) -> Option<Attachment> {
    let draft = name.strip_prefix('.').and_then(|name| name.strip_suffix(".tmp"));
    let (container, ifname) = draft.unwrap_or(name).split_once(':').unwrap_or((draft.unwrap_or(name), FIRST));
    Attachment::new(container, ifname).ok()
}

/// Opens a record. An entry that is not a regular file was not written by this plugin.
fn open(dir: &Dir, name: &OsStr, path: &Path) -> Result<Option<File>, CniError> {
    match dir.file(name) {
        Err(error) if error.kind() == io::ErrorKind::InvalidData => Err(damaged(path, &error.to_string())),
        opened => found(opened, path),
    }
}

fn damaged(path: &Path, problem: &str) -> CniError {
    let path = path.display();
    CniError::new(code::BAD_RECORD, format!("the record {path} of this attachment is damaged: {problem}"))
        .with_details(format!(
            "it can't be told what to detach. Run `rm {path}`; addresses that leak are files below \
             /var/lib/cni/networks/<network> with the container's name in them"
        ))
}

/// "Not found" as `None`.
fn found<T>(result: io::Result<T>, path: &Path) -> Result<Option<T>, CniError> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(CniError::io(path.display(), &error)),
    }
}

fn busy(path: &Path) -> CniError {
    let path = path.display();
    CniError::new(
        code::TRY_AGAIN,
        format!("a delegate is still at work on this attachment ({path} is locked)"),
    )
    .with_details(format!("the runtime will try again; `fuser -v {path}` shows the process"))
}

#[cfg(test)]
mod tests;
